// Argmax, softmax and entropy of one pixel, whatever its logits come from.
#pragma once
#include "softmax.cuh"

#define CS_MEMBER __device__ __forceinline__

// The vertically mixed logits of a tile: [class][row][column]. A thread's own taps are two neighbours.
struct CsFromTile {
  const float *at;
  int stride;
  float weight;
  CS_MEMBER float get(int c) const {
    const float *p = at + c * stride;
    return cs_mix(p[0], p[1], weight);
  }
};

// A pixel of the low-resolution logits as it is.
template <class T>
struct CsFromPixel {
  const T *at;
  cs_i64 plane;
  CS_MEMBER float get(int c) const { return cs_to_float(at[c * plane]); }
};

// Four taps in memory: where a frame is smaller than the logits, the columns of a tile lie too far apart to be staged.
template <class T>
struct CsFromTaps {
  const T *at;
  cs_i64 plane, down;
  int right;
  float weight_y, weight_x;
  CS_MEMBER float get(int c) const {
    const T *p = at + c * plane;
    const float left = cs_mix(cs_to_float(p[0]), cs_to_float(p[down]), weight_y);
    return cs_mix(left, cs_mix(cs_to_float(p[right]), cs_to_float(p[down + right]), weight_y), weight_x);
  }
};

// Logits of a pixel in registers, every loop unrolled: N >= classes. With N = 0 they are computed again in each of
// three passes.
template <int N, class Source>
struct CsValues {
  float v[N];
  CS_MEMBER CsValues(const Source &source, int classes) {
#pragma unroll
    for (int c = 0; c < N; ++c) v[c] = c < classes ? source.get(c) : 0.0f;
  }
  template <class F>
  CS_MEMBER void each(int classes, F body) const {
#pragma unroll
    for (int c = 0; c < N; ++c)
      if (c < classes) body(c, v[c]);
  }
};
template <class Source>
struct CsValues<0, Source> {
  Source source;
  CS_MEMBER CsValues(const Source &from, int) : source(from) {}
  template <class F>
  CS_MEMBER void each(int classes, F body) const {
    for (int c = 0; c < classes; ++c) body(c, source.get(c));
  }
};

struct CsPixel {
  int label;
  float sum;      // of exp(v - best); only with `confident` or when uncertain
  float entropy;  // only when uncertain, else -1
};

// NaN logits never win the argmax and make sum and entropy NaN, which is above no threshold.
template <int N, class Source>
CS_DEVICE CsPixel cs_evaluate(const Source &source, int classes, float margin, bool confident) {
  const CsValues<N, Source> values(source, classes);
  float first = -CS_INFINITY, second = -CS_INFINITY;
  CsPixel pixel;
  pixel.label = 0;
  pixel.sum = 0.0f;
  pixel.entropy = -1.0f;
  values.each(classes, [&](int c, float v) {
    const bool above = v > first;
    second = above ? first : fmaxf(v, second);
    pixel.label = above ? c : pixel.label;
    first = above ? v : first;
  });
  // Whole warps leave here over certain regions, most of a frame.
  const bool certain = first - second >= margin;
  if (certain && !confident) return pixel;
  float sum = 0.0f;
  values.each(classes, [&](int, float v) { sum += cs_exp(v - first); });
  pixel.sum = sum;
  if (certain) return pixel;
  const float log_sum = logf(sum), least = log_sum + CS_LOG_FLOOR;
  float dot = 0.0f;
  values.each(classes, [&](int, float v) {
    const float t = v - first;
    dot += cs_exp(t) * (t > least ? t : least);
  });
  pixel.entropy = log_sum - dot / sum;
  return pixel;
}
