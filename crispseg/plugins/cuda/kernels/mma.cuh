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

// wgmma is of compute capability 9.0 alone: in code for sm_90a, which runs nowhere else.
#if defined(CS_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CS_HAVE_WGMMA 1
#else
#define CS_HAVE_WGMMA 0
#endif

// Matrix descriptor of wgmma for rows of 64 bytes along k, pieces swizzled by (row / 2) % 4 (the hardware's 64-byte
// swizzle; rows start at a multiple of 512): address / 16 in bits 0-13, the leading offset, unused with a swizzle, in
// 16-29, bytes from 8 rows to the next 8 / 16 in 32-45, the kind of swizzle in 62-63.
CS_DEVICE cs_u64 wgmma_descriptor(unsigned address) {
  return (cs_u64)(address >> 4 & 0x3fffu) | (cs_u64)1 << 16 | (cs_u64)(512 >> 4) << 32 | (cs_u64)2 << 62;
}

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

// Copies happen as late as the device may do them, when the thread waits for their group; what was there is gone from the
// start.
struct EmulatedCopies {
  struct Copy {
    SharedAddress to;
    const void *from;
    int group;
    bool live;
  } queue[64];
  int first, last, group;
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
CS_DEVICE void emulated_copies_landed();
template <int PENDING> CS_DEVICE void copy_async_wait() {
  EmulatedCopies &c = emulated_copies();
  for (; c.first < c.last && c.queue[c.first % 64].group < c.group - PENDING; ++c.first) {
    const EmulatedCopies::Copy &now = c.queue[c.first % 64];
    for (int i = 0; i < 16; ++i) now.to[i] = now.live ? ((const char *)now.from)[i] : 0;
    emulated_copies_landed();
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
// wgmma runs when its group is waited for, as late as it may, on what shared memory holds then; where that is not what it
// held at the start, somebody wrote too early or too late. Copies that wgmma reads need a fence between the two.
struct EmulatedWgmma {
  struct Product {
    void *sum;
    cs_u64 a, b;
    int group;
    bool i8;
    unsigned hash;
  } queue[16];
  int first, last, group;
  bool unfenced;
};
CS_DEVICE EmulatedWgmma &emulated_wgmma() {
  static EmulatedWgmma threads[128];
  return threads[threadIdx.x & 127];
}
CS_DEVICE void emulated_copies_landed() { emulated_wgmma().unfenced = true; }
CS_DEVICE const char *emulated_operand(cs_u64 descriptor, int row, int byte) {
  unsigned at = ((unsigned)descriptor & 0x3fffu) << 4;
  at += row / 8 * ((unsigned)(descriptor >> 32 & 0x3fffu) << 4) + row % 8 * 64 + byte;
  if (descriptor >> 62 == 2) at ^= (at >> 7 & 3u) << 4;
  else __trap();
  return (const char *)cs_emu::runtime->dynamic_shared() + at;
}
CS_DEVICE unsigned emulated_word(cs_u64 descriptor, int row, int byte) {
  unsigned word;
  memcpy(&word, emulated_operand(descriptor, row, byte), 4);
  return word;
}
// Of what this thread's part of the product reads.
CS_DEVICE unsigned emulated_hash(cs_u64 a, cs_u64 b) {
  unsigned hash = 2166136261u;
  for (int row = 0; row < 128; ++row)
    for (int byte = 0; byte < 32; byte += 4) {
      if (row < 64) hash = (hash ^ emulated_word(a, row, byte)) * 16777619u;
      hash = (hash ^ emulated_word(b, row, byte)) * 16777619u;
    }
  return hash;
}
template <class Sum> CS_DEVICE void emulated_product(Sum *sum, cs_u64 a, cs_u64 b) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 & 3;
  for (int i = 0; i < 64; ++i) {
    const int row = 16 * warp + lane / 4 + (i & 2) * 4, column = i / 4 * 8 + lane % 4 * 2 + (i & 1);
    for (int byte = 0; byte < 32; byte += 4)
      emulated_dot(&sum[i], emulated_word(a, row, byte), emulated_word(b, column, byte));
  }
}
CS_DEVICE unsigned wgmma_address(SharedAddress p) { return (unsigned)(p - (char *)cs_emu::runtime->dynamic_shared()); }
CS_DEVICE void wgmma_async_fence() { emulated_wgmma().unfenced = false; }
CS_DEVICE void wgmma_start() {}
template <class Sum> CS_DEVICE void wgmma_hold(Sum (&)[64]) {}
template <bool I8>
CS_DEVICE void wgmma_64x128(typename MmaTypes<I8>::Sum (&sum)[64], cs_u64 a, cs_u64 b) {
  EmulatedWgmma &w = emulated_wgmma();
  if (w.unfenced || w.last - w.first == 16) __trap();
  w.queue[w.last++ % 16] = {sum, a, b, w.group, I8, emulated_hash(a, b)};
}
CS_DEVICE void wgmma_commit() { ++emulated_wgmma().group; }
template <int PENDING> CS_DEVICE void wgmma_wait() {
  EmulatedWgmma &w = emulated_wgmma();
  for (; w.first < w.last && w.queue[w.first % 16].group < w.group - PENDING; ++w.first) {
    const EmulatedWgmma::Product &p = w.queue[w.first % 16];
    if (p.hash != emulated_hash(p.a, p.b)) __trap();
    if (p.i8) emulated_product((int *)p.sum, p.a, p.b);
    else emulated_product((float *)p.sum, p.a, p.b);
  }
  if (w.first == w.last) w.first = w.last = 0;
}

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

#if CS_HAVE_WGMMA
CS_DEVICE unsigned wgmma_address(SharedAddress p) { return p; }
// What this thread wrote to shared memory (copies that have landed too) is there for wgmma.
CS_DEVICE void wgmma_async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
CS_DEVICE void wgmma_start() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
CS_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> CS_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define WGMMA_8(c, i) c(sum[i]), c(sum[i + 1]), c(sum[i + 2]), c(sum[i + 3]), c(sum[i + 4]), c(sum[i + 5]), c(sum[i + 6]), c(sum[i + 7])
#define WGMMA_64(c) \
  WGMMA_8(c, 0), WGMMA_8(c, 8), WGMMA_8(c, 16), WGMMA_8(c, 24), WGMMA_8(c, 32), WGMMA_8(c, 40), WGMMA_8(c, 48), WGMMA_8(c, 56)
#define WGMMA_REGISTERS                                                                                               \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"   \
  "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,"  \
  "%58,%59,%60,%61,%62,%63}"
#define WGMMA_FLOAT(v) "+f"(v)
#define WGMMA_INT(v) "+r"(v)
CS_DEVICE void wgmma_instruction(float (&sum)[64], cs_u64 a, cs_u64 b) {
  asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
               WGMMA_REGISTERS ", %64, %65, p, 1, 1, 0, 0; }"
               : WGMMA_64(WGMMA_FLOAT)
               : "l"(a), "l"(b));
}
CS_DEVICE void wgmma_instruction(int (&sum)[64], cs_u64 a, cs_u64 b) {
  asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
               WGMMA_REGISTERS ", %64, %65, p; }"
               : WGMMA_64(WGMMA_INT)
               : "l"(a), "l"(b));
}
// Sums before the first product and after the last wait: the compiler must not move what reads or writes them across.
CS_DEVICE void wgmma_hold(float (&sum)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}
CS_DEVICE void wgmma_hold(int (&sum)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+r"(sum[i])::"memory");
}
// sum (64 x 128) += a (64 x 32 bytes) * b (32 bytes x 128) by the four warps of a block, asynchronously. Of thread
// 32 w + l: rows 16 w + l / 4 (+ 8 for the second pair of four), columns 8 (i / 4) + 2 (l % 4) + i % 2.
template <bool I8>
CS_DEVICE void wgmma_64x128(typename MmaTypes<I8>::Sum (&sum)[64], cs_u64 a, cs_u64 b) {
  wgmma_instruction(sum, a, b);
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
