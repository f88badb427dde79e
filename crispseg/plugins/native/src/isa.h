// What a source compiled once per instruction set (*.isa.cpp) sees.
//
// Such a file is built with -DCS_ISA=generic|avx2|avx512 (and CS_ISA_GENERIC / CS_ISA_AVX2 / CS_ISA_AVX512 = 1). It
// defines ONE table of function pointers under a name of its own per set:
//
//   // select_kernels.h (plain data, included by both sides)
//   struct SelectKernels { void (*row)(...); };
//   CS_DECLARE_TABLE(SelectKernels, select_kernels)
//   // select.isa.cpp
//   const SelectKernels CS_NAME(select_kernels) = {row};          // in namespace crispseg
//   // select.cpp
//   const SelectKernels &k = CS_PICK(ctx->isa, select_kernels);
//
// RULE: everything else in an .isa.cpp file has internal linkage (anonymous namespace), and it includes no header with
// inline functions or templates that the linker may merge across sets (<vector>, <algorithm>, <atomic>,
// internal.h ...): the copy that survives could be the AVX-512 one, which would crash an older CPU. <stdint.h>,
// <string.h>, <math.h> and headers with plain structs are fine.
#ifndef CRISPSEG_ISA_H
#define CRISPSEG_ISA_H
#include <stdint.h>

namespace crispseg {

enum class Isa { generic, avx2, avx512 };

#define CS_CAT_(a, b) a##_##b
#define CS_CAT(a, b) CS_CAT_(a, b)
#define CS_NAME(table) CS_CAT(table, CS_ISA)

// extern makes a const object linkable; without it C++ gives it internal linkage.
#define CS_DECLARE_TABLE(type, table) \
  extern const type table##_generic;  \
  extern const type table##_avx2;     \
  extern const type table##_avx512;

#if defined(CS_HAVE_AVX512)
#define CS_PICK(isa, table)                              \
  ((isa) == ::crispseg::Isa::avx512 ? table##_avx512     \
   : (isa) == ::crispseg::Isa::avx2 ? table##_avx2 : table##_generic)
#else
#define CS_PICK(isa, table) ((void)(isa), table##_generic)
#endif

#if defined(CS_ISA)
#if defined(CS_ISA_AVX512)
constexpr int kLanes = 16;
#elif defined(CS_ISA_AVX2)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE2 or NEON
#endif
// GCC/Clang vectors: + - * and comparisons work lane by lane; vecf_u is for unaligned loads and stores.
typedef float vecf __attribute__((vector_size(kLanes * 4), may_alias));
typedef int32_t veci __attribute__((vector_size(kLanes * 4), may_alias));
typedef float vecf_u __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t veci_u __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
#endif

}  // namespace crispseg
#endif
