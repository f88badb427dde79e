// wmma.load, wmma.mma, wmma.store for m16n16k16.
//
// PTX ISA, "Warp-level matrix instructions using wmma": what element is in which register is not specified. Here it is
// scrambled, differently for each kind of fragment and for each layout that a later instruction must repeat; a and b of
// halves hold each element twice. Address, stride and alignment: "Matrix Storage for WMMA".
#include "fragments.h"

namespace cs_emu::ptx {
namespace {

enum Kind { A_ROW, A_COLUMN, B_ROW, B_COLUMN, SUM_FLOAT, SUM_INT };

// Which of the 256 elements (16 row + column) is in slot s = 32 number + lane. Odd factors: every element has a slot,
// and of halves two, s and s + 256.
int element(Kind kind, int slot) {
  static constexpr int FACTOR[] = {77, 29, 203, 155, 91, 141}, SHIFT[] = {5, 113, 58, 201, 30, 178};
  const int n = (slot * FACTOR[kind] + SHIFT[kind]) & 255;
  return n ^ n >> 4;
}

[[noreturn]] void misaligned(const char *what, uint64_t value, int fragment) {
  throw Wrong{MISALIGNED, std::string("wmma: ") + what + " of " + std::to_string(value) +
                              " bytes, not a multiple of the " + std::to_string(fragment) + " bytes of a fragment"};
}

// Operands [address], stride from `first` on; the stride is in elements and 16 where it is missing.
struct Lines {
  uint32_t address;
  uint64_t step;  // bytes from one line to the next
};

Lines lines(const Call &call, int address, int stride, int bytes, int registers) {
  whole_warp(call);
  Lines result{uint32_t(uniform(call, address, "wmma: the address")), 16u * bytes};
  if (stride < call.ins) result.step = uint64_t(uint32_t(uniform(call, stride, "wmma: the stride"))) * bytes;
  const int fragment = 4 * registers;
  if (result.address % fragment) misaligned("address", result.address, fragment);
  if (result.step % fragment) misaligned("stride", result.step, fragment);
  if (result.step > 0xffffff) throw Wrong{FAILED, "wmma: stride of " + std::to_string(result.step) + " bytes"};
  return result;
}

template <class T, Kind KIND>
void load(Call &call) {
  constexpr int E = T::PER_REGISTER, REGISTERS = E == 2 ? 8 : 2, LINE = 16 * T::BYTES, PIECE = E == 2 ? 16 : 8;
  const Lines from = lines(call, 0, 1, T::BYTES, REGISTERS);
  uint8_t bytes[16 * LINE];
  for (int line = 0; line < 16; line++)
    for (int piece = 0; piece < LINE; piece += PIECE) {
      const int thread = call.warp * 32 + line * 2 + piece / PIECE;
      const uint32_t address = uint32_t(from.address + line * from.step + piece);
      if (call.async.copies_under_way()) call.async.reads_shared(thread, address, PIECE);
      std::memcpy(bytes + line * LINE + piece, call.memory.read_shared(thread, address, PIECE), PIECE);
    }
  for (int lane = 0; lane < 32; lane++)
    for (int r = 0; r < REGISTERS; r++) {
      uint32_t value = 0;
      for (int e = 0; e < E; e++) {
        const int n = element(KIND, (r * E + e) * 32 + lane), row = n / 16, column = n % 16;
        const int index = KIND == A_ROW || KIND == B_ROW ? row * 16 + column : column * 16 + row;
        uint32_t one = 0;
        std::memcpy(&one, bytes + index * T::BYTES, T::BYTES);
        value |= one << (8 * T::BYTES * e);
      }
      (*call.out[r])[lane] = value;
    }
}

template <class T>
void gather(Kind kind, const Register *const *registers, float *matrix) {
  constexpr int E = T::PER_REGISTER, REGISTERS = E == 2 ? 8 : 2;
  const float *halves = half_values();
  for (int r = 0; r < REGISTERS; r++)
    for (int e = 0; e < E; e++)
      for (int lane = 0; lane < 32; lane++) {
        const int slot = (r * E + e) * 32 + lane, n = element(kind, slot);
        // Of two copies of an element the second one counts for half of the elements.
        if (E == 2 && ((n ^ n >> 4) & 1) != slot >> 8) continue;
        matrix[n] = T::value((*registers[r])[lane], e, halves);
      }
}

template <class T, Kind A, Kind B, bool SATURATE>
void multiply_fragments(Call &call) {
  constexpr bool FLOAT = T::PER_REGISTER == 2;
  constexpr Kind SUM = FLOAT ? SUM_FLOAT : SUM_INT;
  constexpr int REGISTERS = FLOAT ? 8 : 2;
  whole_warp(call);
  float a[256], b[256], d[256];
  uint32_t c[256];
  gather<T>(A, call.in, a);
  gather<T>(B, call.in + REGISTERS, b);
  for (int slot = 0; slot < 256; slot++)
    c[element(SUM, slot)] = uint32_t((*call.in[2 * REGISTERS + slot / 32])[slot % 32]);
  for (int i = 0; i < 256; i++) d[i] = FLOAT ? as_float(c[i]) : 0.0f;
  multiply<16, 16>(a, b, d);
  for (int slot = 0; slot < 256; slot++) {
    const int n = element(SUM, slot);
    (*call.out[slot / 32])[slot % 32] = FLOAT ? as_bits(d[n]) : add_int(c[n], d[n], SATURATE);
  }
}

template <Kind SUM, bool ROWS>
void store(Call &call) {
  const Lines to = lines(call, 0, 9, 4, 8);
  uint32_t values[256];
  for (int slot = 0; slot < 256; slot++) {
    const int n = element(SUM, slot), index = ROWS ? n : n % 16 * 16 + n / 16;
    values[index] = uint32_t((*call.in[1 + slot / 32])[slot % 32]);
  }
  for (int piece = 0; piece < 64; piece++) {  // of 4 elements
    const int thread = call.warp * 32 + piece / 2;
    const uint32_t address = uint32_t(to.address + piece / 4 * to.step + piece % 4 * 16);
    call.memory.write_shared(thread, address, values + piece * 4, 16);
    if (call.async.watches_stores()) call.async.wrote_shared(thread, address, 16);
  }
}

template <class T, Kind A, Kind B>
void add_layouts(Instructions &table, const std::string &layouts, const std::string &type) {
  const std::string shape = ".m16n16k16";
  const int registers = T::PER_REGISTER == 2 ? 8 : 2;
  const WarpInstruction wraps{"", 8, 2 * registers + 8, true, multiply_fragments<T, A, B, false>};
  const WarpInstruction saturates{"", 8, 2 * registers + 8, true, multiply_fragments<T, A, B, true>};
  const std::string mma = "wmma.mma.sync.aligned" + layouts + shape;
  if (T::PER_REGISTER == 2) {
    table[mma + ".f32.f32"] = wraps;
  } else {
    table[mma + ".s32.s8.s8.s32"] = wraps;
    table[mma + ".s32.s8.s8.s32.satfinite"] = saturates;
  }
  const std::string a = layouts.substr(0, 4), b = layouts.substr(4), tail = shape + ".shared" + type;
  table["wmma.load.a.sync.aligned" + a + tail] = {"", registers, 2, true, load<T, A>, 1};
  table["wmma.load.b.sync.aligned" + b + tail] = {"", registers, 2, true, load<T, B>, 1};
}

template <class T>
void add_type(Instructions &table, const std::string &type) {
  add_layouts<T, A_ROW, B_COLUMN>(table, ".row.col", type);
  add_layouts<T, A_ROW, B_ROW>(table, ".row.row", type);
  add_layouts<T, A_COLUMN, B_COLUMN>(table, ".col.col", type);
  add_layouts<T, A_COLUMN, B_ROW>(table, ".col.row", type);
}

}  // namespace

void add_wmma(Instructions &table) {
  add_type<Half>(table, ".f16");
  add_type<Int8>(table, ".s8");
  const std::string head = "wmma.store.d.sync.aligned.", tail = ".m16n16k16.shared.";
  table[head + "row" + tail + "f32"] = {"", 0, 10, true, store<SUM_FLOAT, true>, 1};
  table[head + "col" + tail + "f32"] = {"", 0, 10, true, store<SUM_FLOAT, false>, 1};
  table[head + "row" + tail + "s32"] = {"", 0, 10, true, store<SUM_INT, true>, 1};
  table[head + "col" + tail + "s32"] = {"", 0, 10, true, store<SUM_INT, false>, 1};
}

}  // namespace cs_emu::ptx
