// Comparison, selection, moves (PTX ISA, comparison and selection; data movement).
#include <cmath>

#include "lanes.h"

namespace cs_emu::ptx {
namespace {

enum Comparison { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan, comparisons };
const char *const comparison_names[comparisons] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                                   "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};

// NaN: the plain comparisons are false, those with u true.
template <class T>
inline bool compare(Comparison c, T a, T b) {
  switch (c) {
    case eq: return a == b;
    case ne: return a < b || a > b;
    case lt: return a < b;
    case le: return a <= b;
    case gt: return a > b;
    case ge: return a >= b;
    case equ: return !(a < b || a > b);
    case neu: return !(a == b);
    case ltu: return !(a >= b);
    case leu: return !(a > b);
    case gtu: return !(a <= b);
    case geu: return !(a < b);
    case num: return a == a && b == b;
    default: return !(a == a && b == b);
  }
}

enum Combination { none, with_and, with_or, with_xor };
template <Combination B>
inline bool combine(bool a, bool b) {
  return B == with_and ? a && b : B == with_or ? a || b : B == with_xor ? a != b : a;
}

template <class T, Comparison C>
struct Compare {
  static uint64_t of(uint64_t x, uint64_t y) { return compare<T>(C, Bits<T>::get(x), Bits<T>::get(y)); }
};
template <class T>
inline T flushed(T v) {
  return std::is_same<T, float>::value && std::fabs(v) < T(1.17549435e-38) ? T(0) : v;
}
template <class T, Comparison C>
struct CompareFlushed {
  static uint64_t of(uint64_t x, uint64_t y) {
    return compare<T>(C, flushed(Bits<T>::get(x)), flushed(Bits<T>::get(y)));
  }
};
template <class T, Comparison C, Combination B>
struct CompareWith {
  static uint64_t of(uint64_t x, uint64_t y, uint64_t z) {
    return combine<B>(compare<T>(C, Bits<T>::get(x), Bits<T>::get(y)), z & 1u);
  }
};
// setp p|q: q is the comparison's opposite.
template <class T, Comparison C>
void both(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]), *e = m.out(i.op[1]);
  const uint64_t *a = m.in(i.op[2]), *b = m.in(i.op[3]);
  CS_LANES(m, l) {
    const bool r = compare<T>(C, Bits<T>::get(a[l]), Bits<T>::get(b[l]));
    d[l] = r;
    e[l] = !r;
  }
}

struct Handlers {
  Handler plain, flushed, with[4], both;
};
template <class T, Comparison C>
Handlers handlers() {
  Handlers h{binary<Compare<T, C>>,
             nullptr,
             {nullptr, ternary<CompareWith<T, C, with_and>>, ternary<CompareWith<T, C, with_or>>,
              ternary<CompareWith<T, C, with_xor>>},
             both<T, C>};
  if constexpr (std::is_same<T, float>::value) h.flushed = binary<CompareFlushed<T, C>>;
  return h;
}
template <class T>
Handlers of_type(Comparison c) {
  switch (c) {
    case eq: return handlers<T, eq>();
    case ne: return handlers<T, ne>();
    case lt: return handlers<T, lt>();
    case le: return handlers<T, le>();
    case gt: return handlers<T, gt>();
    case ge: return handlers<T, ge>();
    default: break;
  }
  if constexpr (std::is_floating_point<T>::value) switch (c) {
      case equ: return handlers<T, equ>();
      case neu: return handlers<T, neu>();
      case ltu: return handlers<T, ltu>();
      case leu: return handlers<T, leu>();
      case gtu: return handlers<T, gtu>();
      case geu: return handlers<T, geu>();
      case num: return handlers<T, num>();
      case nan: return handlers<T, nan>();
      default: break;
    }
  return {};
}

struct Select {
  static uint64_t of(uint64_t a, uint64_t b, uint64_t p) { return p & 1u ? a : b; }
};
struct SelectSign {  // slct.b32.s32
  static uint64_t of(uint64_t a, uint64_t b, uint64_t c) { return static_cast<int32_t>(c) >= 0 ? a : b; }
};
struct Same {
  static uint64_t of(uint64_t a) { return a; }
};

}  // namespace

