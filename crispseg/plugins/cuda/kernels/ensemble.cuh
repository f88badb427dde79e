// SparseRefine's gated ensembler and the entropy ensembler, row by row in fp32.
//
// Gated, up to 32 classes: a thread owns two rows (one above 20 classes) and holds their probabilities, then their
// mixed logits, in registers; the weights lie in shared memory, ordered so that all threads of a warp read the same 16
// bytes at a time, and serve both rows. The hidden layers are never stored: a hidden value is used as soon as it is
// known. 240,000 rows of 19 classes with 64 hidden units are 1.2 G multiply-adds against 60 MB of memory traffic.
#pragma once
#include "softmax.cuh"

enum { CS_ENSEMBLE_THREADS = 128 };

struct CsGate {
  const float *w1, *b1, *w2, *b2, *w3, *b3, *w4, *b4;
};
CS_DEVICE CsGate cs_gate(const float *p, int classes, int hidden) {
  CsGate g;
  g.w1 = p;
  g.b1 = g.w1 + hidden * (2 * classes + 2);
  g.w2 = g.b1 + hidden;
  g.b2 = g.w2 + 2 * hidden;
  g.w3 = g.b2 + 2;
  g.b3 = g.w3 + hidden * classes;
  g.w4 = g.b3 + hidden;
  g.b4 = g.w4 + classes * hidden;
  return g;
}

// Statistics of rows of yo, fp32 or fp16.
CS_DEVICE CsRow cs_own_statistics(const CsEnsemble &a, cs_i64 first, int rows, int passes, float *tile) {
  if (a.yo_type == CS_TYPE_F16)
    return cs_row_statistics((const cs_half *)a.yo + first * a.ldo, a.ldo, rows, a.classes, passes, tile);
  return cs_row_statistics((const float *)a.yo + first * a.ldo, a.ldo, rows, a.classes, passes, tile);
}
CS_DEVICE void cs_stage_own(const CsEnsemble &a, cs_i64 first, int rows, int column, int columns, float *tile) {
  if (a.yo_type == CS_TYPE_F16) {
    cs_stage_rows((const cs_half *)a.yo + first * a.ldo, a.ldo, rows, column, columns, tile);
  } else {
    cs_stage_rows((const float *)a.yo + first * a.ldo, a.ldo, rows, column, columns, tile);
  }
}

// Shared memory, per hidden unit: w1 of p_i [N], of p_o [N], of both entropies, b1, w2 [2], padding; w3 [N], w4 [N]
// (its column), b3, padding. Classes from `classes` to N have weight 0.
template <int N>
struct CsGateLayout {
  static constexpr int first = 2 * N + 8, second = 2 * N + 4, unit = first + second;
};

template <int N>
CS_DEVICE void cs_load_gate(const CsGate &g, int classes, int hidden, float *weights) {
  const int width = 2 * classes + 2;
  constexpr int unit = CsGateLayout<N>::unit, first = CsGateLayout<N>::first;
#pragma unroll 1
  for (int i = (int)threadIdx.x; i < hidden * unit; i += (int)blockDim.x) {
    const int j = i / unit, k = i - j * unit;
    float value = 0.0f;
    if (k < 2 * N) {
      const int c = k < N ? k : k - N;
      if (c < classes) value = g.w1[j * width + c + (k < N ? 0 : classes + 1)];
    } else if (k < first) {
      if (k == 2 * N) value = g.w1[j * width + classes];
      if (k == 2 * N + 1) value = g.w1[j * width + 2 * classes + 1];
      if (k == 2 * N + 2) value = g.b1[j];
      if (k == 2 * N + 4) value = g.w2[j];
      if (k == 2 * N + 5) value = g.w2[hidden + j];
    } else if (k < first + N) {
      if (k - first < classes) value = g.w3[j * classes + k - first];
    } else if (k < first + 2 * N) {
      const int c = k - first - N;
      if (c < classes) value = g.w4[c * hidden + j];
    } else if (k == first + 2 * N) {
      value = g.b3[j];
    }
    weights[i] = value;
  }
}

