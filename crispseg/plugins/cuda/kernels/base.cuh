// What every kernel file includes: launch and memory macros, warp helpers, half conversion.
//
// Two worlds compile the kernels: nvcc or NVRTC for a GPU, and g++ with CS_EMULATE for tests on a machine without one
// (tests/emulation runs every thread of a block as a fiber). Kernels are CUDA C++17 without host headers. Both worlds
// know threadIdx, blockIdx, blockDim, gridDim, the vector types (uint4, float2, make_...), __shfl_*_sync,
// __ballot_sync, __popc, __clz, __ffs, __ldg, __float_as_uint, min, max, fmaf, __expf, ..., atomics on integers. They
// differ in these:
//   CS_GLOBAL void CS_LAUNCH_BOUNDS(256) csk_name(...)   a kernel; it also needs its line in table.h
//   CS_DEVICE                                          a device function
//   CS_SHARED(float, tile, [16][17]);                  float tile[16][17] in shared memory; one int: (int, total, )
//   CS_DYNAMIC_SHARED(uint4, buffer);                  uint4 *buffer = the dynamic shared memory, aligned to 128 bytes
//   CS_CONSTANT                                        constant memory
//   cs_sync()                                          the barrier of the block; every thread reaches the same one
//   cs_spin()                                          in a loop that waits for another block
// No atomic adds of floats anywhere: their order would show in the results.
#pragma once
#include "params.h"

#if defined(CS_EMULATE)
#include "emulate.h"
#else

#if defined(__CUDA_ARCH__)
#define CS_ARCH __CUDA_ARCH__
#else
#define CS_ARCH 0  // the host pass of nvcc, which sees kernels but compiles no body that matters
#endif
#define CS_GLOBAL extern "C" __global__
#define CS_DEVICE static __device__ __forceinline__
#define CS_LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)
#define CS_CONSTANT static __constant__
#define CS_SHARED(type, name, ...) __shared__ type name __VA_ARGS__
// One array, whatever a kernel keeps in it: extern arrays of one name must agree inside a translation unit.
extern __shared__ __align__(128) unsigned char cs_dynamic_shared_[];
#define CS_DYNAMIC_SHARED(type, name) type *const name = reinterpret_cast<type *>(cs_dynamic_shared_)

CS_DEVICE void cs_sync() { __syncthreads(); }
CS_DEVICE int cs_sync_or(int predicate) { return __syncthreads_or(predicate); }
CS_DEVICE int cs_sync_count(int predicate) { return __syncthreads_count(predicate); }
CS_DEVICE void cs_spin() { __nanosleep(32); }

CS_DEVICE float cs_half_to_float(cs_half h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h.bits));
  return f;
}
// Round to nearest even; above the range: infinity.
CS_DEVICE cs_half cs_float_to_half(float f) {
  cs_half h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(f));
  return h;
}
#endif

#define CS_KERNEL(name, threads, capability, parameters) CS_GLOBAL void name parameters;
#include "table.h"

#define CS_FULL_MASK 0xffffffffu

// Of a one-dimensional block.
CS_DEVICE int cs_lane() { return (int)(threadIdx.x & 31u); }
CS_DEVICE int cs_warp() { return (int)(threadIdx.x >> 5); }

CS_DEVICE int cs_div_up(int a, int b) { return (a + b - 1) / b; }
CS_DEVICE int cs_clamp(int v, int low, int high) { return min(max(v, low), high); }

// Two halves in a register, the first in the low bits (the order in memory).
CS_DEVICE cs_u32 cs_pack_half2(float first, float second) {
  return (cs_u32)cs_float_to_half(first).bits | ((cs_u32)cs_float_to_half(second).bits << 16);
}
CS_DEVICE float2 cs_unpack_half2(cs_u32 pair) {
  cs_half first, second;
  first.bits = (cs_u16)(pair & 0xffffu);
  second.bits = (cs_u16)(pair >> 16);
  return make_float2(cs_half_to_float(first), cs_half_to_float(second));
}

// A value of any of the types of rows as float, and back. Overloads, so that templates need not ask.
CS_DEVICE float cs_to_float(float v) { return v; }
CS_DEVICE float cs_to_float(cs_half v) { return cs_half_to_float(v); }
CS_DEVICE void cs_store_float(float *p, float v) { *p = v; }
CS_DEVICE void cs_store_float(cs_half *p, float v) { *p = cs_float_to_half(v); }

// ---- whole warps: all 32 lanes (or all that exist) call these together ----
template <class T> CS_DEVICE T cs_warp_sum(T v) {
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(CS_FULL_MASK, v, d);
  return v;
}
template <class T> CS_DEVICE T cs_warp_max(T v) {
  for (int d = 16; d > 0; d >>= 1) v = max(v, __shfl_xor_sync(CS_FULL_MASK, v, d));
  return v;
}
template <class T> CS_DEVICE T cs_warp_min(T v) {
  for (int d = 16; d > 0; d >>= 1) v = min(v, __shfl_xor_sync(CS_FULL_MASK, v, d));
  return v;
}
// Keeps what a loop needs in registers: the assembler would rather compute cheap values again in every pass than hold
// them, but not the result of a shuffle.
CS_DEVICE void cs_keep(int &v) {
#if !defined(CS_EMULATE)
  v = __shfl_sync(CS_FULL_MASK, v, cs_lane());
#else
  (void)v;
#endif
}
CS_DEVICE void cs_keep(const char *&p) {
#if !defined(CS_EMULATE)
  p = (const char *)__shfl_sync(CS_FULL_MASK, (cs_u64)p, cs_lane());
#else
  (void)p;
#endif
}
// Sum over this lane and those before it.
CS_DEVICE int cs_warp_scan(int v) {
  for (int d = 1; d < 32; d <<= 1) {
    const int below = __shfl_up_sync(CS_FULL_MASK, v, d);
    if (cs_lane() >= d) v += below;
  }
  return v;
}

// Sum of v over the threads before this one in a one-dimensional block of `threads` (a multiple of 32, at most 1024);
// *total = over all. scratch: 33 ints of shared memory. Every thread of the block calls it; the barriers inside make
// reuse of scratch safe.
CS_DEVICE int cs_block_scan(int v, int threads, int *scratch, int *total) {
  const int lane = cs_lane(), warp = cs_warp(), warps = threads >> 5;
  const int inclusive = cs_warp_scan(v);
  cs_sync();
  if (lane == 31) scratch[warp] = inclusive;
  cs_sync();
  if (warp == 0) {
    const int sum = lane < warps ? scratch[lane] : 0;
    const int scanned = cs_warp_scan(sum);
    if (lane < warps) scratch[lane] = scanned - sum;
    if (lane == warps - 1) scratch[32] = scanned;
  }
  cs_sync();
  *total = scratch[32];
  return scratch[warp] + inclusive - v;
}

// ---- values that other blocks write while this kernel runs ----
template <class T> CS_DEVICE T cs_load_volatile(const T *p) { return *(const volatile T *)p; }
template <class T> CS_DEVICE void cs_store_volatile(T *p, T v) { *(volatile T *)p = v; }
