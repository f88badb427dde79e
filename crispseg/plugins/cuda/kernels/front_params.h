// What the host hands to the kernels around the convolutions: selection, maps, rows, frames.
#pragma once
#include "types.h"

// Numbered as csg_upsample, csg_extent and csg_type.
enum { CS_RULE_NEAREST = 0, CS_RULE_BILINEAR = 1, CS_RULE_CORNERS = 2 };
enum { CS_EXTENT_OF_ACTIVE = 0, CS_EXTENT_OF_IMAGE = 1 };
enum { CS_TYPE_F32 = 0, CS_TYPE_F16 = 1, CS_TYPE_I8 = 2 };

enum {
  CS_SELECT_WIDTH = 64,    // columns of a tile: two words of the mask
  CS_SELECT_MAX_ROWS = 8,  // rows of a tile
  CS_SELECT_BINS = 2048,   // of entropy
  CS_SELECT_CHUNK = 256,   // words of the mask that a block compacts
  CS_ROW_BLOCK = 128,      // rows (of features, logits, maps) that a block works on at a time
  CS_ROW_COLUMNS = 32,     // columns staged at a time
  CS_PARITY_CHUNK = 2048,  // rows
  CS_MAX_FEATURES = 8
};

// Where full-size pixels read the low-resolution logits.
struct CsSampling {
  cs_i32 low_height, low_width, height, width, rule;
};

struct CsSelect {
  const void *logits;  // [classes, low_height, low_width]
  CsSampling sampling;
  cs_i32 classes;
  float threshold;
  float margin;  // a pixel whose best logit leads by this much cannot reach the threshold; NaN: there is no such lead
  float bin_scale;   // bins per nat
  cs_i32 log_rows;   // a tile has 1 << log_rows rows
  cs_i32 columns;    // low-resolution columns staged for a tile
  cs_i32 log_group;  // 1 << log_group threads stage one line of them
  cs_i32 words_per_row;
  cs_u8 *labels, *confidence;  // confidence may be null
  cs_u32 *words;               // [height, words_per_row] bit i of word j: pixel 32 * j + i is active
  cs_u16 *bins;                // [height, width], written where active
  cs_u32 *histogram;           // [CS_SELECT_BINS], zero before
};

// Results of the cut, in the workspace.
struct CsCut {
  cs_i32 over;     // found > capacity
  cs_i32 allowed;  // pixels of the cut's bin that stay
};

struct CsCompact {
  const cs_u32 *histogram;
  cs_u32 *words;  // in: active; out: stays for certain
  cs_u32 *ties;   // out, only over capacity: in the cut's bin
  const cs_u16 *bins;
  cs_i32 *chunks;  // [number of chunks, 2]: pixels that stay, pixels in the cut's bin
  CsCut *cut;
  cs_i32 height, width, words_per_row, capacity;
  cs_i32 *coords, *count, *found;
};

// A grid of sites as bits and ranks. The site (y, x) is bit (x + 1) % 32 of cell [y + 1][(x + 1) / 32]; the border of
// one column and one line makes every 3x3 lookup legal. cell.y = row of the first site of the cell (undefined in empty
// cells).
struct CsGrid {
  cs_u32 *cells;  // pairs
  cs_i32 pitch;   // cells of a line
  cs_i32 height, width;
};

struct CsDown {
  CsGrid fine, coarse;
  const cs_i32 *coords, *count;
  cs_i32 capacity, extent, capacity_out;
  const cs_i32 *largest_x;  // of the active sites
  cs_i32 *line_counts;      // [coarse.height]
  cs_i32 *coords_out, *count_out, *down, *up;
};

struct CsFeatures {
  cs_i32 features, kinds[CS_MAX_FEATURES];
  float values[CS_MAX_FEATURES];
  float mean[3], std[3];
  cs_i32 bgr;
};

struct CsPixelFeatures {
  const cs_u8 *image;
  cs_i32 height, width;
  const cs_i32 *coords, *count;
  cs_i32 capacity;
  const float *yi;
  cs_i64 ldi;
  cs_i32 classes, type;
  void *x;
  cs_i64 ldx;
  CsFeatures list;
};

struct CsEnsemble {
  const float *yi;
  cs_i64 ldi;
  const void *yo;
  cs_i64 ldo;
  cs_i32 yo_type;
  const cs_i32 *count;
  cs_i32 capacity, classes, hidden;
  const float *gate;  // w1 b1 w2 b2 w3 b3 w4 b4
  float *ye;
  cs_i64 lde;
};

struct CsScatter {
  cs_u8 *labels, *confidence;  // confidence may be null
  cs_i32 height, width;
  const cs_i32 *coords, *count;
  cs_i32 capacity;
  const float *logits;
  cs_i64 ld;
  cs_i32 classes;
};

struct CsPack {
  const cs_u8 *source;    // [source_rows, columns, 3]
  const cs_i32 *weights;  // of the rows, or null: rows as they are
  cs_i32 taps;            // room for weights of one row
  cs_i32 top, left, rows, columns, height, width;
  float mean[3], std[3], pad[3];
  cs_i32 bgr, type;
  void *out;     // [3, height, width] or null
  cs_u8 *small;  // [rows, columns, 3] or null
};

struct CsConvert {
  const void *x;
  cs_i64 ldx;
  void *y;
  cs_i64 ldy;
  cs_i32 from, to;
  const cs_i32 *count;
  cs_i32 capacity, columns;
  float quant;
};
