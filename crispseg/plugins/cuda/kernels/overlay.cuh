// Label colours over a frame: out = round(((255 - weight) * frame + weight * colour) / 255), in whole numbers as the
// CPU pipeline has it. Four pixels a thread, 12 bytes in and out; at 1024 x 2048 that is 6 + 2 MB read and 6 MB
// written.
#pragma once
#include "base.cuh"

CS_DEVICE cs_u32 cs_blend(cs_u32 frame, cs_u32 colour, cs_u32 weight) {
  const cs_u32 sum = (255u - weight) * frame + weight * colour + 128u;
  return (sum + (sum >> 8)) >> 8;  // sum / 255, exact for such a sum; it is never half way
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(256) csk_overlay(const cs_u8 *frame, const cs_u8 *labels, cs_i64 pixels,
                                                 const cs_u8 *palette, int colours, cs_u32 weight, cs_u8 *out) {
  CS_SHARED(cs_u8, table, [256 * 3]);
  for (int i = (int)threadIdx.x; i < colours * 3; i += (int)blockDim.x) table[i] = palette[i];
  cs_sync();
  const bool aligned = (((cs_u64)frame | (cs_u64)labels | (cs_u64)out) & 3u) == 0;
  const cs_i64 quads = aligned ? pixels / 4 : 0, stride = (cs_i64)gridDim.x * blockDim.x;
  const cs_i64 start = (cs_i64)blockIdx.x * blockDim.x + threadIdx.x;
  for (cs_i64 i = start; i < quads; i += stride) {
    const cs_u32 four = ((const cs_u32 *)labels)[i];
    cs_u32 words[3];
    for (int w = 0; w < 3; ++w) {
      const cs_u32 in = ((const cs_u32 *)frame)[3 * i + w];
      cs_u32 result = 0;
      for (int b = 0; b < 4; ++b) {
        const int at = 4 * w + b, pixel = at / 3;  // constants once unrolled
        const cs_u32 byte = in >> 8 * b & 255u, label = four >> 8 * pixel & 255u;
        result |= ((int)label < colours ? cs_blend(byte, table[3 * label + at - 3 * pixel], weight) : byte) << 8 * b;
      }
      words[w] = result;
    }
    for (int w = 0; w < 3; ++w) ((cs_u32 *)out)[3 * i + w] = words[w];
  }
  for (cs_i64 i = 4 * quads + start; i < pixels; i += stride) {
    const int label = (int)labels[i];
    for (int c = 0; c < 3; ++c)
      out[3 * i + c] =
          label < colours ? (cs_u8)cs_blend(frame[3 * i + c], table[3 * label + c], weight) : frame[3 * i + c];
  }
}
