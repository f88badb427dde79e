// What select.cpp (arguments, tables, scratch, compaction) and select.isa.cpp (arithmetic) share. Plain data.
#ifndef CRISPSEG_SELECT_KERNELS_H
#define CRISPSEG_SELECT_KERNELS_H
#include <stdint.h>

#include "isa.h"

namespace crispseg {

constexpr int kSelectMaxRatio = 16;  // integer upsampling factors with a path of their own

struct SelectJob {
  const float *logits;  // [C, h, w]
  int C, h, w, H, W;
  int ratio;        // > 0: W = ratio * w, half-pixel rule, pixels of one phase are neighbours in a vector. 0: by tables
  float threshold;
  float margin;     // a pixel whose best logit leads by this much cannot reach the threshold (may be inf)
  const int32_t *y0;  // [H] row above; the row below is min(y0 + 1, h - 1)
  const float *fy;    // [H] weight of the row below
  const int32_t *x0;  // [W rounded up to 64] likewise for columns; unused when ratio > 0
  const float *fx;
  const int16_t *top;   // [h, w]: class that leads by enough at this low-resolution pixel, else -1
  const uint16_t *run;  // [h, w]: how many pixels from here rightwards have the same top (>= 0), at most 65535
  uint8_t *labels, *confidence;  // [H, W]; confidence may be null
  uint8_t *mask;                 // [H, W] 0/1: entropy > threshold
  float *entropy;                // [H, W], written at least where mask is 1
};

struct SelectKernels {
  // Floats of private memory that rows() needs per worker.
  int64_t (*work_floats)(int C);
  // Output rows [y_begin, y_end), interpolating.
  void (*rows)(const SelectJob &job, int y_begin, int y_end, float *work);
  // Low-resolution rows [y_begin, y_end) as they are: labels, confidence, mask, entropy have stride w here.
  void (*plain)(const SelectJob &job, int y_begin, int y_end, float *work);
  // top[h,w] and run[h,w] of low-resolution rows [y_begin, y_end): leads by `lead` or more.
  void (*certain)(const SelectJob &job, float lead, int y_begin, int y_end, int16_t *top, uint16_t *run, float *work);
  int64_t (*count)(const uint8_t *mask, int64_t n);
};
CS_DECLARE_TABLE(SelectKernels, select_kernels)

}  // namespace crispseg
#endif
