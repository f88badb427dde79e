// Loops over the lanes of a warp for operations without memory.
#pragma once
#include <cstring>

#include "operations.h"

namespace cs_emu::ptx {

template <class T>
struct Bits;  // between a lane and a value
#define CS_BITS(type, unsigned_type)                                                             \
  template <>                                                                                    \
  struct Bits<type> {                                                                            \
    static type get(uint64_t v) { return static_cast<type>(static_cast<unsigned_type>(v)); }     \
    static uint64_t put(type v) { return static_cast<uint64_t>(static_cast<unsigned_type>(v)); } \
  };
CS_BITS(uint8_t, uint8_t)
CS_BITS(int8_t, uint8_t)
CS_BITS(uint16_t, uint16_t)
CS_BITS(int16_t, uint16_t)
CS_BITS(uint32_t, uint32_t)
CS_BITS(int32_t, uint32_t)
CS_BITS(uint64_t, uint64_t)
CS_BITS(int64_t, uint64_t)
#undef CS_BITS
template <>
struct Bits<bool> {
  static bool get(uint64_t v) { return v & 1u; }
  static uint64_t put(bool v) { return v; }
};
template <>
struct Bits<float> {
  static float get(uint64_t v) {
    const uint32_t u = static_cast<uint32_t>(v);
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  static uint64_t put(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    return u;
  }
};
template <>
struct Bits<double> {
  static double get(uint64_t v) {
    double d;
    std::memcpy(&d, &v, 8);
    return d;
  }
  static uint64_t put(double d) {
    uint64_t u;
    std::memcpy(&u, &d, 8);
    return u;
  }
};

// F::of(lane's inputs as bits) gives the result as bits. The output may be one of the inputs.
#define CS_EACH(expression)                                                     \
  if (m.all()) {                                                                \
    _Pragma("GCC ivdep") for (unsigned l = 0; l < 32; ++l) d[l] = (expression); \
  } else {                                                                      \
    const uint64_t *cs_c = m.chosen;                                            \
    _Pragma("GCC ivdep") for (unsigned l = 0; l < 32; ++l) {                    \
      const uint64_t cs_r = (expression);                                       \
      d[l] = (d[l] & ~cs_c[l]) | (cs_r & cs_c[l]);                              \
    }                                                                           \
  }
template <class F>
void unary(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *a = m.in(i.op[1]);
  CS_EACH(F::of(a[l]))
}
template <class F>
void binary(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *a = m.in(i.op[1]), *b = m.in(i.op[2]);
  CS_EACH(F::of(a[l], b[l]))
}
template <class F>
void ternary(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *a = m.in(i.op[1]), *b = m.in(i.op[2]), *e = m.in(i.op[3]);
  CS_EACH(F::of(a[l], b[l], e[l]))
}
template <class F>
void quaternary(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *a = m.in(i.op[1]), *b = m.in(i.op[2]), *e = m.in(i.op[3]), *f = m.in(i.op[4]);
  CS_EACH(F::of(a[l], b[l], e[l], f[l]))
}

inline void add(Table &table, const std::string &name, Handler run, int ins, int a, int b = 32, int c = 32,
                int d = 32) {
  Operation o;
  o.run = run;
  o.ins = static_cast<uint8_t>(ins);
  const int bits[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) o.bits[i] = static_cast<uint8_t>(bits[i]);
  table.emplace(name, o);
}

}  // namespace cs_emu::ptx
