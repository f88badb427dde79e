// The register tile that the direct convolution (conv.isa.cpp) and the Winograd one (winograd.isa.cpp) share: kRows
// rows by kVectors vectors of output columns, and the epilogue. For *.isa.cpp files only: all has internal linkage.
#ifndef CRISPSEG_CONV_TILE_H
#define CRISPSEG_CONV_TILE_H
#if defined(CS_ISA_AVX512)
#include <immintrin.h>
#endif

#include "conv_kernels.h"

namespace crispseg {

namespace {

#if defined(CS_ISA_AVX512)
// 24 sums of 32 registers; 4 weights and a spread input beside them. As fast in the L1 cache as 12 rows of 2 vectors,
// but a step reads 10 vectors instead of 14, a row is read once for 64 columns instead of 32, its pointers fit into the
// integer registers, and fewer taps are computed that some of the rows lack: 1.04 to 1.11 times as fast.
constexpr int kRows = 6, kVectors = 4;
#elif defined(CS_ISA_AVX2)
constexpr int kRows = 6, kVectors = 2;  // 12 sums of 16 registers
#elif defined(__aarch64__)
constexpr int kRows = 6, kVectors = 4;  // 24 sums of 32 registers
#else
constexpr int kRows = 6, kVectors = 2;  // 12 sums of 16 registers
#endif
constexpr int kWidth = kVectors * kLanes;
static_assert(kWidth <= kMaxWidth && kVectors <= 4, "room for a panel's columns, and cases for its vectors");
constexpr int kMaxSteps = 288;

// Memory that is needed soon: every tile of a pass fetches its share into the L2 cache.
struct Ahead {
  const char *at;
  int64_t bytes;

  // Takes the first `part` bytes off.
  inline Ahead take(int64_t part) {
    const Ahead taken{at, part < bytes ? part : bytes};
    at += taken.bytes;
    bytes -= taken.bytes;
    return taken;
  }

  inline void fetch(int64_t tile, int64_t tiles) const {
    const int64_t share = (bytes / tiles + 63) / 64 * 64;
    const int64_t end = (tile + 1) * share < bytes ? (tile + 1) * share : bytes;
    for (int64_t i = tile * share; i < end; i += 64) __builtin_prefetch(at + i, 0, 2);
  }
};

struct Chunk {
  int tap0, tap1, c0, c1;
  bool first;
};

// sums = or += the chunk's part of `taps`. rows: [kRows][K]; w: the panel's weights [K][cin][NV * kLanes]. The chunk is
// summed by itself first: rounding errors then grow with its length and the number of chunks, not with their product.
template <int NV>
__attribute__((noinline)) void accumulate(const float *const *rows, uint32_t taps, const Chunk &chunk, int K, int cin,
                                          const float *w, float *sums, bool fresh) {
  constexpr int width = NV * kLanes;
  vecf s[kRows][NV];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) s[r][v] = vecf{};
  const int64_t steps = chunk.c1 - chunk.c0;
  for (; taps; taps &= taps - 1) {
    const int64_t tap = __builtin_ctz(taps);
    const float *const *from = rows + tap;
    const float *a[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) a[r] = from[static_cast<int64_t>(r) * K] + chunk.c0;
    const float *b = w + (tap * cin + chunk.c0) * width;
    for (int64_t c = 0; c < steps; ++c, b += width) {
      vecf bv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) bv[v] = *reinterpret_cast<const vecf *>(b + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const float av = a[r][c];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) s[r][v] += av * bv[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      vecf *const to = reinterpret_cast<vecf *>(sums + r * width + v * kLanes);
      *to = fresh ? s[r][v] : *to + s[r][v];
    }
}

inline vecf load(const float *p) { return *reinterpret_cast<const vecf_u *>(p); }
inline void store(float *p, vecf v) { *reinterpret_cast<vecf_u *>(p) = v; }
// NaN stays NaN, so that a broken network shows.
inline vecf relu(vecf v) { return v < 0.0f ? vecf{} : v; }

// The first n < kLanes values of a vector.
#if defined(CS_ISA_AVX512)
inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline vecf load_first(const float *p, int n) { return reinterpret_cast<vecf>(_mm512_maskz_loadu_ps(first(n), p)); }
inline void store_first(float *p, vecf v, int n) { _mm512_mask_storeu_ps(p, first(n), reinterpret_cast<__m512>(v)); }
#else
inline vecf load_first(const float *p, int n) {
  vecf v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline void store_first(float *p, vecf v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
#endif

// kWhole: a whole vector, else its first n.
template <bool kWhole>
inline vecf get(const float *p, int n) {
  return kWhole ? load(p) : load_first(p, n);
}
template <bool kWhole>
inline void put(float *p, vecf v, int n) {
  if (kWhole) store(p, v);
  else store_first(p, v, n);
}

// bias, residual, relu, then the outputs, for columns [c, c + n) of one row; the sums are padded to whole vectors.
template <bool kWhole>
inline void finish_columns(const cs_conv &conv, int64_t row, const float *sums, int64_t c, int n) {
  vecf v = load(sums);
  if (conv.bias) v += get<kWhole>(conv.bias + c, n);
  if (conv.residual) v += get<kWhole>(conv.residual + row * conv.ldr + c, n);
  if (conv.relu) v = relu(v);
  if (conv.y) put<kWhole>(conv.y + row * conv.ldy + c, v, n);
  for (int i = 0; i < 2; ++i)
    if (conv.z[i]) {
      const vecf z = relu(v * get<kWhole>(conv.scale[i] + c, n) + get<kWhole>(conv.shift[i] + c, n));
      put<kWhole>(conv.z[i] + row * conv.ldz[i] + c, z, n);
    }
}

// The epilogue of `cols` columns from `col` of up to `rows` rows (out = -1 ends them).
inline void finish(const cs_conv &conv, const int32_t *out, int rows, const float *sums, int width, int col, int cols) {
  for (int r = 0; r < rows && out[r] >= 0; ++r, sums += width) {
    int c = 0;
    for (; c + kLanes <= cols; c += kLanes) finish_columns<true>(conv, out[r], sums + c, col + c, kLanes);
    if (c < cols) finish_columns<false>(conv, out[r], sums + c, col + c, cols - c);
  }
}

inline int panel_vectors(int cout, int panel) {
  const int left = cout - panel * kWidth;
  return left >= kWidth ? kVectors : (left + kLanes - 1) / kLanes;
}

}  // namespace

}  // namespace crispseg
#endif
