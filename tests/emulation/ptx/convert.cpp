// cvt and cvta (PTX ISA, data movement and conversion).
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>
#include <limits>
#include <type_traits>

#include "lanes.h"

namespace cs_emu::ptx {
namespace {

struct Half {
  uint16_t bits;
};
enum Rounding { to_nearest, to_zero, down, up };
enum Mode : int64_t { rounding_bits = 3, integral = 4, flush_bit = 8, saturate = 16 };

}  // namespace

// The value of a half; and the nearest half of a float (to even), or that in another direction.
float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double v;
  if (exponent == 31) v = fraction ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  else v = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return static_cast<float>(bits & 0x8000 ? -v : v);
}

namespace {

double round_to(double v, int rounding) {
  switch (rounding) {
    case to_zero: return std::trunc(v);
    case down: return std::floor(v);
    case up: return std::ceil(v);
    default: return std::nearbyint(v);
  }
}

uint16_t to_half(double v, int rounding) {
  if (v != v) return 0x7fff;
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const double a = std::fabs(v);
  if (std::isinf(a)) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(a, &exponent);                                         // a = f * 2^exponent, f in [0.5, 1)
  const int unit = a == 0 || exponent < -13 ? -24 : exponent - 11;  // of the last bit
  const int direction = rounding == down ? (sign ? up : down) : rounding == up ? (sign ? down : up) : rounding;
  const double rounded = std::ldexp(round_to(std::ldexp(a, -unit), direction), unit);
  if (rounded > 65504) return sign | (direction == to_zero || direction == down ? 0x7bff : 0x7c00);
  if (rounded < std::ldexp(1, -14)) return static_cast<uint16_t>(sign | static_cast<int>(std::ldexp(rounded, 24)));
  std::frexp(rounded, &exponent);
  const int mantissa = static_cast<int>(std::ldexp(rounded, 11 - exponent));  // 1024 ... 2047
  return static_cast<uint16_t>(sign | (exponent + 14) << 10 | (mantissa & 1023));
}

// The float nearest to a wider value in a direction.
float to_float(double v, int rounding) {
  float f = static_cast<float>(v);
  if (rounding == to_nearest || v != v || static_cast<double>(f) == v) return f;
  const bool shrink = rounding == to_zero || (rounding == down) == (v > 0);
  if (shrink ? std::fabs(static_cast<double>(f)) > std::fabs(v) : std::fabs(static_cast<double>(f)) < std::fabs(v))
    f = std::nextafterf(f, shrink  ? 0.0f
                           : v > 0 ? std::numeric_limits<float>::infinity()
                                   : -std::numeric_limits<float>::infinity());
  return f;
}

float flush(float v) { return std::fabs(v) < std::numeric_limits<float>::min() ? std::copysign(0.0f, v) : v; }

template <class T>
T read(uint64_t v) {
  return Bits<T>::get(v);
}
template <>
Half read<Half>(uint64_t v) {
  return {static_cast<uint16_t>(v)};
}

template <class D, class S>
struct Convert {
  static constexpr bool from_real = std::is_floating_point<S>::value || std::is_same<S, Half>::value;
  static constexpr bool to_real = std::is_floating_point<D>::value || std::is_same<D, Half>::value;

