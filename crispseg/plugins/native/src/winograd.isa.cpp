// Sparse Winograd F(2x2,3x3): for every 2x2 tile that has an active pixel, Y = A'[(G g G') . (B' d B)]A with d the 4x4 input
// around it, missing pixels zero. 16 products per tile and channel pair instead of 9 per pixel.
//
// Three steps per block of tiles: input transform into v (all channels), 16 matrix products v[p] x U[p] into m with the
// register tile of the direct convolution (conv_tile.h: AVX-512 24 sums + 2 weights of 32 registers, AVX2 and generic
// 12 + 2 of 16), output transform with the direct convolution's epilogue. A point's v [tiles, cin] stays in the L2 cache
// while all panels of its weights stream past once; v and m of other points may lie in the L3 cache, as each of their
// floats is moved once for 2 * cout (2 * cin) floating point operations.
// The transforms hold 16 vectors at a time: registers on AVX-512, partly the stack elsewhere.
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

// One register tile after the other: m[p] (+)= v[p][c0..c1] x the panel's weights.
template <int NV>
void multiply_panel(const WinogradBlock &block, int point, const Chunk &chunk, const float *w, const Ahead &ahead,
                    float *m, int64_t m_step) {
  const int64_t groups = (block.tiles + kRows - 1) / kRows;
  const float *v = block.v + point * block.v_point;
  for (int64_t g = 0; g < groups; ++g) {
    ahead.fetch(g, groups);
    const float *rows[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t t = g * kRows + r;  // past the end: the last tile again, the result is not looked at
      rows[r] = v + (t < block.tiles ? t : block.tiles - 1) * block.ldv;
    }
    accumulate<NV>(rows, 1, chunk, 1, block.conv->cin, w, m + g * m_step, chunk.first);
  }
}

// Packed: [point][panel][cin][panel width].
struct Weights {
  const cs_conv &conv;
  int64_t point;  // floats of a point

  const float *panel(int p, int panel) const {
    return static_cast<const float *>(conv.weight) + p * point + static_cast<int64_t>(panel) * kWidth * conv.cin;
  }
  Ahead slab(int p, int panel, const Chunk &chunk) const {
    const int64_t row = panel_vectors(conv.cout, panel) * kLanes * static_cast<int64_t>(sizeof(float));
    return {reinterpret_cast<const char *>(this->panel(p, panel)) + chunk.c0 * row, (chunk.c1 - chunk.c0) * row};
  }
};

// Points, then parts of the input channels, then panels: a part of v[p] is read by every panel while it is in the L2
// cache, and a part of a panel's weights (at most 36 KB) by every register tile.
void multiply(const WinogradBlock &block) {
  const cs_conv &conv = *block.conv;
  const int64_t columns = (conv.cout + kLanes - 1) / kLanes * static_cast<int64_t>(kLanes);
  const Weights weights{conv, columns * conv.cin};
  const int parts = (conv.cin + kMaxSteps - 1) / kMaxSteps;
  const int part = ((conv.cin + parts - 1) / parts + 3) / 4 * 4;
  const int64_t m_step = static_cast<int64_t>(block.panel1 - block.panel0) * kRows * kWidth;
  const auto make = [&](int c) { return Chunk{0, 1, c, c + part < conv.cin ? c + part : conv.cin, c == 0}; };
  for (int point = 0; point < kPoints; ++point) {
    for (int c = 0; c < conv.cin; c += part) {
      const Chunk chunk = make(c);
      const bool last = chunk.c1 == conv.cin;
      for (int p = block.panel0; p < block.panel1; ++p) {
        const Ahead ahead = p + 1 < block.panel1 ? weights.slab(point, p + 1, chunk)
                            : !last ? weights.slab(point, block.panel0, make(chunk.c1))
                            : point + 1 < kPoints ? weights.slab(point + 1, block.panel0, make(0)) : Ahead{nullptr, 0};
        float *m = block.m + point * block.m_point + static_cast<int64_t>(p - block.panel0) * kRows * kWidth;
        const float *w = weights.panel(point, p);
        switch (panel_vectors(conv.cout, p)) {
          case 1: multiply_panel<1>(block, point, chunk, w, ahead, m, m_step); break;
          case 2: multiply_panel<2>(block, point, chunk, w, ahead, m, m_step); break;
#if defined(__aarch64__)
          case 3: multiply_panel<3>(block, point, chunk, w, ahead, m, m_step); break;
          case 4: multiply_panel<4>(block, point, chunk, w, ahead, m, m_step); break;
#endif
          default: break;
        }
      }
    }
  }
}

bool transform_output(const WinogradBlock &block) {
  const cs_conv &conv = *block.conv;
  const int panels = block.panel1 - block.panel0;
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
      const float *m = block.m + (t / kRows * panels + p) * (kRows * kWidth) + t % kRows * width;
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
  if (!transform_input(block)) return false;
  multiply(block);
  return transform_output(block);
}

}  // namespace

const WinogradKernels CS_NAME(winograd_kernels) = {run_block};

}  // namespace crispseg
