// CUDA C++ for g++: what kernels/base.cuh needs under CS_EMULATE. Included by it, never directly.
#pragma once
#include <math.h>
#include <string.h>

#include "banks.h"
#include "runtime.h"

#define CS_ARCH 900  // every path is compiled; tensor-core and copy instructions have host versions behind wrappers
#define CS_GLOBAL extern "C" __attribute__((weak, visibility("hidden")))
#define CS_DEVICE static inline __attribute__((unused))
#define CS_LAUNCH_BOUNDS(...)
#define CS_CONSTANT static const
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))

#define CS_EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- indices and memory ----
inline cs_emu::Index threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace cs_emu {

inline const Runtime *runtime = nullptr;

template <class T> struct SharedSlot {  // no constructor: zero-initialised without a guard
  unsigned long long epoch;
  alignas(128) unsigned char before[shared_guard];
  alignas(128) unsigned char value[sizeof(T)];
  unsigned char after[shared_guard];
  T &get() {
    if (epoch != *runtime->epoch) {
      epoch = *runtime->epoch;
      runtime->touch_shared(before, sizeof(T));
    }
    return *reinterpret_cast<T *>(value);
  }
};

inline unsigned lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31u; }

inline void count_access(Access kind, const void *shared, unsigned bytes, const void *global = nullptr) {
  if (access_counts.on) count_access(lane(), threadIdx.x / 32, *runtime->epoch, kind, shared, bytes, global);
}

// A collective of a warp: every lane brings a Slot; combine sees the slots of all lanes in `present` (others are null)
// and writes the results into them.
template <class Slot, void (*combine)(Slot **, unsigned)> void collective(unsigned mask, Slot &mine, CS_EMU_HERE) {
  runtime->warp(mask, &mine, [](void **slots, unsigned present) { combine(reinterpret_cast<Slot **>(slots), present); },
                file, line);
}

}  // namespace cs_emu

#define CS_SHARED(type, name, ...)                        \
  typedef type cs_emu_type_##name __VA_ARGS__;            \
  static cs_emu::SharedSlot<cs_emu_type_##name> cs_emu_slot_##name; \
  cs_emu_type_##name &name = cs_emu_slot_##name.get()
#define CS_DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(cs_emu::runtime->dynamic_shared())

// ---- barriers ----
CS_DEVICE void cs_sync(CS_EMU_HERE) { cs_emu::runtime->barrier(0, file, line); }
CS_DEVICE int cs_sync_or(int predicate, CS_EMU_HERE) { return cs_emu::runtime->barrier(predicate, file, line) != 0; }
CS_DEVICE int cs_sync_count(int predicate, CS_EMU_HERE) { return cs_emu::runtime->barrier(predicate, file, line); }
CS_DEVICE void __syncthreads(CS_EMU_HERE) { cs_sync(file, line); }
CS_DEVICE int __syncthreads_or(int predicate, CS_EMU_HERE) { return cs_sync_or(predicate, file, line); }
CS_DEVICE int __syncthreads_count(int predicate, CS_EMU_HERE) { return cs_sync_count(predicate, file, line); }
CS_DEVICE void cs_spin() { cs_emu::runtime->spin(); }
CS_DEVICE void __nanosleep(unsigned) { cs_emu::runtime->spin(); }
CS_DEVICE void __threadfence() {}
CS_DEVICE void __threadfence_block() {}
CS_DEVICE void __trap() { cs_emu::runtime->trap("__trap()"); }

// ---- vector types ----
#define CS_EMU_VECTOR(scalar, name, bytes)                                                                          \
  struct alignas(bytes / 2) name##2 { scalar x, y; };                                                               \
  struct name##3 { scalar x, y, z; };                                                                               \
  struct alignas(bytes > 16 ? 16 : bytes) name##4 { scalar x, y, z, w; };                                            \
  CS_DEVICE name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                                           \
  CS_DEVICE name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }                              \
  CS_DEVICE name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
CS_EMU_VECTOR(signed char, char, 4)
CS_EMU_VECTOR(unsigned char, uchar, 4)
CS_EMU_VECTOR(short, short, 8)
CS_EMU_VECTOR(unsigned short, ushort, 8)
CS_EMU_VECTOR(int, int, 16)
CS_EMU_VECTOR(unsigned, uint, 16)
CS_EMU_VECTOR(float, float, 16)
CS_EMU_VECTOR(long long, longlong, 32)
CS_EMU_VECTOR(unsigned long long, ulonglong, 32)

// ---- arithmetic ----
#define CS_EMU_MINMAX(type)                                       \
  CS_DEVICE type min(type a, type b) { return b < a ? b : a; }    \
  CS_DEVICE type max(type a, type b) { return a < b ? b : a; }
CS_EMU_MINMAX(int)
CS_EMU_MINMAX(unsigned)
CS_EMU_MINMAX(long)
CS_EMU_MINMAX(unsigned long)
CS_EMU_MINMAX(long long)
CS_EMU_MINMAX(unsigned long long)
CS_DEVICE float min(float a, float b) { return fminf(a, b); }
CS_DEVICE float max(float a, float b) { return fmaxf(a, b); }
CS_DEVICE double min(double a, double b) { return fmin(a, b); }
CS_DEVICE double max(double a, double b) { return fmax(a, b); }

