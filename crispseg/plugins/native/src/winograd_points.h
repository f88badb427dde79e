// Winograd's transforms in one dimension, for F(2,3) and F(4,3): tiles of kTile outputs from kSide = kTile + 2 inputs.
// Two passes of them, along y and along x, make the transform of a square. V: a vector of channels, or one.
// For *.isa.cpp files only; everything has internal linkage.
#ifndef CRISPSEG_WINOGRAD_POINTS_H
#define CRISPSEG_WINOGRAD_POINTS_H
#include "winograd_kernels.h"

namespace crispseg {

namespace {

// The points 0, 1, -1 and infinity.
struct F2 {
  static constexpr int kTile = 2, kSide = 4, kPart = 52;

  template <class V>
  static inline void input(const V *d, V *u) {
    u[0] = d[0] - d[2];
    u[1] = d[1] + d[2];
    u[2] = d[2] - d[1];
    u[3] = d[1] - d[3];
  }
  template <class V>
  static inline void output(const V *m, V *y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

// The points 0, p, -p, q, -q and infinity. Row i of the input transform has the coefficients of the product of
// (x - x_j) over the other finite points; a pair of opposite points shares its even and odd parts.
struct F4 {
  static constexpr int kTile = 4, kSide = 6, kPart = 72;
  static constexpr float p = static_cast<float>(kP), pp = static_cast<float>(kP * kP);
  static constexpr float q = static_cast<float>(kQ), qq = static_cast<float>(kQ * kQ);

  template <class V>
  static inline void input(const V *d, V *u) {
    const V even_p = d[4] - qq * d[2], odd_p = d[3] - qq * d[1];
    const V even_q = d[4] - pp * d[2], odd_q = d[3] - pp * d[1];
    u[0] = (d[4] - (pp + qq) * d[2]) + pp * qq * d[0];
    u[1] = even_p + p * odd_p;
    u[2] = even_p - p * odd_p;
    u[3] = even_q + q * odd_q;
    u[4] = even_q - q * odd_q;
    u[5] = (d[5] - (pp + qq) * d[3]) + pp * qq * d[1];
  }
  template <class V>
  static inline void output(const V *m, V *y) {
    const V sum_p = m[1] + m[2], sum_q = m[3] + m[4], odd_p = m[1] - m[2], odd_q = m[3] - m[4];
    y[0] = m[0] + sum_p + sum_q;
    y[1] = p * odd_p + q * odd_q;
    y[2] = pp * sum_p + qq * sum_q;
    y[3] = (p * pp) * odd_p + (q * qq) * odd_q + m[5];
  }
};

}  // namespace

}  // namespace crispseg
#endif
