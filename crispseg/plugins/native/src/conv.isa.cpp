// The convolution's inner loops: an indirect matrix product in register tiles. A tile is MR output rows by NV vectors of
// output columns; every tap adds MR input rows (found through pointers) times a [cin, NV * lanes] slab of weights.
// Sums run over taps, then input channels, in one order whatever the blocking, so that results do not depend on it.
#include "conv_kernels.h"

namespace crispseg {

namespace {

#if defined(CS_ISA_AVX512)
constexpr int kRows = 12, kVectors = 2;  // 24 sums of 32 registers
#elif defined(CS_ISA_AVX2)
constexpr int kRows = 6, kVectors = 2;  // 12 sums of 16 registers
#elif defined(__aarch64__)
constexpr int kRows = 6, kVectors = 4;  // 24 sums of 32 registers
#else
constexpr int kRows = 6, kVectors = 2;  // 12 sums of 16 registers
#endif
constexpr int kWidth = kVectors * kLanes;
constexpr int kMaxSteps = 288;

struct Chunk {
  int tap0, tap1, c0, c1;
  bool first, last;
};

// sums += the chunk's taps. rows: [K][kRows]; w: the panel's weights [K][cin][NV * kLanes].
template <int NV>
__attribute__((noinline)) void accumulate(const float *const *rows, uint32_t taps, const Chunk &chunk, int cin,
                                          const float *w, float *sums, bool zero) {
  constexpr int width = NV * kLanes;
  vecf s[kRows][NV];
  if (zero) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) s[r][v] = vecf{};
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) s[r][v] = *reinterpret_cast<const vecf *>(sums + r * width + v * kLanes);
  }
  const int steps = chunk.c1 - chunk.c0;
  for (int tap = chunk.tap0; tap < chunk.tap1; ++tap) {
    if (!(taps >> tap & 1)) continue;
    const float *a[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) a[r] = rows[tap * kRows + r] + chunk.c0;
    const float *b = w + (static_cast<int64_t>(tap) * cin + chunk.c0) * width;
#pragma GCC unroll 2
    for (int64_t c = 0; c < steps; ++c) {
      vecf bv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) bv[v] = *reinterpret_cast<const vecf *>(b + c * width + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const float av = a[r][c];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) s[r][v] += av * bv[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) *reinterpret_cast<vecf *>(sums + r * width + v * kLanes) = s[r][v];
}

inline vecf load(const float *p) { return *reinterpret_cast<const vecf_u *>(p); }
inline void store(float *p, vecf v) { *reinterpret_cast<vecf_u *>(p) = v; }
// NaN stays NaN, so that a broken network shows.
inline vecf relu(vecf v) { return v < 0.0f ? vecf{} : v; }

// bias, residual, relu, then the outputs, for `cols` columns from `col` of the tile's rows.
void finish(const cs_conv &conv, const int32_t *out, const float *sums, int width, int col, int cols) {
  const int whole = cols / kLanes * kLanes;
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = out[r];
    if (row < 0) break;
    const float *s = sums + r * width;
    const float *residual = conv.residual ? conv.residual + row * conv.ldr + col : nullptr;
    float *y = conv.y ? conv.y + row * conv.ldy + col : nullptr;
    float *z[2];
    for (int i = 0; i < 2; ++i) z[i] = conv.z[i] ? conv.z[i] + row * conv.ldz[i] + col : nullptr;
    int c = 0;
    for (; c < whole; c += kLanes) {
      vecf v = load(s + c);
      if (conv.bias) v += load(conv.bias + col + c);
      if (residual) v += load(residual + c);
      if (conv.relu) v = relu(v);
      if (y) store(y + c, v);
      for (int i = 0; i < 2; ++i)
        if (z[i]) store(z[i] + c, relu(v * load(conv.scale[i] + col + c) + load(conv.shift[i] + col + c)));
    }
    for (; c < cols; ++c) {
      float v = s[c];
      if (conv.bias) v += conv.bias[col + c];
      if (residual) v += residual[c];
      if (conv.relu) v = v < 0.0f ? 0.0f : v;
      if (y) y[c] = v;
      for (int i = 0; i < 2; ++i)
        if (z[i]) {
          const float t = v * conv.scale[i][col + c] + conv.shift[i][col + c];
          z[i][c] = t < 0.0f ? 0.0f : t;
        }
    }
  }
}

template <int NV>
void panel_pass(const ConvBlock &block, const Chunk &chunk, int panel, const float *w, float *acc) {
  constexpr int width = NV * kLanes;
  const cs_conv &conv = *block.conv;
  const int col = panel * kWidth, cols = conv.cout - col < width ? conv.cout - col : width;
  alignas(64) float tile[kRows * width];
  for (int64_t t = 0; t < block.tiles; ++t) {
    float *sums = chunk.first && chunk.last ? tile : acc + t * kRows * width;
    accumulate<NV>(block.rows + t * conv.K * kRows, block.taps[t], chunk, conv.cin, w, sums, chunk.first);
    if (chunk.last) finish(conv, block.out + t * kRows, sums, width, col, cols);
  }
}

void panels(const ConvBlock &block, const Chunk &chunk) {
  const cs_conv &conv = *block.conv;
  for (int p = block.panel0; p < block.panel1; ++p) {
    const int left = conv.cout - p * kWidth;
    const int vectors = left >= kWidth ? kVectors : (left + kLanes - 1) / kLanes;
    const float *w = static_cast<const float *>(conv.weight) + static_cast<int64_t>(p) * kWidth * conv.K * conv.cin;
    float *acc = block.acc + static_cast<int64_t>(p - block.panel0) * kWidth * kRows * block.tiles;
    switch (vectors) {
      case 1: panel_pass<1>(block, chunk, p, w, acc); break;
      case 2: panel_pass<2>(block, chunk, p, w, acc); break;
#if defined(__aarch64__)
      case 3: panel_pass<3>(block, chunk, p, w, acc); break;
      case 4: panel_pass<4>(block, chunk, p, w, acc); break;
#endif
      default: break;
    }
  }
}

// Chunks of the sum: whole taps when a tap is short, else even parts of one tap. All panels of a chunk run over the
// block while the block's part of the input is in the L2 cache and a panel's weights in the L1.
void run_block(const ConvBlock &block) {
  const cs_conv &conv = *block.conv;
  const int parts = (conv.cin + kMaxSteps - 1) / kMaxSteps;
  const int taps = parts > 1 || conv.cin == 0 ? 1 : kMaxSteps / conv.cin;
  const int part = ((conv.cin + parts - 1) / parts + 3) / 4 * 4;
  for (int tap = 0; tap < conv.K; tap += taps) {
    const int tap1 = tap + taps < conv.K ? tap + taps : conv.K;
    for (int c = 0; c < conv.cin; c += part) {
      const int c1 = c + part < conv.cin ? c + part : conv.cin;
      panels(block, Chunk{tap, tap1, c, c1, tap == 0 && c == 0, tap1 == conv.K && c1 == conv.cin});
    }
  }
}

}  // namespace

const ConvKernels CS_NAME(conv_kernels) = {kRows, kWidth, kLanes, kMaxSteps, run_block};

}  // namespace crispseg
