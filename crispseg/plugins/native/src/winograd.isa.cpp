// Sparse Winograd: for every tile of 2x2 or 4x4 pixels that has an active one, Y = A'[(G g G') . (B' d B)]A with d the
// 4x4 or 6x6 input around it, missing pixels zero. 16 or 36 products per tile and channel pair instead of 9 per pixel.
//
// Three steps per block of tiles: input transform into v (all channels), one matrix product v[p] x U[p] a point into m
// with the register tile of the direct convolution (conv_tile.h: AVX-512 24 sums + 4 weights of 32 registers, AVX2 and
// generic 12 + 2 of 16), output transform with the direct convolution's epilogue. A point's v [tiles, cin] stays in the
// L2 cache while all panels of its weights stream past once; v and m of other points may lie in the L3 cache, as each
// of their floats is moved once for 2 * cout (2 * cin) floating point operations.
// The transforms hold 16 vectors at a time, registers on AVX-512; of the 36 of a 4x4 tile a column at a time.
#include "conv_tile.h"
#include "winograd_points.h"

namespace crispseg {

namespace {

// Transforms one square of pixels: `from(i)` gives pixel number dy + side * dx, `to(i, value)` takes a point.
template <int kSide, class V, class From, class To, class Transform>
inline void square(From &&from, To &&to, Transform &&transform) {
  V t[kSide * kSide];
#pragma GCC unroll 6
  for (int x = 0; x < kSide; ++x) {
    V d[kSide];
#pragma GCC unroll 6
    for (int y = 0; y < kSide; ++y) d[y] = from(y + kSide * x);
    transform(d, t + kSide * x);
  }
#pragma GCC unroll 6
  for (int a = 0; a < kSide; ++a) {
    V d[kSide], u[kSide];
#pragma GCC unroll 6
    for (int x = 0; x < kSide; ++x) d[x] = t[a + kSide * x];
    transform(d, u);
#pragma GCC unroll 6
    for (int b = 0; b < kSide; ++b) to(a + kSide * b, u[b]);
  }
}

// The rows that a tile reads; false when one lies outside.
template <int kCount>
inline bool find_rows(const int32_t *in, const float *x, int64_t ldx, int n, const float **rows) {
  uint32_t largest = 0;
  for (int i = 0; i < kCount; ++i) {
    const uint32_t from = static_cast<uint32_t>(in[i]) + 1u;
    largest = from > largest ? from : largest;
    rows[i] = x + (static_cast<int64_t>(from) - 1) * ldx;
  }
  return largest <= static_cast<uint32_t>(n);
}

// v[point][tile][channel] of every channel of `cin`, kSide * kSide rows to as many points.
template <int kSide, class Transform>
inline void transform_tile(const float *const *rows, int cin, float *to, int64_t v_point, Transform &&transform) {
  const int whole = cin / kLanes * kLanes;
  for (int c = 0; c < whole; c += kLanes)
    square<kSide, vecf>([&](int i) { return load(rows[i] + c); },
                        [&](int i, vecf u) { store(to + i * v_point + c, u); }, transform);
  for (int c = whole; c < cin; ++c)
    square<kSide, float>([&](int i) { return rows[i][c]; },
                         [&](int i, float u) { to[i * v_point + c] = u; }, transform);
}

template <class F>
bool transform_input(const WinogradBlock &block) {
  constexpr int kPoints = F::kSide * F::kSide;
  const cs_conv &conv = *block.conv;
  for (int64_t t = 0; t < block.tiles; ++t) {
    const float *rows[kPoints];
    if (!find_rows<kPoints>(block.in + kPoints * t, conv.x, conv.ldx, conv.n_in, rows)) return false;
    transform_tile<F::kSide>(rows, conv.cin, block.v + t * block.ldv, block.v_point,
                             [](const auto *d, auto *u) { F::input(d, u); });
  }
  return true;
}

// What one point multiplies: transformed rows, and weights [panel][cin][panel width].
struct Point {
  const float *v, *weight;

  Point(const WinogradBlock &block, int point) : v(block.v + point * block.v_point) {
    const cs_conv &conv = *block.conv;
    const int64_t columns = (conv.cout + kLanes - 1) / kLanes * static_cast<int64_t>(kLanes);
    weight = static_cast<const float *>(conv.weight) + point * columns * conv.cin;
  }
  const float *panel(const cs_conv &conv, int panel) const {
    return weight + static_cast<int64_t>(panel) * kWidth * conv.cin;
  }
};

// A part of the input channels of one point. F::kPart of them at most: AVX-512's weights of a panel (13 and 18 KB) stay
// in the L1 cache beside the rows of a register tile (72 channels against twice as many and more: 1 to 6 % faster at
// 512 and 1024), and short sums keep the error of F(2x2) at that of the direct kernel, which needs the shorter ones.
template <class F>
struct Step {
  int point;
  Chunk chunk;

