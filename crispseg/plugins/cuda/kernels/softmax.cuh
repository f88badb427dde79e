// Softmax, entropy and argmax of rows of logits. A block stages CS_ROW_BLOCK rows through shared memory, 32 columns at
// a time, so that memory is read along the rows while each thread owns one row.
#pragma once
#include "base.cuh"
#include "front_params.h"

#define CS_LOG_FLOOR -11.512925465f  // ln(1e-5)
#define CS_INFINITY __uint_as_float(0x7f800000u)
#define CS_ROW_STRIDE 33  // odd: threads of a warp that read one column hit 32 banks

// Functions that several kernels share, once in the image: half the compile time of inlining them everywhere.
#if defined(CS_EMULATE)
#define CS_SHARED_FUNCTION static __attribute__((noinline, unused))
#else
#define CS_SHARED_FUNCTION static __device__ __noinline__
#endif

// exp of t <= 0; results below the normal numbers are 0. Two instructions, error below 2e-7 + 1e-7 * |t| relative.
CS_DEVICE float cs_exp(float t) {
#if defined(CS_EMULATE)
  return expf(t);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(t * 1.44269504f));
  return y;
#endif
}

// round(255 / sum), 0 for NaN.
CS_DEVICE cs_u8 cs_confidence(float sum) {
  const float value = 255.0f / sum;
  return (cs_u8)(value == value ? __float2int_rn(value) : 0);
}

// Columns first .. first+columns-1 of `rows` rows into the tile.
template <class T>
CS_DEVICE void cs_stage_rows(const T *source, cs_i64 ld, int rows, int first, int columns, float *tile) {
  const int lane = cs_lane(), warps = (int)(blockDim.x >> 5);
  if (lane >= columns) return;
  for (int r = cs_warp(); r < rows; r += warps)
    tile[r * CS_ROW_STRIDE + lane] = cs_to_float(source[r * ld + first + lane]);
}

struct CsRow {
  float peak, sum, entropy;  // sum of exp(v - peak)
  int label;
};

// Of row threadIdx.x, for the first `rows` threads; every thread of the block calls it. Largest value and its first
// index (NaN never wins; it makes sum and entropy NaN), sum unless passes < 2, entropy unless passes < 3. With at most
// 32 classes the tile holds the rows afterwards. The floor concerns only the logarithm: -sum p ln(max(p, 1e-5)).
template <class T>
CS_SHARED_FUNCTION CsRow cs_row_statistics(const T *source, cs_i64 ld, int rows, int classes, int passes, float *tile) {
  const bool mine = (int)threadIdx.x < rows;
  const float *own = tile + threadIdx.x * CS_ROW_STRIDE;
  CsRow row;
  row.peak = -CS_INFINITY;
  row.sum = row.entropy = 0.0f;
  row.label = 0;
  float log_sum = 0.0f, dot = 0.0f;
#pragma unroll 1
  for (int pass = 0; pass < passes; ++pass) {
    if (pass == 2) log_sum = logf(row.sum);
#pragma unroll 1
    for (int first = 0; first < classes; first += CS_ROW_COLUMNS) {
      const int columns = min(classes - first, (int)CS_ROW_COLUMNS);
      if (pass == 0 || classes > CS_ROW_COLUMNS) {
        cs_sync();
        cs_stage_rows(source, ld, rows, first, columns, tile);
        cs_sync();
      }
      if (!mine) continue;
      for (int c = 0; c < columns; ++c) {
        const float v = own[c];
        if (pass == 0) {
          if (v > row.peak) {
            row.peak = v;
            row.label = first + c;
          }
        } else {
          const float t = v - row.peak, e = cs_exp(t);
          if (pass == 1) {
            row.sum += e;
          } else {
            const float least = log_sum + CS_LOG_FLOOR;
            dot += e * (t > least ? t : least);
          }
        }
      }
    }
  }
  row.entropy = log_sum - dot / row.sum;
  return row;
}
