// Pairs of kernels: name_right, and name_wrong with one mistake that only compiled code can show. They are what
// tests/plugins/test_ptx_mistakes.py runs; what a pair computes stands there. Each reads `in` and writes `out`, words
// of 32 bits; blocks have 32, 64 or 128 threads.
#include "wgmma.cuh"

#define MISTAKE(name)                                                                         \
  CS_GLOBAL void name##_right(const unsigned *in, unsigned *out) { name<false>(in, out); }    \
  CS_GLOBAL void name##_wrong(const unsigned *in, unsigned *out) { name<true>(in, out); }

CS_DEVICE void leave(unsigned *out, const unsigned (&v)[4]) {
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = v[i];
}

// ---- addresses ----
template <bool WRONG> CS_DEVICE void m_load_16(const unsigned *in, unsigned *out) {
  const Words4 v = *(const Words4 *)(in + 4 * threadIdx.x + (WRONG ? 2 : 0));
  leave(out, v.w);
}
MISTAKE(m_load_16)

template <bool WRONG> CS_DEVICE void m_shared_load_16(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  for (int i = 0; i < 5; ++i) tile[5 * threadIdx.x + i] = in[5 * threadIdx.x + i];
  __syncwarp();
  const Words4 v = shared_load_16(tile + 4 * threadIdx.x + (WRONG ? 1 : 0));
  leave(out, v.w);
}
MISTAKE(m_shared_load_16)

// in[1023] is 0; the memory ends after 4 words a thread.
template <bool WRONG> CS_DEVICE void m_shared_range(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  unsigned v[4];
  for (int i = 0; i < 4; ++i) tile[4 * threadIdx.x + i] = in[4 * threadIdx.x + i];
  for (int i = 0; i < 4; ++i) v[i] = tile[4 * threadIdx.x + i + (int)in[1023]];
  if (WRONG && threadIdx.x == 31) tile[4 * blockDim.x + in[1023]] = 1;
  leave(out, v);
}
MISTAKE(m_shared_range)

template <bool WRONG> CS_DEVICE void m_unwritten(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  if (!WRONG || threadIdx.x != 7)
    for (int i = 0; i < 4; ++i) tile[4 * threadIdx.x + i] = in[4 * threadIdx.x + i];
  __syncwarp();
  unsigned v[4];
  for (int i = 0; i < 4; ++i) v[i] = tile[4 * threadIdx.x + i];
  leave(out, v);
}
MISTAKE(m_unwritten)

// ---- who waits for whom: 64 threads ----
template <bool WRONG> CS_DEVICE void m_barrier(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  unsigned v[4];
  for (int i = 0; i < 4; ++i) tile[4 * threadIdx.x + i] = in[4 * threadIdx.x + i];
  if (!WRONG) cs_sync();
  for (int i = 0; i < 4; ++i) v[i] = tile[4 * (threadIdx.x ^ 32) + i];
  leave(out, v);
}
MISTAKE(m_barrier)

// The barrier between reading a tile and filling it again.
template <bool WRONG> CS_DEVICE void m_refill(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  unsigned v[4];
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    tile[threadIdx.x] = in[4 * threadIdx.x + i];
    cs_sync();
    v[i] = tile[threadIdx.x ^ 32];
    if (!WRONG) cs_sync();
  }
  leave(out, v);
}
MISTAKE(m_refill)

// Lanes of one warp: the next instruction of another lane may come first all the same.
template <bool WRONG> CS_DEVICE void m_warp_order(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  unsigned v[4];
  for (int i = 0; i < 4; ++i) tile[4 * threadIdx.x + i] = in[4 * threadIdx.x + i];
  if (!WRONG) __syncwarp();
  for (int i = 0; i < 4; ++i) v[i] = tile[4 * (threadIdx.x ^ 1) + i];
  leave(out, v);
}
MISTAKE(m_warp_order)

CS_DEVICE void keep_rest(unsigned *out, unsigned v) {
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = v;
}

