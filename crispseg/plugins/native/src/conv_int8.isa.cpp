// The int8 convolution's inner loops: the indirect matrix product of conv.isa.cpp with dot products of four channels a
// lane (conv_int8_dot.h), and an epilogue that ends in float32 or in bytes again.
//
// Tile: kRows rows by kVectors vectors of output columns, as in float32. Registers with AVX-512 VNNI: 24 sums, 4
// weights, 1 input word spread over the lanes, of 32. A step reads 4 vectors of weights and 6 words and does 24
// vpdpbusd: 12 cycles of two units against 5 of two loads. AVX2 with vpmaddubsw: 12 sums, 2 weights, 1 input, 1 product
// and the ones, one more than the 16 there are; the sum that spills is lost among 36 operations a step. Blocking is
// that of float32, as everything counts in words: a chunk of kMaxSteps words (1152 channels times taps) keeps a panel's
// weights in 72 KB of the L2 cache (36 KB where a panel has two vectors).
//
// Bytes are `zero` + q. With zero = 128 a sum over taps T has 128 * sum_T w too much: the sums of a tile begin with
// minus that (missing neighbours inside T read the row of zeros, bytes of 128, and are covered).
//
// This file is compiled without contraction of a*b+c: epilogues round after every operation, on every instruction set.
#include <string.h>

#include "conv_int8_dot.h"
#include "conv_int8_kernels.h"
#include "conv_walk.h"

