// mma.sync, ldmatrix, and the list of all instructions for whole warps.
#include <cmath>
#include <vector>

#include "fragments.h"

namespace cs_emu::ptx {

const float *half_values() {
  static const std::vector<float> table = [] {
    std::vector<float> values(65536);
    for (int bits = 0; bits < 65536; bits++) {
      const int exponent = bits >> 10 & 31, fraction = bits & 1023;
      float value = exponent ? std::ldexp(float(1024 + fraction), exponent - 25) : std::ldexp(float(fraction), -24);
      if (exponent == 31) value = fraction ? NAN : INFINITY;
      values[bits] = bits & 32768 ? -value : value;
    }
    return values;
  }();
  return table.data();
}

namespace {

// PTX ISA, "Warp-level matrix instructions: mma". in: a (4 registers), b (2), c (4).
template <class T, bool SATURATE>
void mma(Call &call) {
  constexpr int E = T::PER_REGISTER, K = 8 * E, N = 8;
  whole_warp(call);
  const float *halves = half_values();
  float a[16 * K], b[K * N], d[16 * N];
  uint32_t c[16 * N];
  for (int lane = 0; lane < 32; lane++) {
    for (int r = 0; r < 4; r++) {
      const uint64_t bits = (*call.in[r])[lane];
      const Place at = place_a<T>(lane, r);
      for (int e = 0; e < E; e++) a[at.row * K + at.column + e] = T::value(bits, e, halves);
    }
    for (int r = 0; r < 2; r++) {
      const uint64_t bits = (*call.in[4 + r])[lane];
      const Place at = place_b<T>(lane, r);
      for (int e = 0; e < E; e++) b[(at.row + e) * N + at.column] = T::value(bits, e, halves);
    }
    for (int i = 0; i < 4; i++) {
      const Place at = place_d(lane, i);
      c[at.row * N + at.column] = uint32_t((*call.in[6 + i])[lane]);
    }
  }
  for (int i = 0; i < 16 * N; i++) d[i] = E == 2 ? as_float(c[i]) : 0.0f;
  multiply<K, N>(a, b, d);
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) {
      const Place at = place_d(lane, i);
      const int n = at.row * N + at.column;
      (*call.out[i])[lane] = E == 2 ? as_bits(d[n]) : add_int(c[n], d[n], SATURATE);
    }
}

// PTX ISA, "Warp-level matrix load instruction: ldmatrix". Lanes 8 i .. 8 i + 7 hold the addresses of the rows of
// matrix i; lane l gets elements 2 (l % 4) and the next of row l / 4, with .trans of column l / 4.
template <int MATRICES, bool TRANS>
void ldmatrix(Call &call) {
  whole_warp(call);
  uint16_t rows[8 * MATRICES][8];
  for (int lane = 0; lane < 8 * MATRICES; lane++) {
    const uint32_t address = uint32_t((*call.in[0])[lane]);
    if (address % 16)
      throw Wrong{MISALIGNED, "row of ldmatrix at " + std::to_string(address) + ", not a multiple of 16"};
    const int thread = call.warp * 32 + lane;
    if (call.async.copies_under_way()) call.async.reads_shared(thread, address, 16);
    std::memcpy(rows[lane], call.memory.read_shared(thread, address, 16), 16);
  }
  for (int i = 0; i < MATRICES; i++)
    for (int lane = 0; lane < 32; lane++) {
      const int line = lane / 4, pair = lane % 4 * 2;
      const uint32_t low = TRANS ? rows[8 * i + pair][line] : rows[8 * i + line][pair];
      const uint32_t high = TRANS ? rows[8 * i + pair + 1][line] : rows[8 * i + line][pair + 1];
      (*call.out[i])[lane] = low | high << 16;
    }
}

}  // namespace

void add_tensor(Instructions &table) {
  table["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = {"", 4, 10, true, mma<Half, false>};
  table["mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"] = {"", 4, 10, true, mma<Int8, false>};
  table["mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"] = {"", 4, 10, true, mma<Int8, true>};
  const std::string head = "ldmatrix.sync.aligned.m8n8.x";
  const std::string space[] = {".shared.b16", ".shared::cta.b16"};
  for (const std::string &tail : space) {
    table[head + "1" + tail] = {"", 1, 1, true, ldmatrix<1, false>};
    table[head + "2" + tail] = {"", 2, 1, true, ldmatrix<2, false>};
    table[head + "4" + tail] = {"", 4, 1, true, ldmatrix<4, false>};
    table[head + "1.trans" + tail] = {"", 1, 1, true, ldmatrix<1, true>};
    table[head + "2.trans" + tail] = {"", 2, 1, true, ldmatrix<2, true>};
    table[head + "4.trans" + tail] = {"", 4, 1, true, ldmatrix<4, true>};
  }
}

const WarpInstruction *find_warp_instruction(const std::string &opcode) {
  static const Instructions table = [] {
    Instructions all;
    add_tensor(all);
    add_wmma(all);
    add_copies(all);
    add_wgmma(all);
    for (auto &entry : all) entry.second.opcode = entry.first.c_str();
    return all;
  }();
  const auto found = table.find(opcode);
  return found == table.end() ? nullptr : &found->second;
}

}  // namespace cs_emu::ptx
