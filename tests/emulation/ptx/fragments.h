// Where the elements of a matrix are in the registers of a warp, and products of small matrices.
//
// Layouts after the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", "Matrix Fragments for
// mma.m16n8k32" (the figures there are one rule for registers of 32 bits, whatever is in them), and "Register
// Fragments" of wgmma for the accumulators.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>

#include "async.h"

namespace cs_emu::ptx {

typedef std::unordered_map<std::string, WarpInstruction> Instructions;
void add_tensor(Instructions &table);  // mma.sync, ldmatrix
void add_wmma(Instructions &table);
void add_copies(Instructions &table);  // cp.async, fence.proxy.async
void add_wgmma(Instructions &table);

constexpr int MISALIGNED = 716, FAILED = 719;  // CUDA_ERROR_MISALIGNED_ADDRESS, CUDA_ERROR_LAUNCH_FAILED

// The value of each of the 65536 halves.
const float *half_values();

// Elements of a register of 32 bits: number e of the register.
struct Half {
  static constexpr int PER_REGISTER = 2, BYTES = 2;
  static float value(uint64_t bits, int e, const float *halves) { return halves[uint16_t(bits >> (16 * e))]; }
};
struct Int8 {
  static constexpr int PER_REGISTER = 4, BYTES = 1;
  static float value(uint64_t bits, int e, const float *) { return float(int8_t(bits >> (8 * e))); }
};

struct Place {
  int row, column;
};

// First element of register r; the others of a register follow it along K. 32 bytes of K a row: 8 registers of 4.
template <class T>
inline Place place_a(int lane, int r) {  // 16 x K
  return {lane / 4 + (r & 1) * 8, (lane % 4 + (r >> 1) * 4) * T::PER_REGISTER};
}
template <class T>
inline Place place_b(int lane, int r) {  // K x 8
  return {(lane % 4 + r * 4) * T::PER_REGISTER, lane / 4};
}
// Accumulator i of 32 bits; 8 columns for each 4 of them.
inline Place place_d(int lane, int i) { return {lane / 4 + (i & 2) * 4, (i >> 2) * 8 + lane % 4 * 2 + (i & 1)}; }

inline float as_float(uint64_t bits) {
  const uint32_t low = uint32_t(bits);
  float value;
  std::memcpy(&value, &low, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// d += a b, d[m][n] with rows of N; sums in the order of k, each rounded to fp32. The products of two halves and the
// sums of K products of bytes are exact.
template <int K, int N>
inline void multiply(const float *a, const float *b, float *d) {
  typedef float Vector __attribute__((vector_size(16), aligned(4), may_alias));
  static_assert(N % 8 == 0, "columns in eights");
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < N; n += 8) {
      Vector *to = reinterpret_cast<Vector *>(d + m * N + n);
      Vector low = to[0], high = to[1];
      const float *left = a + m * K, *right = b + n;
      for (int k = 0; k < K; k++, right += N) {
        const float one = left[k];
        const Vector factor = {one, one, one, one};
        low += factor * *reinterpret_cast<const Vector *>(right);
        high += factor * *reinterpret_cast<const Vector *>(right + 4);
      }
      to[0] = low;
      to[1] = high;
    }
}

// Accumulator of 32 bits after a product. Sums of s32 wrap, or with .satfinite stay at the ends of the range.
inline uint32_t add_int(uint32_t c, float product, bool saturate) {
  if (!saturate) return c + uint32_t(int32_t(product));
  const int64_t sum = int64_t(int32_t(c)) + int64_t(product);
  return uint32_t(int32_t(sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum));
}

inline void whole_warp(const Call &call) {
  if (call.active != 0xffffffffu) throw Wrong{FAILED, "lanes of the warp are missing at an aligned instruction"};
}

// An operand that must be the same in all lanes.
inline uint64_t uniform(const Call &call, int operand, const char *what) {
  const Register &values = *call.in[operand];
  for (int lane = 1; lane < 32; lane++)
    if (values[lane] != values[0]) throw Wrong{FAILED, std::string(what) + " differs between lanes of the warp"};
  return values[0];
}

}  // namespace cs_emu::ptx
