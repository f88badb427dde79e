// What the drivers of the direct (conv.cpp) and the Winograd (winograd.cpp) convolution share.
#ifndef CRISPSEG_CONV_DRIVER_H
#define CRISPSEG_CONV_DRIVER_H
#include <unistd.h>

#include "conv_kernels.h"
#include "internal.h"

namespace crispseg {

constexpr int kMaxChannels = 1 << 16;

// Half of the L2 cache: the part of the input that a block keeps there.
inline int64_t input_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  constexpr int64_t cache = 0;
#endif
  const int64_t half = cache / 2, least = 384 << 10, most = 1024 << 10;
  return half < least ? least : half > most ? most : half;
}

inline int padded(const ConvKernels &k, int cout) { return static_cast<int>(round_up(cout, k.lanes)); }

inline bool bad_shape(int K, int cin, int cout) {
  return K < 1 || K > kMaxTaps || cin < 1 || cin > kMaxChannels || cout < 1 || cout > kMaxChannels;
}

int check_conv(const char *who, const cs_context *ctx, const cs_conv *c);

}  // namespace crispseg
#endif
