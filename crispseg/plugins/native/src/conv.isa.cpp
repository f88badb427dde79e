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

// Weights that the next pass needs: every tile of this pass fetches its share into the L2 cache.
struct Ahead {
  const char *at;
  int64_t bytes;
};

struct Chunk {
  int tap0, tap1, c0, c1;
  bool first;
};

// sums += the chunk's part of `taps`. rows: [kRows][K]; w: the panel's weights [K][cin][NV * kLanes].
template <int NV>
__attribute__((noinline)) void accumulate(const float *const *rows, uint32_t taps, const Chunk &chunk, int K, int cin,
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
  const int64_t steps = chunk.c1 - chunk.c0;
  for (; taps; taps &= taps - 1) {
    const int64_t tap = __builtin_ctz(taps);
    const float *const *from = rows + tap;
    const float *a[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) a[r] = from[static_cast<int64_t>(r) * K] + chunk.c0;
    const float *b = w + (tap * cin + chunk.c0) * width;
    for (int64_t c = 0; c < steps; ++c, b += width) {
      vecf bv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) bv[v] = *reinterpret_cast<const vecf *>(b + v * kLanes);
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
void panel_pass(const ConvBlock &block, const Chunk &chunk, int panel, const float *w, const Ahead &ahead,
                float *acc) {
  constexpr int width = NV * kLanes;
  const cs_conv &conv = *block.conv;
  const int col = panel * kWidth, cols = conv.cout - col < width ? conv.cout - col : width;
  alignas(64) float tile[kRows * width];
  const uint32_t before = (uint32_t{1} << chunk.tap0) - 1, here = (uint32_t{2} << (chunk.tap1 - 1)) - 1 - before;
  const int64_t share = (ahead.bytes / block.tiles + 63) / 64 * 64;
  for (int64_t t = 0; t < block.tiles; ++t) {
    const int64_t end = (t + 1) * share < ahead.bytes ? (t + 1) * share : ahead.bytes;
    for (int64_t i = t * share; i < end; i += 64) __builtin_prefetch(ahead.at + i, 0, 2);
    // A tile is visited only by the chunks that hold one of its taps; a tile without any by the first chunk.
    const uint32_t taps = block.rows.taps[t], now = taps & here;
    if (!now && !(taps == 0 && chunk.first)) continue;
    const bool fresh = !(taps & before) && chunk.c0 == 0, done = !(taps & ~(before | here)) && chunk.c1 == conv.cin;
    float *sums = fresh && (done || !now) ? tile : acc + t * kRows * width;
    accumulate<NV>(block.rows.rows + t * conv.K * kRows, now, chunk, conv.K, conv.cin, w, sums, fresh);
    if (done || !now) finish(conv, block.rows.out + t * kRows, sums, width, col, cols);
  }
}

const float *panel_weight(const cs_conv &conv, int panel) {
  return static_cast<const float *>(conv.weight) + static_cast<int64_t>(panel) * kWidth * conv.K * conv.cin;
}

int panel_vectors(const cs_conv &conv, int panel) {
  const int left = conv.cout - panel * kWidth;
  return left >= kWidth ? kVectors : (left + kLanes - 1) / kLanes;
}

// The weights of a chunk in a panel.
Ahead slab(const cs_conv &conv, const Chunk &chunk, int panel) {
  const int64_t row = panel_vectors(conv, panel) * kLanes * static_cast<int64_t>(sizeof(float));
  const int64_t first = static_cast<int64_t>(chunk.tap0) * conv.cin + chunk.c0;
  const int64_t last = static_cast<int64_t>(chunk.tap1 - 1) * conv.cin + chunk.c1;
  return {reinterpret_cast<const char *>(panel_weight(conv, panel)) + first * row, (last - first) * row};
}

void panels(const ConvBlock &block, const Chunk &chunk, const Chunk &next) {
  const cs_conv &conv = *block.conv;
  for (int p = block.panel0; p < block.panel1; ++p) {
    const float *w = panel_weight(conv, p);
    float *acc = block.acc + static_cast<int64_t>(p - block.panel0) * kWidth * kRows * block.tiles;
    const Ahead ahead = p + 1 < block.panel1 ? slab(conv, chunk, p + 1)
                        : next.tap0 < conv.K ? slab(conv, next, block.panel0) : Ahead{nullptr, 0};
    switch (panel_vectors(conv, p)) {
      case 1: panel_pass<1>(block, chunk, p, w, ahead, acc); break;
      case 2: panel_pass<2>(block, chunk, p, w, ahead, acc); break;
#if defined(__aarch64__)
      case 3: panel_pass<3>(block, chunk, p, w, ahead, acc); break;
      case 4: panel_pass<4>(block, chunk, p, w, ahead, acc); break;
#endif
      default: break;
    }
  }
}

// Chunks of the sum: whole taps when a tap is short, else even parts of one tap. All panels of a chunk run over the
// block while the block's part of the input is in the L2 cache and a panel's weights are in the L1 or L2.
void run_block(const ConvBlock &block) {
  const cs_conv &conv = *block.conv;
  const int parts = (conv.cin + kMaxSteps - 1) / kMaxSteps;
  const int taps = parts > 1 ? 1 : kMaxSteps / conv.cin;
  const int part = ((conv.cin + parts - 1) / parts + 3) / 4 * 4;
  const auto make = [&](int tap, int c) {
    return Chunk{tap, tap + taps < conv.K ? tap + taps : conv.K, c, c + part < conv.cin ? c + part : conv.cin,
                 tap == 0 && c == 0};
  };
  for (Chunk chunk = make(0, 0); chunk.tap0 < conv.K;) {
    const Chunk next = chunk.c1 < conv.cin ? make(chunk.tap0, chunk.c1) : make(chunk.tap1, 0);
    panels(block, chunk, next);
    chunk = next;
  }
}

}  // namespace

const ConvKernels CS_NAME(conv_kernels) = {kRows, kWidth, kLanes, kMaxSteps, run_block};

}  // namespace crispseg