// sum[r] += weights[0..N) . values[r][0..N), N a multiple of 4.
template <int N, int R>
CS_DEVICE void cs_dot(const float *weights, const float (&values)[R][N], float (&sum)[R]) {
#pragma unroll
  for (int c = 0; c < N; c += 4) {
    const float4 w = *(const float4 *)(weights + c);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      sum[r] = fmaf(w.x, values[r][c], sum[r]);
      sum[r] = fmaf(w.y, values[r][c + 1], sum[r]);
      sum[r] = fmaf(w.z, values[r][c + 2], sum[r]);
      sum[r] = fmaf(w.w, values[r][c + 3], sum[r]);
    }
  }
}

template <int N, int R>
CS_DEVICE void cs_ensemble_gated(const CsEnsemble &a) {
  CS_DYNAMIC_SHARED(float, weights);  // [hidden][unit], then the tile
  constexpr int unit = CsGateLayout<N>::unit, first_part = CsGateLayout<N>::first;
  const int n = cs_clamp(*a.count, 0, a.capacity), classes = a.classes, lane = cs_lane();
  constexpr int block_rows = CS_ROW_BLOCK * R;
  if ((cs_i64)blockIdx.x * block_rows >= n) return;
  float *tile = weights + a.hidden * unit, *own = tile + threadIdx.x * CS_ROW_STRIDE;
#pragma unroll 1
  for (int c = 0; c < classes; ++c) own[c] = 0.0f;  // threads without a row read theirs too; nothing is made of it
  const CsGate g = cs_gate(a.gate, classes, a.hidden);
  cs_load_gate<N>(g, classes, a.hidden, weights);
  const float z_bias[2] = {g.b2[0], g.b2[1]};
#pragma unroll 1
  for (cs_i64 block = (cs_i64)blockIdx.x * block_rows; block < n; block += (cs_i64)gridDim.x * block_rows) {
    float p[R][N], q[R][N], entropy[R][2];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const cs_i64 first = block + r * CS_ROW_BLOCK;
      const int rows = (int)min(max(n - first, (cs_i64)0), (cs_i64)CS_ROW_BLOCK);
      const CsRow low = cs_row_statistics(a.yi + first * a.ldi, a.ldi, rows, classes, 3, tile);
      const float low_scale = 1.0f / low.sum;
#pragma unroll
      for (int c = 0; c < N; ++c) p[r][c] = c < classes ? cs_exp(own[c] - low.peak) * low_scale : 0.0f;
      const CsRow high = cs_own_statistics(a, first, rows, 3, tile);
      const float high_scale = 1.0f / high.sum;
#pragma unroll
      for (int c = 0; c < N; ++c) q[r][c] = c < classes ? cs_exp(own[c] - high.peak) * high_scale : 0.0f;
      entropy[r][0] = low.entropy;
      entropy[r][1] = high.entropy;
    }
    float z[R][2];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      z[r][0] = z_bias[0];
      z[r][1] = z_bias[1];
    }
#pragma unroll 1
    for (int j = 0; j < a.hidden; ++j) {
      const float *w = weights + j * unit;
      const float4 extra = *(const float4 *)(w + 2 * N), after = *(const float4 *)(w + 2 * N + 4);
      float h[R];
#pragma unroll
      for (int r = 0; r < R; ++r) h[r] = extra.z + extra.x * entropy[r][0] + extra.y * entropy[r][1];
      cs_dot(w, p, h);
      cs_dot(w + N, q, h);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float relu = h[r] < 0.0f ? 0.0f : h[r];  // NaN stays NaN
        z[r][0] = fmaf(after.x, relu, z[r][0]);
        z[r][1] = fmaf(after.y, relu, z[r][1]);
      }
    }
    // p becomes the mixed logits, q the result.
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const cs_i64 first = block + r * CS_ROW_BLOCK;
      const int rows = (int)min(max(n - first, (cs_i64)0), (cs_i64)CS_ROW_BLOCK);
      const float top = fmaxf(z[r][0], z[r][1]), e0 = cs_exp(z[r][0] - top), e1 = cs_exp(z[r][1] - top);
      const float g0 = e0 / (e0 + e1), g1 = e1 / (e0 + e1);
      cs_sync();
      cs_stage_rows(a.yi + first * a.ldi, a.ldi, rows, 0, classes, tile);
      cs_sync();
