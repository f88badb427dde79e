// Floating-point instructions (PTX ISA, floating-point arithmetic). Results of f32 that are no number are 7fffffff.
#include <cmath>
#include <limits>

#include "lanes.h"

namespace cs_emu::ptx {
namespace {

template <bool Ftz>
inline float flush(float v) {
  if (!Ftz) return v;
  return std::fabs(v) < std::numeric_limits<float>::min() ? std::copysign(0.0f, v) : v;
}
template <bool Ftz>
inline double flush(double v) {
  return v;
}

template <class T>
struct Plain {  // how results go into a register
  static uint64_t put(T v) { return Bits<T>::put(v); }
};
template <>
struct Plain<float> {
  static uint64_t put(float v) { return v == v ? Bits<float>::put(v) : 0x7fffffffu; }
};

#define CS_REAL2(name, expression)                                              \
  template <class T, bool Ftz>                                                  \
  struct name {                                                                 \
    static uint64_t of(uint64_t x, uint64_t y) {                                \
      const T a = flush<Ftz>(Bits<T>::get(x)), b = flush<Ftz>(Bits<T>::get(y)); \
      return Plain<T>::put(flush<Ftz>(static_cast<T>(expression)));             \
    }                                                                           \
  };
CS_REAL2(Add, a + b)
CS_REAL2(Sub, a - b)
CS_REAL2(Mul, a *b)
CS_REAL2(Div, a / b)
// One operand that is no number is left out; -0 is less than +0.
CS_REAL2(Min, a != a ? b : b != b ? a : a < b ? a : b < a ? b : std::signbit(a) ? a : b)
CS_REAL2(Max, a != a ? b : b != b ? a : a < b ? b : b < a ? a : std::signbit(a) ? b : a)
CS_REAL2(MinNan, a != a || b != b  ? std::numeric_limits<T>::quiet_NaN()
                 : a < b           ? a
                 : b < a           ? b
                 : std::signbit(a) ? a
                                   : b)
CS_REAL2(MaxNan, a != a || b != b  ? std::numeric_limits<T>::quiet_NaN()
                 : a < b           ? b
                 : b < a           ? a
                 : std::signbit(a) ? b
                                   : a)
#undef CS_REAL2
template <class T>
struct Copysign {  // the sign of a, the rest of b
  static uint64_t of(uint64_t x, uint64_t y) {
    constexpr uint64_t sign = uint64_t(1) << (sizeof(T) * 8 - 1);
    return (x & sign) | (y & (sign - 1));
  }
};
template <class T, bool Ftz>
struct Fma {
  static uint64_t of(uint64_t x, uint64_t y, uint64_t z) {
    const T a = flush<Ftz>(Bits<T>::get(x)), b = flush<Ftz>(Bits<T>::get(y)), c = flush<Ftz>(Bits<T>::get(z));
    return Plain<T>::put(flush<Ftz>(static_cast<T>(std::fma(a, b, c))));
  }
};
template <class F>
struct Saturated {  // .sat: to [0, 1], NaN to +0
  static uint64_t sat(uint64_t r) {
    const float v = Bits<float>::get(r);
    return !(v > 0.0f) ? 0 : v > 1.0f ? 0x3f800000u : r;
  }
  static uint64_t of(uint64_t x, uint64_t y) { return sat(F::of(x, y)); }
  static uint64_t of(uint64_t x, uint64_t y, uint64_t z) { return sat(F::of(x, y, z)); }
};

template <class T>
struct Neg {
  static uint64_t of(uint64_t x) { return x ^ (uint64_t(1) << (sizeof(T) * 8 - 1)); }
};
template <class T>
struct Abs {
  static uint64_t of(uint64_t x) { return x & ((uint64_t(1) << (sizeof(T) * 8 - 1)) - 1); }
};
template <class F>
struct Flushed {  // neg.ftz, abs.ftz
  static uint64_t of(uint64_t x) { return Bits<float>::put(flush<true>(Bits<float>::get(F::of(x)))); }
};
#define CS_REAL1(name, expression)                                  \
  template <class T, bool Ftz>                                      \
  struct name {                                                     \
    static uint64_t of(uint64_t x) {                                \
      const T a = flush<Ftz>(Bits<T>::get(x));                      \
      return Plain<T>::put(flush<Ftz>(static_cast<T>(expression))); \
    }                                                               \
  };
CS_REAL1(Rcp, T(1) / a)
CS_REAL1(Sqrt, std::sqrt(a))
// The approximations of the hardware: here the nearest float of the value in double.
CS_REAL1(Rsqrt, 1.0 / std::sqrt(static_cast<double>(a)))
CS_REAL1(Ex2, std::exp2(static_cast<double>(a)))
CS_REAL1(Lg2, std::log2(static_cast<double>(a)))
CS_REAL1(Sin, std::sin(static_cast<double>(a)))
CS_REAL1(Cos, std::cos(static_cast<double>(a)))
CS_REAL1(Tanh, std::tanh(static_cast<double>(a)))
#undef CS_REAL1

// fma with the instruction of the host where there is one: std::fma is a call a lane else.
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void fma_fast(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *a = m.in(i.op[1]), *b = m.in(i.op[2]), *c = m.in(i.op[3]);
  uint32_t x[32], y[32], z[32], r[32];
  for (unsigned l = 0; l < 32; ++l) {
    x[l] = static_cast<uint32_t>(a[l]);
    y[l] = static_cast<uint32_t>(b[l]);
    z[l] = static_cast<uint32_t>(c[l]);
  }
  float p[32], q[32], s[32];
  std::memcpy(p, x, sizeof p);
  std::memcpy(q, y, sizeof q);
  std::memcpy(s, z, sizeof s);
  for (unsigned l = 0; l < 32; ++l) s[l] = __builtin_fmaf(p[l], q[l], s[l]);
  std::memcpy(r, s, sizeof r);
  for (unsigned l = 0; l < 32; ++l) r[l] = s[l] == s[l] ? r[l] : 0x7fffffffu;
  if (m.all()) {
    for (unsigned l = 0; l < 32; ++l) d[l] = r[l];
  } else {
    for (unsigned l = 0; l < 32; ++l) d[l] = (d[l] & ~m.chosen[l]) | (r[l] & m.chosen[l]);
  }
}
Handler fma_f32() {
  return __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2") ? fma_fast : ternary<Fma<float, false>>;
}
#else
Handler fma_f32() { return ternary<Fma<float, false>>; }
#endif

template <template <class, bool> class F>
void add_two(Table &t, const std::string &base, bool rounding) {
  for (const char *round : {"", ".rn"}) {
    if (*round && !rounding) continue;
    add(t, base + round + ".f32", binary<F<float, false>>, 2, 32, 32);
    add(t, base + round + ".ftz.f32", binary<F<float, true>>, 2, 32, 32);
    add(t, base + round + ".f64", binary<F<double, false>>, 2, 64, 64);
    if (!rounding) continue;
    add(t, base + round + ".sat.f32", binary<Saturated<F<float, false>>>, 2, 32, 32);
    add(t, base + round + ".ftz.sat.f32", binary<Saturated<F<float, true>>>, 2, 32, 32);
  }
}
template <template <class, bool> class F>
void add_approximation(Table &t, const std::string &base) {
  add(t, base + ".approx.f32", unary<F<float, false>>, 1, 32);
  add(t, base + ".approx.ftz.f32", unary<F<float, true>>, 1, 32);
}
template <template <class, bool> class F>
void add_exact(Table &t, const std::string &base) {
  add(t, base + ".rn.f32", unary<F<float, false>>, 1, 32);
  add(t, base + ".rn.ftz.f32", unary<F<float, true>>, 1, 32);
  add(t, base + ".rn.f64", unary<F<double, false>>, 1, 64);
}

}  // namespace

void add_real(Table &t) {
  add_two<Add>(t, "add", true);
  add_two<Sub>(t, "sub", true);
  add_two<Mul>(t, "mul", true);
  add_two<Min>(t, "min", false);
  add_two<Max>(t, "max", false);
  for (const char *kind : {".rn", ".approx", ".full"}) {
    add(t, std::string("div") + kind + ".f32", binary<Div<float, false>>, 2, 32, 32);
    add(t, std::string("div") + kind + ".ftz.f32", binary<Div<float, true>>, 2, 32, 32);
  }
  add(t, "div.rn.f64", binary<Div<double, false>>, 2, 64, 64);
  add(t, "min.NaN.f32", binary<MinNan<float, false>>, 2, 32, 32);
  add(t, "max.NaN.f32", binary<MaxNan<float, false>>, 2, 32, 32);
  add(t, "copysign.f32", binary<Copysign<float>>, 2, 32, 32);
  add(t, "copysign.f64", binary<Copysign<double>>, 2, 64, 64);
  for (const char *base : {"fma.rn", "mad.rn"}) {
    add(t, std::string(base) + ".f32", fma_f32(), 3, 32, 32, 32);
    add(t, std::string(base) + ".ftz.f32", ternary<Fma<float, true>>, 3, 32, 32, 32);
    add(t, std::string(base) + ".f64", ternary<Fma<double, false>>, 3, 64, 64, 64);
  }
  add(t, "fma.rn.sat.f32", ternary<Saturated<Fma<float, false>>>, 3, 32, 32, 32);
  add(t, "fma.rn.ftz.sat.f32", ternary<Saturated<Fma<float, true>>>, 3, 32, 32, 32);
  add(t, "neg.f32", unary<Neg<float>>, 1, 32);
  add(t, "neg.f64", unary<Neg<double>>, 1, 64);
  add(t, "neg.ftz.f32", unary<Flushed<Neg<float>>>, 1, 32);
  add(t, "abs.f32", unary<Abs<float>>, 1, 32);
  add(t, "abs.f64", unary<Abs<double>>, 1, 64);
  add(t, "abs.ftz.f32", unary<Flushed<Abs<float>>>, 1, 32);
  add_exact<Rcp>(t, "rcp");
  add_exact<Sqrt>(t, "sqrt");
  add_approximation<Rcp>(t, "rcp");
  add_approximation<Sqrt>(t, "sqrt");
  add_approximation<Rsqrt>(t, "rsqrt");
  add_approximation<Ex2>(t, "ex2");
  add_approximation<Lg2>(t, "lg2");
  add_approximation<Sin>(t, "sin");
  add_approximation<Cos>(t, "cos");
  add(t, "tanh.approx.f32", unary<Tanh<float, false>>, 1, 32);
}

}  // namespace cs_emu::ptx
