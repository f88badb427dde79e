// What the driver (winograd.cpp) and the kernels (winograd.isa.cpp) of the Winograd convolution share. Plain data only.
#ifndef CRISPSEG_WINOGRAD_KERNELS_H
#define CRISPSEG_WINOGRAD_KERNELS_H
#include <stdint.h>

#include "crispseg.h"
#include "isa.h"

namespace crispseg {

// F(2x2,3x3) and F(4x4,3x3): tiles of 2 or 4 output pixels a side.
constexpr int side_of(int tile) { return tile + 2; }  // input pixels, and points, a side
constexpr int points_of(int tile) { return side_of(tile) * side_of(tile); }
constexpr int outputs_of(int tile) { return tile * tile; }

// The finite points of F(4,3) are 0, +-p and +-q. Of the pairs tried, this one has among the least errors, twice that
// of direct summation (the usual 1 and 2: four times), and squares and products without rounding.
constexpr double kP = 0.75, kQ = 1.5;

// A block of output tiles and the panels of output columns to compute. With S = side_of(tile), the points are numbered
// a + S * b, a along y, b along x.
struct WinogradBlock {
  const cs_conv *conv;
  const int32_t *in;   // [tiles][S * S]: input row at (dy, dx), number dy + S * dx; -1 = none
  const int32_t *out;  // [tiles][tile * tile]: output row at (dy, dx), number dy + tile * dx; -1 = none
  int64_t tiles;
  int panel0, panel1;
  float *v;            // [S * S][v_point]: transformed input, [tiles][ldv]
  float *m;            // [S * S][m_point]: products, [panel1 - panel0][register tile][rows of a tile][panel width]
  int64_t v_point, m_point, ldv;
};

struct WinogradKernels {
  bool (*block2)(const WinogradBlock &block);  // tiles of 2 a side; false when a tile points outside
  bool (*block4)(const WinogradBlock &block);  // of 4
};
CS_DECLARE_TABLE(WinogradKernels, winograd_kernels)

}  // namespace crispseg
#endif
