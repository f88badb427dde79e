// What the convolution's driver (conv.cpp) and its kernels (conv.isa.cpp) share. Plain data only.
#ifndef CRISPSEG_CONV_KERNELS_H
#define CRISPSEG_CONV_KERNELS_H
#include <stdint.h>

#include "crispseg.h"
#include "isa.h"

namespace crispseg {

constexpr int kMaxWidth = 64;  // columns of a panel, at most
constexpr int kMaxTaps = 32;  // one bit per tap in a tile's mask

// Taps of a convolution, its second source included, which is number K.
inline int all_taps(const cs_conv &conv) { return conv.K + (conv.x2 != nullptr); }

// Rows that a block reads and writes, by tile of mr rows. Rows of the last tile past the end read zeros and have
// out = -1.
struct ConvRows {
  const float **rows;  // [tiles][mr][all_taps]: input row of every tap; missing = the zero row
  uint32_t *taps;      // [tiles]: taps that at least one row of the tile has
  int32_t *out;        // [tiles][mr]: output row
};

struct GatherKernels {
  // Fills `rows` for output positions [begin, end); false when the map or the order points outside.
  bool (*gather)(const cs_conv &conv, int mr, int64_t begin, int64_t end, const ConvRows &rows);
};
CS_DECLARE_TABLE(GatherKernels, gather_kernels)

// A block of output rows.
struct ConvBlock {
  const cs_conv *conv;
  int64_t tiles;
  ConvRows rows;
  int panel0, panel1;        // panels of output columns to compute
  const char *next;          // input of the block after this one, to be fetched meanwhile
  int64_t next_bytes;
  float *acc;                // [panel1 - panel0][tiles][mr][panel width], 64-byte aligned; unused when one chunk does
};

// The tile of an instruction set.
struct ConvShape {
  int mr;         // rows of a tile
  int width;      // columns of a panel; the last panel is narrower: a multiple of `lanes`
  int lanes;
  int max_steps;  // words of input rows (one float or four bytes) per output between two visits of an output tile
};

struct ConvKernels {
  ConvShape shape;
  void (*block)(const ConvBlock &block);
};
CS_DECLARE_TABLE(ConvKernels, conv_kernels)

}  // namespace crispseg
#endif
