// A block with shared memory and registers, for calls of single instructions of tests/emulation/ptx.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "async.h"
#include "fragments.h"

namespace bench {
using namespace cs_emu::ptx;

inline int failures = 0;

inline void expect(bool right, const char *what, double found = 0, double wanted = 0) {
  if (right) return;
  if (failures++ < 10) std::printf("%s: found %g, expected %g\n", what, found, wanted);
}

struct Plain : Memory {
  std::vector<uint8_t> bytes;
  explicit Plain(uint32_t size) : bytes(size) {}
  void check(uint64_t address, uint32_t size) const {
    if (address % size) throw Wrong{716, "misaligned"};
    if (address + size > bytes.size()) throw Wrong{700, "range"};
  }
  const uint8_t *read_shared(int, uint32_t address, uint32_t size) override {
    return check(address, size), &bytes[address];
  }
  void write_shared(int, uint32_t address, const void *value, uint32_t size) override {
    check(address, size);
    std::memcpy(&bytes[address], value, size);
  }
  const uint8_t *read_global(int, uint64_t address, uint32_t) override {
    return reinterpret_cast<const uint8_t *>(address);
  }
  void write_global(int, uint64_t, const void *, uint32_t) override { std::abort(); }
  uint32_t shared_bytes() const override { return uint32_t(bytes.size()); }
  const uint8_t *shared() const override { return bytes.data(); }
};

inline Register same(uint64_t value) {
  Register all;
  all.fill(value);
  return all;
}

struct Block {
  Plain memory;
  Async async;
  explicit Block(uint32_t shared = 65536, int threads = 128) : memory(shared), async(threads, memory) {
    async.watch_stores(true);
  }
  void run(const std::string &opcode, std::vector<Register> &out, const std::vector<Register> &in, int warp = 0,
           uint32_t active = 0xffffffffu) {
    const WarpInstruction *found = find_warp_instruction(opcode);
    if (!found) {
      std::printf("unknown: %s\n", opcode.c_str());
      std::exit(1);
    }
    expect(found->opcode == opcode && found->outs == int(out.size()), "operands of the table");
    expect(int(in.size()) <= found->ins && int(in.size()) >= found->ins - found->optional, "operands in");
    std::vector<Register *> outs;
    std::vector<const Register *> ins;
    for (Register &one : out) outs.push_back(&one);
    for (const Register &one : in) ins.push_back(&one);
    Call call{warp, active, outs.data(), int(out.size()), ins.data(), int(in.size()), memory, async};
    found->run(call);
  }
  void run(const std::string &opcode, const std::vector<Register> &in = {}, int warp = 0,
           uint32_t active = 0xffffffffu) {
    std::vector<Register> none;
    run(opcode, none, in, warp, active);
  }
};

// The action must end with a Wrong of that status whose text has these words.
inline void mistake(int status, const std::string &words, const std::function<void()> &action) {
  try {
    action();
  } catch (const Wrong &wrong) {
    const bool right = wrong.status == status && wrong.text.find(words) != std::string::npos;
    if (!right)
      std::printf("expected %d \"%s\", found %d \"%s\"\n", status, words.c_str(), wrong.status, wrong.text.c_str());
    failures += !right;
    return;
  }
  std::printf("expected a mistake: %s\n", words.c_str());
  failures++;
}

inline std::mt19937 generator(1);
inline int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

// Multiples of 1/8 below 16 as halves: products and sums of 16 are exact.
inline uint16_t to_half(double value) {
  if (value == 0) return 0;
  int exponent;
  const double fraction = std::frexp(std::fabs(value), &exponent);
  return uint16_t((value < 0 ? 32768 : 0) | (exponent + 14) << 10 | (int(fraction * 2048) & 1023));
}

// A matrix by its definition; bits of an element in memory, 1 or 2 bytes.
struct Values {
  int rows, columns;
  bool bytes;
  std::vector<double> value;
  Values(int rows, int columns, bool bytes) : rows(rows), columns(columns), bytes(bytes), value(rows * columns) {
    for (double &one : value) one = bytes ? random_int(-128, 127) : random_int(-127, 127) / 8.0;
  }
  double at(int row, int column) const { return value[row * columns + column]; }
  uint32_t bits(int row, int column) const { return bytes ? uint8_t(int(at(row, column))) : to_half(at(row, column)); }
  int size() const { return bytes ? 1 : 2; }
};

inline double product(const Values &a, const Values &b, int m, int n) {
  double sum = 0;
  for (int k = 0; k < a.columns; k++) sum += a.at(m, k) * b.at(k, n);
  return sum;
}

// Accumulator bits of a whole number or a float.
inline uint32_t sum_bits(double value, bool whole) { return whole ? uint32_t(int64_t(value)) : as_bits(float(value)); }
inline double sum_value(uint64_t bits, bool whole) { return whole ? double(int32_t(bits)) : double(as_float(bits)); }

// Whether the name is one of theirs.
bool tensor_cases(const std::string &name);
bool copy_cases(const std::string &name);
bool wgmma_cases(const std::string &name);

}  // namespace bench
