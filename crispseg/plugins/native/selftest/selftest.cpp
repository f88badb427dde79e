// Compares every function of the C ABI with plain loops in double precision, on every instruction set of this CPU, with
// 1 and 3 threads, twice per context (warm scratch must change nothing). Needs the library only: for a new target.
//   selftest [rounds] [seed]; exit status 1 when anything is wrong.
#include "cases_int8.h"
#include "cases_rows.h"
#include "cases_winograd.h"

namespace {

// One random case of every op: maps and convolution (the row-wise ones are in cases_rows.h).

void submanifold_map(cs_context *ctx) {
  const bool large = op->cases == 0;
  const int H = large ? 160 : rnd.range(1, 50), W = large ? 150 : rnd.range(1, 150);
  const vector<int32_t> at = sites(H, W, large ? 90 : rnd.range(0, 100));
  const int n = static_cast<int>(at.size() / 2);
  Output<int32_t> map(n, 9, false);
  call(cs_submanifold_map(ctx, at.data(), n, H, W, map.row(0)));
  map.done();
  vector<int32_t> grid((H + 2) * (W + 2), -1);
  for (int i = 0; i < n; ++i) grid[(at[2 * i] + 1) * (W + 2) + at[2 * i + 1] + 1] = i;
  bool good = true;
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < 9; ++k) good &= map.row(i)[k] == grid[(at[2 * i] + k % 3) * (W + 2) + at[2 * i + 1] + k / 3];
  expect(good, "map");
}

void down_map(cs_context *ctx) {
  const bool large = op->cases == 0;
  const int H = large ? 260 : rnd.range(1, 60), W = large ? 270 : rnd.range(1, 150);
  const cs_extent extent = rnd.coin() ? CS_EXTENT_ACTIVE : CS_EXTENT_IMAGE;
  const vector<int32_t> at = sites(H, W, rnd.coin() ? rnd.range(0, 4) : rnd.range(0, 100));
  const int n = static_cast<int>(at.size() / 2), room = std::min(4 * n, (H - 1) / 2 * ((W - 1) / 2));
  Output<int32_t> coords(room, 2, false), down(room, 9, false), up(n, 9, false);
  int32_t m = -1;
  call(cs_down_map(ctx, at.data(), n, H, W, extent, coords.row(0), &m, down.row(0), up.row(0)));
  vector<int32_t> grid(H * W, -1), next, taps, want_up(9 * n, -1);
  int my = H - 1, mx = W - 1;
  if (extent == CS_EXTENT_ACTIVE) my = mx = 0;
  for (int i = 0; i < n; ++i) {
    grid[at[2 * i] * W + at[2 * i + 1]] = i;
    if (extent == CS_EXTENT_ACTIVE) my = std::max(my, at[2 * i]), mx = std::max(mx, at[2 * i + 1]);
  }
  for (int oy = 0; 2 * oy + 2 <= my; ++oy)
    for (int ox = 0; 2 * ox + 2 <= mx; ++ox) {
      int32_t in[9];
      for (int k = 0; k < 9; ++k) in[k] = grid[(2 * oy + k % 3) * W + 2 * ox + k / 3];
      if (std::all_of(in, in + 9, [](int32_t i) { return i < 0; })) continue;
      for (int k = 0; k < 9; ++k)
        if (in[k] >= 0) want_up[9 * in[k] + k] = static_cast<int32_t>(next.size() / 2);
      next.insert(next.end(), {oy, ox});
      taps.insert(taps.end(), in, in + 9);
    }
  if (m != static_cast<int32_t>(next.size() / 2)) return wrong("%d sites, expected %zu", m, next.size() / 2);
  coords.done(m), down.done(m), up.done();
  expect(std::equal(next.begin(), next.end(), coords.row(0)), "sites of the next level");
  expect(std::equal(taps.begin(), taps.end(), down.row(0)), "down");
  expect(std::equal(want_up.begin(), want_up.end(), up.row(0)), "up");
}