bool set_predicate(Text opcode, Operation *o) {
  Text rest = opcode.substr(5);
  std::vector<Text> parts;
  while (!rest.empty()) {
    const size_t dot = rest.find('.');
    parts.push_back(rest.substr(0, dot));
    rest = dot == Text::npos ? Text() : rest.substr(dot + 1);
  }
  if (parts.size() < 2) return false;
  int c = 0;
  Text comparison = parts[0];
  // lo, ls, hi, hs are lt, le, gt, ge of unsigned numbers.
  if (comparison == "lo") comparison = "lt";
  if (comparison == "ls") comparison = "le";
  if (comparison == "hi") comparison = "gt";
  if (comparison == "hs") comparison = "ge";
  while (c < comparisons && comparison != comparison_names[c]) ++c;
  Type type;
  if (c == comparisons || !read_type(parts.back(), &type)) return false;
  Combination combination = none;
  bool flush = false;
  for (size_t k = 1; k + 1 < parts.size(); ++k) {
    if (parts[k] == "and") combination = with_and;
    else if (parts[k] == "or") combination = with_or;
    else if (parts[k] == "xor") combination = with_xor;
    else if (parts[k] == "ftz") flush = true;
    else return false;
  }
  const Comparison which = static_cast<Comparison>(c);
  Handlers h{};
  switch (type.kind << 8 | type.bits) {
    case 'b' << 8 | 16:
    case 'u' << 8 | 16: h = of_type<uint16_t>(which); break;
    case 'b' << 8 | 32:
    case 'u' << 8 | 32: h = of_type<uint32_t>(which); break;
    case 'b' << 8 | 64:
    case 'u' << 8 | 64: h = of_type<uint64_t>(which); break;
    case 's' << 8 | 16: h = of_type<int16_t>(which); break;
    case 's' << 8 | 32: h = of_type<int32_t>(which); break;
    case 's' << 8 | 64: h = of_type<int64_t>(which); break;
    case 'f' << 8 | 32: h = of_type<float>(which); break;
    case 'f' << 8 | 64: h = of_type<double>(which); break;
    default: return false;
  }
  if (flush && combination != none) return false;
  o->run = combination != none ? h.with[combination] : flush ? h.flushed : h.plain;
  if (!o->run) return false;
  o->ins = combination != none ? 3 : 2;
  o->bits[0] = o->bits[1] = static_cast<uint8_t>(type.bits);
  if (combination == none && !flush) o->both = h.both;
  return true;
}

void move(Machine &m, const Instruction &i) { unary<Same>(m, i); }

void pack(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const unsigned bits = static_cast<unsigned>(i.offset), n = i.inputs;
  const uint64_t ones = (uint64_t(1) << bits) - 1;
  uint64_t r[32] = {};
  for (unsigned k = 0; k < n; ++k) {
    const uint64_t *a = m.in(i.op[1 + k]);
    for (unsigned l = 0; l < 32; ++l) r[l] |= (a[l] & ones) << (bits * k);
  }
  CS_EACH(r[l])
}

void unpack(Machine &m, const Instruction &i) {
  const unsigned bits = static_cast<unsigned>(i.offset), n = i.count;
  const uint64_t ones = (uint64_t(1) << bits) - 1;
  uint64_t a[32];
  std::memcpy(a, m.in(i.op[n]), sizeof a);
  for (unsigned k = 0; k < n; ++k) {
    uint64_t *d = m.out(i.op[k]);
    CS_EACH(a[l] >> (bits * k) & ones)
  }
}

void add_logic(Table &t) {
  for (const char *type : {"b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64", "pred"}) {
    Type read;
    read_type(type, &read);
    if (read.bits > 1) {
      add(t, std::string("selp.") + type, ternary<Select>, 3, read.bits, read.bits, 1);
      if (read.bits > 16)
        add(t, std::string("slct.") + type + ".s32", ternary<SelectSign>, 3, read.bits, read.bits, 32);
    }
    add(t, std::string("mov.") + type, move, 1, read.bits);
    t[std::string("mov.") + type].form = Form::move;
  }
}

}  // namespace cs_emu::ptx
