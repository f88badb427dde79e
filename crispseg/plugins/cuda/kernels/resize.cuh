// Pillow's antialiased bilinear resize, to the bit: a triangle of width max(1, scale), coefficients rounded to 22
// fractional bits, along x first and then along y with 8-bit values in between. Every step of the coefficients is a
// rounded double operation; the _rn forms keep the compiler from joining a product and a sum.
#pragma once
#include "base.cuh"
#include "front_params.h"

#if defined(CS_EMULATE)
CS_DEVICE double cs_mul_rn(double a, double b) { return a * b; }
CS_DEVICE double cs_add_rn(double a, double b) { return a + b; }
#else
CS_DEVICE double cs_mul_rn(double a, double b) { return __dmul_rn(a, b); }
CS_DEVICE double cs_add_rn(double a, double b) { return __dadd_rn(a, b); }
#endif

CS_DEVICE double cs_triangle(int x, double center, double inverse) {
  const double at = cs_mul_rn(cs_add_rn(cs_add_rn((double)x, -center), 0.5), inverse), distance = at < 0.0 ? -at : at;
  return distance < 1.0 ? cs_add_rn(1.0, -distance) : 0.0;
}

// table[i] = first position, number of weights, weights [taps]; one thread an output position.
CS_DEVICE void cs_resize_weights(int i, int in, int out, int taps, cs_i32 *table) {
  const double scale = (double)in / (double)out, width = scale < 1.0 ? 1.0 : scale, inverse = 1.0 / width;
  const double center = cs_mul_rn(cs_add_rn((double)i, 0.5), scale);
  const int low = max((int)cs_add_rn(cs_add_rn(center, -width), 0.5), 0);
  const int count = min((int)cs_add_rn(cs_add_rn(center, width), 0.5), in) - low;
  double sum = 0.0;
#pragma unroll 1
  for (int k = 0; k < count; ++k) sum = cs_add_rn(sum, cs_triangle(k + low, center, inverse));
  cs_i32 *entry = table + (cs_i64)i * (2 + taps);
  entry[0] = low;
  entry[1] = count;
#pragma unroll 1
  for (int k = 0; k < count && k < taps; ++k) {
    double weight = cs_triangle(k + low, center, inverse);
    if (sum != 0.0) weight = weight / sum;
    entry[2 + k] = (cs_i32)cs_add_rn(0.5, cs_mul_rn(weight, 4194304.0));
  }
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(128) csk_resize_tables(int in_x, int out_x, int taps_x, cs_i32 *table_x, int in_y,
                                                       int out_y, int taps_y, cs_i32 *table_y) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < out_x) {
    cs_resize_weights(i, in_x, out_x, taps_x, table_x);
  } else if (i - out_x < out_y) {
    cs_resize_weights(i - out_x, in_y, out_y, taps_y, table_y);
  }
}

CS_DEVICE cs_u8 cs_resized(int sum) { return (cs_u8)cs_clamp(sum >> 22, 0, 255); }

// [rows, in, 3] -> [rows, out, 3]; a block stays in one row, whose bytes come from the L1 cache after the first tap.
CS_GLOBAL void CS_LAUNCH_BOUNDS(128)
    csk_resize_columns(const cs_u8 *source, int rows, int in, int out, const cs_i32 *table, int taps, cs_u8 *target) {
  const int x = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (x >= out) return;
  const cs_i32 *entry = table + (cs_i64)x * (2 + taps);
  const int low = entry[0], count = entry[1];
  for (int y = (int)blockIdx.y; y < rows; y += (int)gridDim.y) {
    const cs_u8 *p = source + ((cs_i64)y * in + low) * 3;
    int sum[3] = {1 << 21, 1 << 21, 1 << 21};
    for (int k = 0; k < count; ++k) {
      const int weight = entry[2 + k];
      for (int c = 0; c < 3; ++c) sum[c] += weight * (int)p[3 * k + c];
    }
    cs_u8 *q = target + ((cs_i64)y * out + x) * 3;
    for (int c = 0; c < 3; ++c) q[c] = cs_resized(sum[c]);
  }
}

// The vertical pass, then normalised planes with bars around the picture.
CS_GLOBAL void CS_LAUNCH_BOUNDS(128) csk_frame_pack(CsPack a) {
  const int x = (int)(blockIdx.x * blockDim.x + threadIdx.x), column = x - a.left;
  if (x >= a.width) return;
  for (int y = (int)blockIdx.y; y < a.height; y += (int)gridDim.y) {
    const int row = y - a.top;
    float value[3] = {a.pad[0], a.pad[1], a.pad[2]};
    if (row >= 0 && row < a.rows && column >= 0 && column < a.columns) {
      cs_u8 colour[3];
      if (a.weights) {
        const cs_i32 *entry = a.weights + (cs_i64)row * (2 + a.taps);
        const int low = entry[0], count = entry[1];
        int sum[3] = {1 << 21, 1 << 21, 1 << 21};
        for (int k = 0; k < count; ++k) {
          const cs_u8 *p = a.source + ((cs_i64)(low + k) * a.columns + column) * 3;
          for (int c = 0; c < 3; ++c) sum[c] += entry[2 + k] * (int)p[c];
        }
        for (int c = 0; c < 3; ++c) colour[c] = cs_resized(sum[c]);
      } else {
        for (int c = 0; c < 3; ++c) colour[c] = a.source[((cs_i64)row * a.columns + column) * 3 + c];
      }
      if (a.small)
        for (int c = 0; c < 3; ++c) a.small[((cs_i64)row * a.columns + column) * 3 + c] = colour[c];
      value[0] = (float)(a.bgr ? colour[2] : colour[0]);
      value[1] = (float)colour[1];
      value[2] = (float)(a.bgr ? colour[0] : colour[2]);
    }
    if (!a.out) continue;
    for (int c = 0; c < 3; ++c) {
      const cs_i64 at = ((cs_i64)c * a.height + y) * a.width + x;
      const float v = (value[c] - a.mean[c]) / a.std[c];
      if (a.type == CS_TYPE_F16) {
        ((cs_half *)a.out)[at] = cs_float_to_half(v);
      } else {
        ((float *)a.out)[at] = v;
      }
    }
  }
}
