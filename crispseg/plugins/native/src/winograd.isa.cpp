// Sparse Winograd F(2x2,3x3): for every 2x2 tile that has an active pixel, Y = A'[(G g G') . (B' d B)]A with d the 4x4 input
// around it, missing pixels zero. 16 products per tile and channel pair instead of 9 per pixel.
//
// Three steps per block of tiles: input transform into v (all channels), 16 matrix products v[p] x U[p] into m with the
// register tile of the direct convolution (conv_tile.h: AVX-512 24 sums + 2 weights of 32 registers, AVX2 and generic
// 12 + 2 of 16), output transform with the direct convolution's epilogue. A point's v [tiles, cin] stays in the L2 cache
// while all panels of its weights stream past once; v and m of other points may lie in the L3 cache, as each of their
// floats is moved once for 2 * cout (2 * cin) floating point operations.
// The transforms hold 16 vectors at a time: registers on AVX-512, partly the stack elsewhere.
//
// A second source (1x1) is a 3x3 kernel of its centre tap w alone: G g G' is w / 4 at the four points with a and b in
// {1, 2}, up to a sign that its input transform takes along with the quarter, and zero at the others. It adds cin2
// input channels to these four products, and nothing to m or the output transform.
#include "conv_tile.h"
#include "winograd_kernels.h"

namespace crispseg {

namespace {

// B' d B of one tile for kLanes (or one) channels.
template <class V>
inline void input_points(const V *d, V *u) {
  V t[16];
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    const V *c = d + 4 * x;
    t[4 * x] = c[0] - c[2];
    t[4 * x + 1] = c[1] + c[2];
    t[4 * x + 2] = c[2] - c[1];
    t[4 * x + 3] = c[1] - c[3];
  }
#pragma GCC unroll 4
  for (int a = 0; a < 4; ++a) {
    u[a] = t[a] - t[8 + a];
    u[4 + a] = t[4 + a] + t[8 + a];
    u[8 + a] = t[8 + a] - t[4 + a];
    u[12 + a] = t[4 + a] - t[12 + a];
  }
}

// The same for a second source: of its pixels d (number dy + 2 * dx), number (a - 1) + 2 * (b - 1).
template <class V>
inline void centre_points(const V *d, V *u) {
  const V s0 = d[0] + d[2], s1 = d[1] + d[3], t0 = d[0] - d[2], t1 = d[1] - d[3];
  u[0] = 0.25f * (s0 + s1);
  u[1] = 0.25f * (s0 - s1);
  u[2] = 0.25f * (t0 + t1);
  u[3] = 0.25f * (t0 - t1);
}

// A' m A: four outputs, number y + 2 * x.
inline void output_points(const vecf *m, vecf *y) {
  vecf t[8];
#pragma GCC unroll 4
  for (int b = 0; b < 4; ++b) {
    const vecf *c = m + 4 * b;
    t[2 * b] = c[0] + c[1] + c[2];
    t[2 * b + 1] = c[1] - c[2] - c[3];
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    y[i] = t[i] + t[2 + i] + t[4 + i];
    y[2 + i] = t[2 + i] - t[4 + i] - t[6 + i];
  }
}

bool transform_input(const WinogradBlock &block) {
  const cs_conv &conv = *block.conv;
  const float *zero = conv.x - conv.ldx;
  const int whole = conv.cin / kLanes * kLanes;
  for (int64_t t = 0; t < block.tiles; ++t) {
    const int32_t *in = block.in + kPoints * t;
    const float *rows[kPoints];
    uint32_t largest = 0;
    for (int i = 0; i < kPoints; ++i) {
      const uint32_t from = static_cast<uint32_t>(in[i]) + 1u;
      largest = from > largest ? from : largest;
      rows[i] = zero + static_cast<int64_t>(from) * conv.ldx;
    }
    if (largest > static_cast<uint32_t>(conv.n_in)) return false;
    float *to = block.v + t * block.ldv;
    for (int c = 0; c < whole; c += kLanes) {
      vecf d[kPoints], u[kPoints];
#pragma GCC unroll 16
      for (int i = 0; i < kPoints; ++i) d[i] = load(rows[i] + c);
      input_points(d, u);
#pragma GCC unroll 16
      for (int i = 0; i < kPoints; ++i) store(to + i * block.v_point + c, u[i]);
    }
    for (int c = whole; c < conv.cin; ++c) {
      float d[kPoints], u[kPoints];
      for (int i = 0; i < kPoints; ++i) d[i] = rows[i][c];
      input_points(d, u);
      for (int i = 0; i < kPoints; ++i) to[i * block.v_point + c] = u[i];
    }
  }
  return true;
}

bool transform_second(const WinogradBlock &block) {
  const cs_conv &conv = *block.conv;
  const float *zero = conv.x2 - conv.ldx2;
  const int whole = conv.cin2 / kLanes * kLanes;
  for (int64_t t = 0; t < block.tiles; ++t) {
    const float *rows[kCentre];
    for (int i = 0; i < kCentre; ++i) {
      const uint32_t from = static_cast<uint32_t>(block.out[kCentre * t + i]) + 1u;
      if (from > static_cast<uint32_t>(conv.n_out)) return false;
      rows[i] = zero + static_cast<int64_t>(from) * conv.ldx2;
    }
    float *to = block.v2 + t * block.ldv2;
    for (int c = 0; c < whole; c += kLanes) {
      vecf d[kCentre], u[kCentre];
      for (int i = 0; i < kCentre; ++i) d[i] = load(rows[i] + c);
      centre_points(d, u);
      for (int i = 0; i < kCentre; ++i) store(to + i * block.v2_point + c, u[i]);
    }
    for (int c = whole; c < conv.cin2; ++c) {
      float d[kCentre], u[kCentre];
      for (int i = 0; i < kCentre; ++i) d[i] = rows[i][c];
      centre_points(d, u);
      for (int i = 0; i < kCentre; ++i) to[i * block.v2_point + c] = u[i];
    }
  }
  return true;
}

// What one point multiplies: rows of one source, and its weights [panel][cin][panel width].
struct Source {
  const float *v, *weight;
  int64_t ldv;
  int cin;

