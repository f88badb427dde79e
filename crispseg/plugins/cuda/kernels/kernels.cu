// All kernels of crispseg in one translation unit: what nvcc and NVRTC compile. Device code only, no host header.
#include "base.cuh"
#include "fill.cuh"
