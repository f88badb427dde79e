// The int8 convolution against plain loops over integers.
#pragma once
#include "check.h"

namespace {

// A byte stands for zero + v / step, to the nearest.
void near_byte(int got, double v, float step, int zero) {
  const double low = zero ? -127 : 0, q = std::min(std::max(v / step, low), 127.0);
  deviation(std::max(0.0, std::fabs(got - zero - q) - 0.5) / 127);
}

void int8_convolution(cs_context *ctx) {
  const bool wide = op->cases % 7 == 3;
  const int K = rnd.coin() ? 9 : rnd.range(1, 9), zero = rnd.coin() ? 128 : 0;
  const int cin = wide ? rnd.range(280, 1300) : rnd.range(1, 60), cout = wide ? rnd.range(1, 20) : rnd.range(1, 90);
  const int n = some_rows() / (wide ? 8 : 1), n_in = rnd.range(0, 90);
  const int64_t ldx = (cin + 3) / 4 * 4 + 4 * rnd.range(0, 2);
  vector<uint8_t> x(static_cast<size_t>(ldx * (n_in + 1)), static_cast<uint8_t>(zero));
  const auto byte = [&](int64_t row, int j) -> uint8_t & { return x[static_cast<size_t>((row + 1) * ldx + j)]; };
  for (int i = 0; i < n_in; ++i)
    for (int j = 0; j < ldx; ++j)  // also what lies after column cin
      byte(i, j) = static_cast<uint8_t>(zero + rnd.range(zero ? -127 : 0, 127));
  vector<int8_t> weight(static_cast<size_t>(K) * cin * cout);
  for (int8_t &w : weight) w = static_cast<int8_t>(rnd.coin() ? rnd.range(-127, 127) : rnd.coin() ? 127 : -127);
  const size_t bytes = cs_packed_bytes_int8(ctx, K, cin, cout);
  const std::unique_ptr<void, decltype(&std::free)> packed(std::aligned_alloc(64, (bytes + 127) / 64 * 64), std::free);
  std::memset(packed.get(), kGuard, bytes + 64);
  call(cs_pack_weight_int8(ctx, weight.data(), K, cin, cout, packed.get()));
  const unsigned char *guard = static_cast<unsigned char *>(packed.get()) + bytes;
  expect(std::all_of(guard, guard + 64, [](unsigned char b) { return b == kGuard; }), "packed too much");

  const vector<int32_t> map = random_map(n, K, n_in, rnd.range(0, 100));
  vector<float> steps = rnd.reals(cout), bias = rnd.reals(cout), gain = rnd.reals(cout), shift = rnd.reals(cout);
  for (float &s : steps) s = (1.5f + s) / (127.0f * 127.0f * cin);
  Input rest(n, cout);
  Output<float> y(n, cout);
  Output<uint8_t> z(n, cout), signed_y(n, cout);
  const bool y_bytes = rnd.coin();
  cs_conv_int8 a{};
  cs_conv &c = a.conv;
  c.x = reinterpret_cast<const float *>(x.data() + ldx), c.ldx = ldx, c.n_in = n_in, c.n_out = n, c.K = K, c.cin = cin;
  c.map = map.data(), c.cout = cout, c.weight = packed.get(), c.bias = bias.data(), c.relu = rnd.range(0, 1);
  if (rnd.coin()) c.residual = rest.row(0), c.ldr = rest.ld;
  c.y = y_bytes ? reinterpret_cast<float *>(signed_y.row(0)) : y.row(0), c.ldy = y_bytes ? signed_y.ld : y.ld;
  c.z[0] = reinterpret_cast<float *>(z.row(0)), c.ldz[0] = z.ld, c.scale[0] = gain.data(), c.shift[0] = shift.data();
  a.scale = steps.data(), a.zero = zero, a.step[0] = y_bytes ? 0.02f : 0.0f, a.out_zero[0] = 128, a.step[1] = 0.01f;
  call(cs_sparse_conv_int8(ctx, &a));
  y.done(y_bytes ? 0 : n), signed_y.done(y_bytes ? n : 0), z.done();
  for (int i = 0; i < n; ++i) {
    vector<int64_t> sum(cout);
    for (int k = 0; k < K; ++k) {
      const int from = map[static_cast<size_t>(i) * K + k];
      for (int j = 0; j < cin && from >= 0; ++j)
        for (int o = 0; o < cout; ++o)
          sum[o] += (byte(from, j) - zero) * weight[(static_cast<size_t>(k) * cin + j) * cout + o];
    }
    for (int o = 0; o < cout; ++o) {
      double v = static_cast<double>(sum[o]) * steps[o] + bias[o] + (c.residual ? rest.row(i)[o] : 0.0f);
      v = c.relu && v < 0 ? 0 : v;
      const double t = v * gain[o] + shift[o];
      if (y_bytes) near_byte(signed_y.row(i)[o], v, a.step[0], 128);
      else near(y.row(i)[o], v, K + 3.0);
      near_byte(z.row(i)[o], t < 0 ? 0 : t, a.step[1], 0);
    }
  }
}

}  // namespace
