// wgmma: products of a group of four warps, operands in shared memory.
//
// PTX ISA, "Asynchronous warpgroup level matrix instructions": "Register fragments" (accumulators), "Shared memory
// matrix layout", "Strides", "Matrix descriptor format", "Async proxy", wgmma.fence, wgmma.commit_group,
// wgmma.wait_group. A product is computed when a warp issues it. Until the wait its registers hold a poison, and what
// it read must stay.
#include <algorithm>

#include "work.h"

namespace cs_emu::ptx {
namespace {

constexpr uint32_t POISON = 0xfff2dead;            // not a number
constexpr uint64_t RESERVED = 0x3ff1c000c000c000;  // bits 14-15, 30-31, 46-48, 52-61 of a descriptor

[[noreturn]] void wrong(const std::string &text) { throw Wrong{FAILED, "wgmma: " + text}; }

// A matrix whose rows (of M or N) are 32 bytes of K, in two pieces of 16 bytes.
struct Matrix {
  uint32_t start, leading, stride, base, width;  // width: bytes of a row of the swizzled pattern, 0: none

  Matrix(uint64_t bits, const char *which) {
    if (bits & RESERVED) wrong(std::string("reserved bits of the descriptor of ") + which + " are set");
    start = uint32_t(bits & 0x3fff) << 4;
    leading = uint32_t(bits >> 16 & 0x3fff) << 4;
    stride = uint32_t(bits >> 32 & 0x3fff) << 4;
    base = uint32_t(bits >> 49 & 7);
    const int mode = int(bits >> 62);
    width = mode ? 256u >> mode : 0;
    if (!width) return;  // the base offset counts for swizzled matrices only
    // The pattern repeats every 8 rows. It starts on a boundary of that size, or the base offset says where.
    const uint32_t pattern = start & ~(width - 1);
    const bool boundary = pattern % (8 * width) == 0;
    if (base ? pattern % 128 != 0 || base != (pattern >> 7 & 7) : !boundary)
      wrong(std::string("the swizzled pattern of ") + which + " starts at " + std::to_string(pattern) +
            ", its base offset is " + std::to_string(base));
  }