  static uint64_t of(uint64_t x, int64_t mode) {
    const S s = read<S>(x);
    const int rounding = static_cast<int>(mode & rounding_bits);
    if constexpr (!from_real && !to_real) {
      if (mode & saturate) return clamp(static_cast<__int128>(s));
      return static_cast<uint64_t>(static_cast<int64_t>(static_cast<D>(s)));
    } else if constexpr (!from_real) {
      // Whole numbers of 64 bits are rounded once, straight to the target.
      if constexpr (std::is_same<D, Half>::value) return to_half(static_cast<double>(s), rounding);
      else if constexpr (std::is_same<D, double>::value) return Bits<double>::put(static_cast<double>(s));
      else if (rounding == to_nearest) return Bits<float>::put(static_cast<float>(s));
      else return Bits<float>::put(to_float(static_cast<double>(s), rounding));
    } else {
      double v;
      if constexpr (std::is_same<S, Half>::value) v = static_cast<double>(half_to_float(s.bits));
      else if constexpr (std::is_same<S, float>::value) v = static_cast<double>(mode & flush_bit ? flush(s) : s);
      else v = s;
      if constexpr (!to_real) {
        if (v != v) return sizeof(D) == 8 || sizeof(S) == 8 ? uint64_t(1) << (sizeof(D) * 8 - 1) : 0;
        v = round_to(v, rounding);
        constexpr double lowest = static_cast<double>(std::numeric_limits<D>::min());
        constexpr double beyond = static_cast<double>(std::numeric_limits<D>::max() / 2 + 1) * 2.0;
        const D d = v < lowest    ? std::numeric_limits<D>::min()
                    : v >= beyond ? std::numeric_limits<D>::max()
                                  : static_cast<D>(v);
        return static_cast<uint64_t>(static_cast<int64_t>(d));
      } else {
        if (mode & integral) v = round_to(v, rounding);
        if (mode & saturate) v = !(v > 0) ? 0.0 : v > 1 ? 1.0 : v;
        const int how = mode & integral ? to_nearest : rounding;
        if constexpr (std::is_same<D, Half>::value) return to_half(v, how);
        else if constexpr (std::is_same<D, double>::value) return Bits<double>::put(v);
        else {
          float f = to_float(v, how);
          if (mode & flush_bit) f = flush(f);
          return f == f ? Bits<float>::put(f) : 0x7fffffffu;
        }
      }
    }
  }
  static uint64_t clamp(__int128 v) {
    const __int128 low = std::numeric_limits<D>::min(), high = std::numeric_limits<D>::max();
    return static_cast<uint64_t>(static_cast<int64_t>(v < low ? low : v > high ? high : v));
  }
};

template <class D, class S>
void convert(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *a = m.in(i.op[1]);
  const int64_t mode = i.offset;
  const uint64_t keep = i.keep;
  CS_EACH((Convert<D, S>::of(a[l], mode) & keep))
}
// The frequent ones without a mode, so that the loops become vector instructions.
template <class D, class S>
void widen(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *a = m.in(i.op[1]);
  const uint64_t keep = i.keep;
  CS_EACH((static_cast<uint64_t>(static_cast<int64_t>(static_cast<D>(Bits<S>::get(a[l])))) & keep))
}
void half_to_single(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *a = m.in(i.op[1]);
  static const std::vector<uint32_t> table = [] {
    std::vector<uint32_t> t(65536);
    for (uint32_t v = 0; v < 65536; ++v) t[v] = static_cast<uint32_t>(Convert<float, Half>::of(v, 0));
    return t;
  }();
  CS_EACH(table[a[l] & 0xffffu])
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) void single_to_half(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *a = m.in(i.op[1]);
  CS_LANES(m, l) {
    const float v = Bits<float>::get(a[l]);
    d[l] = v == v ? _cvtss_sh(v, 0) : 0x7fff;
  }
}
#endif

template <class D, class S>
Handler pick(bool plain) {
  if constexpr (std::is_integral<D>::value && std::is_integral<S>::value) {
    if (plain) return widen<D, S>;
  }
  if constexpr (std::is_same<D, float>::value && std::is_same<S, Half>::value) {
    if (plain) return half_to_single;
  }
  return convert<D, S>;
}
template <class D>
Handler from(Type s, bool plain) {
  switch (s.kind << 8 | s.bits) {
    case 'u' << 8 | 8: return pick<D, uint8_t>(plain);
    case 's' << 8 | 8: return pick<D, int8_t>(plain);
    case 'u' << 8 | 16: return pick<D, uint16_t>(plain);
    case 's' << 8 | 16: return pick<D, int16_t>(plain);
    case 'u' << 8 | 32: return pick<D, uint32_t>(plain);
    case 's' << 8 | 32: return pick<D, int32_t>(plain);
    case 'u' << 8 | 64: return pick<D, uint64_t>(plain);
    case 's' << 8 | 64: return pick<D, int64_t>(plain);
    case 'f' << 8 | 16: return pick<D, Half>(plain);
    case 'f' << 8 | 32: return pick<D, float>(plain);
    case 'f' << 8 | 64: return pick<D, double>(plain);
    default: return nullptr;
  }
}
Handler find(Type d, Type s, bool plain) {
  switch (d.kind << 8 | d.bits) {
    case 'u' << 8 | 8: return from<uint8_t>(s, plain);
    case 's' << 8 | 8: return from<int8_t>(s, plain);
    case 'u' << 8 | 16: return from<uint16_t>(s, plain);
    case 's' << 8 | 16: return from<int16_t>(s, plain);
    case 'u' << 8 | 32: return from<uint32_t>(s, plain);
    case 's' << 8 | 32: return from<int32_t>(s, plain);
    case 'u' << 8 | 64: return from<uint64_t>(s, plain);
    case 's' << 8 | 64: return from<int64_t>(s, plain);
    case 'f' << 8 | 16: return from<Half>(s, plain);
    case 'f' << 8 | 32: return from<float>(s, plain);
    case 'f' << 8 | 64: return from<double>(s, plain);
    default: return nullptr;
  }
}

}  // namespace

bool conversion(Text opcode, Operation *o) {
  static const struct {
    const char *name;
    int64_t mode;
  } modifiers[] = {{"rn", to_nearest},
                   {"rz", to_zero},
                   {"rm", down},
                   {"rp", up},
                   {"rni", to_nearest | integral},
                   {"rzi", to_zero | integral},
                   {"rmi", down | integral},
                   {"rpi", up | integral},
                   {"ftz", flush_bit},
                   {"sat", saturate}};
  Text rest = opcode.substr(4);
  std::vector<Type> types;
  int64_t mode = 0;
  while (!rest.empty()) {
    const size_t dot = rest.find('.');
    const Text part = rest.substr(0, dot);
    rest = dot == Text::npos ? Text() : rest.substr(dot + 1);
    Type type;
    if (read_type(part, &type)) {
      types.push_back(type);
      continue;
    }
    bool known = false;
    for (const auto &m : modifiers)
      if (part == m.name) {
        mode |= m.mode;
        known = true;
      }
    if (!known || !types.empty()) return false;
  }
  if (types.size() != 2) return false;
  o->run = find(types[0], types[1], !mode);
  o->ins = 1;
  o->bits[0] = static_cast<uint8_t>(types[1].bits);
  o->mode = mode;
#if defined(__x86_64__)
  if (opcode == "cvt.rn.f16.f32" && __builtin_cpu_supports("f16c")) o->run = single_to_half;
#endif
  return o->run != nullptr;
}

}  // namespace cs_emu::ptx
