// Low-resolution logits at the active pixels, one row a site. Threads are sites while reading (neighbouring sites share
// taps, and a class is a plane), and columns while writing: the tile in between makes both coalesced.
#pragma once
#include "sampling.cuh"
#include "softmax.cuh"

template <class T>
CS_DEVICE void cs_logits_at(const T *logits, int classes, const CsSampling &s, const cs_i32 *coords, int n, float *y,
                            cs_i64 ldy) {
  CS_SHARED(float, tile, [CS_ROW_BLOCK * CS_ROW_STRIDE]);
  const cs_i64 plane = (cs_i64)s.low_height * s.low_width;
  const int lane = cs_lane();
#pragma unroll 1
  for (int first = (int)blockIdx.x * CS_ROW_BLOCK; first < n; first += (int)gridDim.x * CS_ROW_BLOCK) {
    const int rows = min(n - first, (int)CS_ROW_BLOCK), i = first + (int)threadIdx.x;
    const bool mine = (int)threadIdx.x < rows;
    CsTap ty, tx;
    ty.index = tx.index = 0;
    ty.weight = tx.weight = 0.0f;
    if (mine) {
      const int2 site = ((const int2 *)coords)[i];
      ty = cs_tap(cs_clamp(site.x, 0, s.height - 1), s.low_height, s.height, s.rule);
      tx = cs_tap(cs_clamp(site.y, 0, s.width - 1), s.low_width, s.width, s.rule);
    }
    const T *at = logits + (cs_i64)ty.index * s.low_width + tx.index;
    const cs_i64 down = ty.index + 1 < s.low_height ? s.low_width : 0;
    const int right = tx.index + 1 < s.low_width ? 1 : 0;
#pragma unroll 1
    for (int c0 = 0; c0 < classes; c0 += CS_ROW_COLUMNS) {
      const int columns = min(classes - c0, (int)CS_ROW_COLUMNS);
      if (mine) {
        float *own = tile + threadIdx.x * CS_ROW_STRIDE;
        for (int c = 0; c < columns; ++c) {
          const T *p = at + (c0 + c) * plane;
          if (s.rule == CS_RULE_NEAREST) {
            own[c] = cs_to_float(p[0]);
          } else {  // vertically first, as the front end
            const float left = cs_mix(cs_to_float(p[0]), cs_to_float(p[down]), ty.weight);
            own[c] = cs_mix(left, cs_mix(cs_to_float(p[right]), cs_to_float(p[down + right]), ty.weight), tx.weight);
          }
        }
      }
      cs_sync();
      if (lane < columns)
        for (int r = cs_warp(); r < rows; r += CS_ROW_BLOCK / 32)
          y[(cs_i64)(first + r) * ldy + c0 + lane] = tile[r * CS_ROW_STRIDE + lane];
      cs_sync();
    }
  }
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(128)
    csk_logits_at_f32(const float *logits, int classes, CsSampling s, const cs_i32 *coords, const cs_i32 *count,
                      int capacity, float *y, cs_i64 ldy) {
  cs_logits_at(logits, classes, s, coords, cs_clamp(*count, 0, capacity), y, ldy);
}
CS_GLOBAL void CS_LAUNCH_BOUNDS(128)
    csk_logits_at_f16(const cs_half *logits, int classes, CsSampling s, const cs_i32 *coords, const cs_i32 *count,
                      int capacity, float *y, cs_i64 ldy) {
  cs_logits_at(logits, classes, s, coords, cs_clamp(*count, 0, capacity), y, ldy);
}
