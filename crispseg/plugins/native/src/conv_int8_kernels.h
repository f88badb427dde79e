// What the int8 convolution's driver (conv_int8.cpp) and its kernels (conv_int8.isa.cpp) share. Plain data only.
#ifndef CRISPSEG_CONV_INT8_KERNELS_H
#define CRISPSEG_CONV_INT8_KERNELS_H
#include "conv_kernels.h"

namespace crispseg {

constexpr int kQuad = 4;  // channels of a step: the bytes of a word

struct ConvInt8Kernels {
  const char *name;
  // block.conv is that of `conv` with strides of x in words.
  void (*block)(const ConvBlock &block, const cs_conv_int8 &conv);
  void (*quantise)(const float *x, int c, float step, int32_t zero, uint8_t *q);  // one row
};
CS_DECLARE_TABLE(ConvInt8Kernels, conv_int8_kernels)
extern const ConvInt8Kernels conv_int8_kernels_avx512vnni;
extern const ConvInt8Kernels conv_int8_kernels_avxvnni;

}  // namespace crispseg
#endif