// glibc declares some of these names, so that they cannot be functions here.
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf(x, y)
#define __fdividef(x, y) ((x) / (y))
#define __frcp_rn(x) (1.0f / (x))
#define __fsqrt_rn(x) sqrtf(x)
#define __fadd_rn(x, y) ((x) + (y))
#define __fsub_rn(x, y) ((x) - (y))
#define __fmul_rn(x, y) ((x) * (y))
#define __fdiv_rn(x, y) ((x) / (y))
#define __fmaf_rn(x, y, z) fmaf(x, y, z)
CS_DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
CS_DEVICE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

template <class To, class From> CS_DEVICE To cs_emu_bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "size");
  To to;
  memcpy(&to, &v, sizeof to);
  return to;
}
CS_DEVICE int __float_as_int(float v) { return cs_emu_bits<int>(v); }
CS_DEVICE unsigned __float_as_uint(float v) { return cs_emu_bits<unsigned>(v); }
CS_DEVICE float __int_as_float(int v) { return cs_emu_bits<float>(v); }
CS_DEVICE float __uint_as_float(unsigned v) { return cs_emu_bits<float>(v); }
CS_DEVICE int cs_emu_to_int(float v) {  // as cvt: saturates, NaN becomes 0
  if (!(v == v)) return 0;
  return v >= 2147483648.0f ? 2147483647 : v < -2147483648.0f ? (-2147483647 - 1) : (int)v;
}
CS_DEVICE int __float2int_rn(float v) { return cs_emu_to_int(rintf(v)); }
CS_DEVICE int __float2int_rz(float v) { return cs_emu_to_int(truncf(v)); }
CS_DEVICE int __float2int_rd(float v) { return cs_emu_to_int(floorf(v)); }
CS_DEVICE int __float2int_ru(float v) { return cs_emu_to_int(ceilf(v)); }
CS_DEVICE unsigned __float2uint_rn(float v) {
  v = rintf(v);
  return !(v > 0.0f) ? 0u : v >= 4294967296.0f ? 0xffffffffu : (unsigned)v;
}
CS_DEVICE float __int2float_rn(int v) { return (float)v; }
CS_DEVICE float __uint2float_rn(unsigned v) { return (float)v; }

CS_DEVICE int __popc(unsigned v) { return __builtin_popcount(v); }
CS_DEVICE int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
CS_DEVICE int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
CS_DEVICE int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
CS_DEVICE int __ffs(int v) { return __builtin_ffs(v); }
CS_DEVICE int __ffsll(long long v) { return __builtin_ffsll(v); }
CS_DEVICE unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1u) << (31 - i);
  return r;
}
CS_DEVICE unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
  const unsigned long long both = (unsigned long long)y << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    unsigned b = (unsigned)(both >> (8 * (s >> (4 * i) & 7u))) & 255u;
    if (s >> (4 * i) & 8u) b = b & 128u ? 255u : 0u;
    r |= b << (8 * i);
  }
  return r;
}
CS_DEVICE int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += (int)(signed char)(a >> (8 * i)) * (int)(signed char)(b >> (8 * i));
  return c;
}
template <class T> CS_DEVICE T __ldg(const T *p) { return *p; }
template <class T> CS_DEVICE T __ldcg(const T *p) { return *p; }
template <class T> CS_DEVICE T __ldcs(const T *p) { return *p; }
template <class T> CS_DEVICE void __stcs(T *p, T v) { *p = v; }
template <class T> CS_DEVICE void __stcg(T *p, T v) { *p = v; }

// ---- half ----
CS_DEVICE float cs_half_to_float(cs_half h) {
  const unsigned sign = (unsigned)(h.bits & 0x8000u) << 16, rest = h.bits & 0x7fffu;
  if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest < 0x400u) {
    const float v = (float)rest * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -v : v;
  }
  return __uint_as_float(sign | ((rest << 13) + 0x38000000u));
}
CS_DEVICE cs_half cs_float_to_half(float f) {
  const unsigned bits = __float_as_uint(f), sign = bits >> 16 & 0x8000u;
  unsigned rest = bits & 0x7fffffffu;
  cs_half h;
  if (rest > 0x7f800000u) {
    h.bits = 0x7fffu;  // the NaN that the hardware gives
  } else if (rest >= 0x477ff000u) {
    h.bits = (cs_u16)(sign | 0x7c00u);  // 65520 and more round to infinity
  } else if (rest < 0x38800000u) {
    // Below the normal halves: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
    h.bits = (cs_u16)(sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u));
  } else {
    rest += 0xc8000fffu + (rest >> 13 & 1u);  // exponent from bias 127 to 15, round to nearest even
    h.bits = (cs_u16)(sign | rest >> 13);
  }
  return h;
}

