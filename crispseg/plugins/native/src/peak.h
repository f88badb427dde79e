// Shared by peak.cpp and peak.isa.cpp.
#ifndef CRISPSEG_PEAK_H
#define CRISPSEG_PEAK_H
#include "isa.h"

namespace crispseg {
struct PeakKernels {
  double (*fma_loop)(int64_t rounds, float *sink);  // returns the floating point operations done
};
CS_DECLARE_TABLE(PeakKernels, peak_kernels)
}  // namespace crispseg
#endif
