// Selection, first part: low-resolution logits -> labels, confidence, active mask, entropy bins and their histogram.
//
// A block works on a tile of 64 columns and 1 to 8 rows. It stages the low-resolution logits under the tile in shared
// memory, mixed vertically for each row of the tile, so that a pixel costs two shared loads a class; every
// low-resolution value is read from global memory about once a tile (twice with its halo). At 1024 x 2048, factor 4 and
// 19 classes that is 10 MB of fp16 or 20 MB of fp32 read, 2 MB (4 with confidence) of bytes and 0.25 MB of mask
// written, and 0.5 MB of bins where 12 % are active. A warp holds 32 columns of one row, so that the mask comes out of
// a ballot. The histogram takes integer atomics (their sum does not depend on the order), one for the lanes that share
// the first active lane's bin.
#pragma once
#include "sampling.cuh"
#include "select_evaluate.cuh"

enum { CS_SOURCE_TILE, CS_SOURCE_PIXEL, CS_SOURCE_TAPS };

template <class T>
CS_DEVICE void cs_fill_tile(const CsSelect &a, const int *line, const float *line_weight, int first, float *tile) {
  const int rows = 1 << a.log_rows, low_height = a.sampling.low_height, low_width = a.sampling.low_width;
  const int group = 1 << a.log_group, lane = (int)threadIdx.x & (group - 1);
  const T *logits = (const T *)a.logits;
#pragma unroll 1
  for (int item = (int)threadIdx.x >> a.log_group; item < a.classes << a.log_rows;
       item += (int)blockDim.x >> a.log_group) {
    const int r = item & (rows - 1), top = line[r];
    const T *above = logits + ((cs_i64)(item >> a.log_rows) * low_height + top) * low_width;
    const T *below = top + 1 < low_height ? above + low_width : above;
    const float weight = line_weight[r];
#pragma unroll 1
    for (int column = lane; column < a.columns; column += group) {
      const int x = min(first + column, low_width - 1);
      tile[item * a.columns + column] = cs_mix(cs_to_float(above[x]), cs_to_float(below[x]), weight);
    }
  }
}

CS_DEVICE void cs_count_bin(cs_u32 *histogram, bool active, int bin) {
  const unsigned word = __ballot_sync(CS_FULL_MASK, active);
  if (word == 0) return;
  const int leader = __ffs((int)word) - 1;
  const int shared = __shfl_sync(CS_FULL_MASK, bin, leader);
  const unsigned same = __ballot_sync(CS_FULL_MASK, active && bin == shared);
  if (cs_lane() == leader) {
    atomicAdd(histogram + shared, (cs_u32)__popc(same));
  } else if (active && bin != shared) {
    atomicAdd(histogram + bin, 1u);
  }
}