  // K-major: ((8,m),(T,2k)):((w,SBO),(1,LBO or T)) in units of 16 bytes, bits 4.. of the address xor bits 7.. .
  uint32_t address(int row, int piece) const {
    if (!width) return start + row % 8 * 16 + row / 8 * stride + piece * leading;
    const uint32_t plain = start + row % 8 * width + row / 8 * stride + piece * 16;
    return plain ^ (((plain >> 7) - base) & (width / 16 - 1)) << 4;
  }
};

// The next wgmma instruction of this warp must be the one that the other warps of its group execute.
void step(Call &call, const Step &now) {
  Async::Work &work = *call.async.work;
  const int index = call.warp / 4;
  if (index * 128 + 128 > work.threads) wrong("a group of fewer than four warps");
  whole_warp(call);
  work.begin();
  GroupWork &group = work.group[index];
  size_t &steps = work.warp[call.warp].steps;
  if (steps - group.first == group.steps.size()) group.steps.push_back(now);
  if (!(group.steps[steps - group.first] == now))
    wrong(std::string("the warps of a group execute different instructions or operands: ") + now.name + " in warp " +
          std::to_string(call.warp) + ", " + group.steps[steps - group.first].name + " in another");
  steps++;
  size_t least = steps;
  for (int i = 0; i < 4; i++) least = std::min(least, work.warp[index * 4 + i].steps);
  for (; group.first < least; group.first++) group.steps.pop_front();
}

bool holds(const Accumulator &sum, bool poison) {
  for (size_t r = 0; r < sum.registers.size(); r++)
    for (int lane = 0; lane < 32; lane++)
      if ((*sum.registers[r])[lane] != (poison ? POISON : sum.values[r * 32 + lane])) return false;
  return true;
}

// The accumulator with these registers; its values are those of the registers where no product is under way.
size_t find_accumulator(Call &call, WarpWork &warp) {
  const std::vector<Register *> registers(call.out, call.out + call.outs);
  size_t found = warp.accumulators.size();
  for (size_t i = 0; i < warp.accumulators.size(); i++) {
    Accumulator &other = warp.accumulators[i];
    if (other.registers == registers) {
      found = i;
    } else if (other.pending) {
      for (Register *one : registers)
        if (std::find(other.registers.begin(), other.registers.end(), one) != other.registers.end())
          wrong("an accumulator shares registers with another product under way");
    }
  }
  if (found == warp.accumulators.size()) {
    if (warp.fences == warp.fence_at_wait) wrong("no wgmma.fence before a product with new accumulators");
    warp.accumulators.emplace_back();
    warp.accumulators.back().registers = registers;
    warp.accumulators.back().values.resize(32 * registers.size());
  }
  Accumulator &sum = warp.accumulators[found];
  if (sum.pending) {
    if (!holds(sum, true)) wrong("an accumulator was changed while its product was under way");
    return found;
  }
  if (sum.fence && sum.fence == warp.fences && !holds(sum, false))
    wrong("an accumulator was changed and no wgmma.fence followed");
  for (size_t r = 0; r < registers.size(); r++)
    for (int lane = 0; lane < 32; lane++) sum.values[r * 32 + lane] = uint32_t((*registers[r])[lane]);
  return found;
}

// 16 bytes of an operand, which must have arrived and been fenced, and must stay until the wait.
const uint8_t *read(Call &call, int lane, uint32_t address, Product &product) {
  Async::Work &work = *call.async.work;
  const int thread = call.warp * 32 + lane;
  if (uint64_t(address) + 16 > call.memory.shared_bytes())
    throw Wrong{700, "wgmma: an operand at byte " + std::to_string(address) + " of shared memory, which has " +
                         std::to_string(call.memory.shared_bytes())};
  if (call.async.copies_under_way()) call.async.reads_shared(thread, address, 16);
  for (uint32_t word = address / 4; word < address / 4 + 4; word++)
    if (work.unfenced[word])
      wrong("byte " + std::to_string(word * 4) + " of shared memory was written without a fence.proxy.async after it");
  product.reads.emplace_back();
  Read &one = product.reads.back();
  one.address = address;
  std::memcpy(one.bytes, call.memory.read_shared(thread, address, 16), 16);
  work.reading[address / 16]++;
  return one.bytes;
}

// Row of 32 bytes into floats of K.
template <class T>
void read_row(Call &call, const Matrix &matrix, int row, Product &product, float *to, int step, float scale) {
  const float *halves = half_values();
  for (int piece = 0; piece < 2; piece++) {
    const uint8_t *bytes = read(call, row % 32, matrix.address(row, piece), product);
    for (int word = 0; word < 4; word++) {
      uint32_t bits;
      std::memcpy(&bits, bytes + 4 * word, 4);
      for (int e = 0; e < T::PER_REGISTER; e++)
        to[((piece * 4 + word) * T::PER_REGISTER + e) * step] = scale * T::value(bits, e, halves);
    }
  }
}

// in: descriptors of a and b, scale of d (a predicate), and for halves the signs of a and b and two transpositions.
template <class T, int N, bool SATURATE>
void mma_async(Call &call) {
  constexpr int E = T::PER_REGISTER, K = 8 * E;
  Async::Work &work = *call.async.work;
  WarpWork &warp = work.warp[call.warp];
  uint64_t scale = uniform(call, 2, "wgmma: scale-d") & 1;
  float signs[2] = {1, 1};
  for (int i = 3; i < call.ins; i++) {
    const int32_t value = int32_t(uniform(call, i, "wgmma: an immediate"));
    scale |= uint64_t(uint8_t(value)) << (8 * (i - 2));
    if (i < 5 && value != 1 && value != -1) wrong("a scale that is neither 1 nor -1");
    if (i < 5) signs[i - 3] = float(value);
    if (i >= 5 && value) wrong("operands whose columns are consecutive are not interpreted");
  }
  const uint64_t bits_a = uniform(call, 0, "wgmma: a descriptor"), bits_b = uniform(call, 1, "wgmma: a descriptor");
  step(call, {E == 2 ? "a product of halves" : "a product of bytes", bits_a, bits_b, scale | uint64_t(N) << 48});
  const Matrix a(bits_a, "a"), b(bits_b, "b");
  Product product;
  product.accumulator = find_accumulator(call, warp);
  product.reads.reserve(2 * (16 + N));
  float left[16 * K], right[K * N], d[16 * N];
  for (int row = 0; row < 16; row++)
    read_row<T>(call, a, call.warp % 4 * 16 + row, product, left + row * K, 1, signs[0]);
  for (int column = 0; column < N; column++) read_row<T>(call, b, column, product, right + column, N, signs[1]);
  Accumulator &sum = warp.accumulators[product.accumulator];
  const bool keeps = scale & 1;
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < N / 2; i++) {
      const Place at = place_d(lane, i);
      d[at.row * N + at.column] = keeps && E == 2 ? as_float(sum.values[i * 32 + lane]) : 0.0f;
    }
  multiply<K, N>(left, right, d);
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < N / 2; i++) {
      const Place at = place_d(lane, i);
      uint32_t &value = sum.values[i * 32 + lane];
      const float result = d[at.row * N + at.column];
      value = E == 2 ? as_bits(result) : add_int(keeps ? value : 0, result, SATURATE);
      (*call.out[i])[lane] = POISON;
    }
  sum.pending++;
  warp.open.push_back(std::move(product));
}