void plan_map(cs_context *ctx) {
  const int n = op->cases == 2 ? 5000 : some_rows(), K = rnd.coin() ? 9 : rnd.range(1, 12);
  const vector<int32_t> map = random_map(n, K, 50, rnd.coin() ? 50 : 95);
  Output<int32_t> order(n, 1, false);
  call(cs_plan_map(ctx, map.data(), n, K, order.row(0)));
  order.done();
  vector<int32_t> sorted(order.row(0), order.row(n)), all(n);
  std::sort(sorted.begin(), sorted.end());
  std::iota(all.begin(), all.end(), 0);
  if (sorted != all) return wrong("not a permutation");
  vector<char> seen(1 << 12);
  for (int i = 0, last = -1; i < n && n <= 90 && K <= 9; ++i) {
    int mask = 0;
    for (int k = 0; k < K; ++k) mask |= (map[*order.row(i) * K + k] >= 0) << k;
    if (mask != last && seen[mask]) return wrong("rows with the same taps lie apart");
    seen[last = mask] = 1;
  }
}

void sparse_conv(cs_context *ctx) {
  const bool identity = op->cases % 4 == 3, deep = op->cases % 5 == 2;
  const int K = identity ? 1 : rnd.coin() ? 9 : rnd.range(1, 32);
  const bool large = op->cases % 17 == 4;
  const int n = op->cases < 2 ? some_rows() : large ? rnd.range(1000, 2100) : rnd.range(2, deep ? 150 : 90);
  const int cin = large ? rnd.range(1, 10) : deep ? rnd.range(250, 700) / (K > 9 ? 8 : 1) : rnd.range(1, 40);
  const int cout = deep || large ? rnd.range(1, 20) : rnd.range(1, 90), n_in = identity ? n : rnd.range(0, 300);
  Input x(n_in, cin);
  if (n_in > 8) std::fill_n(x.row(n_in / 2), cin, std::numeric_limits<float>::quiet_NaN());
  const vector<int32_t> map = random_map(n, K, n_in, rnd.coin() ? 20 : 90);
  const vector<float> weight = rnd.reals(static_cast<size_t>(K) * cin * cout), bias = rnd.reals(cout);
  const vector<float> affine[4] = {rnd.reals(cout), rnd.reals(cout), rnd.reals(cout), rnd.reals(cout)};
  const size_t bytes = cs_packed_bytes(ctx, K, cin, cout);
  const std::unique_ptr<void, decltype(&std::free)> packed(std::aligned_alloc(64, (bytes + 127) / 64 * 64), std::free);
  std::memset(packed.get(), kGuard, bytes + 64);
  call(cs_pack_weight(ctx, weight.data(), K, cin, cout, packed.get()));
  const unsigned char *guard = static_cast<unsigned char *>(packed.get()) + bytes;
  expect(std::all_of(guard, guard + 64, [](unsigned char b) { return b == kGuard; }), "packed too much");
  vector<int32_t> order(n);
  const int ordering = rnd.range(0, 2);  // raster, planned, any
  std::iota(order.begin(), order.end(), 0);
  for (int i = n - 1; i > 0 && ordering == 2; --i) std::swap(order[i], order[rnd.range(0, i)]);
  if (ordering == 1 && !identity) call(cs_plan_map(ctx, map.data(), n, K, order.data()));
  const int which = rnd.range(1, 7), residual = rnd.range(0, 2);  // which outputs; residual: none, apart, in y
  Input rest(n, cout);
  Output<float> y(n, cout), z0(n, cout), z1(n, cout), *z[2] = {&z0, &z1};
  for (int i = 0; i < n && residual == 2 && (which & 1); ++i) std::copy_n(rest.row(i), cout, y.row(i));
  cs_conv c{};
  c.x = x.row(0), c.ldx = x.ld, c.n_in = n_in, c.map = identity ? nullptr : map.data();
  c.order = ordering ? order.data() : nullptr;
  c.n_out = n, c.K = K, c.cin = cin, c.cout = cout, c.weight = packed.get();
  c.bias = rnd.coin() ? bias.data() : nullptr, c.relu = rnd.range(0, 1);
  if (residual) c.residual = rest.row(0), c.ldr = rest.ld;
  if (which & 1) c.y = y.row(0), c.ldy = y.ld;
  if (residual == 2 && c.y) c.residual = c.y, c.ldr = y.ld;
  Second second(ctx, K < 32 && rnd.coin() ? n : -1, cout);
  second.join(&c);
  for (int i = 0; i < 2; ++i)
    if (which & 2 << i) {
      c.z[i] = z[i]->row(0), c.ldz[i] = z[i]->ld;
      c.scale[i] = affine[2 * i].data(), c.shift[i] = affine[2 * i + 1].data();
    }
  call(cs_sparse_conv(ctx, &c));
  y.done(c.y ? n : 0), z0.done(c.z[0] ? n : 0), z1.done(c.z[1] ? n : 0);
  vector<double> sum(cout), size(cout);
  for (int i = 0; i < n; ++i) {
    for (int o = 0; o < cout; ++o) {
      sum[o] = (c.bias ? bias[o] : 0.0) + (residual ? rest.row(i)[o] : 0.0);
      size[o] = std::fabs(sum[o]) + 1;
    }
    second.add(i, sum.data(), size.data());
    for (int k = 0; k < K; ++k) {
      const int from = identity ? i : map[i * K + k];
      for (int j = 0; j < cin && from >= 0; ++j)
        for (int o = 0; o < cout; ++o) {
          const double term = double{x.row(from)[j]} * weight[(static_cast<size_t>(k) * cin + j) * cout + o];
          sum[o] += term, size[o] += std::fabs(term);
        }
    }
    for (int o = 0; o < cout; ++o) {
      const double v = c.relu && sum[o] < 0 ? 0 : sum[o];
      if (c.y) near(y.row(i)[o], v, size[o]);
      for (int s = 0; s < 2; ++s) {
        const double t = v * affine[2 * s][o] + affine[2 * s + 1][o];
        if (c.z[s]) near(z[s]->row(i)[o], t < 0 ? 0 : t, std::isnan(t) ? 1 : size[o] + 1);
      }
    }
  }
}

