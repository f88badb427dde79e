// Tensor-core and asynchronous-copy instructions as functions. On the device they are inline PTX, so that neither
// NVRTC nor nvcc needs a header (mma.h and cuda_fp16.h are not part of the NVRTC packages). On the host (CS_EMULATE)
// the lanes of a warp exchange their operands through a scratch array and compute what the PTX manual says, fragment
// layouts included.
//
// fp16 and int8 tiles are the same bytes: a row of A or a column of B is a run of 16-byte pieces along k (8 halves or
// 16 int8), and the lane of mma.sync that holds bytes 4t..4t+3 of a piece is the same for both types. Only the
// instruction differs.
#pragma once
#include "base.cuh"

template <bool I8> struct MmaTypes { using Sum = float; };
template <> struct MmaTypes<true> { using Sum = int; };

#if defined(CS_EMULATE) || CS_ARCH >= 800
#define CS_HAVE_MMA 1  // mma.sync m16n8k16, cp.async
#else
#define CS_HAVE_MMA 0
#endif

struct alignas(16) Words4 {
  unsigned w[4];
};
struct alignas(8) Words2 {
  unsigned w[2];
};

#if defined(CS_EMULATE)
// ---- host ----
typedef char *SharedAddress;
CS_DEVICE SharedAddress shared_address(void *p) { return (char *)p; }
CS_DEVICE void keep_address(SharedAddress &) {}

struct EmulatedLane {
  const char *address;
  unsigned a[8], b[8];
};
// Blocks run one after the other, so one array by warp of the block is enough.
CS_DEVICE EmulatedLane *emulated_warp() {
  static EmulatedLane lanes[32][32];
  return lanes[(threadIdx.x / 32) & 31];
}
CS_DEVICE int emulated_byte(unsigned word, int i) { return (int)(signed char)(word >> (8 * i)); }
CS_DEVICE void emulated_dot(float *sum, unsigned a, unsigned b) {
  const float2 x = cs_unpack_half2(a), y = cs_unpack_half2(b);
  *sum += x.x * y.x;
  *sum += x.y * y.y;
}
CS_DEVICE void emulated_dot(int *sum, unsigned a, unsigned b) {
  for (int i = 0; i < 4; ++i) *sum += emulated_byte(a, i) * emulated_byte(b, i);
}

// Copies happen as late as the device may do them, when the thread waits for their group; what was there before is
// gone from the start.
struct EmulatedCopies {
  struct Copy {
    SharedAddress to;
    const void *from;
    int group;
    bool live;
  } queue[64];
  int first, last, group;
  bool unfenced;  // some have landed since the last fence for wgmma
};
CS_DEVICE EmulatedCopies &emulated_copies() {
  static EmulatedCopies threads[256];
  return threads[threadIdx.x & 255];
}
CS_DEVICE void copy_async_16(SharedAddress to, const void *from, bool live, bool) {
  EmulatedCopies &c = emulated_copies();
  if (c.last - c.first == 64) __trap();
  cs_emu::count_access(cs_emu::Access::copy, to, 16, live ? from : nullptr);
  c.queue[c.last++ % 64] = {to, from, c.group, live};
  memset(to, 0xa5, 16);
}
CS_DEVICE void copy_async_commit() { ++emulated_copies().group; }
template <int PENDING> CS_DEVICE void copy_async_wait() {
  EmulatedCopies &c = emulated_copies();
  for (; c.first < c.last && c.queue[c.first % 64].group < c.group - PENDING; ++c.first) {
    const EmulatedCopies::Copy &now = c.queue[c.first % 64];
    for (int i = 0; i < 16; ++i) now.to[i] = now.live ? ((const char *)now.from)[i] : 0;
    c.unfenced = true;
  }
  if (c.first == c.last) c.first = c.last = 0;
}

CS_DEVICE void load_matrices(unsigned (&r)[4], SharedAddress row) {
  EmulatedLane *lanes = emulated_warp();
  const int lane = threadIdx.x & 31;
  lanes[lane].address = row;
  cs_emu::count_access(cs_emu::Access::matrix, row, 16);
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const unsigned char *p = (const unsigned char *)lanes[8 * i + lane / 4].address + 4 * (lane % 4);
    r[i] = p[0] | p[1] << 8 | p[2] << 16 | (unsigned)p[3] << 24;
  }
  __syncwarp();
}

