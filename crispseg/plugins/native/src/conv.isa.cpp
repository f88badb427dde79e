// The convolution's inner loops: an indirect matrix product in register tiles. A tile is MR output rows by NV vectors of
// output columns; every tap adds MR input rows (found through pointers) times a [cin, NV * lanes] slab of weights.
// Sums run over taps, then input channels, in one order whatever the blocking, so that results do not depend on it.
#include "conv_tile.h"

namespace crispseg {

namespace {

template <int NV>
void panel_pass(const ConvBlock &block, const Chunk &chunk, int panel, const float *w, const Ahead &ahead,
                float *acc) {
  constexpr int width = NV * kLanes;
  const cs_conv &conv = *block.conv;
  const int col = panel * kWidth, cols = conv.cout - col < width ? conv.cout - col : width;
  alignas(64) float tile[kRows * width];
  const uint32_t before = (uint32_t{1} << chunk.tap0) - 1, here = (uint32_t{2} << (chunk.tap1 - 1)) - 1 - before;
  for (int64_t t = 0; t < block.tiles; ++t) {
    ahead.fetch(t, block.tiles);
    // A tile is visited only by the chunks that hold one of its taps; a tile without any by the first chunk.
    const uint32_t taps = block.rows.taps[t], now = taps & here;
    if (!now && !(taps == 0 && chunk.first)) continue;
    const bool fresh = !(taps & before) && chunk.c0 == 0, done = !(taps & ~(before | here)) && chunk.c1 == conv.cin;
    float *sums = fresh && (done || !now) ? tile : acc + t * kRows * width;
    accumulate<NV>(block.rows.rows + t * conv.K * kRows, now, chunk, conv.K, conv.cin, w, sums, fresh);
    if (done || !now) finish(conv, block.rows.out + t * kRows, kRows, sums, width, col, cols);
  }
}

const float *panel_weight(const cs_conv &conv, int panel) {
  return static_cast<const float *>(conv.weight) + static_cast<int64_t>(panel) * kWidth * conv.K * conv.cin;
}

// The weights of a chunk in a panel.
Ahead slab(const cs_conv &conv, const Chunk &chunk, int panel) {
  const int64_t row = panel_vectors(conv.cout, panel) * kLanes * static_cast<int64_t>(sizeof(float));
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
    switch (panel_vectors(conv.cout, p)) {
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
