// Rows grouped by the parity of (y, x), in the order (even, even), (even, odd), (odd, even), (odd, odd); raster order
// inside a group. Two kernels over chunks of 2048 rows: counts, then every block adds up what stands before its own
// rows.
#pragma once
#include "base.cuh"
#include "front_params.h"

// Four counts of at most 2048 each, in two registers.
struct CsParities {
  int low, high;  // groups 0 and 1, groups 2 and 3: the first of each in the low half
};

// The groups of the 8 rows of this thread, 2 bits each; rows from n on are in none. Returns how many rows there are.
CS_DEVICE int cs_parity_rows(const cs_i32 *coords, int first, int n, cs_u32 *groups, CsParities *counts) {
  counts->low = counts->high = 0;
  *groups = 0;
  const int rows = cs_clamp(n - first, 0, 8);
  for (int i = 0; i < rows; ++i) {
    const int2 site = ((const int2 *)coords)[first + i];
    const int group = (site.x & 1) * 2 + (site.y & 1), one = 1 << 16 * (group & 1);
    *groups |= (cs_u32)group << 2 * i;
    if (group < 2) {
      counts->low += one;
    } else {
      counts->high += one;
    }
  }
  return rows;
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(256)
    csk_parity_count(const cs_i32 *coords, const cs_i32 *count, int capacity, cs_i32 *chunks) {
  CS_SHARED(int, scratch, [33]);
  const int n = cs_clamp(*count, 0, capacity), chunk = (int)blockIdx.x;
  if (chunk * (cs_i64)CS_PARITY_CHUNK >= n) return;
  cs_u32 groups;
  CsParities counts;
  cs_parity_rows(coords, chunk * CS_PARITY_CHUNK + (int)threadIdx.x * 8, n, &groups, &counts);
  int low, high;
  cs_block_scan(counts.low, 256, scratch, &low);
  cs_block_scan(counts.high, 256, scratch, &high);
  if (threadIdx.x == 0) ((int4 *)chunks)[chunk] = make_int4(low & 0xffff, low >> 16, high & 0xffff, high >> 16);
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(256)
    csk_parity_write(const cs_i32 *coords, const cs_i32 *count, int capacity, const cs_i32 *chunks, cs_i32 *order) {
  CS_SHARED(int, scratch, [33]);
  const int n = cs_clamp(*count, 0, capacity), chunk = (int)blockIdx.x;
  if (chunk * (cs_i64)CS_PARITY_CHUNK >= n) return;
  int before[4] = {0, 0, 0, 0}, all[4] = {0, 0, 0, 0};
#pragma unroll 1
  for (int i = (int)threadIdx.x; i < cs_div_up(n, CS_PARITY_CHUNK); i += 256) {
    const int4 part = ((const int4 *)chunks)[i];
    const int parts[4] = {part.x, part.y, part.z, part.w};
    for (int g = 0; g < 4; ++g) {
      all[g] += parts[g];
      if (i < chunk) before[g] += parts[g];
    }
  }
  int start = 0;  // of the group
  for (int g = 0; g < 4; ++g) {
    int total;
    cs_block_scan(before[g], 256, scratch, &before[g]);
    cs_block_scan(all[g], 256, scratch, &total);
    before[g] += start;
    start += total;
  }
  cs_u32 groups;
  CsParities counts;
  int total;
  const int first = chunk * CS_PARITY_CHUNK + (int)threadIdx.x * 8;
  const int rows = cs_parity_rows(coords, first, n, &groups, &counts);
  const int low = cs_block_scan(counts.low, 256, scratch, &total),
            high = cs_block_scan(counts.high, 256, scratch, &total);
  before[0] += low & 0xffff;
  before[1] += low >> 16;
  before[2] += high & 0xffff;
  before[3] += high >> 16;
  for (int i = 0; i < rows; ++i) {
    const int group = (int)(groups >> 2 * i) & 3;
    // No register array takes a variable index.
    int at = 0;
    for (int g = 0; g < 4; ++g)
      if (g == group) at = before[g]++;
    order[at] = first + i;
  }
}
