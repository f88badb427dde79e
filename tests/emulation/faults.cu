// Kernels that do wrong things, and some that use every helper: what tests/plugins/test_emulation.py runs.
#include "faults.h"

#include "base.cuh"

CS_GLOBAL void CS_LAUNCH_BOUNDS(64) t_increment(int *p, int by) {
  if (threadIdx.x == 0 && blockIdx.x == 0) *p += by;
}

CS_GLOBAL void t_divergent(int *p) {
  if (threadIdx.x < 16) cs_sync();
  p[threadIdx.x] = 1;
}

CS_GLOBAL void t_two_barriers(int *p) {
  if (threadIdx.x & 1) {
    cs_sync();
    p[0] = 1;
  } else {
    cs_sync();
    p[1] = 1;
  }
}

CS_GLOBAL void t_reverse(const int *in, int *out, int barrier) {
  CS_SHARED(int, tile, [64]);
  tile[threadIdx.x] = in[threadIdx.x];
  if (barrier) cs_sync();
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

CS_GLOBAL void t_write_at(int *p, cs_i64 i) { p[i] = 7; }
CS_GLOBAL void t_read_at(const int *p, cs_i64 i, int *out) { *out = p[i]; }

CS_GLOBAL void t_shared_overrun(int *p, int i) {
  CS_SHARED(int, tile, [8]);
  int *q = tile;
  q[i] = 1;
  p[0] = q[0];
}

CS_GLOBAL void t_dynamic(int *p) {
  CS_DYNAMIC_SHARED(int, tile);
  CS_SHARED(int, first, );
  if (threadIdx.x == 0) first = 100;
  p[blockDim.x + threadIdx.x] = tile[threadIdx.x];  // not written yet: poison
  tile[threadIdx.x] = (int)threadIdx.x;
  cs_sync();
  p[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x] + first;
}

CS_GLOBAL void t_own_lane(int *p) { p[threadIdx.x] = __shfl_sync(0x0000ffffu, (int)threadIdx.x, 0); }

// Lanes below `limit` call a shuffle for `mask`.
CS_GLOBAL void t_half_warp(int *p, unsigned mask, int limit) {
  if ((int)threadIdx.x < limit) p[threadIdx.x] = __shfl_xor_sync(mask, (int)threadIdx.x, 1);
  __syncwarp();
}

CS_GLOBAL void t_warp(const int *in, int *out) {
  const int v = in[threadIdx.x];
  int *row = out + 12 * threadIdx.x;
  row[0] = cs_warp_sum(v);
  row[1] = cs_warp_max(v);
  row[2] = cs_warp_min(v);
  row[3] = cs_warp_scan(v);
  row[4] = (int)__ballot_sync(CS_FULL_MASK, v > 0);
  row[5] = __any_sync(CS_FULL_MASK, v > 1000);
  row[6] = __all_sync(CS_FULL_MASK, v > -1000);
  row[7] = __shfl_sync(CS_FULL_MASK, v, 3);
  row[8] = __shfl_down_sync(CS_FULL_MASK, v, 4, 8);
  row[9] = (int)__match_any_sync(CS_FULL_MASK, v & 3);
  row[10] = cs_sync_count(v > 0);
  row[11] = cs_sync_or(v == in[5]);
}

CS_GLOBAL void t_scan(const int *in, int *out, int *total) {
  CS_SHARED(int, scratch, [33]);
  int sum;
  const int before = cs_block_scan(in[threadIdx.x], (int)blockDim.x, scratch, &sum);
  out[threadIdx.x] = before;
  // At once again with the same scratch.
  const int again = cs_block_scan(in[threadIdx.x], (int)blockDim.x, scratch, &sum);
  if (again != before) out[threadIdx.x] = -1;
  if (threadIdx.x == 0) *total = sum;
}

CS_GLOBAL void t_wait_for_block(int *flags, int distance) {
  const int wanted = (int)blockIdx.x + distance;
  if (threadIdx.x == 0) {
    while (wanted >= 0 && wanted < (int)gridDim.x && cs_load_volatile(flags + wanted) == 0) cs_spin();
    cs_store_volatile(flags + blockIdx.x, 1);
  }
}

CS_GLOBAL void t_half(const float *in, cs_u16 *bits, float *back, int n) {
  for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += (int)(gridDim.x * blockDim.x)) {
    bits[i] = cs_float_to_half(in[i]).bits;
    cs_half h;
    h.bits = bits[i];
    back[i] = cs_half_to_float(h);
  }
}

CS_GLOBAL void t_arguments(cs_i64 *out, cs_u8 a, cs_i64 b, float c, t_pair d) {
  if (threadIdx.x) return;
  out[0] = a;
  out[1] = b;
  out[2] = (cs_i64)c;
  out[3] = d.small;
  out[4] = d.large;
}

CS_GLOBAL void t_divide(int *p, int by) { *p = 5 / by; }

CS_DEVICE int deep(int *p, int n) {
  volatile char room[1024];
  room[0] = (char)n;
  return n == 0 ? room[0] : deep(p, n - 1) + p[0] + room[0];
}
CS_GLOBAL void t_deep(int *p, int n) { p[1] = deep(p, n); }

#if defined(CS_EMULATE) || CS_ARCH >= 900
CS_GLOBAL void t_new(int *p) { p[0] = 90; }
#endif
