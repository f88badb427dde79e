// Blocks of rows turned into columns: VW rows x C values <-> C vectors of VW lanes, and softmax/entropy over them.
// For *.isa.cpp files only.
#pragma once
#include "vec.h"

namespace {

#if CS_VW == 16 && defined(__AVX512F__)
// 16 x 16 transpose in registers: 32-bit, 64-bit, then 128-bit interleaving.
inline void transpose16(__m512 *r) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
      r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  // r[4g + k]: column k of each 128-bit lane (columns 4*lane + k), rows 4g .. 4g + 3.
  for (int k = 0; k < 4; ++k) {
    const __m512 a = _mm512_shuffle_f32x4(r[k], r[4 + k], 0x88), b = _mm512_shuffle_f32x4(r[k], r[4 + k], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0xdd);
    t[k] = _mm512_shuffle_f32x4(a, c, 0x88);
    t[8 + k] = _mm512_shuffle_f32x4(a, c, 0xdd);
    t[4 + k] = _mm512_shuffle_f32x4(b, d, 0x88);
    t[12 + k] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}
#endif

// columns[c * stride + i] = rows[i * ld + c] for i < n <= VW; lanes from n on repeat the last row.
inline void to_columns(const float *rows, int64_t ld, int n, int C, float *columns, int stride) {
  int c = 0;
#if CS_VW == 16 && defined(__AVX512F__)
  for (; c < C; c += 16) {
    const int part = C - c < 16 ? C - c : 16;
    const __mmask16 mask = static_cast<__mmask16>((1u << part) - 1u);
    __m512 r[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_maskz_loadu_ps(mask, rows + (i < n ? i : n - 1) * ld + c);
    transpose16(r);
    for (int j = 0; j < part; ++j) _mm512_storeu_ps(columns + static_cast<int64_t>(c + j) * stride, r[j]);
  }
#else
  if (n == VW) {
    for (; c < C; ++c) {
      vf v;
      for (int i = 0; i < VW; ++i) v[i] = rows[i * ld + c];
      store(columns + static_cast<int64_t>(c) * stride, v);
    }
  } else {
    for (; c < C; ++c)
      for (int i = 0; i < VW; ++i) columns[static_cast<int64_t>(c) * stride + i] = rows[(i < n ? i : n - 1) * ld + c];
  }
#endif
}

// The reverse for n rows; writes exactly C values of each.
inline void to_rows(const float *columns, int stride, int n, int C, float *rows, int64_t ld) {
  int c = 0;
#if CS_VW == 16 && defined(__AVX512F__)
  for (; c < C; c += 16) {
    const int part = C - c < 16 ? C - c : 16;
    const __mmask16 mask = static_cast<__mmask16>((1u << part) - 1u);
    __m512 r[16];
    for (int j = 0; j < 16; ++j) r[j] = _mm512_loadu_ps(columns + static_cast<int64_t>(j < part ? c + j : c) * stride);
    transpose16(r);
    for (int i = 0; i < n; ++i) _mm512_mask_storeu_ps(rows + i * ld + c, mask, r[i]);
  }
#else
  for (; c < C; ++c)
    for (int i = 0; i < n; ++i) rows[i * ld + c] = columns[static_cast<int64_t>(c) * stride + i];
#endif
}

struct Peak {
  vf value;
  vi index;
};

// Largest value and its first index; NaN never wins.
inline Peak peak_of(const float *columns, int stride, int C) {
  Peak peak{splat(-__builtin_inff()), vi{}};
  for (int c = 0; c < C; ++c) {
    const vf v = load(columns + static_cast<int64_t>(c) * stride);
    peak.index = v > peak.value ? splat(static_cast<int32_t>(c)) : peak.index;
    peak.value = vmax(v, peak.value);
  }
  return peak;
}

// exps[c] = exp(x[c] - max) (may be x itself). Returns their sum; NaN when any value is NaN.
inline vf exponentials(const float *x, int stride, int C, vf peak, float *exps) {
  vf sum = {};
  for (int c = 0; c < C; ++c) {
    const vf e = vexp(vmax(splat(kExpFloor), load(x + static_cast<int64_t>(c) * stride) - peak));
    sum += e;
    store(exps + static_cast<int64_t>(c) * stride, e);
  }
  return sum;
}

// -sum p ln(max(p, 1e-5)) from the logits and their exponentials.
inline vf entropy_of(const float *x, const float *exps, int stride, int C, vf peak, vf sum) {
  const vf log_sum = vlog(sum), floor_log = log_sum + splat(kLogFloor);
  vf dot = {};
  for (int c = 0; c < C; ++c) {
    const int64_t at = static_cast<int64_t>(c) * stride;
    dot += load(exps + at) * vmax(load(x + at) - peak, floor_log);
  }
  return log_sum - dot / sum;
}

}  // namespace