namespace crispseg {

namespace {

template <class Dot, int NV>
__attribute__((noinline)) void accumulate_int8(const float *const *rows, uint32_t taps, const Chunk &chunk, int K,
                                               int quads, const float *w, int32_t *sums, bool load) {
  constexpr int width = NV * kLanes;
  veci s[kRows][NV];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      s[r][v] = load ? *reinterpret_cast<const veci *>(sums + r * width + v * kLanes) : veci{};
  const int64_t steps = chunk.c1 - chunk.c0;
  for (; taps; taps &= taps - 1) {
    const int64_t tap = __builtin_ctz(taps);
    const float *const *from = rows + tap;
    const char *a[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) a[r] = reinterpret_cast<const char *>(from[static_cast<int64_t>(r) * K] + chunk.c0);
    const float *b = w + (tap * quads + chunk.c0) * width;
    for (int64_t c = 0; c < steps; ++c, b += width) {
      typename Dot::Weight bv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) bv[v] = Dot::weight(*reinterpret_cast<const veci *>(b + v * kLanes));
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        int32_t word;
        memcpy(&word, a[r] + c * kQuad, sizeof word);
        const typename Dot::Input av = Dot::input(word);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) s[r][v] = Dot::add(s[r][v], av, bv[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) *reinterpret_cast<veci *>(sums + r * width + v * kLanes) = s[r][v];
}

// ---- epilogue ------------------------------------------------------------------------------------------------------

typedef uint8_t ByteRow __attribute__((vector_size(kLanes), aligned(1), may_alias));

#if defined(CS_ISA_AVX512)
inline void store_first(uint8_t *p, ByteRow v, int n) {
  _mm_mask_storeu_epi8(p, first(n), reinterpret_cast<__m128i>(v));
}
#else
inline void store_first(uint8_t *p, ByteRow v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
#endif

template <bool kWhole>
inline void put(uint8_t *p, ByteRow v, int n) {
  if (kWhole) *reinterpret_cast<ByteRow *>(p) = v;
  else store_first(p, v, n);
}

// Turns values into bytes zero + clamp(round(v / step)).
class Bytes {
 public:
  Bytes(float step, int32_t zero)
      : step_(step), inverse_(1.0f / step), high_(127.0f * step), low_(zero ? -high_ : 0.0f), zero_(zero) {}

  inline ByteRow of(vecf v) const {
    v = at_most(at_least(v, low_ - vecf{}), high_ - vecf{});
    return low_bytes(reinterpret_cast<veci>(quotient(v) + kRound) - kRoundBits + zero_);
  }

 private:
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even
  static constexpr int32_t kRoundBits = 0x4b400000;

  static inline ByteRow low_bytes(veci q) {
#if defined(CS_ISA_AVX2)  // GCC goes through scalars
    const __m256i order = _mm256_set1_epi64x(0x0c080400), halves = _mm256_shuffle_epi8(raw(q), order);
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    return reinterpret_cast<ByteRow>(_mm_cvtsi128_si64(both));
#else
    return __builtin_convertvector(q, ByteRow);
#endif
  }

  // v / step, and the larger or smaller of two, where NaN becomes the second. A division has a fourth of the throughput
  // of what stands for it where there are fused multiply-adds: the product with the reciprocal, off by at most 2 units
  // in the last place, and one step of Newton's from the exact remainder.
#if defined(CS_ISA_AVX512) || defined(CS_ISA_AVX2)
#if defined(CS_ISA_AVX512)
  typedef __m512 Floats;
#else
  typedef __m256 Floats;
#endif
  static inline Floats raw_floats(vecf v) { return reinterpret_cast<Floats>(v); }
  static inline vecf at_least(vecf v, vecf low) {
    return reinterpret_cast<vecf>(CS_X86(max_ps)(raw_floats(v), raw_floats(low)));
  }
  static inline vecf at_most(vecf v, vecf high) {
    return reinterpret_cast<vecf>(CS_X86(min_ps)(raw_floats(v), raw_floats(high)));
  }
  inline vecf quotient(vecf v) const {
    const Floats step = CS_X86(set1_ps)(step_), inverse = CS_X86(set1_ps)(inverse_), x = raw_floats(v);
    const Floats q = CS_X86(mul_ps)(x, inverse);
    return reinterpret_cast<vecf>(CS_X86(fmadd_ps)(CS_X86(fnmadd_ps)(q, step, x), inverse, q));
  }
#else
  static inline vecf at_least(vecf v, vecf low) { return v > low ? v : low; }
  static inline vecf at_most(vecf v, vecf high) { return v < high ? v : high; }
  inline vecf quotient(vecf v) const { return v / step_; }
#endif

  float step_;
  [[maybe_unused]] float inverse_;  // where there are no fused multiply-adds
  float high_, low_;
  int32_t zero_;
};

// One output of an epilogue: rows of floats or of bytes.
struct Output {
  char *at;
  int64_t stride;  // bytes
  bool bytes;
  Bytes quantiser;

  Output(void *p, int64_t ld, float step, int32_t zero)
      : at(static_cast<char *>(p)), stride(step > 0 ? ld : ld * static_cast<int64_t>(sizeof(float))), bytes(step > 0),
        quantiser(step > 0 ? step : 1.0f, zero) {}
  template <bool kWhole>
  inline void write(int64_t row, int64_t column, vecf v, int n) const {
    char *const to = at + row * stride;
    if (bytes) put<kWhole>(reinterpret_cast<uint8_t *>(to) + column, quantiser.of(v), n);
    else put<kWhole>(reinterpret_cast<float *>(to) + column, v, n);
  }
};

struct Int8Kernel {
  using Sum = int32_t;
  const cs_conv_int8 &a;
  const int32_t *weight_sums;  // [panel][tap][panel width]
  Output y, z[2];

  explicit Int8Kernel(const cs_conv_int8 &conv)
      : a(conv),
        y(conv.conv.y, conv.conv.ldy, conv.step[0], conv.out_zero[0]),
        z{{conv.conv.z[0], conv.conv.ldz[0], conv.step[1], conv.out_zero[1]},
          {conv.conv.z[1], conv.conv.ldz[1], conv.step[2], conv.out_zero[2]}} {
    const int64_t columns = (conv.conv.cout + kLanes - 1) / kLanes * kLanes;
    weight_sums = static_cast<const int32_t *>(conv.conv.weight) + columns * conv.conv.K * steps();
  }

  int steps() const { return (a.conv.cin + kQuad - 1) / kQuad; }

  template <int NV>
  void accumulate(const float *const *rows, uint32_t now, uint32_t taps, const Chunk &chunk, int panel, const float *w,
                  int32_t *sums, bool fresh) const {
    if (a.zero == 0) {
      accumulate_int8<DotSmall, NV>(rows, now, chunk, a.conv.K, steps(), w, sums, !fresh);
      return;
    }
    if (fresh) begin<NV>(taps, panel, sums);
    accumulate_int8<DotAny, NV>(rows, now, chunk, a.conv.K, steps(), w, sums, true);
  }

  // sums = -128 * (sums of the weights over the tile's taps).
  template <int NV>
  void begin(uint32_t taps, int panel, int32_t *sums) const {
    constexpr int width = NV * kLanes;
    const int32_t *of_panel = weight_sums + static_cast<int64_t>(panel) * kWidth * a.conv.K;
    veci total[NV] = {};
    for (; taps; taps &= taps - 1)
      for (int v = 0; v < NV; ++v)
        total[v] -= *reinterpret_cast<const veci_u *>(of_panel + __builtin_ctz(taps) * width + v * kLanes);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < NV; ++v) *reinterpret_cast<veci *>(sums + r * width + v * kLanes) = total[v] * 128;
  }

  // Columns [c, c + n) of one row. The sums are padded to whole vectors.
  template <bool kWhole>
  inline void columns(const int32_t *sums, int64_t row, const float *residual, int64_t c, int n) const {
    const cs_conv &conv = a.conv;
    vecf v = __builtin_convertvector(*reinterpret_cast<const veci *>(sums), vecf) * get<kWhole>(a.scale + c, n);
    if (conv.bias) v = v + get<kWhole>(conv.bias + c, n);
    if (residual) v = v + get<kWhole>(residual + c, n);
    if (conv.relu) v = relu(v);
    if (conv.y) y.write<kWhole>(row, c, v, n);
    for (int i = 0; i < 2; ++i)
      if (conv.z[i])
        z[i].write<kWhole>(row, c, relu(v * get<kWhole>(conv.scale[i] + c, n) + get<kWhole>(conv.shift[i] + c, n)), n);
  }

  void finish(const int32_t *out, const int32_t *sums, int width, int col, int cols) const {
    for (int r = 0; r < kRows && out[r] >= 0; ++r, sums += width) {
      const int64_t row = out[r];
      const float *residual = a.conv.residual ? a.conv.residual + row * a.conv.ldr : nullptr;
      int c = 0;
      for (; c + kLanes <= cols; c += kLanes) columns<true>(sums + c, row, residual, col + c, kLanes);
      if (c < cols) columns<false>(sums + c, row, residual, col + c, cols - c);
    }
  }
};

void run_block(const ConvBlock &block, const cs_conv_int8 &conv) { walk(Int8Kernel(conv), block); }

void quantise(const float *x, int c, float step, int32_t zero, uint8_t *q) {
  const Bytes to(step, zero);
  int i = 0;
  for (; i + kLanes <= c; i += kLanes) put<true>(q + i, to.of(load(x + i)), kLanes);
  if (i < c) put<false>(q + i, to.of(load_first(x + i, c - i)), c - i);
}

}  // namespace

const ConvInt8Kernels CS_NAME(conv_int8_kernels) = {kDotName, run_block, quantise};

}  // namespace crispseg
