// Winograd's tile plan and convolution against plain loops over the neighbours of every site.
#pragma once
#include "check.h"

namespace {

void winograd(cs_context *ctx) {
  const bool large = op->cases % 7 == 3, wide = op->cases % 7 == 5;
  const int H = large ? 70 : rnd.range(1, 20), W = large ? 61 : rnd.range(1, 20);
  const int cin = wide ? rnd.range(280, 600) : rnd.range(1, 40), cout = wide ? rnd.range(1, 20) : rnd.range(1, 90);
  const vector<int32_t> at = sites(H, W, op->cases == 0 ? 0 : op->cases == 1 ? 100 : rnd.range(0, 100));
  const int tile = rnd.coin() ? 2 : 4, side = tile + 2, points = side * side, pixels = tile * tile;
  const int n = static_cast<int>(at.size() / 2);
  const int room = std::min(n, ((H + tile - 1) / tile) * ((W + tile - 1) / tile));

  vector<int32_t> grid((H + 8) * (W + 8), -1), want_in, want_out;  // four cells of border
  const auto row_at = [&](int y, int x) { return grid[(y + 4) * (W + 8) + x + 4]; };
  for (int i = 0; i < n; ++i) grid[(at[2 * i] + 4) * (W + 8) + at[2 * i + 1] + 4] = i;
  for (int y = 0; y < H; y += tile)
    for (int x = 0; x < W; x += tile) {
      int32_t out[16];
      for (int k = 0; k < pixels; ++k) out[k] = row_at(y + k % tile, x + k / tile);
      if (std::all_of(out, out + pixels, [](int32_t i) { return i < 0; })) continue;
      want_out.insert(want_out.end(), out, out + pixels);
      for (int k = 0; k < points; ++k) want_in.push_back(row_at(y - 1 + k % side, x - 1 + k / side));
    }
  Output<int32_t> in(room, points, false), out(room, pixels, false);
  int32_t tiles = -1;
  int64_t pairs = -1, want_pairs = 0;
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < 9; ++k) want_pairs += row_at(at[2 * i] + k % 3 - 1, at[2 * i + 1] + k / 3 - 1) >= 0;
  call(cs_winograd_plan(ctx, at.data(), n, H, W, tile, in.row(0), out.row(0), &tiles, &pairs));
  const int expected = static_cast<int>(want_out.size()) / pixels;
  if (tiles != expected) return wrong("%d tiles, expected %d", tiles, expected);
  expect(pairs == want_pairs, "pairs");
  in.done(tiles), out.done(tiles);
  expect(std::equal(want_in.begin(), want_in.end(), in.row(0)), "inputs of the tiles");
  expect(std::equal(want_out.begin(), want_out.end(), out.row(0)), "outputs of the tiles");

  Input x(n, cin), rest(n, cout);
  const vector<float> weight = rnd.reals(size_t{9} * cin * cout), bias = rnd.reals(cout);
  const vector<float> scale = rnd.reals(cout), shift = rnd.reals(cout);
  const size_t bytes = cs_winograd_bytes(ctx, tile, cin, cout);
  const std::unique_ptr<void, decltype(&std::free)> packed(std::aligned_alloc(64, (bytes + 127) / 64 * 64), std::free);
  std::memset(packed.get(), kGuard, bytes + 64);
  call(cs_winograd_pack(ctx, weight.data(), tile, cin, cout, packed.get()));
  const unsigned char *guard = static_cast<unsigned char *>(packed.get()) + bytes;
  expect(std::all_of(guard, guard + 64, [](unsigned char b) { return b == kGuard; }), "packed too much");
  Output<float> y(n, cout), z(n, cout);
  cs_conv c{};
  c.x = x.row(0), c.ldx = x.ld, c.n_in = c.n_out = n, c.K = 9, c.cin = cin, c.cout = cout, c.weight = packed.get();
  c.bias = bias.data(), c.relu = rnd.range(0, 1), c.y = y.row(0), c.ldy = y.ld;
  if (rnd.coin()) c.residual = rest.row(0), c.ldr = rest.ld;
  c.z[0] = z.row(0), c.ldz[0] = z.ld, c.scale[0] = scale.data(), c.shift[0] = shift.data();
  call(cs_winograd_conv(ctx, &c, tile, in.row(0), out.row(0), tiles));
  y.done(), z.done();
  for (int i = 0; i < n; ++i) {
    vector<double> sum(bias.begin(), bias.end());
    for (int o = 0; o < cout && c.residual; ++o) sum[o] += rest.row(i)[o];
    vector<double> size(cout, (tile == 4 ? 4 : 1) * (cin + 2.0));
    for (int k = 0; k < 9; ++k) {
      const int from = row_at(at[2 * i] + k % 3 - 1, at[2 * i + 1] + k / 3 - 1);
      for (int j = 0; j < cin && from >= 0; ++j)
        for (int o = 0; o < cout; ++o)
          sum[o] += double{x.row(from)[j]} * weight[(static_cast<size_t>(k) * cin + j) * cout + o];
    }
    for (int o = 0; o < cout; ++o) {
      const double v = c.relu && sum[o] < 0 ? 0 : sum[o], t = v * scale[o] + shift[o];
      near(y.row(i)[o], v, size[o]);
      near(z.row(i)[o], t < 0 ? 0 : t, size[o] + 1);
    }
  }
}

}  // namespace
