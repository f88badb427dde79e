// Argmax, softmax and entropy of VW pixels at a time, whatever their logits come from. For select.isa.cpp only.
#pragma once
#include "select_kernels.h"
#include "vec.h"

namespace crispseg {
namespace {

constexpr int kGroup = VW == 16 ? 4 : 2;  // output vectors worked on together (registers)
constexpr int kTile = 2 * VW;             // columns of a tile

struct Work {
  float *values;  // [C][kGroup * VW] interpolated logits, then (logit - max)
  float *exps;    // [C][2 * VW]
  float *tile;    // [C][kTile]
};

int64_t work_floats(int C) { return static_cast<int64_t>(C) * (kGroup * VW + 2 * VW + kTile); }

Work split(float *memory, int C) {
  Work work;
  work.values = memory;
  work.tile = work.values + static_cast<int64_t>(C) * kGroup * VW;
  work.exps = work.tile + static_cast<int64_t>(C) * kTile;
  return work;
}

struct Result {
  vi label, confidence, active;
  vf entropy;
};

// Sources of the p-th vector of class c.
struct FromPhases {  // lanes are neighbouring source columns; both taps at fixed offsets
  const float *tile;
  int offset[kGroup];
  vf weight[kGroup];
  vf get(int c, int p) const {
    const float *t = tile + static_cast<int64_t>(c) * kTile + offset[p];
    const vf a = load(t);
    return a + weight[p] * (load(t + 1) - a);
  }
};
struct FromTables {  // any factor >= 1: the taps of VW pixels lie within VW + 1 columns
  const float *tile;
  int offset[kGroup];
  vi index[kGroup];
  vf weight[kGroup];
  vf get(int c, int p) const {
    const float *t = tile + static_cast<int64_t>(c) * kTile + offset[p];
    const vf a = permute(load(t), index[p]);
    return a + weight[p] * (permute(load(t + 1), index[p]) - a);
  }
};
struct FromMemory {
  const float *data;
  int64_t stride;
  vf get(int c, int p) const { return load(data + c * stride + p * VW); }
};

// Softmax of Q vectors whose largest logits are known: confidence, and entropy when wanted.
template <int Q>
inline void finish(const SelectJob &job, float *const *values, int stride, float *exps, const vf *peak, bool entropy,
                   Result *const *out) {
  const int C = job.C;
  const vf floor_t = splat(kExpFloor);
  vf sum[Q] = {}, dot[Q] = {}, log_sum[Q], floor_log[Q];
  for (int c = 0; c < C; ++c)
    for (int q = 0; q < Q; ++q) {
      float *at = values[q] + static_cast<int64_t>(c) * stride;
      const vf t = vmax(floor_t, load(at) - peak[q]);
      const vf e = vexp(t);
      sum[q] += e;
      store(at, t);
      store(exps + (static_cast<int64_t>(c) * Q + q) * VW, e);
    }
  if (job.confidence)
    for (int q = 0; q < Q; ++q) out[q]->confidence = confidence_of(sum[q]);
  if (!entropy) return;
  // -sum p ln(max(p, 1e-5)) with ln p = t - ln S: only the logarithm is clamped.
  for (int q = 0; q < Q; ++q) {
    log_sum[q] = vlog(sum[q]);
    floor_log[q] = log_sum[q] + splat(kLogFloor);
  }
  vf odd[Q] = {};
  int c = 0;
  const auto term = [&](int at, int q) {
    return load(exps + (static_cast<int64_t>(at) * Q + q) * VW) *
           vmax(load(values[q] + static_cast<int64_t>(at) * stride), floor_log[q]);
  };
  for (; c + 2 <= C; c += 2)
    for (int q = 0; q < Q; ++q) {
      dot[q] += term(c, q);
      odd[q] += term(c + 1, q);
    }
  for (int q = 0; q < Q; ++q) {
    if (c < C) dot[q] += term(c, q);
    out[q]->entropy = log_sum[q] - (dot[q] + odd[q]) / sum[q];
    out[q]->active = out[q]->entropy > splat(job.threshold);
  }
}

// Evaluates P vectors. NaN logits never win the argmax and make the entropy NaN, which is above no threshold.
template <int P, class Source>
inline void evaluate(const Source &source, const SelectJob &job, const Work &work, Result *out) {
  const int C = job.C;
  vf first[P], second[P];
  vi label[P];
  const vf lowest = splat(-__builtin_inff());
  for (int p = 0; p < P; ++p) {
    first[p] = second[p] = lowest;
    label[p] = vi{};
  }
  for (int c = 0; c < C; ++c) {
    const vi index = splat(static_cast<int32_t>(c));
    for (int p = 0; p < P; ++p) {
      const vf v = source.get(c, p);
      store(work.values + (static_cast<int64_t>(c) * P + p) * VW, v);
      const vi above = v > first[p];
      second[p] = above ? first[p] : vmax(v, second[p]);
      first[p] = vmax(v, first[p]);
      label[p] = above ? index : label[p];
    }
  }
  const vf margin = splat(job.margin);
  int todo[P], n = 0;
  bool uncertain[P];
  for (int p = 0; p < P; ++p) {
    out[p] = {label[p], vi{}, vi{}, vf{}};
    uncertain[p] = any(~(first[p] - second[p] >= margin));
    if (uncertain[p] || job.confidence) todo[n++] = p;
  }
  // Two at a time: the sums are chains of dependent additions.
  int i = 0;
  for (; i + 2 <= n; i += 2) {
    const int p = todo[i], q = todo[i + 1];
    float *const values[2] = {work.values + p * VW, work.values + q * VW};
    const vf peak[2] = {first[p], first[q]};
    Result *const results[2] = {out + p, out + q};
    finish<2>(job, values, P * VW, work.exps, peak, uncertain[p] || uncertain[q], results);
  }
  if (i < n) {
    const int p = todo[i];
    float *const values[1] = {work.values + p * VW};
    Result *const results[1] = {out + p};
    finish<1>(job, values, P * VW, work.exps, &first[p], uncertain[p], results);
  }
}

}  // namespace
}  // namespace crispseg
