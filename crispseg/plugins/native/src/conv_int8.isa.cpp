// The int8 convolution's inner loops: the indirect matrix product of conv.isa.cpp with dot products of four channels a
// lane (conv_int8_dot.h), and an epilogue that ends in float32 or in bytes again.
//
// Tile: kRows rows by kVectors vectors of output columns, as in float32. Registers with AVX-512 VNNI: 24 sums, 2 weights, 1
// input word spread over the lanes, of 32. A step reads 2 vectors of weights and 12 words and does 24 vpdpbusd, which is
// 12 cycles of two units against 7 of two loads. Blocking is that of float32, as everything counts in words: a chunk of
// kMaxSteps words (1152 channels times taps) keeps a panel's weights in 36 KB.
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

// ---- epilogue: one text for a vector of columns and for the single columns at the end -------------------------------

inline float at_least(float v, float low) { return v > low ? v : low; }  // NaN becomes low
inline float at_most(float v, float high) { return v < high ? v : high; }
inline vecf at_least(vecf v, vecf low) { return v > low ? v : low; }
inline vecf at_most(vecf v, vecf high) { return v < high ? v : high; }
inline float relu(float v) { return v < 0.0f ? 0.0f : v; }

// A store of values as bytes zero + round(v / step).
class Bytes {
 public:
  Bytes(float step, int32_t zero)
      : step_(step), inverse_(1.0f / step), high_(127.0f * step), low_(zero ? -high_ : 0.0f), zero_(zero) {}

  inline void put(uint8_t *to, vecf v) const {
    typedef uint8_t Row __attribute__((vector_size(kLanes), aligned(1), may_alias));
    v = at_most(at_least(v, low_ - vecf{}), high_ - vecf{});
    const veci q = reinterpret_cast<veci>(quotient(v) + kRound) - kRoundBits + zero_;
    *reinterpret_cast<Row *>(to) = __builtin_convertvector(q, Row);
  }
  inline void put(uint8_t *to, float v) const {
    v = at_most(at_least(v, low_), high_) / step_ + kRound;
    int32_t bits;
    memcpy(&bits, &v, sizeof bits);
    *to = static_cast<uint8_t>(bits - kRoundBits + zero_);
  }

 private:
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even
  static constexpr int32_t kRoundBits = 0x4b400000;

  // v / step. Where there are fused multiply-adds: the product with the reciprocal, off by at most 2 units in the last
  // place, and one step of Newton's from the exact remainder, which a division would take four times as long for.
  inline vecf quotient(vecf v) const {
#if defined(CS_ISA_AVX512)
    const __m512 step = _mm512_set1_ps(step_), inverse = _mm512_set1_ps(inverse_), x = reinterpret_cast<__m512>(v);
    const __m512 q = _mm512_mul_ps(x, inverse);
    return reinterpret_cast<vecf>(_mm512_fmadd_ps(_mm512_fnmadd_ps(q, step, x), inverse, q));
#elif defined(CS_ISA_AVX2)
    const __m256 step = _mm256_set1_ps(step_), inverse = _mm256_set1_ps(inverse_), x = reinterpret_cast<__m256>(v);
    const __m256 q = _mm256_mul_ps(x, inverse);
    return reinterpret_cast<vecf>(_mm256_fmadd_ps(_mm256_fnmadd_ps(q, step, x), inverse, q));
#else
    return v / step_;
#endif
  }

  float step_, inverse_, high_, low_;
  int32_t zero_;
};

inline vecf get(const float *p, vecf) { return load(p); }
inline float get(const float *p, float) { return *p; }
inline vecf converted(const int32_t *p, vecf) {
  return __builtin_convertvector(*reinterpret_cast<const veci_u *>(p), vecf);
}
inline float converted(const int32_t *p, float) { return static_cast<float>(*p); }
inline void put(float *p, vecf v) { store(p, v); }
inline void put(float *p, float v) { *p = v; }

// One output of an epilogue: rows of floats or of bytes.
struct Output {
  char *at;
  int64_t stride;  // bytes
  bool bytes;
  Bytes quantiser;

  Output(void *p, int64_t ld, float step, int32_t zero)
      : at(static_cast<char *>(p)), stride(step > 0 ? ld : ld * static_cast<int64_t>(sizeof(float))), bytes(step > 0),
        quantiser(step > 0 ? step : 1.0f, zero) {}
  template <class V>
  inline void write(int64_t row, int64_t column, V v) const {
    char *const to = at + row * stride;
    if (bytes) quantiser.put(reinterpret_cast<uint8_t *>(to) + column, v);
    else put(reinterpret_cast<float *>(to) + column, v);
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

  template <class V>
  inline void columns(const int32_t *sums, int64_t row, const float *residual, int64_t c) const {
    const cs_conv &conv = a.conv;
    V v = converted(sums, V{}) * get(a.scale + c, V{});
    if (conv.bias) v = v + get(conv.bias + c, V{});
    if (residual) v = v + get(residual + c, V{});
    if (conv.relu) v = relu(v);
    if (conv.y) y.write(row, c, v);
    for (int i = 0; i < 2; ++i)
      if (conv.z[i]) z[i].write(row, c, relu(v * get(conv.scale[i] + c, V{}) + get(conv.shift[i] + c, V{})));
  }

  void finish(const int32_t *out, const int32_t *sums, int width, int col, int cols) const {
    for (int r = 0; r < kRows && out[r] >= 0; ++r, sums += width) {
      const int64_t row = out[r];
      const float *residual = a.conv.residual ? a.conv.residual + row * a.conv.ldr : nullptr;
      int c = 0;
      for (; c + kLanes <= cols; c += kLanes) columns<vecf>(sums + c, row, residual, col + c);
      for (; c < cols; ++c) columns<float>(sums + c, row, residual, col + c);
    }
  }
};

void run_block(const ConvBlock &block, const cs_conv_int8 &conv) { walk(Int8Kernel(conv), block); }

void quantise(const float *x, int c, float step, int32_t zero, uint8_t *q) {
  const Bytes to(step, zero);
  int i = 0;
  for (; i + kLanes <= c; i += kLanes) to.put(q + i, load(x + i));
  for (; i < c; ++i) to.put(q + i, x[i]);
}

}  // namespace

const ConvInt8Kernels CS_NAME(conv_int8_kernels) = {kDotName, run_block, quantise};

}  // namespace crispseg
