// Where a pixel of the frame reads the low-resolution logits. One rule for selection and for the rows at the sites.
#pragma once
#include "softmax.cuh"

struct CsTap {
  int index;     // first source position; the second is the next one, or the same at the end
  float weight;  // of the second
};

// In whole numbers, so that no position is off by a rounding: half-pixel rule ((2i+1) * in - out) / (2 * out),
// corner-aligned rule i * (in-1) / (out-1), nearest i * in / out without a weight.
CS_SHARED_FUNCTION CsTap cs_tap(int i, int in, int out, int rule) {
  cs_u64 numerator = (cs_u64)i * (cs_u64)in, denominator = (cs_u64)out;
  if (rule == CS_RULE_BILINEAR) {
    const cs_i64 at = (2 * (cs_i64)i + 1) * in - out;
    numerator = at > 0 ? (cs_u64)at : 0;
    denominator = 2 * (cs_u64)out;
  } else if (rule == CS_RULE_CORNERS) {
    numerator = (cs_u64)i * (cs_u64)(in - 1);
    denominator = out > 1 ? (cs_u64)(out - 1) : 1;
  }
  const cs_u64 whole = numerator / denominator;
  CsTap tap;
  tap.index = whole < (cs_u64)in ? (int)whole : in - 1;
  tap.weight = 0.0f;
  if (rule != CS_RULE_NEAREST && tap.index < in - 1)
    tap.weight = (float)(numerator - whole * denominator) / (float)denominator;
  return tap;
}

CS_DEVICE float cs_mix(float first, float second, float weight) { return first + weight * (second - first); }
