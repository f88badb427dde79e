// Integer and bit instructions (PTX ISA, integer arithmetic; logic and shift).
#include <algorithm>
#include <limits>
#include <type_traits>

#include "block.h"
#include "lanes.h"

namespace cs_emu::ptx {
namespace {

template <class T>
struct Wider;
template <>
struct Wider<uint16_t> {
  typedef uint32_t type;
};
template <>
struct Wider<int16_t> {
  typedef int32_t type;
};
template <>
struct Wider<uint32_t> {
  typedef uint64_t type;
};
template <>
struct Wider<int32_t> {
  typedef int64_t type;
};
template <>
struct Wider<uint64_t> {
  typedef unsigned __int128 type;
};
template <>
struct Wider<int64_t> {
  typedef __int128 type;
};

// Arithmetic in the unsigned type: wraps.
#define CS_OP2(name, expression)                        \
  template <class T>                                    \
  struct name {                                         \
    typedef std::make_unsigned_t<T> U;                  \
    static uint64_t of(uint64_t x, uint64_t y) {        \
      const T a = Bits<T>::get(x), b = Bits<T>::get(y); \
      return Bits<T>::put(static_cast<T>(expression));  \
    }                                                   \
  };
CS_OP2(Add, static_cast<U>(static_cast<U>(a) + static_cast<U>(b)))
CS_OP2(Sub, static_cast<U>(static_cast<U>(a) - static_cast<U>(b)))
CS_OP2(Min, b < a ? b : a)
CS_OP2(Max, a < b ? b : a)
CS_OP2(And, a &b)
CS_OP2(Or, a | b)
CS_OP2(Xor, a ^ b)
CS_OP2(MulHi, (static_cast<typename Wider<T>::type>(a) * static_cast<typename Wider<T>::type>(b)) >> (sizeof(T) * 8))
#undef CS_OP2
template <class T>
struct MulLo {
  static uint64_t of(uint64_t x, uint64_t y) { return Bits<T>::put(static_cast<T>(x * y)); }
};
template <class T>
struct MulWide {
  typedef typename Wider<T>::type W;
  static uint64_t of(uint64_t x, uint64_t y) {
    return Bits<W>::put(static_cast<W>(static_cast<W>(Bits<T>::get(x)) * static_cast<W>(Bits<T>::get(y))));
  }
};
template <class T, template <class> class Product, class R>
struct Mad {
  static uint64_t of(uint64_t x, uint64_t y, uint64_t z) {
    return Bits<R>::put(static_cast<R>(Product<T>::of(x, y) + z));
  }
};
template <class T>
struct Mul24 {
  static uint64_t of(uint64_t x, uint64_t y) {
    return Bits<T>::put(static_cast<T>(static_cast<uint64_t>(static_cast<int64_t>(static_cast<T>(x << 8) >> 8)) *
                                       static_cast<uint64_t>(static_cast<int64_t>(static_cast<T>(y << 8) >> 8))));
  }
};
template <class T>
struct Shl {
  static uint64_t of(uint64_t x, uint64_t y) {
    const uint32_t n = static_cast<uint32_t>(y);
    return n >= sizeof(T) * 8 ? 0 : Bits<T>::put(static_cast<T>(x << n));
  }
};
template <class T>
struct Shr {
  static uint64_t of(uint64_t x, uint64_t y) {
    constexpr uint32_t last = sizeof(T) * 8 - 1;
    const uint32_t n = static_cast<uint32_t>(y);
    const T a = Bits<T>::get(x);
    if (std::is_signed<T>::value) return Bits<T>::put(static_cast<T>(a >> (n > last ? last : n)));
    return n > last ? 0 : Bits<T>::put(static_cast<T>(a >> n));
  }
};
template <class T>
struct Sad {
  typedef std::make_unsigned_t<T> U;
  static uint64_t of(uint64_t x, uint64_t y, uint64_t z) {
    const T a = Bits<T>::get(x), b = Bits<T>::get(y);
    return Bits<U>::put(
        static_cast<U>(static_cast<U>(z) + static_cast<U>(a < b ? static_cast<U>(b) - static_cast<U>(a)
                                                                : static_cast<U>(a) - static_cast<U>(b))));
  }
};

#define CS_OP1(name, expression)                       \
  template <class T>                                   \
  struct name {                                        \
    typedef std::make_unsigned_t<T> U;                 \
    static uint64_t of(uint64_t x) {                   \
      const T a = Bits<T>::get(x);                     \
      return Bits<T>::put(static_cast<T>(expression)); \
    }                                                  \
  };
CS_OP1(Neg, static_cast<U>(0) - static_cast<U>(a))
CS_OP1(Abs, a < 0 ? static_cast<U>(0) - static_cast<U>(a) : static_cast<U>(a))
CS_OP1(Not, ~a)
CS_OP1(Cnot, a == 0)
#undef CS_OP1
struct NotP {
  static uint64_t of(uint64_t x) { return (x & 1u) ^ 1u; }
};

template <class T>
struct Popc {
  static uint64_t of(uint64_t x) { return static_cast<uint64_t>(__builtin_popcountll(static_cast<T>(x))); }
};
template <class T>
struct Clz {
  static uint64_t of(uint64_t x) {
    const uint64_t v = static_cast<T>(x);
    return v ? static_cast<uint64_t>(__builtin_clzll(v)) - (64 - sizeof(T) * 8) : sizeof(T) * 8;
  }
};
template <class T>
struct Brev {
  static uint64_t of(uint64_t x) {
    uint64_t r = 0;
    for (unsigned b = 0; b < sizeof(T) * 8; ++b) r |= (x >> b & 1u) << (sizeof(T) * 8 - 1 - b);
    return r;
  }
};
// The highest bit that is no copy of the sign; shift: how far it is from the top.
template <class T, bool Shift>
struct Bfind {
  static uint64_t of(uint64_t x) {
    typedef std::make_unsigned_t<T> U;
    const T a = Bits<T>::get(x);
    const U v = static_cast<U>(std::is_signed<T>::value && a < 0 ? ~a : a);
    if (!v) return 0xffffffffu;
    const uint64_t at = 63 - static_cast<uint64_t>(__builtin_clzll(v));
    return Shift ? sizeof(T) * 8 - 1 - at : at;
  }
};
template <class T>
struct Bfe {
  static uint64_t of(uint64_t x, uint64_t y, uint64_t z) {
    typedef std::make_unsigned_t<T> U;
    constexpr unsigned top = sizeof(T) * 8 - 1;
    const unsigned pos = y & 0xff, len = z & 0xff;
    const T a = Bits<T>::get(x);
    const bool sign = std::is_signed<T>::value && len && (static_cast<U>(a) >> std::min(pos + len - 1, top) & 1u);
    U r = pos > top ? 0 : static_cast<U>(static_cast<U>(a) >> pos);
    const unsigned kept = std::min(len, pos > top ? 0u : top + 1 - pos);
    const U ones = kept > top ? ~U(0) : static_cast<U>((U(1) << kept) - 1);
    r = static_cast<U>(r & ones);
    if (sign) r = static_cast<U>(r | ~ones);
    return Bits<U>::put(r);
  }
};
template <class U>
struct Bfi {
  static uint64_t of(uint64_t x, uint64_t y, uint64_t z, uint64_t w) {
    constexpr unsigned top = sizeof(U) * 8 - 1;
    const unsigned pos = z & 0xff, len = w & 0xff;
    if (pos > top || !len) return y;
    const unsigned kept = std::min(len, top + 1 - pos);
    const U ones = static_cast<U>((kept > top ? ~U(0) : static_cast<U>((U(1) << kept) - 1)) << pos);
    return Bits<U>::put(static_cast<U>((static_cast<U>(y) & ~ones) | (static_cast<U>(x << pos) & ones)));
  }
};
struct Prmt {
  static uint64_t of(uint64_t a, uint64_t b, uint64_t c) {
    const uint64_t both = b << 32 | (a & 0xffffffffu);
    uint64_t r = 0;
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned select = static_cast<unsigned>(c >> (4 * i)) & 15u;
      uint64_t byte = both >> (8 * (select & 7u)) & 255u;
      if (select & 8u) byte = byte & 128u ? 255u : 0u;
      r |= byte << (8 * i);
    }
    return r;
  }
};
struct Lop3 {
  static uint64_t of(uint64_t a, uint64_t b, uint64_t c, uint64_t table) {
    uint64_t r = 0;
    for (unsigned i = 0; i < 8; ++i)
      if (table >> i & 1u) r |= (i & 4u ? a : ~a) & (i & 2u ? b : ~b) & (i & 1u ? c : ~c);
    return r & 0xffffffffu;
  }
};
template <bool Left, bool Wrap>
struct Shf {
  static uint64_t of(uint64_t a, uint64_t b, uint64_t c) {
    const unsigned n = Wrap ? c & 31u : static_cast<unsigned>(std::min<uint64_t>(c & 0xffffffffu, 32));
    const uint64_t both = b << 32 | (a & 0xffffffffu);
    return (Left ? both << n >> 32 : both >> n) & 0xffffffffu;
  }
};
template <class A, class B>
struct Dp4a {
  static uint64_t of(uint64_t x, uint64_t y, uint64_t z) {
    uint32_t sum = static_cast<uint32_t>(z);
    for (int i = 0; i < 4; ++i)
      sum += static_cast<uint32_t>(static_cast<int>(static_cast<A>(x >> (8 * i))) *
                                   static_cast<int>(static_cast<B>(y >> (8 * i))));
    return sum;
  }
};

template <class T, bool Rest>
void divide(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *x = m.in(i.op[1]), *y = m.in(i.op[2]);
  CS_LANES(m, l) {
    const T a = Bits<T>::get(x[l]), b = Bits<T>::get(y[l]);
    if (b == 0) m.block->wrong(719, l, "divides an integer by zero");
    const bool overflow = std::is_signed<T>::value && b == static_cast<T>(-1);
    if (overflow) d[l] = Rest ? 0 : Neg<T>::of(x[l]);
    else d[l] = Bits<T>::put(static_cast<T>(Rest ? a % b : a / b));
  }
}

template <class T>
void add_type(Table &t, const std::string &type) {
  constexpr int n = sizeof(T) * 8;
  typedef typename Wider<T>::type W;
  add(t, "add." + type, binary<Add<T>>, 2, n, n);
  add(t, "sub." + type, binary<Sub<T>>, 2, n, n);
  add(t, "min." + type, binary<Min<T>>, 2, n, n);
  add(t, "max." + type, binary<Max<T>>, 2, n, n);
  add(t, "mul.lo." + type, binary<MulLo<T>>, 2, n, n);
  add(t, "mul.hi." + type, binary<MulHi<T>>, 2, n, n);
  add(t, "mad.lo." + type, ternary<Mad<T, MulLo, T>>, 3, n, n, n);
  add(t, "mad.hi." + type, ternary<Mad<T, MulHi, T>>, 3, n, n, n);
  if constexpr (n < 64) {
    add(t, "mul.wide." + type, binary<MulWide<T>>, 2, n, n);
    add(t, "mad.wide." + type, ternary<Mad<T, MulWide, W>>, 3, n, n, 2 * n);
  }
  add(t, "div." + type, divide<T, false>, 2, n, n);
  add(t, "rem." + type, divide<T, true>, 2, n, n);
  add(t, "sad." + type, ternary<Sad<T>>, 3, n, n, n);
  add(t, "shr." + type, binary<Shr<T>>, 2, n, 32);
  if (std::is_signed<T>::value) {
    add(t, "neg." + type, unary<Neg<T>>, 1, n);
    add(t, "abs." + type, unary<Abs<T>>, 1, n);
  }
  if constexpr (n >= 32) {
    add(t, "bfind." + type, unary<Bfind<T, false>>, 1, n);
    add(t, "bfind.shiftamt." + type, unary<Bfind<T, true>>, 1, n);
    add(t, "bfe." + type, ternary<Bfe<T>>, 3, n, 32, 32);
  }
}

template <class U>
void add_bits(Table &t, const std::string &type) {
  constexpr int n = sizeof(U) * 8;
  add(t, "and." + type, binary<And<U>>, 2, n, n);
  add(t, "or." + type, binary<Or<U>>, 2, n, n);
  add(t, "xor." + type, binary<Xor<U>>, 2, n, n);
  add(t, "not." + type, unary<Not<U>>, 1, n);
  add(t, "cnot." + type, unary<Cnot<U>>, 1, n);
  add(t, "shl." + type, binary<Shl<U>>, 2, n, 32);
  add(t, "shr." + type, binary<Shr<U>>, 2, n, 32);
  if constexpr (n >= 32) {
    add(t, "popc." + type, unary<Popc<U>>, 1, n);
    add(t, "clz." + type, unary<Clz<U>>, 1, n);
    add(t, "brev." + type, unary<Brev<U>>, 1, n);
    add(t, "bfi." + type, quaternary<Bfi<U>>, 4, n, n, 32, 32);
  }
}

}  // namespace

