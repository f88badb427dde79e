// ld, st, atom, red, cvta (PTX ISA, data movement; parallel synchronization).
#include <algorithm>
#include <type_traits>

#include "block.h"
#include "lanes.h"

namespace cs_emu::ptx {
namespace {

// The bytes that a lane accesses. *shared: the offset in shared memory, or none.
constexpr uint64_t no_shared = ~0ull;
template <Space S>
uint8_t *reach(Block &b, int thread, uint64_t address, uint32_t bytes, bool write, const Instruction &i,
               uint64_t *shared) {
  *shared = no_shared;
  if (S == Space::none) {
    const Windows &w = windows();
    if (address - w.shared < window_bytes) {
      *shared = address - w.shared;
      return b.shared_at(thread, *shared, bytes, write);
    }
    if (address - w.local < window_bytes) return b.local_at(thread, address - w.local, bytes, write);
    return b.global(thread, address, bytes, write, &i.hint);
  }
  if (S == Space::shared) {
    *shared = address;
    return b.shared_at(thread, address, bytes, write);
  }
  if (S == Space::local) return b.local_at(thread, address, bytes, write);
  if (S == Space::param) return const_cast<uint8_t *>(b.parameter_at(thread, address, bytes, write));
  return b.global(thread, address, bytes, write, &i.hint);
}

template <class T>
inline uint64_t widen(const uint8_t *p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return static_cast<uint64_t>(static_cast<int64_t>(v));  // of unsigned types: zero-extended before
}

template <Space S, class T>
void load(Machine &m, const Instruction &i) {
  Block &b = *m.block;
  const unsigned n = i.count;
  const uint32_t bytes = sizeof(T) * n;
  const uint64_t *address = m.in(i.op[n]);
  uint64_t shared;
  if (S == Space::param && (i.op[n] & 3) == constants &&
      address[0] + static_cast<uint64_t>(i.offset) < call_parameters) {
    const uint8_t *p = reach<S>(b, m.warp * 32, address[0] + static_cast<uint64_t>(i.offset), bytes, false, i, &shared);
    for (unsigned k = 0; k < n; ++k) {
      const uint64_t v = widen<T>(p + k * sizeof(T)) & i.keep;
      uint64_t *d = m.out(i.op[k]);
      CS_EACH(v)
    }
    return;
  }
  CS_LANES(m, l) {
    const int thread = m.warp * 32 + static_cast<int>(l);
    const uint8_t *p = reach<S>(b, thread, address[l] + static_cast<uint64_t>(i.offset), bytes, false, i, &shared);
    if ((S == Space::shared || S == Space::none) && shared != no_shared)
      b.check_read(thread, static_cast<uint32_t>(shared), bytes);
    for (unsigned k = 0; k < n; ++k) m.out(i.op[k])[l] = widen<T>(p + k * sizeof(T)) & i.keep;
  }
}

template <Space S, class T>
void store(Machine &m, const Instruction &i) {
  Block &b = *m.block;
  const unsigned n = i.count;
  const uint32_t bytes = sizeof(T) * n;
  const uint64_t *address = m.in(i.op[0]);
  CS_LANES(m, l) {
    const int thread = m.warp * 32 + static_cast<int>(l);
    uint64_t shared;
    uint8_t *p = reach<S>(b, thread, address[l] + static_cast<uint64_t>(i.offset), bytes, true, i, &shared);
    T values[4];
    for (unsigned k = 0; k < n; ++k) values[k] = static_cast<T>(m.in(i.op[1 + k])[l]);
    if ((S == Space::shared || S == Space::none) && shared != no_shared)
      b.check_write(thread, static_cast<uint32_t>(shared), bytes, reinterpret_cast<const uint8_t *>(values), false);
    std::memcpy(p, values, bytes);
  }
}

enum Change { a_add, a_min, a_max, a_and, a_or, a_xor, a_exch, a_cas, a_inc, a_dec, changes };
const char *const change_names[changes] = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"};

template <Change C, class T>
T changed(T old, T b, T c) {
  if constexpr (std::is_floating_point<T>::value) {
    return C == a_add ? old + b : C == a_exch ? b : old;
  } else {
    typedef std::make_unsigned_t<T> U;
    switch (C) {
      case a_add: return static_cast<T>(static_cast<U>(old) + static_cast<U>(b));
      case a_min: return std::min(old, b);
      case a_max: return std::max(old, b);
      case a_and: return static_cast<T>(old & b);
      case a_or: return static_cast<T>(old | b);
      case a_xor: return static_cast<T>(old ^ b);
      case a_exch: return b;
      case a_cas: return old == b ? c : old;
      case a_inc: return old >= b ? T(0) : static_cast<T>(old + 1);
      default: return old == T(0) || old > b ? b : static_cast<T>(old - 1);
    }
  }
}

template <Space S, Change C, class T>
void atomic(Machine &m, const Instruction &i) {
  Block &b = *m.block;
  const uint64_t *address = m.in(i.op[1]), *x = m.in(i.op[2]), *y = m.in(i.op[3] < 0 ? i.op[2] : i.op[3]);
  CS_LANES(m, l) {
    const int thread = m.warp * 32 + static_cast<int>(l);
    uint64_t shared;
    uint8_t *p = reach<S>(b, thread, address[l] + static_cast<uint64_t>(i.offset), sizeof(T), true, i, &shared);
    T old;
    std::memcpy(&old, p, sizeof old);
    const T now = changed<C, T>(old, Bits<T>::get(x[l]), Bits<T>::get(y[l]));
    if (shared != no_shared) {
      const uint32_t at = static_cast<uint32_t>(shared);
      if (b.async->copies_under_way()) b.async->reads_shared(thread, at, sizeof(T));
      if (b.checks && !b.shadow.written(at, sizeof(T)))
        b.report({Shadow::Mistake::unwritten, 0}, thread, at, sizeof(T));
      b.check_write(thread, at, sizeof(T), reinterpret_cast<const uint8_t *>(&now), true);
    }
    std::memcpy(p, &now, sizeof now);
    if (i.op[0] >= 0) m.out(i.op[0])[l] = Bits<T>::put(old);
  }
}

template <Space S>
Handler find_load(Type t) {
  switch (t.bits + (t.kind == 's')) {
    case 8: return load<S, uint8_t>;
    case 9: return load<S, int8_t>;
    case 16: return load<S, uint16_t>;
    case 17: return load<S, int16_t>;
    case 32: return load<S, uint32_t>;
    case 33: return load<S, int32_t>;
    case 64:
    case 65: return load<S, uint64_t>;
    default: return nullptr;
  }
}
template <Space S>
Handler find_store(Type t) {
  switch (t.bits) {
    case 8: return store<S, uint8_t>;
    case 16: return store<S, uint16_t>;
    case 32: return store<S, uint32_t>;
    case 64: return store<S, uint64_t>;
    default: return nullptr;
  }
}
template <Space S, class T>
Handler find_change(int change) {
  if constexpr (std::is_floating_point<T>::value) return change == a_add ? atomic<S, a_add, T> : nullptr;
  else switch (change) {
      case a_add: return atomic<S, a_add, T>;
      case a_min: return atomic<S, a_min, T>;
      case a_max: return atomic<S, a_max, T>;
      case a_and: return atomic<S, a_and, T>;
      case a_or: return atomic<S, a_or, T>;
      case a_xor: return atomic<S, a_xor, T>;
      case a_exch: return atomic<S, a_exch, T>;
      case a_cas: return atomic<S, a_cas, T>;
      case a_inc: return std::is_same<T, uint32_t>::value ? atomic<S, a_inc, T> : nullptr;
      case a_dec: return std::is_same<T, uint32_t>::value ? atomic<S, a_dec, T> : nullptr;
      default: return nullptr;
    }
}
template <Space S>
Handler find_atomic(int change, Type t) {
  switch (t.kind << 8 | t.bits) {
    case 'b' << 8 | 32:
    case 'u' << 8 | 32: return find_change<S, uint32_t>(change);
    case 's' << 8 | 32: return find_change<S, int32_t>(change);
    case 'b' << 8 | 64:
    case 'u' << 8 | 64: return find_change<S, uint64_t>(change);
    case 's' << 8 | 64: return find_change<S, int64_t>(change);
    case 'f' << 8 | 32: return find_change<S, float>(change);
    case 'f' << 8 | 64: return find_change<S, double>(change);
    default: return nullptr;
  }
}

template <int Sign>
void shift_window(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *a = m.in(i.op[1]);
  const uint64_t by = i.offset == 1 ? windows().shared : windows().local;
  CS_EACH(Sign > 0 ? a[l] + by : a[l] - by)
}

bool address_conversion(Text opcode, Operation *o) {
  const bool to = opcode.substr(0, 8) == "cvta.to.";
  Text space = opcode.substr(to ? 8 : 5);
  if (space.size() < 5 || space.substr(space.size() - 4) != ".u64") return false;
  space.remove_suffix(4);
  o->ins = 1;
  if (space == "shared" || space == "local") {
    o->mode = space == "shared" ? 1 : 2;
    o->run = to ? shift_window<-1> : shift_window<1>;
  } else if (space == "global" || space == "const") o->run = move;
  return o->run != nullptr;
}

}  // namespace

bool access(Text opcode, Operation *o) {
  if (opcode.substr(0, 5) == "cvta.") return address_conversion(opcode, o);
  std::vector<Text> parts;
  for (Text rest = opcode; !rest.empty();) {
    size_t dot = rest.find('.');
    parts.push_back(rest.substr(0, dot));
    rest = dot == Text::npos ? Text() : rest.substr(dot + 1);
  }
  const Text base = parts[0];
  const bool loads = base == "ld" || base == "ldu", stores = base == "st", changes_it = base == "atom" || base == "red";
  Type type;
  if ((!loads && !stores && !changes_it) || parts.size() < 2 || !read_type(parts.back(), &type)) return false;
  int change = -1;
  for (size_t k = 1; k + 1 < parts.size(); ++k) {
    const Text p = parts[k];
    if (p == "global") o->space = Space::global;
    else if (p == "const") o->space = Space::constant;
    else if (p == "shared" || p == "shared::cta") o->space = Space::shared;
    else if (p == "local") o->space = Space::local;
    else if (p == "param" || p == "param::entry" || p == "param::func") o->space = Space::param;
    else if (p == "v2") o->count = 2;
    else if (p == "v4") o->count = 4;
    else if (p == "volatile" || ((p == "relaxed" || p == "acquire") && loads)) o->flow = Flow::yield;
    else if (p == "relaxed" || p == "acquire" || p == "release" || p == "acq_rel" || p == "weak" || p == "cta" ||
             p == "gpu" || p == "sys" || p == "nc" || p == "ca" || p == "cg" || p == "cs" || p == "lu" || p == "cv" ||
             p == "wb" || p == "wt" || p.substr(0, 4) == "L1::" || p.substr(0, 4) == "L2::")
      continue;
    else if (changes_it) {
      for (int c = 0; c < changes; ++c)
        if (p == change_names[c] && change < 0) change = c;
      if (change < 0) return false;
    } else return false;
  }
  o->form = Form::access;
  o->bytes = static_cast<uint8_t>(type.bits / 8 * o->count);
  o->outs = loads ? o->count : base == "atom" ? 1 : 0;
  o->ins = static_cast<uint8_t>(loads ? 1 : stores ? 1 + o->count : change == a_cas ? 3 : 2);
  o->bits[0] = 64;
  for (int k = 1; k < 4; ++k) o->bits[k] = static_cast<uint8_t>(type.bits);
  if (changes_it && change < 0) return false;
  if (change == a_cas) o->flow = Flow::yield;
  if (stores || o->space == Space::shared || o->space == Space::param) o->flow = Flow::next;
#define CS_SPACE(S) o->run = loads ? find_load<S>(type) : stores ? find_store<S>(type) : nullptr
  switch (o->space) {
    case Space::none: CS_SPACE(Space::none); break;
    case Space::shared: CS_SPACE(Space::shared); break;
    case Space::local: CS_SPACE(Space::local); break;
    case Space::param: CS_SPACE(Space::param); break;
    default: CS_SPACE(Space::global);
  }
#undef CS_SPACE
  if (changes_it)
    o->run = o->space == Space::none     ? find_atomic<Space::none>(change, type)
             : o->space == Space::shared ? find_atomic<Space::shared>(change, type)
             : o->space == Space::global ? find_atomic<Space::global>(change, type)
                                         : nullptr;
  if (o->space == Space::constant && !loads) return false;
  return o->run != nullptr;
}

// Bytes of a parameter, from where the caller put them to where the function reads them, or back.
void copy_parameter(Machine &m, const Instruction &i) {
  Block &b = *m.block;
  const uint64_t from = static_cast<uint64_t>(i.offset) >> 32, to = static_cast<uint64_t>(i.offset) & 0xffffffffu;
  CS_LANES(m, l) {
    uint8_t *calls = b.calls.data() + static_cast<size_t>(b.thread_of(l)) * b.call_bytes;
    std::memcpy(calls + to, calls + from, i.keep);
  }
}

}  // namespace cs_emu::ptx
