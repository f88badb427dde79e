// Rows of one type to another. int8 is clamp(rint(v / quant)) to -127..127 or q * quant; columns beyond the last are
// zeros.
#pragma once
#include "base.cuh"
#include "front_params.h"

CS_GLOBAL void CS_LAUNCH_BOUNDS(256) csk_convert_rows(CsConvert a) {
  const int n = cs_clamp(*a.count, 0, a.capacity), lane = cs_lane(), warps = (int)(blockDim.x >> 5);
  for (int i = (int)blockIdx.x * warps + cs_warp(); i < n; i += (int)gridDim.x * warps) {
#pragma unroll 1
    for (int c = lane; c < (int)a.ldy; c += 32) {
      const cs_i64 from = i * a.ldx + c, to = i * a.ldy + c;
      float v = 0.0f;
      if (c < a.columns) {
        if (a.from == CS_TYPE_F32) v = ((const float *)a.x)[from];
        if (a.from == CS_TYPE_F16) v = cs_half_to_float(((const cs_half *)a.x)[from]);
        if (a.from == CS_TYPE_I8) v = (float)((const cs_i8 *)a.x)[from];
        if (a.from == CS_TYPE_I8 && a.to != CS_TYPE_I8) v *= a.quant;
        if (a.to == CS_TYPE_I8 && a.from != CS_TYPE_I8) v /= a.quant;
      }
      if (a.to == CS_TYPE_F32) ((float *)a.y)[to] = v;
      if (a.to == CS_TYPE_F16) ((cs_half *)a.y)[to] = cs_float_to_half(v);
      if (a.to == CS_TYPE_I8) ((cs_i8 *)a.y)[to] = (cs_i8)__float2int_rn(fminf(fmaxf(v, -127.0f), 127.0f));
    }
  }
}
