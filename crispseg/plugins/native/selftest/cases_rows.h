// One random case of every row-wise op of the ABI: front end and back end.
#pragma once
#include "check.h"

namespace {

void select_pixels(cs_context *ctx) {
  const cs_upsample up = static_cast<cs_upsample>(op->cases % 3);
  const int C = op->cases == 5 ? 256 : rnd.coin() ? 19 : rnd.range(1, 40), h = rnd.range(1, 10), w = rnd.range(1, 40);
  const int H = rnd.coin() ? h * rnd.range(1, 5) : rnd.range(1, 50), kind = rnd.range(0, 4);
  const int W = rnd.coin() ? w * rnd.range(1, w > 9 ? 5 : 18) : rnd.range(1, 150);  // phases, tables, shrinking
  const bool direct = up == CS_NEAREST || (h == H && w == W);
  const int period = 1 << rnd.range(1, 4), lead = rnd.range(6, 16);
  vector<float> logits = rnd.reals(static_cast<size_t>(C) * h * w, 4);
  for (int i = 0, plane = h * w; i < plane; ++i) {
    if (kind == 1 || (kind == 3 && !direct)) {  // stripes of certain pixels, with a few that are not
      for (int c = 0; c < C; ++c) logits[c * plane + i] /= 8;
      logits[(rnd.range(0, 49) ? i % w / period % C : 0) * plane + i] += static_cast<float>(lead);
    }
    if (kind == 4) {  // one class leads, all others are equal: the most entropy that a lead allows
      const int leader = rnd.range(0, C - 1);
      for (int c = 0; c < C; ++c) logits[c * plane + i] = c == leader ? 4 + 4 * rnd.real() : 0;
    }
    if (kind == 2)
      for (int c = 0; c < C; ++c) logits[c * plane + i] = std::floor(logits[c * plane]);  // one tie everywhere
  }
  if (direct && kind == 3) logits[rnd.range(0, C * h * w - 1)] = std::numeric_limits<float>::quiet_NaN();
  const float thresholds[] = {0.0f, -1.0f, INFINITY, 0.3f, 0.7f, 1.2f, 1.2f}, threshold = thresholds[rnd.range(0, 6)];
  const int capacity = rnd.coin() ? H * W : rnd.range(0, H * W / 3);
  const bool confident = rnd.coin();
  Output<uint8_t> labels(H * W, 1, false), confidence(H * W, 1, false);
  Output<int32_t> coords(capacity, 2, false);
  int32_t count = -1, found = -1;
  call(cs_select_pixels(ctx, logits.data(), C, h, w, H, W, up, threshold, capacity, labels.row(0),
                        confident ? confidence.row(0) : nullptr, coords.row(0), &count, &found));
  labels.done();
  confidence.done(confident ? H * W : 0);
  expect(count == std::min(found, capacity) && count >= 0, "count and found disagree");
  if (op->failures) return;
  coords.done(count);
  vector<char> kept(H * W);
  for (int i = 0, last = -1; i < count; ++i) {
    const int x = coords.row(i)[1], at = coords.row(i)[0] * W + x;
    if (at <= last || at >= H * W || x < 0 || x >= W) return wrong("site %d misplaced", i);
    kept[last = at] = 1;
  }
  vector<double> e(H * W), sorted, v(C);
  for (int i = 0; i < H * W; ++i) {
    const Tap y = tap(i / W, h, H, up), x = tap(i % W, w, W, up);
    for (int c = 0; c < C; ++c) v[c] = logit_at(logits, h, w, c, y, x);
    const int best = best_of(v, C), label = *labels.row(i);
    if (label >= C) return wrong("label %d", label);
    if (label != best) deviation(direct ? 1 : (v[best] - v[label]) / 20);
    const vector<double> p = softmax(v, C);
    e[i] = entropy(p);
    if (confident && !std::isnan(e[i])) near_confidence(*confidence.row(i), p[best]);
    if (std::isnan(e[i])) e[i] = -INFINITY;  // above no threshold
    if (e[i] > threshold) sorted.push_back(e[i]);
  }
  const auto above = [&](double t) { return std::count_if(e.begin(), e.end(), [&](double x) { return x > t; }); };
  const double slack = op->tolerance;
  expect(found >= above(threshold + slack) && found <= above(threshold - slack), "number of sites found");
  std::sort(sorted.rbegin(), sorted.rend());
  const bool over = found > capacity;
  double limit = threshold;
  if (over) limit = capacity == 0 ? INFINITY : sorted[std::min<size_t>(capacity, sorted.size()) - 1];
  bool gap = false;
  for (int i = 0; i < H * W; ++i) {
    deviation(std::max(0.0, kept[i] ? limit - e[i] : e[i] - limit));
    if (kind == 2 && over) expect(!(gap && kept[i]), "ties: the first in raster order stay");
    gap |= !kept[i];
  }
}

void pixel_colours(cs_context *ctx) {
  const int H = rnd.range(1, 60), W = rnd.range(1, 90), bgr = rnd.range(0, 1);
  const vector<int32_t> at = sites(H, W, rnd.range(0, 100));
  const int n = static_cast<int>(at.size() / 2);
  vector<uint8_t> image(H * W * 3);
  for (uint8_t &v : image) v = static_cast<uint8_t>(rnd.next());
  const float mean[3] = {123.7f, 116.3f, 103.5f}, std[3] = {58.4f, 57.1f, 57.4f};
  Output<float> x(n, 3);
  call(cs_pixel_colours(ctx, image.data(), H, W, at.data(), n, mean, std, bgr, x.row(0), x.ld));
  x.done();
  for (int i = 0; i < n; ++i)
    for (int c = 0; c < 3; ++c) {
      const double v = image[(at[2 * i] * W + at[2 * i + 1]) * 3 + (bgr ? 2 - c : c)];
      near(x.row(i)[c], (v - mean[c]) / std[c], 1);
    }
}

void logits_at(cs_context *ctx) {
  const cs_upsample up = static_cast<cs_upsample>(op->cases % 3);
  const int C = rnd.range(1, 40), h = rnd.range(1, 20), w = rnd.range(1, 30);
  const int H = rnd.range(1, 90), W = rnd.range(1, 90);
  const vector<float> logits = rnd.reals(static_cast<size_t>(C) * h * w, 10);
  const vector<int32_t> at = sites(H, W, rnd.range(0, 100));
  const int n = static_cast<int>(at.size() / 2);
  Output<float> y(n, C);
  call(cs_logits_at(ctx, logits.data(), C, h, w, H, W, up, at.data(), n, y.row(0), y.ld));
  y.done();
  for (int i = 0; i < n; ++i)
    for (int c = 0; c < C; ++c)
      near(y.row(i)[c], logit_at(logits, h, w, c, tap(at[2 * i], h, H, up), tap(at[2 * i + 1], w, W, up)), 10);
}

void softmax_rows(cs_context *ctx) {
  const int n = some_rows(), C = rnd.range(1, 300);
  Input x(n, C, rnd.coin() ? 5.0f : 60.0f);
  if (n > 4) x.row(3)[C - 1] = std::numeric_limits<float>::quiet_NaN();
  Output<float> y(n, C);
  call(cs_softmax_rows(ctx, x.row(0), x.ld, n, C, y.row(0), y.ld));
  y.done();
  for (int i = 0; i < n; ++i) {
    const vector<double> p = softmax(x.row(i), C);
    for (int c = 0; c < C; ++c) near(y.row(i)[c], p[c], 1);
  }
}

void ensemble_gated(cs_context *ctx) {
  const int n = some_rows(), C = rnd.range(1, 40), hidden = rnd.range(1, 70), alias = rnd.range(0, 2);
  Input a(n, C, 6), b(n, C, 6);
  const vector<float> w1 = rnd.reals(hidden * (2 * C + 2)), b1 = rnd.reals(hidden), w2 = rnd.reals(2 * hidden);
  const vector<float> b2 = rnd.reals(2), w3 = rnd.reals(hidden * C), b3 = rnd.reals(hidden), w4 = rnd.reals(C * hidden);
  const vector<float> b4 = rnd.reals(C);
  const cs_gate gate{C,         hidden,    w1.data(), b1.data(), w2.data(),
                     b2.data(), w3.data(), b3.data(), w4.data(), b4.data()};
  Output<float> y(n, C);
  for (int i = 0; i < n && alias; ++i) std::copy_n((alias == 1 ? a : b).row(i), C, y.row(i));
  const float *yi = alias == 1 ? y.row(0) : a.row(0), *yo = alias == 2 ? y.row(0) : b.row(0);
  call(cs_ensemble_gated(ctx, yi, alias == 1 ? y.ld : a.ld, yo, alias == 2 ? y.ld : b.ld, n, &gate, y.row(0), y.ld));
  y.done();
  for (int i = 0; i < n; ++i) {
    vector<double> v = softmax(a.row(i), C), q = softmax(b.row(i), C), m(C);
    v.push_back(entropy(v));
    v.insert(v.end(), q.begin(), q.end());
    v.push_back(entropy(q));
    const vector<double> g = softmax(linear(linear(v, w1, b1, true), w2, b2, false), 2);
    for (int c = 0; c < C; ++c) m[c] = g[0] * a.row(i)[c] + g[1] * b.row(i)[c];
    const vector<double> want = linear(linear(m, w3, b3, true), w4, b4, false);
    for (int c = 0; c < C; ++c) near(y.row(i)[c], want[c], 6.0 * std::sqrt(static_cast<double>(C) * hidden));
  }
}

void ensemble_entropy(cs_context *ctx) {
  const int n = some_rows(), C = rnd.range(1, 300);
  Input a(n, C, 4, 64), b(n, C, 4, 64);
  for (int i = 0; i < n; i += 3)
    for (int c = 0; c < C; ++c) a.row(i)[c] = b.row(i)[c] + 1;  // the same entropy to the bit
  if (n > 9) a.row(4)[0] = b.row(8)[C - 1] = std::numeric_limits<float>::quiet_NaN();
  Output<float> y(n, C);
  call(cs_ensemble_entropy(ctx, a.row(0), a.ld, b.row(0), b.ld, n, C, y.row(0), y.ld));
  y.done();
  for (int i = 0; i < n; ++i) {
    const double ea = entropy(softmax(a.row(i), C)), eb = entropy(softmax(b.row(i), C));
    const bool first = !std::memcmp(y.row(i), a.row(i), C * sizeof(float));
    const bool second = !std::memcmp(y.row(i), b.row(i), C * sizeof(float));
    if (!first && !second) wrong("row %d is neither of the two", i);
    if (i % 3 == 0 || std::isnan(ea) || std::isnan(eb)) expect(second, "ties and NaN: yo");
    else if (!first || !second) deviation(std::max(0.0, first ? ea - eb : eb - ea));
  }
}

void scatter_labels(cs_context *ctx) {
  const int H = rnd.range(1, 60), W = rnd.range(1, 60), C = rnd.coin() ? 19 : rnd.range(1, 256);
  const vector<int32_t> at = sites(H, W, rnd.range(0, 100));
  const int n = static_cast<int>(at.size() / 2);
  const bool confident = rnd.coin();
  Input x(n, C, 6, 5);  // many ties
  Output<uint8_t> labels(H * W, 1, false), confidence(H * W, 1, false);
  uint8_t *sure = confident ? confidence.row(0) : nullptr;
  call(cs_scatter_labels(ctx, labels.row(0), sure, H, W, at.data(), n, x.row(0), x.ld, C));
  for (int i = 0; i < n; ++i) {
    const int pixel = at[2 * i] * W + at[2 * i + 1], best = best_of(x.row(i), C);
    expect(*labels.row(pixel) == best, "label");
    if (confident) near_confidence(*confidence.row(pixel), softmax(x.row(i), C)[best]);
    digest(labels.row(pixel), 1);
    *labels.row(pixel) = *confidence.row(pixel) = kGuard;
  }
  labels.done(0), confidence.done(0);
}

}  // namespace
