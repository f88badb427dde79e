// Where an output pixel reads the low-resolution logits: one rule for the front end and for the rows at the sites.
#ifndef CRISPSEG_SAMPLING_H
#define CRISPSEG_SAMPLING_H
#include "internal.h"

namespace crispseg {

// Taps and weights of `out` samples over `in` values by the half-pixel or the corner-aligned rule, clamped at the ends:
// value[i] = (1 - weight) * v[index] + weight * v[min(index + 1, in - 1)]. Entries from out to padded repeat the last.
inline void linear_table(int in, int out, cs_upsample up, int padded, int32_t *index, float *weight) {
  for (int i = 0; i < padded; ++i) {
    const int j = i < out ? i : out - 1;
    double at;
    if (up == CS_BILINEAR_CORNERS) {
      at = out > 1 ? static_cast<double>(j) * (in - 1) / (out - 1) : 0.0;
    } else {
      at = (j + 0.5) * in / out - 0.5;
    }
    if (!(at > 0)) at = 0;
    int base = static_cast<int>(at);
    if (base > in - 1) base = in - 1;
    index[i] = base;
    weight[i] = base == in - 1 ? 0.0f : static_cast<float>(at - base);
  }
}

// floor(i * in / out).
inline void nearest_table(int in, int out, int32_t *index) {
  for (int i = 0; i < out; ++i) index[i] = static_cast<int32_t>(static_cast<int64_t>(i) * in / out);
}

}  // namespace crispseg
#endif
