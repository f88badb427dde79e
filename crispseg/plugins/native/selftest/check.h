// What the self-test's cases share: what was seen of an op, random inputs, guarded outputs, and the plain loops.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "crispseg.h"

namespace {

using std::vector;
constexpr unsigned char kGuard = 0x7f;  // as float 3.4e38, as int 2139062143: nothing a kernel writes

struct Op {
  const char *name;
  double tolerance, worst;
  long cases, failures;
  uint64_t digest;
};
Op *op;
std::string where;

void wrong(const char *format, ...) {
  if (++op->failures > 3) return;
  std::printf("  %s %s, case %ld: ", where.c_str(), op->name, op->cases);
  va_list args;
  va_start(args, format);
  std::vprintf(format, args);
  va_end(args);
  std::printf(" [%s]\n", cs_last_error());
}
void expect(bool good, const char *what) { if (!good) wrong("%s", what); }
void call(int status) { if (status != CS_OK) wrong("status %d", status); }
void deviation(double error) {
  op->worst = std::max(op->worst, error);
  if (!(error <= op->tolerance)) wrong("error %g above %g", error, op->tolerance);
}
// NaN is expected where the loops give NaN, and nowhere else.
void near(double got, double want, double scale) {
  if (std::isnan(got) && std::isnan(want)) return;
  deviation(std::fabs(got - want) / scale);
}
void digest(const void *data, size_t bytes) {
  const unsigned char *at = static_cast<const unsigned char *>(data);
  for (size_t i = 0; i < bytes; ++i) op->digest = (op->digest ^ at[i]) * 1099511628211u;
}

struct Random {  // splitmix64
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int range(int low, int high) { return low + static_cast<int>(next() % static_cast<uint64_t>(high - low + 1)); }
  bool coin() { return next() & 1; }
  float real() { return static_cast<float>(next() >> 40) / 16777216.0f * 2 - 1; }  // [-1, 1)
  vector<float> reals(size_t n, float size = 1) {
    vector<float> v(n);
    for (float &x : v) x = size * real();
    return v;
  }
};
Random rnd{1};

// Read by the library: [n, c], allocated to the last value (a sanitizer sees reads behind it), NaN in the padding, and
// a row of zeros in front.
struct Input {
  int64_t ld;
  vector<float> data;
  Input(int n, int c, float size = 1, int step = 0) : ld(c + (rnd.coin() ? rnd.range(1, 9) : 0)) {
    data.assign(static_cast<size_t>(n * ld + c), std::numeric_limits<float>::quiet_NaN());
    std::fill_n(data.begin(), c, 0.0f);
    for (int i = 0; i < n; ++i)
      for (int k = 0; k < c; ++k) row(i)[k] = step ? size * rnd.range(-step, step) / step : size * rnd.real();
  }
  float *row(int64_t i) { return data.data() + (i + 1) * ld; }
};

// The second source of a convolution with n rows, or none for n < 0.
struct Second {
  int cin, cout;
  bool there;
  Input x;
  vector<float> weight;
  std::unique_ptr<void, decltype(&std::free)> packed{nullptr, std::free};
  Second(cs_context *ctx, int n, int cout_)
      : cin(rnd.coin() ? rnd.range(1, 40) : rnd.range(280, 400)), cout(cout_), there(n >= 0), x(n < 0 ? 0 : n, cin),
        weight(rnd.reals(static_cast<size_t>(cin) * cout)) {
    packed.reset(std::aligned_alloc(64, (cs_packed_bytes(ctx, 1, cin, cout) + 63) / 64 * 64));
    call(cs_pack_weight(ctx, weight.data(), 1, cin, cout, packed.get()));
  }
  void join(cs_conv *c) {
    if (there) c->x2 = x.row(0), c->ldx2 = x.ld, c->cin2 = cin, c->weight2 = packed.get();
  }
  void add(int row, double *sum, double *size) {  // size += sum of the terms' magnitudes
    for (int j = 0; j < cin && there; ++j)
      for (int o = 0; o < cout; ++o) {
        const double term = double{x.row(row)[j]} * weight[static_cast<size_t>(j) * cout + o];
        sum[o] += term, size[o] += std::fabs(term);
      }
  }
};

// Written by the library: [n, c] between guards.
template <class T> struct Output {
  int64_t n, c, ld;
  vector<T> data;
  Output(int64_t n_, int64_t c_, bool pad = true) : n(n_), c(c_), ld(c_ + (pad && rnd.coin() ? rnd.range(1, 9) : 0)) {
    data.resize(static_cast<size_t>(n * ld + 128));
    std::memset(data.data(), kGuard, data.size() * sizeof(T));
  }
  T *row(int64_t i) { return data.data() + 64 + i * ld; }
  void done(int64_t rows) {  // exactly these rows may have been written
    bool clean = true;
    for (int64_t i = 0; i < rows; ++i) digest(row(i), c * sizeof(T));
    for (int64_t i = 0; i < static_cast<int64_t>(data.size()); ++i) {
      const int64_t at = i - 64;
      if (at >= 0 && at < rows * ld && at % ld < c) continue;
      for (size_t b = 0; b < sizeof(T); ++b) clean &= reinterpret_cast<unsigned char *>(&data[i])[b] == kGuard;
    }
    expect(clean, "written outside of the rows asked for");
  }
  void done() { done(n); }
};

// Sites in raster order.
vector<int32_t> sites(int H, int W, int percent) {
  vector<int32_t> v;
  for (int y = 0; y < H; ++y)
    for (int x = 0; x < W; ++x)
      if (rnd.range(1, 100) <= percent) v.insert(v.end(), {y, x});
  v.shrink_to_fit();
  return v;
}

vector<int32_t> random_map(int n, int K, int n_in, int percent) {
  vector<int32_t> map(static_cast<size_t>(n) * K);
  for (int32_t &m : map) m = n_in && rnd.range(1, 100) <= percent ? rnd.range(0, n_in - 1) : -1;
  return map;
}

// Numbers of rows: none, one, some, several blocks of the library's.
int some_rows() {
  return op->cases < 2 ? static_cast<int>(op->cases) : rnd.range(0, 5) ? rnd.range(2, 90) : rnd.range(1020, 2100);
}

// ---- the loops -----------------------------------------------------------------------------------------------------

struct Tap { int a, b; double t; };
Tap tap(int i, int in, int out, cs_upsample up) {
  if (up == CS_NEAREST) return {i * in / out, i * in / out, 0};
  double at = up == CS_BILINEAR ? (i + 0.5) * in / out - 0.5 : out > 1 ? i * (in - 1.0) / (out - 1) : 0;
  at = std::min(std::max(at, 0.0), in - 1.0);
  const int a = static_cast<int>(at);
  return {a, std::min(a + 1, in - 1), at - a};
}
double logit_at(const vector<float> &v, int h, int w, int c, Tap y, Tap x) {
  const float *p = v.data() + static_cast<size_t>(c) * h * w;
  const auto mix = [&](int r) { return (1 - x.t) * p[r * w + x.a] + x.t * p[r * w + x.b]; };
  return y.t == 0 ? x.t == 0 ? p[y.a * w + x.a] : mix(y.a) : (1 - y.t) * mix(y.a) + y.t * mix(y.b);
}
template <class V> int best_of(const V &v, int C) {  // the lowest of the largest; NaN never wins
  int best = 0;
  double top = -INFINITY;
  for (int c = 0; c < C; ++c)
    if (v[c] > top) top = v[best = c];
  return best;
}
template <class V> vector<double> softmax(const V &v, int C) {
  vector<double> p(C);
  double sum = 0;
  for (int c = 0; c < C; ++c) sum += p[c] = std::exp(v[c] - static_cast<double>(v[best_of(v, C)]));
  for (double &x : p) x /= sum;
  return p;
}
double entropy(const vector<double> &p) {
  double e = 0;
  for (double x : p) e -= x * std::log(x < 1e-5 ? 1e-5 : x);
  return e;
}
void near_confidence(int got, double p) { deviation(std::max(0.0, std::fabs(got - 255 * p) - 0.5) / 255); }
vector<double> linear(const vector<double> &v, const vector<float> &w, const vector<float> &b, bool relu) {
  vector<double> y(b.begin(), b.end());
  for (size_t o = 0; o < y.size(); ++o) {
    for (size_t i = 0; i < v.size(); ++i) y[o] += w[o * v.size() + i] * v[i];
    if (relu && y[o] < 0) y[o] = 0;
  }
  return y;
}

}  // namespace