void bad_arguments(cs_context *ctx) {
  const int32_t outside[2] = {3, 9}, none[1] = {7};
  const float stats[3] = {1, 1, 1};
  alignas(64) float memory[64] = {};
  uint8_t bytes[64] = {};
  int32_t map[9];
  cs_conv c{};
  c.x = memory + 1, c.n_in = c.n_out = c.K = c.cin = c.cout = 1, c.ldx = c.ldy = 1;
  c.map = none, c.weight = memory, c.y = memory + 32;
  expect(cs_sparse_conv(ctx, &c) == CS_BAD_ARGUMENT, "conv: map outside");
  c.K = 9;
  expect(cs_winograd_conv(ctx, &c, 2, outside, outside, 2) == CS_BAD_ARGUMENT, "winograd: more tiles than rows");
  expect(cs_winograd_conv(ctx, &c, 3, outside, outside, 1) == CS_BAD_ARGUMENT, "winograd: tiles of 3x3");
  c.K = 1, c.map = nullptr, c.ldx = 0;
  expect(cs_sparse_conv(ctx, &c) == CS_BAD_ARGUMENT, "conv: stride");
  expect(cs_submanifold_map(ctx, outside, 1, 4, 9, map) == CS_BAD_ARGUMENT, "map: site outside");
  int status = cs_pixel_colours(ctx, bytes, 4, 4, outside, 1, stats, stats, 0, memory, 3);
  expect(status == CS_BAD_ARGUMENT, "colours: site outside");
  status = cs_scatter_labels(ctx, bytes, nullptr, 4, 4, outside, 1, memory, 1, 1);
  expect(status == CS_BAD_ARGUMENT, "scatter: site outside");
  status = cs_logits_at(ctx, memory, 300, 1, 1, 1, 1, CS_NEAREST, map, 0, memory, 300);
  expect(status == CS_BAD_ARGUMENT, "logits_at: classes");
  expect(std::strlen(cs_last_error()) > 0 && !cs_create(0, nullptr) && !cs_create(1, "vax"), "errors are told");
  expect(cs_abi_version() == CS_ABI_VERSION && cs_fma_loop(ctx, 100) > 0, "version, measurement");
}

}  // namespace

