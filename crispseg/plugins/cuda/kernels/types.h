// Types that kernels and host code share. No header is needed: NVRTC has none.
#pragma once

typedef signed char cs_i8;
typedef unsigned char cs_u8;
typedef short cs_i16;
typedef unsigned short cs_u16;
typedef int cs_i32;
typedef unsigned int cs_u32;
typedef long long cs_i64;
typedef unsigned long long cs_u64;

// IEEE binary16. CUDA's own __half needs cuda_fp16.h, which a machine with a driver alone does not have.
struct alignas(2) cs_half {
  cs_u16 bits;
};
