// wgmma against products of matrices laid out after the table of canonical layouts, and its mistakes.
#include <algorithm>
#include <chrono>

#include "bench.h"

namespace bench {
namespace {

const std::string FENCE = "wgmma.fence.sync.aligned", COMMIT = "wgmma.commit_group.sync.aligned";
const std::string WAIT = "wgmma.wait_group.sync.aligned", PROXY = "fence.proxy.async.shared::cta";

// A matrix of rows of `width` bytes along K (32 without a swizzle), in units of 16 bytes: K-major layouts
// Swizzle<S,4,3> o ((8,m),(1,2k)):((w,SBO),(1,1)), without a swizzle ((8,m),(1,2k)):((1,SBO),(1,LBO)).
struct Layout {
  int mode;
  uint32_t pattern, base, stride, leading;  // pattern: where it starts
  int width() const { return mode ? 256 >> mode : 32; }
  uint32_t place(int row, int byte) const {
    const int piece = byte / 16, inside = byte % 16;
    if (!mode) return pattern + row % 8 * 16 + row / 8 * stride + piece * leading + inside;
    const uint32_t offset = uint32_t(row % 8 * width() + piece * 16);
    const int bits = 4 - mode;  // 3, 2, 1
    const uint32_t mask = ((1u << bits) - 1) << 7;
    return pattern + row / 8 * stride + (offset ^ (offset & mask) >> 3) + inside;
  }
  uint64_t descriptor(int step = 0) const {  // K step of 32 bytes inside the width
    return uint64_t(pattern + 32 * step) >> 4 | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 |
           uint64_t(base) << 49 | uint64_t(mode) << 62;
  }
  void put(Plain &memory, const Values &matrix, bool columns) const {
    const int rows = columns ? matrix.columns : matrix.rows, depth = columns ? matrix.rows : matrix.columns;
    for (int row = 0; row < rows; row++)
      for (int k = 0; k < depth; k++) {
        const uint32_t bits = columns ? matrix.bits(k, row) : matrix.bits(row, k);
        std::memcpy(&memory.bytes[place(row, k * matrix.size())], &bits, matrix.size());
      }
  }
};

struct Group : Block {
  bool bytes;
  int n;
  std::vector<Register> sums[4];
  Group(bool bytes, int n) : Block(65536), bytes(bytes), n(n) {
    for (auto &one : sums) one.assign(n / 2, same(0));
  }
  std::string opcode() const {
    return "wgmma.mma_async.sync.aligned.m64n" + std::to_string(n) + (bytes ? "k32.s32.s8.s8" : "k16.f32.f16.f16");
  }
  void multiply(int warp, uint64_t a, uint64_t b, int keep = 1, int sign_a = 1, int sign_b = 1, int trans = 0) {
    std::vector<Register> in{same(a), same(b), same(keep)};
    if (!bytes)
      for (int value : {sign_a, sign_b, 0, trans}) in.push_back(same(uint32_t(value)));
    run(opcode(), sums[warp], in, warp);
  }
  void all(const std::string &opcode) {
    for (int warp = 0; warp < 4; warp++) run(opcode, {}, warp);
  }
  void wait(int left) {
    for (int warp = 0; warp < 4; warp++) run(WAIT, {same(left)}, warp);
  }
  // Figure of accumulator d: warp w, lane l hold rows 16 w + l / 4 and 8 more, columns 8 j + l % 4 * 2 and the next.
  double sum(int row, int column) const {
    const int lane = row % 8 * 4 + column % 8 / 2, number = column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
    return sum_value(sums[row / 16][number][lane], bytes);
  }
};

// Modes that differ show an order of K that both would share.
void products(bool bytes, int mode, int mode_b, int n, uint32_t base = 0) {
  const int k = bytes ? 32 : 16;
  Layout a{mode, 8192 + 128 * base, base, 0, 0}, b{mode_b, 28672 + 128 * base, base, 0, 0};
  const int steps = std::min(a.width(), b.width()) / 32;
  // Without a swizzle, pieces of 16 bytes in one plane of K after the other; else patterns with a gap between them.
  a.stride = mode ? a.width() * 8 + 1024 : 128;
  a.leading = mode ? 16 : 64 / 8 * 128;
  b.stride = mode_b ? b.width() * 8 : 128;
  b.leading = mode_b ? 0 : uint32_t(n) / 8 * 128;
  Group group(bytes, n);
  const Values left(64, k * steps, bytes), right(k * steps, n, bytes);
  a.put(group.memory, left, false);
  b.put(group.memory, right, true);
  for (auto &registers : group.sums)
    for (auto &one : registers) one = same(sum_bits(5, bytes));
  group.all(FENCE);
  for (int warp : {2, 0, 3, 1})
    for (int step = 0; step < steps; step++) group.multiply(warp, a.descriptor(step), b.descriptor(step));
  group.all(COMMIT);
  expect(group.sums[1][0][3] != sum_bits(5, bytes), "a poison until the wait");
  group.wait(0);
  for (int row = 0; row < 64; row++)
    for (int column = 0; column < n; column++) {
      const double wanted = product(left, right, row, column) + 5;
      expect(group.sum(row, column) == wanted, group.opcode().c_str(), group.sum(row, column), wanted);
    }
  group.all(FENCE);
  for (int warp = 0; warp < 4; warp++) group.multiply(warp, a.descriptor(), b.descriptor(), 0, -1, 1);
  group.all(COMMIT);
  for (int warp = 0; warp < 4; warp++) group.multiply(warp, a.descriptor(), b.descriptor(), 1, 1, -1);
  group.all(COMMIT);
  group.wait(1);
  expect(group.sums[0][0][0] == group.sums[3][1][9], "still a poison");
  group.wait(0);
  for (int row = 0; row < 64; row++) {
    double wanted = 0;
    for (int i = 0; i < k; i++) wanted += left.at(row, i) * right.at(i, n - 1);
    wanted *= bytes ? 2 : -2;
    expect(group.sum(row, n - 1) == wanted, "scales", group.sum(row, n - 1), wanted);
  }
  group.async.finish();
}

// 64 x 128 of 32 bytes of K, swizzled by 32 bytes, both matrices in one place; fenced and started.
const Layout PLACE{3, 4096, 0, 256, 16};
struct Ready : Group {
  explicit Ready(bool start = true) : Group(true, 128) {
    if (start) all(FENCE);
  }
  void issue(int warp = 0) { multiply(warp, PLACE.descriptor(), PLACE.descriptor()); }
  void issue_all() {
    for (int warp = 0; warp < 4; warp++) issue(warp);
  }
};

void order_mistakes() {
  mistake(719, "no wgmma.fence", [] { Ready(false).issue(); });
  const auto after = [](const std::function<void(Ready &)> &first, const std::function<void(Ready &)> &then,
                        const std::string &words) {
    Ready group;
    first(group);
    if (words.empty()) return then(group);
    mistake(719, words, [&] { then(group); });
  };
  const auto issue = [](Ready &group) { group.issue(); };
  const std::string proxy = "without a fence.proxy.async";
  // Stores and copies that were not fenced by the thread that wrote them.
  after([](Ready &g) { g.async.wrote_shared(70, 4096 + 20, 4); }, issue, proxy);
  after([](Ready &g) { g.async.wrote_shared(70, 4092, 4); }, issue, "");
  after([](Ready &g) { g.async.wrote_shared(70, 4100, 1), g.run(PROXY, {}, 1); }, issue, proxy);
  after([](Ready &g) { g.async.wrote_shared(70, 4100, 1), g.run(PROXY, {}, 2); }, issue, "");
  after([](Ready &g) { g.async.wrote_shared(70, 4100, 1), g.async.wrote_shared(5, 4101, 1), g.run(PROXY, {}, 2); },
        issue, proxy);
  const auto copy = [](Ready &g) {
    alignas(16) static const uint8_t source[16] = {};
    g.run("cp.async.cg.shared.global", {same(4096), same(uint64_t(source)), same(16)}, 3, 1);
  };
  after(copy, issue, "a copy under way");
  after([&](Ready &g) { copy(g), g.run("cp.async.wait_all", {}, 3); }, issue, proxy);
  after([&](Ready &g) { copy(g), g.run("cp.async.wait_all", {}, 3), g.run(PROXY, {}, 3); }, issue, "");
  // What a product under way uses must stay.
  const auto started = [](Ready &g) { g.issue_all(), g.all(COMMIT); };
  const std::string changed = "product under way was changed";
  after(started, [](Ready &g) { g.async.wrote_shared(1, 4096 + 100, 4); }, changed);
  after(started, [](Ready &g) { g.async.wrote_shared(1, 4096 + 32 * 128, 4); }, "");
  after(started, copy, changed);
  after(started, [](Ready &g) { g.memory.bytes[4096 + 4000] ^= 1, g.wait(0); }, changed);
  after([&](Ready &g) { started(g), g.wait(0); }, copy, "");
  const auto touch = [](Ready &g) { g.sums[0][63][31] = 1; };
  after(started, [&](Ready &g) { touch(g), g.wait(0); }, "accumulator was changed while");
  after(started, [&](Ready &g) { touch(g), g.issue(); }, "accumulator was changed while");
  after([&](Ready &g) { started(g), g.wait(0), touch(g); }, issue, "no wgmma.fence followed");
  after([&](Ready &g) { started(g), g.wait(0), touch(g), g.all(FENCE); }, issue, "");
  after([&](Ready &g) { started(g), g.wait(0); }, issue, "");
  after(started, [](Ready &g) { g.async.finish(); }, "never waited");
  after([](Ready &g) { g.issue_all(); }, [](Ready &g) { g.wait(0), g.async.finish(); }, "never waited");
  // All four warps execute the same.
  after(issue, [](Ready &g) { g.multiply(1, PLACE.descriptor(), PLACE.descriptor() + 16); }, "different");
  after(issue, [](Ready &g) { g.multiply(3, PLACE.descriptor(), PLACE.descriptor(), 0); }, "different");
  after(issue, [](Ready &g) { g.run(COMMIT, {}, 2); }, "different");
  after(issue, [](Ready &g) { g.run(WAIT, {same(0)}, 2); }, "different");
  after([](Ready &g) { g.run(FENCE, {}, 2); }, [](Ready &g) { g.async.finish(); }, "never executed");
  Block small(65536, 96);
  mistake(719, "fewer than four warps", [&] { small.run(FENCE); });
}

void operand_mistakes() {
  const uint64_t right = PLACE.descriptor();
  const auto bad = [&](uint64_t a, int status, const std::string &words) {
    Ready group;
    mistake(status, words, [&] { group.multiply(0, a, right); });
  };
  for (int bit : {14, 15, 30, 31, 46, 47, 48, 52, 61}) bad(right | uint64_t(1) << bit, 719, "reserved bits");
  bad(right + (32 >> 4), 719, "pattern");          // row 1 of the pattern
  bad(right | uint64_t(1) << 49, 719, "pattern");  // the base offset is not that of the start
  bad((right & ~0x3fffull) | 65280 >> 4, 700, "shared memory");
  Ready group;
  Register uneven = same(right);
  uneven[7]++;
  std::vector<Register> &sums = group.sums[0];
  mistake(719, "differs", [&] { group.run(group.opcode(), sums, {uneven, same(right), same(1)}); });
  Group halves(false, 128);
  halves.all(FENCE);
  mistake(719, "neither 1 nor -1", [&] { halves.multiply(0, right, right, 1, 2); });
  mistake(719, "not interpreted", [&] { halves.multiply(0, right, right, 1, 1, 1, 1); });
}

double microseconds(int times, const std::function<void()> &action) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < times; i++) action();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / times;
}

