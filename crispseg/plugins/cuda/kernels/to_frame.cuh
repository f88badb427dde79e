// A label map of the canvas at the frame's own size: nearest by pixel centres, bars cut off, by the CPU pipeline's rule
// in whole numbers (runtime/geometry.py). Four pixels of a line a thread; where they come from along x is found once.
#pragma once
#include "base.cuh"

// Pixel of `source` pixels that lies under pixel i of `count`.
CS_DEVICE int cs_nearest(int i, int count, int source) {
  if ((cs_u64)2 * (cs_u64)count * (cs_u64)source <= 0xffffffffu)
    return (int)((2u * (cs_u32)i + 1u) * (cs_u32)source / (2u * (cs_u32)count));
  return (int)((2u * (cs_u64)i + 1u) * (cs_u64)source / (2u * (cs_u64)count));
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(128) csk_to_frame(const cs_u8 *map, int pitch, int top, int left, int rows,
                                                  int columns, cs_u8 *out, int height, int width) {
  const cs_i64 start = 4 * ((cs_i64)blockIdx.x * blockDim.x + threadIdx.x);
  if (start >= width) return;
  const int x = (int)start, count = min(width - x, 4);
  int from[4];
  for (int k = 0; k < 4; ++k) from[k] = left + cs_nearest(min(x + k, width - 1), width, columns);
  const bool words = (((cs_u64)out | (cs_u64)width) & 3u) == 0;
  for (int y = (int)blockIdx.y; y < height; y += (int)gridDim.y) {
    const cs_u8 *line = map + (cs_i64)(top + cs_nearest(y, height, rows)) * pitch;
    cs_u8 *target = out + (cs_i64)y * width + x;
    cs_u32 four = 0;
    for (int k = 0; k < 4; ++k) four |= (cs_u32)line[from[k]] << 8 * k;
    if (words) {
      *(cs_u32 *)target = four;
    } else {
      for (int k = 0; k < count; ++k) target[k] = (cs_u8)(four >> 8 * k);
    }
  }
}