// Lane 31 is elsewhere.
template <bool WRONG> CS_DEVICE void m_missing_lane(const unsigned *in, unsigned *out) {
  unsigned v = in[threadIdx.x];
  if (WRONG && threadIdx.x % 32 == 31) out[0] = 0;
  else v = __shfl_sync(CS_FULL_MASK, v, 5);
  __syncwarp();
  keep_rest(out, v);
}
MISTAKE(m_missing_lane)

// Lanes 0 to 15 ask lane 20, which is not among them.
template <bool WRONG> CS_DEVICE void m_source_lane(const unsigned *in, unsigned *out) {
  unsigned v = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) v = __shfl_sync(0xffffu, v, WRONG ? 20 : 5);
  else v = in[5];
  keep_rest(out, v);
}
MISTAKE(m_source_lane)

// ---- asynchronous copies ----
#if CS_HAVE_MMA
template <bool WRONG> CS_DEVICE void m_copy_wait(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  const SharedAddress to = shared_address(tile + 4 * threadIdx.x);
  copy_async_16(to, in + 4 * threadIdx.x, true, false);
  copy_async_commit();
  if (!WRONG) copy_async_wait<0>();
  __syncwarp();
  const Words4 v = shared_load_16(tile + 4 * threadIdx.x);
  leave(out, v.w);
}
MISTAKE(m_copy_wait)

// Two groups; both are read.
template <bool WRONG> CS_DEVICE void m_copy_group(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  for (int i = 0; i < 2; ++i) {
    const int at = 4 * (threadIdx.x + i * blockDim.x);
    copy_async_16(shared_address(tile + at), in + at, true, false);
    copy_async_commit();
  }
  copy_async_wait<WRONG ? 1 : 0>();
  __syncwarp();
  Words4 v = shared_load_16(tile + 4 * threadIdx.x);
  const Words4 w = shared_load_16(tile + 4 * (threadIdx.x + blockDim.x));
  for (int i = 0; i < 4; ++i) v.w[i] += w.w[i];
  leave(out, v.w);
}
MISTAKE(m_copy_group)

// A copy that no group holds is not waited for.
template <bool WRONG> CS_DEVICE void m_copy_commit(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  copy_async_16(shared_address(tile + 4 * threadIdx.x), in + 4 * threadIdx.x, true, true);
  if (!WRONG) copy_async_commit();
  copy_async_wait<0>();
  __syncwarp();
  const Words4 v = shared_load_16(tile + 4 * threadIdx.x);
  leave(out, v.w);
}
MISTAKE(m_copy_commit)

// Waiting for one's own copies says nothing of another warp's: 64 threads.
template <bool WRONG> CS_DEVICE void m_copy_barrier(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  copy_async_16(shared_address(tile + 4 * threadIdx.x), in + 4 * threadIdx.x, true, false);
  copy_async_commit();
  copy_async_wait<0>();
  if (!WRONG) cs_sync();
  const Words4 v = shared_load_16(tile + 4 * (threadIdx.x ^ 32));
  leave(out, v.w);
}
MISTAKE(m_copy_barrier)

template <bool WRONG> CS_DEVICE void m_copy_place(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  copy_async_16(shared_address(tile + 4 * threadIdx.x + (WRONG ? 2 : 0)), in + 4 * threadIdx.x, true, false);
  copy_async_commit();
  copy_async_wait<0>();
  const Words4 v = shared_load_16(tile + 4 * threadIdx.x);
  leave(out, v.w);
}
MISTAKE(m_copy_place)

// ---- ldmatrix: 32 rows of 16 bytes, row r = words 4 r ..; thread l gets words of rows 8 i + l / 4 ----
CS_DEVICE SharedAddress rows_of(const unsigned *in, unsigned *tile, int row) {
  const int other = 4 * (threadIdx.x ^ 1);
  for (int i = 0; i < 4; ++i) tile[other + i] = in[other + i];
  return shared_address(tile + 4 * row);
}
template <bool WRONG> CS_DEVICE void m_matrix_rows(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  const SharedAddress at = rows_of(in, tile, threadIdx.x ^ (WRONG ? 8 : 0));
  __syncwarp();
  unsigned v[4];
  load_matrices(v, at);
  leave(out, v);
}
MISTAKE(m_matrix_rows)

