// Four-channel dot products into int32 lanes: byte (0..255) by int8 (-127..127), exact. For *.isa.cpp files only.
//
// A vector of weights holds four channels of one output column in each lane; an input word holds the same four channels
// and goes to all lanes. Three forms, best first:
//   DotVnni   vpdpbusd: one instruction.                          any byte
//   DotBytes  vpmaddubsw, vpmaddwd by ones, vpaddd.               bytes up to 127: 2 * 127 * 127 < 2^15, no saturation
//   DotWords  even and odd channels as int16, two pmaddwd.        any byte
#ifndef CRISPSEG_CONV_INT8_DOT_H
#define CRISPSEG_CONV_INT8_DOT_H
#include "isa.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms from GCC's own _mm512_undefined_ps()
#endif

namespace crispseg {

namespace {

inline veci all_lanes(int32_t word) { return word - veci{}; }

#if defined(CS_ISA_AVX512)
#define CS_X86(name) _mm512_##name
typedef __m512i Register;
#elif defined(CS_ISA_AVX2)
#define CS_X86(name) _mm256_##name
typedef __m256i Register;
#elif defined(__SSE2__)
#define CS_X86(name) _mm_##name
typedef __m128i Register;
#endif

#if defined(CS_X86)

inline Register raw(veci v) { return reinterpret_cast<Register>(v); }
inline veci lanes(Register r) { return reinterpret_cast<veci>(r); }

struct DotWords {
  struct Weight { Register even, odd; };
  struct Input { Register even, odd; };
  static inline Weight weight(veci w) {
    return {CS_X86(srai_epi16)(CS_X86(slli_epi16)(raw(w), 8), 8), CS_X86(srai_epi16)(raw(w), 8)};
  }
  static inline Input input(int32_t word) {
    const int32_t odd = static_cast<int32_t>(static_cast<uint32_t>(word) >> 8) & 0x00ff00ff;
    return {raw(all_lanes(word & 0x00ff00ff)), raw(all_lanes(odd))};
  }
  static inline veci add(veci sum, const Input &a, const Weight &w) {
    return sum + lanes(CS_X86(madd_epi16)(a.even, w.even)) + lanes(CS_X86(madd_epi16)(a.odd, w.odd));
  }
};

#if defined(CS_ISA_AVX512) || defined(CS_ISA_AVX2)
struct DotBytes {
  using Weight = Register;
  using Input = Register;
  static inline Weight weight(veci w) { return raw(w); }
  static inline Input input(int32_t word) { return raw(all_lanes(word)); }
  static inline veci add(veci sum, Input a, Weight w) {
    return sum + lanes(CS_X86(madd_epi16)(CS_X86(maddubs_epi16)(a, w), CS_X86(set1_epi16)(1)));
  }
};
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
struct DotVnni {
  using Weight = Register;
  using Input = Register;
  static inline Weight weight(veci w) { return raw(w); }
  static inline Input input(int32_t word) { return raw(all_lanes(word)); }
  static inline veci add(veci sum, Input a, Weight w) {
#if defined(__AVX512VNNI__)
    return lanes(_mm512_dpbusd_epi32(raw(sum), a, w));
#else
    return lanes(_mm256_dpbusd_avx_epi32(raw(sum), a, w));
#endif
  }
};
using DotSmall = DotVnni;  // bytes up to 127
using DotAny = DotVnni;
constexpr const char *kDotName = "vnni";
#elif defined(CS_ISA_AVX512) || defined(CS_ISA_AVX2)
using DotSmall = DotBytes;
using DotAny = DotWords;
constexpr const char *kDotName = "maddubs";
#else
using DotSmall = DotWords;
using DotAny = DotWords;
constexpr const char *kDotName = "madd";
#endif

#else  // not x86

struct DotLanes {
  using Weight = veci;
  using Input = int32_t;
  static inline Weight weight(veci w) { return w; }
  static inline Input input(int32_t word) { return word; }
  static inline veci add(veci sum, Input a, Weight w) {
    for (int i = 0; i < 4; ++i) {
      const int32_t byte = static_cast<int32_t>(static_cast<uint32_t>(a) >> (8 * i)) & 255;
      sum += byte * ((w << (24 - 8 * i)) >> 24);
    }
    return sum;
  }
};
using DotSmall = DotLanes;
using DotAny = DotLanes;
constexpr const char *kDotName = "lanes";

#endif

}  // namespace

}  // namespace crispseg
#endif