void invert(Machine &m, const Instruction &i) { unary<NotP>(m, i); }

void add_integer(Table &t) {
  add_type<uint16_t>(t, "u16");
  add_type<int16_t>(t, "s16");
  add_type<uint32_t>(t, "u32");
  add_type<int32_t>(t, "s32");
  add_type<uint64_t>(t, "u64");
  add_type<int64_t>(t, "s64");
  add_bits<uint16_t>(t, "b16");
  add_bits<uint32_t>(t, "b32");
  add_bits<uint64_t>(t, "b64");
  add(t, "and.pred", binary<And<uint8_t>>, 2, 1, 1);
  add(t, "or.pred", binary<Or<uint8_t>>, 2, 1, 1);
  add(t, "xor.pred", binary<Xor<uint8_t>>, 2, 1, 1);
  add(t, "not.pred", invert, 1, 1);
  add(t, "mul24.lo.s32", binary<Mul24<int32_t>>, 2, 32, 32);
  add(t, "mul24.lo.u32", binary<Mul24<uint32_t>>, 2, 32, 32);
  add(t, "mad24.lo.s32", ternary<Mad<int32_t, Mul24, int32_t>>, 3, 32, 32, 32);
  add(t, "mad24.lo.u32", ternary<Mad<uint32_t, Mul24, uint32_t>>, 3, 32, 32, 32);
  add(t, "prmt.b32", ternary<Prmt>, 3, 32, 32, 32);
  add(t, "lop3.b32", quaternary<Lop3>, 4, 32, 32, 32, 32);
  add(t, "shf.l.clamp.b32", ternary<Shf<true, false>>, 3, 32, 32, 32);
  add(t, "shf.l.wrap.b32", ternary<Shf<true, true>>, 3, 32, 32, 32);
  add(t, "shf.r.clamp.b32", ternary<Shf<false, false>>, 3, 32, 32, 32);
  add(t, "shf.r.wrap.b32", ternary<Shf<false, true>>, 3, 32, 32, 32);
  add(t, "dp4a.s32.s32", ternary<Dp4a<int8_t, int8_t>>, 3, 32, 32, 32);
  add(t, "dp4a.u32.u32", ternary<Dp4a<uint8_t, uint8_t>>, 3, 32, 32, 32);
  add(t, "dp4a.s32.u32", ternary<Dp4a<int8_t, uint8_t>>, 3, 32, 32, 32);
  add(t, "dp4a.u32.s32", ternary<Dp4a<uint8_t, int8_t>>, 3, 32, 32, 32);
}

}  // namespace cs_emu::ptx