#pragma unroll
      for (int c = 0; c < N; ++c) p[r][c] = c < classes ? g0 * own[c] : 0.0f;
      cs_sync();
      cs_stage_own(a, first, rows, 0, classes, tile);
      cs_sync();
#pragma unroll
      for (int c = 0; c < N; ++c) {
        if (c < classes) p[r][c] = fmaf(g1, own[c], p[r][c]);
        q[r][c] = c < classes ? g.b4[c] : 0.0f;
      }
    }
#pragma unroll 1
    for (int j = 0; j < a.hidden; ++j) {
      const float *w = weights + j * unit + first_part;
      const float bias = w[2 * N];
      float h[R];
#pragma unroll
      for (int r = 0; r < R; ++r) h[r] = bias;
      cs_dot(w, p, h);
#pragma unroll
      for (int r = 0; r < R; ++r) h[r] = h[r] < 0.0f ? 0.0f : h[r];
#pragma unroll
      for (int c = 0; c < N; c += 4) {
        const float4 w4 = *(const float4 *)(w + N + c);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          q[r][c] = fmaf(w4.x, h[r], q[r][c]);
          q[r][c + 1] = fmaf(w4.y, h[r], q[r][c + 1]);
          q[r][c + 2] = fmaf(w4.z, h[r], q[r][c + 2]);
          q[r][c + 3] = fmaf(w4.w, h[r], q[r][c + 3]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const cs_i64 first = block + r * CS_ROW_BLOCK;
      const int rows = (int)min(max(n - first, (cs_i64)0), (cs_i64)CS_ROW_BLOCK);
      cs_sync();
#pragma unroll
      for (int c = 0; c < N; ++c)
        if (c < classes) own[c] = q[r][c];
      cs_sync();
      if (lane < classes)
        for (int i = cs_warp(); i < rows; i += CS_ROW_BLOCK / 32)
          a.ye[(first + i) * a.lde + lane] = tile[i * CS_ROW_STRIDE + lane];
    }
    cs_sync();
  }
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(128) csk_ensemble_gated20(CsEnsemble a) { cs_ensemble_gated<20, 2>(a); }
CS_GLOBAL void CS_LAUNCH_BOUNDS(128, 3) csk_ensemble_gated32(CsEnsemble a) { cs_ensemble_gated<32, 1>(a); }

// ye = yi where its entropy is lower, else yo (ties and NaN: yo).
CS_GLOBAL void CS_LAUNCH_BOUNDS(128) csk_ensemble_entropy(CsEnsemble a) {
  CS_SHARED(float, tile, [CS_ROW_BLOCK * CS_ROW_STRIDE]);
  CS_SHARED(int, keep, [CS_ROW_BLOCK]);
  const int n = cs_clamp(*a.count, 0, a.capacity), lane = cs_lane();
#pragma unroll 1
  for (cs_i64 first = (cs_i64)blockIdx.x * CS_ROW_BLOCK; first < n; first += (cs_i64)gridDim.x * CS_ROW_BLOCK) {
    const int rows = (int)min(n - first, (cs_i64)CS_ROW_BLOCK);
    const CsRow low = cs_row_statistics(a.yi + first * a.ldi, a.ldi, rows, a.classes, 3, tile);
    const CsRow own = cs_own_statistics(a, first, rows, 3, tile);
    keep[threadIdx.x] = low.entropy < own.entropy;
    cs_sync();
    for (int r = cs_warp(); r < rows; r += CS_ROW_BLOCK / 32) {
      const cs_i64 row = first + r;
      for (int c = lane; c < a.classes; c += 32) {
        float value;
        if (keep[r]) {
          value = a.yi[row * a.ldi + c];
        } else if (a.yo_type == CS_TYPE_F16) {
          value = cs_to_float(((const cs_half *)a.yo)[row * a.ldo + c]);
        } else {
          value = ((const float *)a.yo)[row * a.ldo + c];
        }
        a.ye[row * a.lde + c] = value;
      }
    }
    cs_sync();
  }
}