  static Step at(const cs_conv &conv, int point, int c) {
    const int parts = (conv.cin + F::kPart - 1) / F::kPart;
    const int part = ((conv.cin + parts - 1) / parts + 3) / 4 * 4;
    return {point, {0, 1, c, c + part < conv.cin ? c + part : conv.cin, c == 0}};
  }
  Step next(const cs_conv &conv) const {
    return chunk.c1 < conv.cin ? at(conv, point, chunk.c1) : at(conv, point + 1, 0);
  }
  // The weights of a panel.
  Ahead slab(const WinogradBlock &block, int panel) const {
    const cs_conv &conv = *block.conv;
    const int64_t row = panel_vectors(conv.cout, panel) * kLanes * static_cast<int64_t>(sizeof(float));
    const float *weight = Point(block, point).panel(conv, panel);
    return {reinterpret_cast<const char *>(weight) + chunk.c0 * row, (chunk.c1 - chunk.c0) * row};
  }
};

// One register tile after the other: m[p] (+)= v[p][c0..c1] x the panel's weights.
template <int NV>
void multiply_panel(const WinogradBlock &block, const Point &point, const Chunk &chunk, int panel, const Ahead &ahead,
                    float *m) {
  const cs_conv &conv = *block.conv;
  const float *const w = point.panel(conv, panel);
  const int64_t groups = (block.tiles + kRows - 1) / kRows;
  for (int64_t g = 0; g < groups; ++g, m += kRows * kWidth) {
    ahead.fetch(g, groups);
    const float *rows[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t t = g * kRows + r;  // past the end: the last tile again, the result is not looked at
      rows[r] = point.v + (t < block.tiles ? t : block.tiles - 1) * block.ldv;
    }
    accumulate<NV>(rows, 1, chunk, 1, conv.cin, w, m, chunk.first);
  }
}

// Points, then parts of the input channels, then panels: a part of v[p] is read by every panel while it is in the L2
// cache, and a part of a panel's weights by every register tile. m lies panel by panel, so that one pass writes (and
// the next part's reads) one run of memory.
template <class F>
void multiply(const WinogradBlock &block) {
  constexpr int kPoints = F::kSide * F::kSide;
  const cs_conv &conv = *block.conv;
  const int64_t m_panel = (block.tiles + kRows - 1) / kRows * (kRows * kWidth);
  for (auto step = Step<F>::at(conv, 0, 0); step.point < kPoints;) {
    const Step<F> next = step.next(conv);
    const Point point(block, step.point);
    for (int p = block.panel0; p < block.panel1; ++p) {
      const Ahead ahead = p + 1 < block.panel1 ? step.slab(block, p + 1)
                          : next.point < kPoints ? next.slab(block, block.panel0) : Ahead{nullptr, 0};
      float *m = block.m + step.point * block.m_point + (p - block.panel0) * m_panel;
      switch (panel_vectors(conv.cout, p)) {
        case 1: multiply_panel<1>(block, point, step.chunk, p, ahead, m); break;
        case 2: multiply_panel<2>(block, point, step.chunk, p, ahead, m); break;
        case 3: if constexpr (kVectors > 2) multiply_panel<3>(block, point, step.chunk, p, ahead, m); break;
        case 4: if constexpr (kVectors > 2) multiply_panel<4>(block, point, step.chunk, p, ahead, m); break;
        default: break;
      }
    }
    step = next;
  }
}

template <class F>
bool transform_output(const WinogradBlock &block) {
  constexpr int kTile = F::kTile, kSide = F::kSide, kOutputs = kTile * kTile;
  const cs_conv &conv = *block.conv;
  const int panels = block.panel1 - block.panel0;
  const int64_t groups = (block.tiles + kRows - 1) / kRows;
  for (int64_t t = 0; t < block.tiles; ++t) {
    int32_t out[kOutputs];
    int from[kOutputs], active = 0;  // the outputs that are active pixels
    for (int i = 0; i < kOutputs; ++i) {
      const int32_t row = block.out[kOutputs * t + i];
      if (row < -1 || row >= conv.n_out) return false;
      if (row < 0) continue;
      from[active] = i;
      out[active++] = row;
    }
    for (int p = 0; p < panels; ++p) {
      const int vectors = panel_vectors(conv.cout, block.panel0 + p), width = vectors * kLanes;
      const float *m = block.m + (p * groups + t / kRows) * (kRows * kWidth) + t % kRows * width;
      alignas(64) float sums[kOutputs * kWidth];
      for (int v = 0; v < vectors; ++v, m += kLanes) {
        vecf half[kTile * kSide], y[kOutputs];
#pragma GCC unroll 6
        for (int b = 0; b < kSide; ++b) {
          vecf points[kSide];
#pragma GCC unroll 6
          for (int a = 0; a < kSide; ++a) points[a] = load(m + (a + kSide * b) * block.m_point);
          F::output(points, half + kTile * b);
        }
#pragma GCC unroll 4
        for (int dy = 0; dy < kTile; ++dy) {
          vecf points[kSide], row[kTile];
#pragma GCC unroll 6
          for (int b = 0; b < kSide; ++b) points[b] = half[dy + kTile * b];
          F::output(points, row);
#pragma GCC unroll 4
          for (int dx = 0; dx < kTile; ++dx) y[dy + kTile * dx] = row[dx];
        }
        for (int i = 0; i < active; ++i) store(sums + i * width + v * kLanes, y[from[i]]);
      }
      const int col = (block.panel0 + p) * kWidth, cols = conv.cout - col < width ? conv.cout - col : width;
      finish(conv, out, active, sums, width, col, cols);
    }
  }
  return true;
}

template <class F>
bool run_block(const WinogradBlock &block) {
  if (!transform_input<F>(block)) return false;
  multiply<F>(block);
  return transform_output<F>(block);
}

}  // namespace

const WinogradKernels CS_NAME(winograd_kernels) = {run_block<F2>, run_block<F4>};

}  // namespace crispseg
