// Counts the pixels of low-resolution logits that have no softmax: one of NaN, one of +inf, or all -inf. Masked classes
// (-inf where another class is finite) become a large negative number in place, of which interpolation makes no NaN.
// Reads the logits once, 10 MB of fp16 for 19 classes of 512 x 512; one atomic for each warp that found any.
#pragma once
#include "softmax.cuh"

// Its probability is 0, also where interpolation leaves a small part of it.
CS_DEVICE float cs_masked(const float *) { return -1e30f; }
CS_DEVICE float cs_masked(const cs_half *) { return -65504.0f; }

template <class T>
CS_DEVICE void cs_check_logits(T *logits, int classes, int pixels, cs_i32 *wrong) {
  // Whole blocks go round together, for the vote.
  for (cs_i64 first = (cs_i64)blockIdx.x * blockDim.x; first < pixels; first += (cs_i64)gridDim.x * blockDim.x) {
    const cs_i64 i = first + threadIdx.x;
    bool none = false;
    if (i < pixels) {
      bool outside = false, finite = false, masked = false;
#pragma unroll 4
      for (int c = 0; c < classes; ++c) {
        const float v = cs_to_float(logits[(cs_i64)c * pixels + i]);
        outside |= !(v < CS_INFINITY);
        finite |= v > -CS_INFINITY;
        masked |= v == -CS_INFINITY;
      }
      none = outside || !finite;
      if (masked && !none)
        for (int c = 0; c < classes; ++c) {
          T *at = logits + (cs_i64)c * pixels + i;
          if (cs_to_float(*at) == -CS_INFINITY) cs_store_float(at, cs_masked(at));
        }
    }
    const unsigned word = __ballot_sync(CS_FULL_MASK, none);
    if (word != 0 && cs_lane() == 0) atomicAdd(wrong, __popc(word));
  }
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(256) csk_check_logits_f32(float *logits, int classes, int pixels, cs_i32 *wrong) {
  cs_check_logits(logits, classes, pixels, wrong);
}
CS_GLOBAL void CS_LAUNCH_BOUNDS(256) csk_check_logits_f16(cs_half *logits, int classes, int pixels, cs_i32 *wrong) {
  cs_check_logits(logits, classes, pixels, wrong);
}
