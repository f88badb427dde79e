// What the host hands to every convolution kernel. Plain types: read by NVRTC, nvcc and the host compiler alike.
#pragma once
#include "types.h"

// Elements of the matrices, numbered as csg_type.
enum { CONV_F32 = 0, CONV_F16 = 1, CONV_I8 = 2 };
// Bytes along k in one step of the main loop: 32 halves or 64 int8. Packed weights are [chunk][tap][cout padded to
// 16][64 bytes].
enum { CONV_CHUNK = 64, CONV_MAX_TAPS = 32 };
// Rows of a tile of the tensor-core kernels; stages of the mma pipeline; bytes between the rows of a wmma buffer. A
// block needs the stages (buffers), then 4 bytes for each row, 16 for the tile, and 4 for each row and tap.
enum { CONV_ROWS = 128, CONV_F32_ROWS = 64, CONV_MMA_STAGES = 4, CONV_WMMA_PITCH = 96 };
// wgmma wants stages at multiples of 512 bytes; a block of it needs so much more.
enum { CONV_WGMMA_ALIGN = 512 };
// Tiles of 128 columns may be shared between blocks (see ConvShares), two blocks a multiprocessor, with at least so
// many steps each; each block has two slots of a tile's sums in the workspace.
enum { CONV_SHARE_COLUMNS = 128, CONV_SHARE_STEPS = 8 };

struct ConvMatrix {
  void *data;       // NULL: absent
  cs_i64 stride;    // elements
  int type;
  int wide;         // groups of 8 columns are aligned for 16-byte (int8: 8-byte) accesses
  float quant;      // int8 outputs
};

struct ConvArgs {
  const void *x;
  int x_stride;  // bytes (fp16, int8) or elements (fp32)
  int x_pieces;  // 16-byte pieces of a row of x that may be read (fp16, int8)
  int taps, cin, cout, cout_padded;
  int chunks;  // 64-byte chunks of a row of x (fp16, int8)
  const int *map, *order, *count;
  int capacity;
  int column_tiles;
  const void *weight;
  const float *bias, *dequant;
  ConvMatrix residual, out[3];  // y, z1, z2
  const float *scale[2], *shift[2];
  int wide_channels;  // bias, dequant, scale and shift are aligned for 16-byte loads
  int relu;
  // Parts of the sums of shared tiles: [slot][rows][columns]; NULL: never share.
  void *partial;
  int multiprocessors;
};
