// What rows.cpp / ensemble.cpp and their *.isa.cpp files share. Plain data.
#ifndef CRISPSEG_ROWS_KERNELS_H
#define CRISPSEG_ROWS_KERNELS_H
#include <stdint.h>

#include "isa.h"

namespace crispseg {

struct LogitsAtJob {
  const float *pixels;  // [h, w, C]: classes of a low-resolution pixel next to each other
  int C, h, w;
  const int32_t *y0, *x0;  // left/upper taps by output row/column; the other tap is one further, clamped
  const float *fy, *fx;    // null: nearest
  const int32_t *coords;
  float *y;
  int64_t ldy;
};

struct RowsKernels {
  // [C, n] with plane stride -> [n, C]: pixels [begin, end).
  void (*transpose)(const float *planes, int64_t stride, int C, int64_t begin, int64_t end, float *pixels);
  void (*logits_at)(const LogitsAtJob &job, int32_t begin, int32_t end);
  // work: rows_work_floats(C) floats, private to the worker.
  void (*softmax)(const float *x, int64_t ldx, int32_t n, int C, float *y, int64_t ldy, float *work);
  void (*scatter)(const float *x, int64_t ldx, const int32_t *coords, int32_t n, int C, int W, uint8_t *labels,
                  uint8_t *confidence, float *work);
  void (*pick_certain)(const float *yi, int64_t ldi, const float *yo, int64_t ldo, int32_t n, int C, float *ye,
                       int64_t lde, float *work);
};
CS_DECLARE_TABLE(RowsKernels, rows_kernels)
constexpr int64_t rows_work_floats(int C) { return static_cast<int64_t>(C) * 32; }

struct GateJob {
  int C, hidden;
  // Packed by pack(): [outputs / tile][inputs][tile], outputs padded with zeros; biases padded likewise.
  const float *w1, *b1, *w2, *b2, *w3, *b3, *w4, *b4;
  const float *yi, *yo;
  int64_t ldi, ldo, lde;
  float *ye;
};

struct EnsembleKernels {
  int tile;        // outputs worked on together
  int block_rows;  // rows worked on together
  int64_t (*work_floats)(int C, int hidden);
  void (*gated)(const GateJob &job, int32_t begin, int32_t end, float *work);
};
CS_DECLARE_TABLE(EnsembleKernels, ensemble_kernels)

}  // namespace crispseg
#endif