void speed() {  // printed, judged by nobody
  Block block;
  std::vector<Register> in(10, same(0x3c003c00)), out(4);
  const std::string mma = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32";
  std::printf("mma.m16n8k16 %.2f us\n", microseconds(2000, [&] { block.run(mma, out, in); }));
  Group group(false, 128);
  group.all(FENCE);
  std::printf("wgmma.m64n128k16 %.1f us\n", microseconds(200, [&] {
                for (int warp = 0; warp < 4; warp++) group.multiply(warp, PLACE.descriptor(), PLACE.descriptor());
                group.all(COMMIT);
                group.wait(0);
              }));
}

}  // namespace

bool wgmma_cases(const std::string &name) {
  if (name == "wgmma_order") return order_mistakes(), true;
  if (name == "wgmma_operands") return operand_mistakes(), true;
  if (name == "speed") return speed(), true;
  if (name != "wgmma") return false;
  for (int bytes = 0; bytes < 2; bytes++) {
    for (int n : {8, 128, 256}) products(bytes, 2, 2, n);
    for (int mode = 0; mode < 16; mode++) products(bytes, mode / 4, mode % 4, 64);
    products(bytes, 1, 3, 64, bytes ? 1 : 3);  // patterns that start beside their boundaries
    products(bytes, 2, 1, 64, 2 + bytes);
  }
  return true;
}

}  // namespace bench