  static Source first(const WinogradBlock &block, int point) {
    const cs_conv &conv = *block.conv;
    const int64_t columns = (conv.cout + kLanes - 1) / kLanes * static_cast<int64_t>(kLanes);
    const float *weight = static_cast<const float *>(conv.weight) + point * columns * conv.cin;
    return {block.v + point * block.v_point, weight, block.ldv, conv.cin};
  }
  static Source second(const WinogradBlock &block, int centre) {
    const cs_conv &conv = *block.conv;
    return {block.v2 + centre * block.v2_point, static_cast<const float *>(conv.weight2), block.ldv2, conv.cin2};
  }
  const float *panel(int panel) const { return weight + static_cast<int64_t>(panel) * kWidth * cin; }
};

// Number of a point among those of a second source, or -1.
inline int centre_of(int point) {
  const int a = point % 4, b = point / 4;
  return (a == 1 || a == 2) && (b == 1 || b == 2) ? a - 1 + 2 * (b - 1) : -1;
}

// Input channels of a part, at most: 18 KB of a panel's weights, which stay in the L1 cache beside the rows of a register
// tile. (With parts of 36 KB, as in the direct convolution, AVX-512 is 2 to 3 % slower at 512 and 1024 channels.)
constexpr int kPartSteps = 4608 / kWidth < kMaxSteps ? 4608 / kWidth : kMaxSteps;

// A part of the input channels of one source of one point.
struct Step {
  int point;
  bool second;
  Source from;
  Chunk chunk;

