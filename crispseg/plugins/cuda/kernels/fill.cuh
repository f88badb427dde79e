// p[0..n) = value.
#pragma once
#include "base.cuh"

CS_GLOBAL void CS_LAUNCH_BOUNDS(256) csk_fill_u32(cs_u32 *p, cs_u32 value, cs_i64 n) {
  const cs_i64 stride = (cs_i64)gridDim.x * blockDim.x;
  for (cs_i64 i = (cs_i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) p[i] = value;
}
