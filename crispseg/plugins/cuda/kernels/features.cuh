// Input columns of the refiner at the active pixels: colours, positions, probabilities of the base.
#pragma once
#include "softmax.cuh"

// Column `column` of a site is column `offset` of feature `f`; f = features: padding.
CS_DEVICE int cs_find_feature(const CsFeatures &list, int classes, int column, int *offset) {
  int f = 0;
  for (; f < list.features; ++f) {
    const int width = list.kinds[f] == 0 ? 3 : list.kinds[f] == 1 ? 2 : classes;
    if (column < width) break;
    column -= width;
  }
  *offset = column;
  return f;
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(128) csk_pixel_features(CsPixelFeatures a) {
  CS_SHARED(float, tile, [CS_ROW_BLOCK * CS_ROW_STRIDE]);      // yi
  CS_SHARED(float, out_tile, [CS_ROW_BLOCK * CS_ROW_STRIDE]);  // x
  const int n = cs_clamp(*a.count, 0, a.capacity), lane = cs_lane();
#pragma unroll 1
  for (int first = (int)blockIdx.x * CS_ROW_BLOCK; first < n; first += (int)gridDim.x * CS_ROW_BLOCK) {
    const int rows = min(n - first, (int)CS_ROW_BLOCK), i = first + (int)threadIdx.x;
    const bool mine = (int)threadIdx.x < rows;
    CsRow row;
    row.peak = row.sum = 0.0f;
    const float *yi = 0;
    if (a.yi) {
      row = cs_row_statistics(a.yi + first * a.ldi, a.ldi, rows, a.classes, 2, tile);
      yi = a.classes <= CS_ROW_COLUMNS ? tile + threadIdx.x * CS_ROW_STRIDE : a.yi + i * a.ldi;
    }
    int y = 0, x = 0;
    const cs_u8 *colour = a.image;
    if (mine) {
      const int2 site = ((const int2 *)a.coords)[i];
      y = cs_clamp(site.x, 0, a.height - 1);
      x = cs_clamp(site.y, 0, a.width - 1);
      colour = a.image + ((cs_i64)y * a.width + x) * 3;
    }
#pragma unroll 1
    for (int c0 = 0; c0 < (int)a.ldx; c0 += CS_ROW_COLUMNS) {
      const int columns = min((int)a.ldx - c0, (int)CS_ROW_COLUMNS);
      int offset, f = cs_find_feature(a.list, a.classes, c0, &offset);
#pragma unroll 1
      for (int c = 0; mine && c < columns; ++c) {
        float value = 0.0f;
        if (f < a.list.features) {
          const int kind = a.list.kinds[f];
          int width = a.classes;
          if (kind == 0) {
            width = 3;
            value = ((float)colour[a.list.bgr ? 2 - offset : offset] - a.list.mean[offset]) / a.list.std[offset];
          } else if (kind == 1) {
            width = 2;
            value = offset == 0 ? (float)y / (float)a.height : (float)x / (float)a.width;
          } else {
            value = cs_exp(yi[offset] - row.peak) / row.sum;
            if (kind == 3) value = value > a.list.values[f] ? 1.0f : 0.0f;
          }
          if (++offset == width) {
            offset = 0;
            ++f;
          }
        }
        out_tile[threadIdx.x * CS_ROW_STRIDE + c] = value;
      }
      cs_sync();
      if (lane < columns)
        for (int r = cs_warp(); r < rows; r += CS_ROW_BLOCK / 32) {
          const cs_i64 at = (first + r) * a.ldx + c0 + lane;
          const float value = out_tile[r * CS_ROW_STRIDE + lane];
          if (a.type == CS_TYPE_F16) {
            cs_store_float((cs_half *)a.x + at, value);
          } else {
            cs_store_float((float *)a.x + at, value);
          }
        }
      cs_sync();
    }
  }
}
