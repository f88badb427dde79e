// The gated ensembler for more than 32 classes, or where its weights do not fit into shared memory: a warp owns four
// rows, its lanes walk along the columns of the weights, and every weight read serves the four rows.
#pragma once
#include "ensemble.cuh"

enum { CS_WIDE_ROWS = 4, CS_WIDE_WARPS = 2 };

// Floats of shared memory of one warp: a row is p_i, E_i, p_o, E_o, then the hidden values, then the mixed logits over
// p.
CS_DEVICE int cs_wide_row(int classes, int hidden) { return 2 * classes + 2 + hidden; }

template <class T>
CS_SHARED_FUNCTION float cs_wide_softmax(const T *row, int classes, float *p) {
  const int lane = cs_lane();
  float peak = -CS_INFINITY;
#pragma unroll 1
  for (int c = lane; c < classes; c += 32) peak = fmaxf(peak, cs_to_float(row[c]));
  peak = cs_warp_max(peak);
  float sum = 0.0f;
#pragma unroll 1
  for (int c = lane; c < classes; c += 32) {
    const float e = cs_exp(cs_to_float(row[c]) - peak);
    p[c] = e;
    sum += e;
  }
  sum = cs_warp_sum(sum);
  const float log_sum = logf(sum), least = log_sum + CS_LOG_FLOOR;
  const float scale = 1.0f / sum;
  float dot = 0.0f;
#pragma unroll 1
  for (int c = lane; c < classes; c += 32) {
    const float t = cs_to_float(row[c]) - peak;
    dot += p[c] * (t > least ? t : least);
    p[c] *= scale;
  }
  return log_sum - cs_warp_sum(dot) / sum;
}

// sum[r] = weights[0..width) . rows[r][0..width), in every lane.
CS_DEVICE void cs_wide_dot(const float *weights, int width, const float *rows, int stride, float *sum) {
#pragma unroll
  for (int r = 0; r < CS_WIDE_ROWS; ++r) sum[r] = 0.0f;
#pragma unroll 2
  for (int k = cs_lane(); k < width; k += 32) {
    const float w = weights[k];
#pragma unroll
    for (int r = 0; r < CS_WIDE_ROWS; ++r) sum[r] = fmaf(w, rows[r * stride + k], sum[r]);
  }
#pragma unroll
  for (int r = 0; r < CS_WIDE_ROWS; ++r) sum[r] = cs_warp_sum(sum[r]);
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(64, 8) csk_ensemble_gated_wide(CsEnsemble a) {
  CS_DYNAMIC_SHARED(float, memory);
  const int classes = a.classes, hidden = a.hidden, stride = cs_wide_row(classes, hidden), lane = cs_lane();
  const int n = cs_clamp(*a.count, 0, a.capacity);
  const CsGate g = cs_gate(a.gate, classes, hidden);
  float *rows = memory + cs_warp() * CS_WIDE_ROWS * stride, *units = rows + 2 * classes + 2;
  const int step = (int)gridDim.x * CS_WIDE_WARPS * CS_WIDE_ROWS;
#pragma unroll 1
  for (cs_i64 first = (cs_i64)((int)blockIdx.x * CS_WIDE_WARPS + cs_warp()) * CS_WIDE_ROWS; first < n; first += step) {
    // Rows from n on repeat the last one; they are not written.
#pragma unroll 1
    for (int r = 0; r < CS_WIDE_ROWS; ++r) {
      const cs_i64 row = min(first + r, (cs_i64)n - 1);
      float *p = rows + r * stride;
      const float low = cs_wide_softmax(a.yi + row * a.ldi, classes, p);
      const float own = a.yo_type == CS_TYPE_F16
                            ? cs_wide_softmax((const cs_half *)a.yo + row * a.ldo, classes, p + classes + 1)
                            : cs_wide_softmax((const float *)a.yo + row * a.ldo, classes, p + classes + 1);
      if (lane == 0) {
        p[classes] = low;
        p[2 * classes + 1] = own;
      }
    }
    __syncwarp();
    float z0[CS_WIDE_ROWS], z1[CS_WIDE_ROWS], h[CS_WIDE_ROWS];
#pragma unroll
    for (int r = 0; r < CS_WIDE_ROWS; ++r) {
      z0[r] = g.b2[0];
      z1[r] = g.b2[1];
    }
    const int width = 2 * classes + 2;
#pragma unroll 1
    for (int j = 0; j < hidden; ++j) {
      cs_wide_dot(g.w1 + j * width, width, rows, stride, h);
#pragma unroll
      for (int r = 0; r < CS_WIDE_ROWS; ++r) {
        const float v = h[r] + g.b1[j], relu = v < 0.0f ? 0.0f : v;
        z0[r] = fmaf(g.w2[j], relu, z0[r]);
        z1[r] = fmaf(g.w2[hidden + j], relu, z1[r]);
      }
    }
    __syncwarp();
#pragma unroll  // z0 and z1 are registers: no run-time index
    for (int r = 0; r < CS_WIDE_ROWS; ++r) {
      const cs_i64 row = min(first + r, (cs_i64)n - 1);
      const float top = fmaxf(z0[r], z1[r]), e0 = cs_exp(z0[r] - top), e1 = cs_exp(z1[r] - top);
      const float g0 = e0 / (e0 + e1), g1 = e1 / (e0 + e1);
#pragma unroll 1
      for (int c = lane; c < classes; c += 32) {
        const float own = a.yo_type == CS_TYPE_F16 ? cs_to_float(((const cs_half *)a.yo)[row * a.ldo + c])
                                                   : ((const float *)a.yo)[row * a.ldo + c];
        rows[r * stride + c] = fmaf(g1, own, g0 * a.yi[row * a.ldi + c]);
      }
    }
    __syncwarp();
#pragma unroll 1
    for (int j = 0; j < hidden; ++j) {
      cs_wide_dot(g.w3 + j * classes, classes, rows, stride, h);
#pragma unroll
      for (int r = 0; r < CS_WIDE_ROWS; ++r)
        if (lane == r) units[r * stride + j] = h[r] + g.b3[j] < 0.0f ? 0.0f : h[r] + g.b3[j];
    }
    __syncwarp();
#pragma unroll 1
    for (int c = 0; c < classes; ++c) {
      cs_wide_dot(g.w4 + c * hidden, hidden, units, stride, h);
#pragma unroll
      for (int r = 0; r < CS_WIDE_ROWS; ++r)
        if (lane == r && first + r < n) a.ye[(first + r) * a.lde + c] = h[r] + g.b4[c];
    }
    __syncwarp();
  }
}