template <bool WRONG> CS_DEVICE void m_matrix_place(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  const SharedAddress at = rows_of(in, tile, threadIdx.x) + (WRONG && threadIdx.x == 9 ? 8 : 0);
  __syncwarp();
  unsigned v[4];
  load_matrices(v, at);
  leave(out, v);
}
MISTAKE(m_matrix_place)

template <bool WRONG> CS_DEVICE void m_matrix_order(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  const SharedAddress at = rows_of(in, tile, threadIdx.x);
  if (!WRONG) __syncwarp();
  unsigned v[4];
  load_matrices(v, at);
  leave(out, v);
}
MISTAKE(m_matrix_order)

template <bool WRONG> CS_DEVICE void m_matrix_transposed(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  const SharedAddress at = rows_of(in, tile, threadIdx.x);
  __syncwarp();
  unsigned v[4];
  if (WRONG)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(at)
                 : "memory");
  else load_matrices(v, at);
  leave(out, v);
}
MISTAKE(m_matrix_transposed)

// ---- mma.sync: a = 16 rows of 32 bytes at in, b = 8 columns of 32 bytes at in + 128; fragments by the manual ----
template <bool I8, bool SWAP_A, bool SWAP_B> CS_DEVICE void product(const unsigned *in, unsigned *out) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const unsigned a[4] = {in[8 * g + t], in[8 * (g + 8) + t], in[8 * g + t + 4], in[8 * (g + 8) + t + 4]};
  const unsigned b[2] = {in[128 + 8 * g + t], in[128 + 8 * g + t + 4]};
  const unsigned x[4] = {a[0], a[SWAP_A ? 2 : 1], a[SWAP_A ? 1 : 2], a[3]};
  typename MmaTypes<I8>::Sum c[4] = {0, 0, 0, 0};
  mma_16x8<I8>(c, x, b[SWAP_B ? 1 : 0], b[SWAP_B ? 0 : 1]);
  for (int i = 0; i < 4; ++i) out[8 * (g + i / 2 * 8) + 2 * t + i % 2] = *(const unsigned *)&c[i];
}
template <bool WRONG>
CS_DEVICE void m_mma_a(const unsigned *in, unsigned *out) {
  product<false, WRONG, false>(in, out);
}
MISTAKE(m_mma_a)
template <bool WRONG>
CS_DEVICE void m_mma_b(const unsigned *in, unsigned *out) {
  product<false, false, WRONG>(in, out);
}
MISTAKE(m_mma_b)
template <bool WRONG>
CS_DEVICE void m_mma_i8(const unsigned *in, unsigned *out) {
  product<true, WRONG, false>(in, out);
}
MISTAKE(m_mma_i8)

// in[1023] is 0, which the compiler does not know.
template <bool WRONG> CS_DEVICE void m_mma_divergent(const unsigned *in, unsigned *out) {
  if (!WRONG || threadIdx.x < 16 + in[1023]) product<false, false, false>(in, out);
}
MISTAKE(m_mma_divergent)
#endif

// ---- wmma: 16 rows of 32 bytes at in, 16 columns at in + 128, in shared memory `pitch` bytes apart ----
template <bool BY_PITCH, bool WRONG> CS_DEVICE void wmma_product(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned, tile);
  constexpr int pitch = WRONG && BY_PITCH ? 40 : 48, start = WRONG && !BY_PITCH ? 4 : 0;
  for (int i = threadIdx.x; i < 256; i += 32) tile[start + i / 8 * (pitch / 2) + i % 8] = in[i];
  __syncwarp();
  unsigned a[8], b[8];
  float c[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  const SharedAddress at = shared_address(tile + start);
  wmma_load_a<false>(a, at, pitch);
  wmma_load_b<false>(b, at + 16 * 2 * pitch, pitch);
  wmma_16x16<false>(c, a, b);
  __syncwarp();
  wmma_store<false>(shared_address(tile), c, 16);
  __syncwarp();
  for (int i = threadIdx.x; i < 256; i += 32) out[i] = tile[i];
}
template <bool WRONG>
CS_DEVICE void m_wmma_pitch(const unsigned *in, unsigned *out) {
  wmma_product<true, WRONG>(in, out);
}
MISTAKE(m_wmma_pitch)
template <bool WRONG> CS_DEVICE void m_wmma_start(const unsigned *in, unsigned *out) {
  wmma_product<false, WRONG>(in, out);
}
MISTAKE(m_wmma_start)

