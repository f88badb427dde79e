// cp.async: when it lands, what it fills with zeros, and what nobody may do meanwhile.
#include "bench.h"

namespace bench {
namespace {

const std::string CA = "cp.async.ca.shared.global", CG = "cp.async.cg.shared.global";

struct Copies : Block {
  alignas(16) uint8_t source[4096];
  Copies() : Block(4096) {
    for (int i = 0; i < 4096; i++) source[i] = uint8_t(random_int(0, 255)), memory.bytes[i] = 0x11;
  }
  // Lane l copies to `to` + bytes * l.
  void issue(const std::string &opcode, uint32_t to, int bytes, int count = -1, int warp = 0, uint32_t active = ~0u) {
    std::vector<Register> in(3, same(bytes));
    for (int lane = 0; lane < 32; lane++) {
      in[0][lane] = to + bytes * lane;
      in[1][lane] = uint64_t(source + to + bytes * lane);
    }
    if (count >= 0) in.push_back(same(count));
    run(opcode, in, warp, active);
  }
  void wait(int left, int warp = 0) { run("cp.async.wait_group", {same(left)}, warp); }
  // The bytes from `from` on: those of the source, up to `count` of every `bytes`, then zeros.
  void check(uint32_t from, int bytes, int count, const char *what) {
    for (int i = 0; i < 32 * bytes; i++)
      expect(memory.bytes[from + i] == (i % bytes < count ? source[from + i] : 0), what, memory.bytes[from + i],
             source[from + i]);
  }
};

void landing() {
  for (int bytes : {4, 8, 16})
    for (int count : {-1, 0, bytes / 2, bytes, 3}) {
      Copies block;
      block.issue(CA, 1024, bytes, count);
      block.run("cp.async.commit_group");
      for (int i = 0; i < 4096; i++) block.source[i] ^= 0x55;  // read when it lands
      expect(std::memcmp(&block.memory.bytes[1024], block.source + 1024, 4) != 0, "not before the wait");
      block.wait(1);
      expect(block.async.copies_under_way(), "one group may be pending");
      block.wait(0);
      expect(!block.async.copies_under_way(), "all landed");
      block.check(1024, bytes, count < 0 ? bytes : count, "landed");
      expect(block.memory.bytes[1023] == 0x11 && block.memory.bytes[1024 + 32 * bytes] == 0x11, "bytes beside it");
    }
}

void groups() {
  Copies block;
  for (int i = 0; i < 3; i++) {
    block.issue(CG, 512 * i, 16);
    block.run("cp.async.commit_group");
    if (i == 1) block.run("cp.async.commit_group");  // an empty group counts
  }
  block.issue(CG, 1536, 16);  // in no group
  const auto landed = [&](int i) {
    return std::memcmp(&block.memory.bytes[512 * i], block.source + 512 * i, 512) == 0;
  };
  block.wait(3);
  expect(landed(0) && !landed(1), "wait_group 3 of four");
  block.wait(2);
  expect(landed(1) && !landed(2), "wait_group 2 of four");
  block.wait(1);
  expect(!landed(2), "the empty group is done");
  block.wait(0, 1);
  expect(!landed(2), "the wait of another warp");
  block.wait(0);
  expect(landed(2) && !landed(3), "wait_group 0: what was committed");
  block.run("cp.async.wait_all");
  expect(landed(3), "wait_all");
  block.issue(CA, 2048, 16, -1, 0, 0xf0u);  // lanes that do not take part copy nothing
  block.run("cp.async.wait_all", {}, 0, 0xf0u);
  expect(block.memory.bytes[2048 + 63] == 0x11 && block.memory.bytes[2048 + 64] == block.source[2048 + 64], "lanes");
  block.issue(CA, 3072, 16);
  block.async.finish();  // never waited for, and never read: no mistake
}

void mistakes() {
  Copies block;
  mistake(719, "of 8 bytes", [&] { block.issue(CG, 0, 8); });
  mistake(719, "of 12 bytes", [&] { block.issue(CA, 0, 12); });
  mistake(719, "17 of 16", [&] { block.issue(CA, 0, 16, 17); });
  mistake(716, "cp.async", [&] { block.issue(CA, 8, 16); });
  block.run(CA, {same(512), same(0), same(16), same(0)}, 0, 1);  // no byte of the source is read
  mistake(700, "range", [&] { block.issue(CA, 3600, 16); });

  const auto start = [] {
    auto fresh = std::make_unique<Copies>();
    fresh->issue(CA, 1024, 16);
    fresh->run("cp.async.commit_group");
    return fresh;
  };
  const std::string words = "a copy under way";
  auto one = start();
  one->async.reads_shared(5, 1020, 4);
  one->async.reads_shared(5, 1536, 16);
  mistake(719, words, [&] { one->async.reads_shared(5, 1024, 4); });
  mistake(719, "thread 31", [&] { one->async.reads_shared(5, 1535, 1); });
  mistake(719, words, [&] { one->async.reads_shared(5, 1016, 16); });
  mistake(719, words, [&] { one->async.wrote_shared(5, 1024, 4); });
  mistake(719, words, [&] { one->issue(CA, 1024, 16, -1, 1); });
  mistake(719, words, [&] { one->issue(CA, 1024, 16); });
  std::vector<Register> out(4);
  mistake(719, words, [&] { one->run("ldmatrix.sync.aligned.m8n8.x4.shared.b16", out, {same(1024)}); });
  std::vector<Register> fragment(8);
  mistake(719, words,
          [&] { one->run("wmma.load.a.sync.aligned.row.m16n16k16.shared.f16", fragment, {same(768), same(16)}); });
  one->wait(0);
  one->run("ldmatrix.sync.aligned.m8n8.x4.shared.b16", out, {same(1024)});
  one->async.wrote_shared(5, 1024, 4);
}

}  // namespace

bool copy_cases(const std::string &name) {
  if (name == "copies") return landing(), groups(), true;
  if (name == "copy_mistakes") return mistakes(), true;
  return false;
}

}  // namespace bench
