// What the driver (winograd.cpp) and the kernels (winograd.isa.cpp) of the Winograd convolution share. Plain data only.
#ifndef CRISPSEG_WINOGRAD_KERNELS_H
#define CRISPSEG_WINOGRAD_KERNELS_H
#include <stdint.h>

#include "crispseg.h"
#include "isa.h"

namespace crispseg {

// A block of output tiles and the panels of output columns to compute. Winograd's 16 points are numbered a + 4 * b, a
// along y, b along x.
struct WinogradBlock {
  const cs_conv *conv;
  const int32_t *in;   // [tiles][16]: input row at (dy, dx), number dy + 4 * dx; -1 = none
  const int32_t *out;  // [tiles][4]: output row at (dy, dx), number dy + 2 * dx; -1 = none
  int64_t tiles;
  int panel0, panel1;
  float *v;            // [16][v_point]: transformed input, [tiles][ldv]
  float *v2;           // [4][v2_point]: that of the second source, [tiles][ldv2]
  float *m;            // [16][m_point]: products, [panel1 - panel0][register tile][rows of a tile][panel width]
  int64_t v_point, m_point, ldv, v2_point, ldv2;
};

struct WinogradKernels {
  bool (*block)(const WinogradBlock &block);  // false when a tile points outside
};
CS_DECLARE_TABLE(WinogradKernels, winograd_kernels)

constexpr int kPoints = 16;
constexpr int kCentre = 4;  // points that a kernel of the centre tap alone has: a, b in {1, 2}

}  // namespace crispseg
#endif