CS_DEVICE int shared_load_int(SharedAddress p) { return *(const int *)p; }
// Accesses of a whole warp to shared memory whose bank conflicts the tests count.
CS_DEVICE Words4 shared_load_16(const void *p) {
  cs_emu::count_access(cs_emu::Access::load, p, 16);
  return *(const Words4 *)p;
}
CS_DEVICE void shared_store_8(void *p, Words2 w) {
  cs_emu::count_access(cs_emu::Access::store, p, 8);
  *(Words2 *)p = w;
}

template <bool I8>
CS_DEVICE void mma_16x8(typename MmaTypes<I8>::Sum (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  EmulatedLane *lanes = emulated_warp();
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) lanes[lane].a[i] = a[i];
  lanes[lane].b[0] = b0;
  lanes[lane].b[1] = b1;
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * t + (i & 1), lower = i >> 1;
    for (int half = 0; half < 2; ++half)
      for (int q = 0; q < 4; ++q)
        emulated_dot(&c[i], lanes[4 * g + q].a[2 * half + lower], lanes[4 * column + q].b[half]);
  }
  __syncwarp();
}

// wmma leaves the layout of a fragment open; here lane l holds elements 8l .. 8l+7 of the 16 x 16 tile, row major (B:
// column major).
template <bool I8> CS_DEVICE void wmma_load(unsigned (&r)[I8 ? 2 : 8], SharedAddress p, int stride) {
  const int lane = threadIdx.x & 31, size = I8 ? 1 : 2;
  const char *from = p + ((lane / 2) * stride + (lane % 2) * 8) * size;
  for (int i = 0; i < 8 * size; ++i) ((char *)r)[i] = from[i];
}
template <bool I8> CS_DEVICE void wmma_load_a(unsigned (&r)[I8 ? 2 : 8], SharedAddress p, int stride) {
  wmma_load<I8>(r, p, stride);
}
template <bool I8> CS_DEVICE void wmma_load_b(unsigned (&r)[I8 ? 2 : 8], SharedAddress p, int stride) {
  wmma_load<I8>(r, p, stride);
}

template <bool I8>
CS_DEVICE void wmma_16x16(typename MmaTypes<I8>::Sum (&c)[8], const unsigned (&a)[I8 ? 2 : 8],
                          const unsigned (&b)[I8 ? 2 : 8]) {
  constexpr int words = I8 ? 2 : 4;
  EmulatedLane *lanes = emulated_warp();
  const int lane = threadIdx.x & 31;
  for (int i = 0; i < words; ++i) {
    lanes[lane].a[i] = a[i];
    lanes[lane].b[i] = b[i];
  }
  __syncwarp();
  for (int i = 0; i < 8; ++i) {
    const int row = lane / 2, column = (lane % 2) * 8 + i;
    for (int half = 0; half < 2; ++half)
      for (int w = 0; w < words; ++w) emulated_dot(&c[i], lanes[2 * row + half].a[w], lanes[2 * column + half].b[w]);
  }
  __syncwarp();
}
template <bool I8> CS_DEVICE void wmma_store(SharedAddress p, const typename MmaTypes<I8>::Sum (&c)[8], int stride) {
  const int lane = threadIdx.x & 31;
  typename MmaTypes<I8>::Sum *to = (typename MmaTypes<I8>::Sum *)p + (lane / 2) * stride + (lane % 2) * 8;
  for (int i = 0; i < 8; ++i) to[i] = c[i];
}

#else
// ---- device ----
typedef unsigned SharedAddress;
CS_DEVICE SharedAddress shared_address(const void *p) {
  unsigned a;
  asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(a) : "l"(p));
  return a;
}
CS_DEVICE void keep_address(SharedAddress &a) { a = __shfl_sync(CS_FULL_MASK, a, cs_lane()); }  // as cs_keep
CS_DEVICE int shared_load_int(SharedAddress p) {
  int v;
  asm volatile("ld.shared.s32 %0, [%1];" : "=r"(v) : "r"(p) : "memory");
  return v;
}
CS_DEVICE Words4 shared_load_16(const void *p) { return *(const Words4 *)p; }
CS_DEVICE void shared_store_8(void *p, Words2 w) { *(Words2 *)p = w; }