int main(int argc, char **argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 8;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  struct Row { Op op; void (*once)(cs_context *); int times; };  // cases in a round
  const Row table[] = {
      {{"select_pixels", 1e-4, 0, 0, 0, 0}, select_pixels, 10},
      {{"pixel_colours", 1e-6, 0, 0, 0, 0}, pixel_colours, 2},
      {{"logits_at", 1e-6, 0, 0, 0, 0}, logits_at, 2},
      {{"softmax_rows", 2e-6, 0, 0, 0, 0}, softmax_rows, 2},
      {{"submanifold_map", 0, 0, 0, 0, 0}, submanifold_map, 2},
      {{"down_map", 0, 0, 0, 0, 0}, down_map, 2},
      {{"plan_map", 0, 0, 0, 0, 0}, plan_map, 2},
      {{"sparse_conv", 2e-6, 0, 0, 0, 0}, sparse_conv, 6},
      {{"sparse_conv_int8", 2e-6, 0, 0, 0, 0}, int8_convolution, 6},
      {{"winograd", 2e-6, 0, 0, 0, 0}, winograd, 6},
      {{"ensemble_gated", 2e-6, 0, 0, 0, 0}, ensemble_gated, 2},
      {{"ensemble_entropy", 1e-5, 0, 0, 0, 0}, ensemble_entropy, 2},
      {{"scatter_labels", 1e-6, 0, 0, 0, 0}, scatter_labels, 2},
      {{"bad_arguments", 0, 0, 0, 0, 0}, bad_arguments, 2},
  };
  std::printf("%s; %d rounds, seed %llu\n", cs_build_info(), rounds, static_cast<unsigned long long>(seed));
  bool good = rounds > 0;
  for (const char *isa : {"generic", "avx2", "avx512"}) {
    cs_context *contexts[2] = {cs_create(1, isa), cs_create(3, isa)};
    if (!contexts[0] || !contexts[1]) {
      std::printf("%-8s not run: %s\n", isa, cs_last_error());
      good &= std::strcmp(isa, "generic") != 0;
      continue;
    }
    for (const Row &row : table) {
      Op total = row.op;
      for (int pass = 0; pass < 4; ++pass) {
        cs_context *ctx = contexts[pass % 2];
        Op now = row.op;
        op = &now;
        where = std::string(isa) + (pass % 2 ? " 3 threads" : " 1 thread");
        expect(!std::strcmp(cs_isa(ctx), isa) && cs_threads(ctx) == (pass % 2 ? 3 : 1), "the context is another one");
        rnd.state = seed;
        const size_t held = cs_scratch_bytes(ctx);
        for (int i = 0; i < rounds * row.times; ++i, ++now.cases) row.once(ctx);
        if (pass >= 2) expect(cs_scratch_bytes(ctx) == held, "scratch grows in the second pass");
        if (pass > 0) expect(now.digest == total.digest, "results depend on the threads or on earlier calls");
        total.worst = std::max(total.worst, now.worst);
        total.cases += now.cases, total.failures += now.failures, total.digest = now.digest;
      }
      std::printf("%-8s %-17s %4ld cases  largest relative error %.1e (allowed %.0e)  %s\n", isa, total.name,
                  total.cases, total.worst, total.tolerance, total.failures ? "FAILED" : "ok");
      std::fflush(stdout);
      good &= total.failures == 0;
    }
    for (cs_context *ctx : contexts) cs_destroy(ctx);
  }
  std::printf("%s\n", good ? "all good" : "FAILED");
  return good ? 0 : 1;
}
