// Vector types and elementary functions for the row kernels. Included by *.isa.cpp files only; CS_VW is the number
// of lanes. Everything has internal linkage: the linker must never merge code compiled for
// different instruction sets. GCC vector extensions, so that the same text serves SSE2, AVX2, AVX-512 and NEON.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms from GCC's own _mm512_undefined_ps()
#endif
#if defined(CS_ISA_AVX512)
#define CS_VW 16
#elif defined(CS_ISA_AVX2)
#define CS_VW 8
#else
#define CS_VW 4
#endif

namespace {

constexpr int VW = CS_VW;
typedef float vf __attribute__((vector_size(4 * CS_VW)));
typedef int32_t vi __attribute__((vector_size(4 * CS_VW)));
typedef uint8_t vb __attribute__((vector_size(CS_VW)));
typedef float vf_mem __attribute__((vector_size(4 * CS_VW), aligned(4), may_alias));
typedef int32_t vi_mem __attribute__((vector_size(4 * CS_VW), aligned(1), may_alias));
typedef uint8_t vb_mem __attribute__((vector_size(CS_VW), aligned(1), may_alias));

inline vf load(const float *p) { return *reinterpret_cast<const vf_mem *>(p); }
inline void store(float *p, vf v) { *reinterpret_cast<vf_mem *>(p) = v; }
inline vi load(const int32_t *p) { return *reinterpret_cast<const vi_mem *>(p); }
inline vf splat(float x) { return x - vf{}; }
inline vi splat(int32_t x) { return x - vi{}; }
inline void store_bytes(uint8_t *p, vi v) { *reinterpret_cast<vb_mem *>(p) = __builtin_convertvector(v, vb); }

// First k < VW lanes only.
inline void store_part(float *p, vf v, int k) {
#if CS_VW == 16 && defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << k) - 1u), reinterpret_cast<__m512>(v));
#else
  for (int i = 0; i < k; ++i) p[i] = v[i];
#endif
}
inline vf load_part(const float *p, int k) {
#if CS_VW == 16 && defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << k) - 1u), p));
#else
  vf v = {};
  for (int i = 0; i < k; ++i) v[i] = p[i];
  return v;
#endif
}

// a > b ? a : b, so the *second* operand is returned when either is NaN (as the x86 instruction does).
inline vf vmax(vf a, vf b) {
#if CS_VW == 16 && defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif CS_VW == 8 && defined(__AVX__)
  return reinterpret_cast<vf>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#elif CS_VW == 4 && defined(__SSE2__)
  return reinterpret_cast<vf>(_mm_max_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
#else
  return a > b ? a : b;
#endif
}

inline bool any(vi mask) {
#if CS_VW == 16 && defined(__AVX512F__)
  const __m512i m = reinterpret_cast<__m512i>(mask);
  return _mm512_test_epi32_mask(m, m) != 0;
#elif CS_VW == 8 && defined(__AVX__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#elif CS_VW == 4 && defined(__SSE2__)
  return _mm_movemask_ps(reinterpret_cast<__m128>(mask)) != 0;
#else
  int32_t r = 0;
  for (int i = 0; i < VW; ++i) r |= mask[i];
  return r != 0;
#endif
}

inline vf permute(vf v, vi idx) {
#if defined(__GNUC__) && !defined(__clang__)
  return __builtin_shuffle(v, idx);
#else
  vf r;
  for (int i = 0; i < VW; ++i) r[i] = v[idx[i]];
  return r;
#endif
}

constexpr float kRound = 12582912.0f;         // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even
constexpr float kLogFloor = -11.512925465f;   // ln(1e-5)
constexpr float kExpFloor = -80.0f;           // keeps exp out of the denormals, which cost 7x

// exp(t) for t in [-87, 88], relative error < 4e-7. Degree-5 minimax polynomial of 2^f on [-1/2, 1/2].
inline vf vexp(vf t) {
  const vf z = t * 1.44269504f + kRound;
  const vf f = t * 1.44269504f - (z - kRound);
  vf p = f * 1.326472725e-3f + 9.671512786e-3f;
  p = p * f + 5.550733744e-2f;
  p = p * f + 2.402224208e-1f;
  p = p * f + 6.931469776e-1f;
  p = p * f + 1.0f;
  return reinterpret_cast<vf>(reinterpret_cast<vi>(p) + (reinterpret_cast<vi>(z) << 23));
}

// ln(x) for normal positive x, absolute error < 2e-7 near 1, relative elsewhere (Cephes' polynomial). NaN stays NaN.
inline vf vlog(vf x) {
  vi bits = reinterpret_cast<vi>(x);
  const vi e = (bits - 0x3f3504f3) >> 23;  // exponent such that the mantissa lies in [sqrt(1/2), sqrt(2))
  const vf m = reinterpret_cast<vf>(bits - (e << 23)) - 1.0f;
  const vf k = __builtin_convertvector(e, vf);
  const vf z = m * m;
  vf p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  vf r = p * m * z + k * -2.12194440e-4f;
  r = r - z * 0.5f;
  r = r + m + k * 0.693359375f;
  return x == x ? r : x;
}

// round(255 / s), 0 when s is NaN.
inline vi confidence_of(vf s) {
  vf q = 255.0f / s;
  q = q == q ? q : vf{};
  return reinterpret_cast<vi>(q + kRound) & 0xff;
}

}  // namespace
