// mma.sync, ldmatrix and wmma against products of matrices.
#include "bench.h"

namespace bench {
namespace {

// Figures of the PTX ISA for m16n8k16 (.f16) and m16n8k32 (.s8), element by element: a_i and b_i of a lane.
void mma(bool bytes) {
  const int k = bytes ? 32 : 16, pack = bytes ? 4 : 2;
  Block block;
  for (int trial = 0; trial < 3; trial++) {
    const Values a(16, k, bytes), b(k, 8, bytes);
    std::vector<Register> in(10, same(0)), out(4, same(7));
    double c[32][4];
    for (int lane = 0; lane < 32; lane++) {
      const int group = lane >> 2, inside = lane % 4;
      for (int i = 0; i < 4 * pack; i++) {
        int row, column;
        if (bytes) {
          row = (i < 4 || (8 <= i && i < 12)) ? group : group + 8;
          column = inside * 4 + (i & 3) + (i >= 8 ? 16 : 0);
        } else {
          row = (i < 2 || (4 <= i && i < 6)) ? group : group + 8;
          column = inside * 2 + (i & 1) + (i >= 4 ? 8 : 0);
        }
        in[i / pack][lane] |= uint64_t(a.bits(row, column)) << (32 / pack * (i % pack));
      }
      for (int i = 0; i < 2 * pack; i++) {
        const int row = bytes ? inside * 4 + (i & 3) + (i >= 4 ? 16 : 0) : inside * 2 + (i & 1) + (i >= 2 ? 8 : 0);
        in[4 + i / pack][lane] |= uint64_t(b.bits(row, group)) << (32 / pack * (i % pack));
      }
      for (int i = 0; i < 4; i++) {
        c[lane][i] = bytes ? random_int(-99999, 99999) : random_int(-99, 99) / 4.0;
        in[6 + i][lane] = sum_bits(c[lane][i], bytes);
      }
    }
    block.run(
        bytes ? "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32" : "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        out, in);
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        const int row = i < 2 ? lane / 4 : lane / 4 + 8, column = lane % 4 * 2 + (i & 1);
        const double wanted = product(a, b, row, column) + c[lane][i];
        expect(sum_value(out[i][lane], bytes) == wanted && out[i][lane] >> 32 == 0, "mma",
               sum_value(out[i][lane], bytes), wanted);
      }
    mistake(719, "missing",
            [&] { block.run("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", out, in, 0, 0x7fffffff); });
  }
}

void wraps() {  // sums of s32 wrap; with .satfinite they do not
  Block block;
  std::vector<Register> in(10, same(0x01010101)), out(4, same(0));
  for (int i = 6; i < 10; i++) in[i] = same(0x7ffffff0);
  block.run("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", out, in);
  expect(out[0][5] == 0x80000010u, "wraps", double(out[0][5]), 0x80000010u);
  block.run("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32", out, in);
  expect(out[3][31] == 0x7fffffffu, "saturates", double(out[3][31]), 0x7fffffff);
}

void half_table() {
  const float *values = half_values();
  expect(values[0x3c00] == 1 && values[0xc000] == -2 && values[1] == std::ldexp(1.0f, -24), "halves");
  expect(values[0x7bff] == 65504 && std::isinf(values[0xfc00]) && values[0xfc00] < 0 && std::isnan(values[0x7e00]),
         "halves");
  expect(values[0x03ff] == std::ldexp(1023.0f, -24) && std::signbit(values[0x8000]), "halves");
  for (int i = -1000; i < 1000; i++)
    expect(values[to_half(i / 8.0)] == i / 8.0, "half", values[to_half(i / 8.0)], i / 8.0);
}

void ldmatrix() {
  Block block(8192);
  for (size_t i = 0; i < block.memory.bytes.size(); i++) block.memory.bytes[i] = uint8_t(random_int(0, 255));
  const std::vector<uint8_t> &bytes = block.memory.bytes;
  for (int matrices : {1, 2, 4})
    for (bool trans : {false, true}) {
      const std::string opcode =
          "ldmatrix.sync.aligned.m8n8.x" + std::to_string(matrices) + (trans ? ".trans" : "") + ".shared.b16";
      std::vector<Register> out(matrices, same(~0ull)), in(1, same(3));  // other lanes hold no address
      for (int lane = 0; lane < 8 * matrices; lane++) in[0][lane] = uint64_t(random_int(0, 511)) * 16;
      block.run(opcode, out, in);
      for (int i = 0; i < matrices; i++)
        for (int lane = 0; lane < 32; lane++)
          for (int half = 0; half < 2; half++) {
            const int line = lane / 4, pair = lane % 4 * 2 + half;
            const int row = trans ? pair : line, column = trans ? line : pair;
            uint16_t wanted;
            std::memcpy(&wanted, &bytes[in[0][8 * i + row] + 2 * column], 2);
            expect(uint16_t(out[i][lane] >> (16 * half)) == wanted && out[i][lane] >> 32 == 0, opcode.c_str());
          }
      for (int off : {2, 8}) {
        in[0][8 * matrices - 1] += off;
        mistake(716, "multiple of 16", [&] { block.run(opcode, out, in); });
        in[0][8 * matrices - 1] -= off;
      }
    }
}

void wmma(bool bytes, bool a_rows, bool b_rows) {
  const std::string a_layout = a_rows ? ".row" : ".col", b_layout = b_rows ? ".row" : ".col";
  const std::string type = bytes ? ".s8" : ".f16", sums = bytes ? "s32" : "f32";
  const int registers = bytes ? 2 : 8, size = bytes ? 1 : 2, stride = bytes ? 24 : 48;
  Block block;
  const Values a(16, 16, bytes), b(16, 16, bytes);
  const uint32_t at_a = 64, at_b = 8192, at_d = 16384;
  for (int row = 0; row < 16; row++)
    for (int column = 0; column < 16; column++) {
      const uint32_t one = a.bits(row, column), two = b.bits(row, column);
      std::memcpy(&block.memory.bytes[at_a + size * (a_rows ? row * stride + column : column * stride + row)], &one,
                  size);
      std::memcpy(&block.memory.bytes[at_b + size * (b_rows ? row * stride + column : column * stride + row)], &two,
                  size);
    }
  std::vector<Register> left(registers), right(registers), d(8, same(sum_bits(3, bytes)));
  const std::string load_a = "wmma.load.a.sync.aligned" + a_layout + ".m16n16k16.shared" + type;
  block.run(load_a, left, {same(at_a), same(stride)});
  block.run("wmma.load.b.sync.aligned" + b_layout + ".m16n16k16.shared" + type, right, {same(at_b), same(stride)});
  const std::string mma =
      "wmma.mma.sync.aligned" + a_layout + b_layout + ".m16n16k16" + (bytes ? ".s32.s8.s8.s32" : ".f32.f32");
  for (int repeat = 0; repeat < 2; repeat++) {
    std::vector<Register> in = left;
    in.insert(in.end(), right.begin(), right.end());
    in.insert(in.end(), d.begin(), d.end());
    block.run(mma, d, in);
  }
  for (bool rows : {true, false}) {
    const std::string store =
        std::string("wmma.store.d.sync.aligned") + (rows ? ".row" : ".col") + ".m16n16k16.shared." + sums;
    std::vector<Register> in{same(at_d)};
    in.insert(in.end(), d.begin(), d.end());
    in.push_back(same(40));
    block.run(store, in, 2);
    for (int row = 0; row < 16; row++)
      for (int column = 0; column < 16; column++) {
        uint32_t bits;
        std::memcpy(&bits, &block.memory.bytes[at_d + 4 * (rows ? row * 40 + column : column * 40 + row)], 4);
        const double wanted = 2 * product(a, b, row, column) + 3;
        expect(sum_value(bits, bytes) == wanted, mma.c_str(), sum_value(bits, bytes), wanted);
      }
    in.back() = same(36);
    mistake(716, "stride", [&] { block.run(store, in); });
    in.back() = same(40);
    in[0] = same(at_d + 16);
    mistake(716, "address", [&] { block.run(store, in); });
  }
  std::vector<Register> other(registers);
  mistake(716, "stride", [&] { block.run(load_a, other, {same(at_a), same(stride + 4)}); });
  mistake(716, "address", [&] { block.run(load_a, other, {same(at_a + 4), same(stride)}); });
  Register uneven = same(at_a);
  uneven[9] += 64;
  mistake(719, "differs between lanes", [&] { block.run(load_a, other, {uneven, same(stride)}); });
  // A fragment is no fragment of the other operand.
  block.run("wmma.load.b.sync.aligned" + a_layout + ".m16n16k16.shared" + type, other, {same(at_a), same(stride)});
  int equal = 0;
  for (int i = 0; i < registers; i++) equal += other[i] == left[i];
  expect(equal == 0, "fragments of a and b", equal, 0);
}

}  // namespace

bool tensor_cases(const std::string &name) {
  if (name == "mma") return half_table(), mma(false), mma(true), wraps(), true;
  if (name == "ldmatrix") return ldmatrix(), true;
  if (name != "wmma") return false;
  for (int i = 0; i < 8; i++) wmma(i & 1, i & 2, i & 4);
  return true;
}

}  // namespace bench
