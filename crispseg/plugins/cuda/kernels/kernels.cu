// All kernels of crispseg in one translation unit: what nvcc and NVRTC compile. Device code only, no host header.
#include "base.cuh"
#include "fill.cuh"
#include "conv_fp32.cuh"
#include "conv_wmma.cuh"
#include "conv_mma.cuh"
