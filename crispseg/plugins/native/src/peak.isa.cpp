// A loop of independent multiply-adds in registers: the arithmetic ceiling of one core.
#include "peak.h"

namespace crispseg {

namespace {

constexpr int kSums = 12;  // enough to hide the latency of two units, few enough for 16 registers

double fma_loop(int64_t rounds, float *sink) {
  vecf s[kSums];
  vecf a = vecf{} + 0.999f, b = vecf{} + 1e-3f;
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) s[i] = vecf{} + static_cast<float>(i);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) s[i] = s[i] * a + b;
    asm volatile("" : : : "memory");
  }
  vecf total = {};
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) total += s[i];
  for (int i = 0; i < kLanes; ++i) sink[0] += total[i];
  return 2.0 * kSums * kLanes * static_cast<double>(rounds);
}

}  // namespace

const PeakKernels CS_NAME(peak_kernels) = {fma_loop};

}  // namespace crispseg