#if CS_HAVE_MMA
// 16 bytes to shared memory, zeros when not live (`from` is then not read). near: keep the line in L1.
CS_DEVICE void copy_async_16(SharedAddress to, const void *from, bool live, bool near) {
  const int bytes = live ? 16 : 0;
  if (near)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
CS_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> CS_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8-row matrices of 16-byte rows; lane l gives the address of row l % 8 of matrix l / 8.
CS_DEVICE void load_matrices(unsigned (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

CS_DEVICE void mma_instruction(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
CS_DEVICE void mma_instruction(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c (16 x 8) += a (16 x 32 bytes, row major) * b (32 bytes x 8, column major).
template <bool I8>
CS_DEVICE void mma_16x8(typename MmaTypes<I8>::Sum (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  mma_instruction(c, a, b0, b1);
}
#endif

// wmma m16n16k16 (sm_70 fp16, sm_72 int8). Strides in elements; rows of fp16 start at multiples of 32 bytes, of int8
// at 8.
template <bool I8> struct Wmma;
template <> struct Wmma<false> {
  CS_DEVICE void load_a(unsigned (&r)[8], SharedAddress p, int stride) {
    asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {%0,%1,%2,%3,%4,%5,%6,%7}, [%8], %9;"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7])
                 : "r"(p), "r"(stride)
                 : "memory");
  }
  CS_DEVICE void load_b(unsigned (&r)[8], SharedAddress p, int stride) {
    asm volatile("wmma.load.b.sync.aligned.col.m16n16k16.shared.f16 {%0,%1,%2,%3,%4,%5,%6,%7}, [%8], %9;"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]), "=r"(r[6]), "=r"(r[7])
                 : "r"(p), "r"(stride)
                 : "memory");
  }
  CS_DEVICE void multiply(float (&c)[8], const unsigned (&a)[8], const unsigned (&b)[8]) {
    asm("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11,%12,%13,%14,%15}, "
        "{%16,%17,%18,%19,%20,%21,%22,%23}, {%0,%1,%2,%3,%4,%5,%6,%7};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]), "r"(a[6]), "r"(a[7]), "r"(b[0]), "r"(b[1]),
          "r"(b[2]), "r"(b[3]), "r"(b[4]), "r"(b[5]), "r"(b[6]), "r"(b[7]));
  }
  CS_DEVICE void store(SharedAddress p, const float (&c)[8], int stride) {
    asm volatile("wmma.store.d.sync.aligned.row.m16n16k16.shared.f32 [%0], {%1,%2,%3,%4,%5,%6,%7,%8}, %9;"
                 :
                 : "r"(p), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]), "f"(c[4]), "f"(c[5]), "f"(c[6]), "f"(c[7]),
                   "r"(stride)
                 : "memory");
  }
};
template <> struct Wmma<true> {
  CS_DEVICE void load_a(unsigned (&r)[2], SharedAddress p, int stride) {
    asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.shared.s8 {%0,%1}, [%2], %3;"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(p), "r"(stride)
                 : "memory");
  }
  CS_DEVICE void load_b(unsigned (&r)[2], SharedAddress p, int stride) {
    asm volatile("wmma.load.b.sync.aligned.col.m16n16k16.shared.s8 {%0,%1}, [%2], %3;"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(p), "r"(stride)
                 : "memory");
  }
  CS_DEVICE void multiply(int (&c)[8], const unsigned (&a)[2], const unsigned (&b)[2]) {
    asm("wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.s8.s32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, "
        "{%0,%1,%2,%3,%4,%5,%6,%7};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]), "+r"(c[4]), "+r"(c[5]), "+r"(c[6]), "+r"(c[7])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]));
  }
  CS_DEVICE void store(SharedAddress p, const int (&c)[8], int stride) {
    asm volatile("wmma.store.d.sync.aligned.row.m16n16k16.shared.s32 [%0], {%1,%2,%3,%4,%5,%6,%7,%8}, %9;"
                 :
                 : "r"(p), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4]), "r"(c[5]), "r"(c[6]), "r"(c[7]),
                   "r"(stride)
                 : "memory");
  }
};
template <bool I8> CS_DEVICE void wmma_load_a(unsigned (&r)[I8 ? 2 : 8], SharedAddress p, int stride) {
  Wmma<I8>::load_a(r, p, stride);
}
template <bool I8> CS_DEVICE void wmma_load_b(unsigned (&r)[I8 ? 2 : 8], SharedAddress p, int stride) {
  Wmma<I8>::load_b(r, p, stride);
}
template <bool I8>
CS_DEVICE void wmma_16x16(typename MmaTypes<I8>::Sum (&c)[8], const unsigned (&a)[I8 ? 2 : 8],
                          const unsigned (&b)[I8 ? 2 : 8]) {
  Wmma<I8>::multiply(c, a, b);
}
template <bool I8> CS_DEVICE void wmma_store(SharedAddress p, const typename MmaTypes<I8>::Sum (&c)[8], int stride) {
  Wmma<I8>::store(p, c, stride);
}
#endif