  static Step at(const WinogradBlock &block, int point, bool second, int c) {
    const Source from = second ? Source::second(block, centre_of(point)) : Source::first(block, point);
    const int parts = (from.cin + kPartSteps - 1) / kPartSteps;
    const int part = ((from.cin + parts - 1) / parts + 3) / 4 * 4;
    return {point, second, from, {0, 1, c, c + part < from.cin ? c + part : from.cin, c == 0 && !second}};
  }
  static Step begin(const WinogradBlock &block) { return at(block, 0, false, 0); }
  Step next(const WinogradBlock &block) const {
    if (chunk.c1 < from.cin) return at(block, point, second, chunk.c1);
    if (block.conv->x2 && !second && centre_of(point) >= 0) return at(block, point, true, 0);
    return at(block, point + 1, false, 0);
  }
  // The weights of a panel.
  Ahead slab(const WinogradBlock &block, int panel) const {
    const int64_t row = panel_vectors(block.conv->cout, panel) * kLanes * static_cast<int64_t>(sizeof(float));
    return {reinterpret_cast<const char *>(from.panel(panel)) + chunk.c0 * row, (chunk.c1 - chunk.c0) * row};
  }
};

// One register tile after the other: m[p] (+)= v[p][c0..c1] x the panel's weights.
template <int NV>
void multiply_panel(const WinogradBlock &block, const Source &from, const Chunk &chunk, const float *w,
                    const Ahead &ahead, float *m, int64_t m_step) {
  const int64_t groups = (block.tiles + kRows - 1) / kRows;
  for (int64_t g = 0; g < groups; ++g) {
    ahead.fetch(g, groups);
    const float *rows[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t t = g * kRows + r;  // past the end: the last tile again, the result is not looked at
      rows[r] = from.v + (t < block.tiles ? t : block.tiles - 1) * from.ldv;
    }
    accumulate<NV>(rows, 1, chunk, 1, from.cin, w, m + g * m_step, chunk.first);
  }
}

// Points, then parts of the input channels, then panels: a part of v[p] is read by every panel while it is in the L2
// cache, and a part of a panel's weights by every register tile. A second source follows the first. m lies panel by
// panel, so that one pass writes (and the next part's reads) one run of memory.
void multiply(const WinogradBlock &block) {
  const int64_t m_step = kRows * kWidth, m_panel = (block.tiles + kRows - 1) / kRows * m_step;
  for (Step step = Step::begin(block); step.point < kPoints;) {
    const Step next = step.next(block);
    for (int p = block.panel0; p < block.panel1; ++p) {
      const Ahead ahead = p + 1 < block.panel1 ? step.slab(block, p + 1)
                          : next.point < kPoints ? next.slab(block, block.panel0) : Ahead{nullptr, 0};
      float *m = block.m + step.point * block.m_point + (p - block.panel0) * m_panel;
      const float *w = step.from.panel(p);
      switch (panel_vectors(block.conv->cout, p)) {
        case 1: multiply_panel<1>(block, step.from, step.chunk, w, ahead, m, m_step); break;
        case 2: multiply_panel<2>(block, step.from, step.chunk, w, ahead, m, m_step); break;
#if defined(__aarch64__)
        case 3: multiply_panel<3>(block, step.from, step.chunk, w, ahead, m, m_step); break;
        case 4: multiply_panel<4>(block, step.from, step.chunk, w, ahead, m, m_step); break;
#endif
        default: break;
      }
    }
    step = next;
  }
}

bool transform_output(const WinogradBlock &block) {
  const cs_conv &conv = *block.conv;
  const int panels = block.panel1 - block.panel0;
  const int64_t groups = (block.tiles + kRows - 1) / kRows;
  for (int64_t t = 0; t < block.tiles; ++t) {
    int32_t out[4];
    int from[4], active = 0;  // the outputs that are active pixels
    for (int i = 0; i < 4; ++i) {
      const int32_t row = block.out[4 * t + i];
      if (row < -1 || row >= conv.n_out) return false;
      if (row < 0) continue;
      from[active] = i;
      out[active++] = row;
    }
    for (int p = 0; p < panels; ++p) {
      const int vectors = panel_vectors(conv.cout, block.panel0 + p), width = vectors * kLanes;
      const float *m = block.m + (p * groups + t / kRows) * (kRows * kWidth) + t % kRows * width;
      alignas(64) float sums[4 * kWidth];
      for (int v = 0; v < vectors; ++v, m += kLanes) {
        vecf points[kPoints], y[4];
#pragma GCC unroll 16
        for (int i = 0; i < kPoints; ++i) points[i] = *reinterpret_cast<const vecf *>(m + i * block.m_point);
        output_points(points, y);
        for (int i = 0; i < active; ++i) *reinterpret_cast<vecf *>(sums + i * width + v * kLanes) = y[from[i]];
      }
      const int col = (block.panel0 + p) * kWidth, cols = conv.cout - col < width ? conv.cout - col : width;
      finish(conv, out, active, sums, width, col, cols);
    }
  }
  return true;
}

bool run_block(const WinogradBlock &block) {
  if (!transform_input(block) || (block.conv->x2 && !transform_second(block))) return false;
  multiply(block);
  return transform_output(block);
}

}  // namespace

const WinogradKernels CS_NAME(winograd_kernels) = {run_block};

}  // namespace crispseg