// ---- wgmma, 128 threads: 64 rows of 64 bytes at in, 128 columns at in + 1024; out = 64 x 128 floats ----
#if CS_HAVE_WGMMA
enum { NO_FENCE = 1, NO_BARRIER, NO_START, NO_WAIT, OVERWRITTEN, STRIDE, SWIZZLE, PLACE };

template <int MISTAKEN> CS_DEVICE void wgmma_product(const unsigned *in, unsigned *out) {
  CS_DYNAMIC_SHARED(unsigned char, memory);
  SharedAddress tile = shared_address(memory);
  tile += -tile & (CONV_WGMMA_ALIGN - 1);
  for (int i = threadIdx.x; i < 192 * 4; i += 128) {
    const int row = i / 4, piece = i % 4;
    copy_async_16(tile + row * 64 + ((piece ^ (row >> 1 & 3)) << 4), in + 4 * i, true, false);
  }
  copy_async_commit();
  float sum[64];
  for (int i = 0; i < 64; ++i) sum[i] = 0;
  wgmma_hold(sum);
  copy_async_wait<0>();
  if (MISTAKEN != NO_FENCE) wgmma_async_fence();
  if (MISTAKEN != NO_BARRIER) cs_sync();
  cs_u64 a = wgmma_descriptor(tile), b = wgmma_descriptor(tile + 64 * 64);
  if (MISTAKEN == STRIDE) b ^= (cs_u64)(512 >> 4 ^ 256 >> 4) << 32;
  if (MISTAKEN == SWIZZLE) a ^= (cs_u64)1 << 62;
  if (MISTAKEN == PLACE) a += 16 / 16;
  if (MISTAKEN != NO_START) wgmma_start();
  for (int k = 0; k < 2; ++k) wgmma_64x128<false>(sum, a + k * 32 / 16, b + k * 32 / 16);
  wgmma_commit();
  if (MISTAKEN == OVERWRITTEN && threadIdx.x == 99)
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(tile + 64 * 64), "r"(0x3c003c00) : "memory");
  if (MISTAKEN != NO_WAIT) wgmma_wait<0>();
  wgmma_hold(sum);
  for (int i = 0; i < 64; ++i) {
    const int row = 16 * cs_warp() + cs_lane() / 4 + (i & 2) * 4, column = i / 4 * 8 + cs_lane() % 4 * 2 + i % 2;
    out[128 * row + column] = __float_as_uint(sum[i]);
  }
  if (MISTAKEN == NO_WAIT) wgmma_wait<0>();
}
CS_GLOBAL void m_wgmma_right(const unsigned *in, unsigned *out) { wgmma_product<0>(in, out); }
#define MISTAKE_WGMMA(name, kind) \
  CS_GLOBAL void name(const unsigned *in, unsigned *out) { wgmma_product<kind>(in, out); }
MISTAKE_WGMMA(m_wgmma_fence_wrong, NO_FENCE)
MISTAKE_WGMMA(m_wgmma_barrier_wrong, NO_BARRIER)
MISTAKE_WGMMA(m_wgmma_start_wrong, NO_START)
MISTAKE_WGMMA(m_wgmma_wait_wrong, NO_WAIT)
MISTAKE_WGMMA(m_wgmma_overwritten_wrong, OVERWRITTEN)
MISTAKE_WGMMA(m_wgmma_stride_wrong, STRIDE)
MISTAKE_WGMMA(m_wgmma_swizzle_wrong, SWIZZLE)
MISTAKE_WGMMA(m_wgmma_place_wrong, PLACE)
#endif