void fence(Call &call) {
  step(call, {"wgmma.fence", 0, 0, 0});
  call.async.work->warp[call.warp].fences++;
}

void commit_group(Call &call) {
  step(call, {"wgmma.commit_group", 0, 0, 0});
  WarpWork &warp = call.async.work->warp[call.warp];
  warp.groups.push_back(std::move(warp.open));
  warp.open.clear();
}

void complete(Call &call, WarpWork &warp, const Product &product) {
  Async::Work &work = *call.async.work;
  for (const Read &one : product.reads) {
    work.reading[one.address / 16]--;
    if (std::memcmp(call.memory.shared() + one.address, one.bytes, 16) != 0)
      wrong("shared memory of a product under way was changed: byte " + std::to_string(one.address));
  }
  Accumulator &sum = warp.accumulators[product.accumulator];
  if (--sum.pending) return;
  if (!holds(sum, true)) wrong("an accumulator was changed while its product was under way");
  for (size_t r = 0; r < sum.registers.size(); r++)
    for (int lane = 0; lane < 32; lane++) (*sum.registers[r])[lane] = sum.values[r * 32 + lane];
  sum.fence = warp.fence_at_wait = warp.fences;
}

void wait_group(Call &call) {
  const uint64_t left = uniform(call, 0, "wgmma.wait_group: the number");
  step(call, {"wgmma.wait_group", left, 0, 0});
  WarpWork &warp = call.async.work->warp[call.warp];
  for (; warp.groups.size() > left; warp.groups.pop_front())
    for (const Product &product : warp.groups.front()) complete(call, warp, product);
}

template <int N>
void add_width(Instructions &table) {
  const std::string head = "wgmma.mma_async.sync.aligned.m64n" + std::to_string(N);
  table[head + "k16.f32.f16.f16"] = {"", N / 2, 7, true, mma_async<Half, N, false>};
  table[head + "k32.s32.s8.s8"] = {"", N / 2, 3, true, mma_async<Int8, N, false>};
  table[head + "k32.satfinite.s32.s8.s8"] = {"", N / 2, 3, true, mma_async<Int8, N, true>};
}

}  // namespace

void finish_products(Async::Work &work) {
  for (size_t i = 0; i < work.warp.size(); i++) {
    bool waits = !work.warp[i].open.empty();
    for (const auto &group : work.warp[i].groups) waits |= !group.empty();
    if (waits) wrong("warp " + std::to_string(i) + " never waited for a product");
  }
  for (const GroupWork &group : work.group)
    if (!group.steps.empty())
      wrong(std::string("some warp of a group never executed what another did: ") + group.steps.front().name);
}

void add_wgmma(Instructions &table) {
  add_width<8>(table);
  add_width<64>(table);
  add_width<128>(table);
  add_width<256>(table);
  table["wgmma.fence.sync.aligned"] = {"", 0, 0, true, fence};
  table["wgmma.commit_group.sync.aligned"] = {"", 0, 0, true, commit_group};
  table["wgmma.wait_group.sync.aligned"] = {"", 0, 1, true, wait_group};
}

}  // namespace cs_emu::ptx