// ---- warps ----
namespace cs_emu {

template <class T> struct Shuffle {
  T value, result;
  unsigned source;
};
template <class T> void shuffle(Shuffle<T> **lanes, unsigned present) {
  for (unsigned i = 0; i < 32; ++i) {
    if (!(present >> i & 1u)) continue;
    const unsigned source = lanes[i]->source;
    if (present >> source & 1u) lanes[i]->result = lanes[source]->value;
    else memset(&lanes[i]->result, 0xcd, sizeof(T));  // undefined: a lane that is not there
  }
}
template <class T> T shuffled(unsigned mask, T value, unsigned source, const char *file, int line) {
  Shuffle<T> slot{value, value, source};
  collective<Shuffle<T>, shuffle<T>>(mask, slot, file, line);
  return slot.result;
}

struct Vote {
  int predicate;
  unsigned result;
};
inline void vote(Vote **lanes, unsigned present) {
  unsigned ballot = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (present >> i & 1u && lanes[i]->predicate) ballot |= 1u << i;
  for (unsigned i = 0; i < 32; ++i)
    if (present >> i & 1u) lanes[i]->result = ballot;
}
struct Nothing {};
inline void meet(Nothing **, unsigned) {}

template <class T> struct Match {
  T value;
  unsigned result;
};
template <class T> void match(Match<T> **lanes, unsigned present) {
  for (unsigned i = 0; i < 32; ++i) {
    if (!(present >> i & 1u)) continue;
    lanes[i]->result = 0;
    for (unsigned j = 0; j < 32; ++j)
      if (present >> j & 1u && lanes[j]->value == lanes[i]->value) lanes[i]->result |= 1u << j;
  }
}

}  // namespace cs_emu

CS_DEVICE void __syncwarp(unsigned mask = 0xffffffffu, CS_EMU_HERE) {
  cs_emu::Nothing nothing;
  cs_emu::collective<cs_emu::Nothing, cs_emu::meet>(mask, nothing, file, line);
}
template <class T> CS_DEVICE T __shfl_sync(unsigned mask, T v, int source, int width = 32, CS_EMU_HERE) {
  const unsigned lane = cs_emu::lane();
  return cs_emu::shuffled(mask, v, (lane & ~(unsigned)(width - 1)) | ((unsigned)source & (unsigned)(width - 1)), file,
                          line);
}
template <class T> CS_DEVICE T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, CS_EMU_HERE) {
  const unsigned lane = cs_emu::lane(), inside = lane & (unsigned)(width - 1);
  return cs_emu::shuffled(mask, v, inside >= delta ? lane - delta : lane, file, line);
}
template <class T> CS_DEVICE T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, CS_EMU_HERE) {
  const unsigned lane = cs_emu::lane(), inside = lane & (unsigned)(width - 1);
  return cs_emu::shuffled(mask, v, inside + delta < (unsigned)width ? lane + delta : lane, file, line);
}
template <class T> CS_DEVICE T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, CS_EMU_HERE) {
  const unsigned lane = cs_emu::lane(), source = lane ^ (unsigned)bits;
  // A lane of a later group is out of reach, one of an earlier group is not.
  return cs_emu::shuffled(mask, v, source / (unsigned)width > lane / (unsigned)width ? lane : source, file, line);
}
CS_DEVICE unsigned __ballot_sync(unsigned mask, int predicate, CS_EMU_HERE) {
  cs_emu::Vote slot{predicate, 0};
  cs_emu::collective<cs_emu::Vote, cs_emu::vote>(mask, slot, file, line);
  return slot.result;
}
CS_DEVICE int __any_sync(unsigned mask, int predicate, CS_EMU_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
CS_DEVICE int __all_sync(unsigned mask, int predicate, CS_EMU_HERE) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}
template <class T> CS_DEVICE unsigned __match_any_sync(unsigned mask, T v, CS_EMU_HERE) {
  cs_emu::Match<T> slot{v, 0};
  cs_emu::collective<cs_emu::Match<T>, cs_emu::match<T>>(mask, slot, file, line);
  return slot.result;
}

// ---- atomics: one thread runs at a time ----
#define CS_EMU_ATOMIC(name, expression)                  \
  template <class T> CS_DEVICE T name(T *p, decltype(T()) v) { \
    static_assert(T(0.5) == 0, "no atomic arithmetic on floats"); \
    const T old = *p;                                    \
    *p = (T)(expression);                                \
    return old;                                          \
  }
CS_EMU_ATOMIC(atomicAdd, old + v)
CS_EMU_ATOMIC(atomicSub, old - v)
CS_EMU_ATOMIC(atomicMax, old < v ? v : old)
CS_EMU_ATOMIC(atomicMin, v < old ? v : old)
CS_EMU_ATOMIC(atomicOr, old | v)
CS_EMU_ATOMIC(atomicAnd, old & v)
CS_EMU_ATOMIC(atomicXor, old ^ v)
#undef CS_EMU_ATOMIC
template <class T> CS_DEVICE T atomicExch(T *p, decltype(T()) v) {
  const T old = *p;
  *p = v;
  return old;
}
template <class T> CS_DEVICE T atomicCAS(T *p, decltype(T()) compare, decltype(T()) v) {
  const T old = *p;
  if (old == compare) *p = v;
  return old;
}