template <int N, int SOURCE, class T>
CS_DEVICE void cs_select_tile(const CsSelect &a) {
  CS_SHARED(int, column, [CS_SELECT_WIDTH]);
  CS_SHARED(float, column_weight, [CS_SELECT_WIDTH]);
  CS_SHARED(int, line, [CS_SELECT_MAX_ROWS]);
  CS_SHARED(float, line_weight, [CS_SELECT_MAX_ROWS]);
  CS_DYNAMIC_SHARED(float, tile);
  const CsSampling &s = a.sampling;
  const int rows = 1 << a.log_rows;
  const int left = (int)blockIdx.x * CS_SELECT_WIDTH, top = (int)blockIdx.y * rows;
#pragma unroll 1
  for (int i = (int)threadIdx.x; i < CS_SELECT_WIDTH + rows; i += (int)blockDim.x) {
    if (i < CS_SELECT_WIDTH) {
      const CsTap tap = cs_tap(min(left + i, s.width - 1), s.low_width, s.width, s.rule);
      column[i] = tap.index;
      column_weight[i] = tap.weight;
    } else {
      const CsTap tap = cs_tap(min(top + i - CS_SELECT_WIDTH, s.height - 1), s.low_height, s.height, s.rule);
      line[i - CS_SELECT_WIDTH] = tap.index;
      line_weight[i - CS_SELECT_WIDTH] = tap.weight;
    }
  }
  cs_sync();
  if (SOURCE == CS_SOURCE_TILE) {
    cs_fill_tile<T>(a, line, line_weight, column[0], tile);
    cs_sync();
  }
  const cs_i64 plane = (cs_i64)s.low_height * s.low_width;
#pragma unroll 1
  for (int i = (int)threadIdx.x; i < CS_SELECT_WIDTH << a.log_rows; i += (int)blockDim.x) {
    const int r = i / CS_SELECT_WIDTH, j = i % CS_SELECT_WIDTH;
    const int y = top + r, x = left + j;
    const bool inside = y < s.height && x < s.width;
    CsPixel pixel;
    pixel.label = 0;
    pixel.sum = 0.0f;
    pixel.entropy = -1.0f;
    if (inside) {
      if (SOURCE == CS_SOURCE_TILE) {
        CsFromTile source;
        source.at = tile + r * a.columns + column[j] - column[0];
        source.stride = a.columns << a.log_rows;
        source.weight = column_weight[j];
        pixel = cs_evaluate<N>(source, a.classes, a.margin, a.confidence != 0);
      } else {
        const T *at = (const T *)a.logits + (cs_i64)line[r] * s.low_width + column[j];
        if (SOURCE == CS_SOURCE_PIXEL) {
          CsFromPixel<T> source;
          source.at = at;
          source.plane = plane;
          pixel = cs_evaluate<N>(source, a.classes, a.margin, a.confidence != 0);
        } else {
          CsFromTaps<T> source;
          source.at = at;
          source.plane = plane;
          source.down = line[r] + 1 < s.low_height ? s.low_width : 0;
          source.right = column[j] + 1 < s.low_width ? 1 : 0;
          source.weight_y = line_weight[r];
          source.weight_x = column_weight[j];
          pixel = cs_evaluate<N>(source, a.classes, a.margin, a.confidence != 0);
        }
      }
    }
    // A pixel that was shown to be certain has entropy -1, below a threshold that a lead can rule out.
    const bool active = inside && pixel.entropy > a.threshold;
    const int bin = active ? cs_clamp((int)(pixel.entropy * a.bin_scale), 0, CS_SELECT_BINS - 1) : 0;
    const unsigned word = __ballot_sync(CS_FULL_MASK, active);
    if (inside) {
      const cs_i64 at = (cs_i64)y * s.width + x;
      a.labels[at] = (cs_u8)pixel.label;
      if (a.confidence) a.confidence[at] = cs_confidence(pixel.sum);
      if (active) a.bins[at] = (cs_u16)bin;
      if (cs_lane() == 0) a.words[(cs_i64)y * a.words_per_row + x / 32] = word;
    }
    cs_count_bin(a.histogram, active, bin);
  }
}

#define CS_SELECT_KERNEL(name, N, source, type) \
  CS_GLOBAL void CS_LAUNCH_BOUNDS(256) name(CsSelect a) { cs_select_tile<N, source, type>(a); }
CS_SELECT_KERNEL(csk_select_tile20_f32, 20, CS_SOURCE_TILE, float)
CS_SELECT_KERNEL(csk_select_tile20_f16, 20, CS_SOURCE_TILE, cs_half)
CS_SELECT_KERNEL(csk_select_tile32_f32, 32, CS_SOURCE_TILE, float)
CS_SELECT_KERNEL(csk_select_tile32_f16, 32, CS_SOURCE_TILE, cs_half)
CS_SELECT_KERNEL(csk_select_tile_f32, 0, CS_SOURCE_TILE, float)
CS_SELECT_KERNEL(csk_select_tile_f16, 0, CS_SOURCE_TILE, cs_half)
CS_SELECT_KERNEL(csk_select_pixel32_f32, 32, CS_SOURCE_PIXEL, float)
CS_SELECT_KERNEL(csk_select_pixel32_f16, 32, CS_SOURCE_PIXEL, cs_half)
CS_SELECT_KERNEL(csk_select_pixel_f32, 0, CS_SOURCE_PIXEL, float)
CS_SELECT_KERNEL(csk_select_pixel_f16, 0, CS_SOURCE_PIXEL, cs_half)
CS_SELECT_KERNEL(csk_select_taps_f32, 0, CS_SOURCE_TAPS, float)
CS_SELECT_KERNEL(csk_select_taps_f16, 0, CS_SOURCE_TAPS, cs_half)
#undef CS_SELECT_KERNEL
