// How a block of rows is walked: chunks of the sum, panels of columns, tiles of rows. One text for every kind of
// arithmetic; for *.isa.cpp files only, everything has internal linkage.
//
// Everything counts in words of 4 bytes: a step of the sum is one word of an input row (a float, or four int8 channels)
// and one vector lane of weights. A Kernel has:
//   Sum                                 type of the sums, 4 bytes
//   steps()                             words of an input row
//   accumulate<NV>(rows, now, taps, chunk, panel, w, sums, fresh)
//                                       sums (from nothing when `fresh`) += taps `now` of the tile's `taps`, of a chunk
//   finish(out, sums, width, col, cols) the epilogue of one tile
#ifndef CRISPSEG_CONV_WALK_H
#define CRISPSEG_CONV_WALK_H
#include "conv_tile.h"

namespace crispseg {

namespace {

constexpr ConvShape kShape = {kRows, kWidth, kLanes, kMaxSteps};

// The second source of a convolution is one more tap, with input and weights of its own: chunks of tap K.
inline bool second(const cs_conv &conv, const Chunk &chunk) { return chunk.tap0 == conv.K; }
inline int steps_of(const cs_conv &conv, int steps, const Chunk &chunk) {
  return second(conv, chunk) ? conv.cin2 : steps;
}

template <int NV, class Kernel>
void panel_pass(const Kernel &kernel, const ConvBlock &block, const Chunk &chunk, int panel, const float *w,
                const Ahead &weights, const Ahead &input) {
  constexpr int width = NV * kLanes;
  const cs_conv &conv = *block.conv;
  const int col = panel * kWidth, cols = conv.cout - col < width ? conv.cout - col : width;
  alignas(64) typename Kernel::Sum tile[kRows * width];
  auto *const acc = reinterpret_cast<typename Kernel::Sum *>(block.acc);  // null where every tile is fresh and done
  const int64_t at_panel = static_cast<int64_t>(panel - block.panel0) * kWidth * kRows * block.tiles;
  const int stride = all_taps(conv) * kRows, steps = steps_of(conv, kernel.steps(), chunk);
  const uint32_t before = (uint32_t{1} << chunk.tap0) - 1, here = (uint32_t{2} << (chunk.tap1 - 1)) - 1 - before;
  for (int64_t t = 0; t < block.tiles; ++t) {
    weights.fetch(t, block.tiles);
    input.fetch(t, block.tiles);
    // A tile is visited only by the chunks that hold one of its taps; a tile without any by the first chunk.
    const uint32_t taps = block.rows.taps[t], now = taps & here;
    if (!now && !(taps == 0 && chunk.first)) continue;
    const bool fresh = !(taps & before) && chunk.c0 == 0;
    const bool done = !now || (!(taps & ~(before | here)) && chunk.c1 == steps);
    typename Kernel::Sum *sums = fresh && done ? tile : acc + at_panel + t * kRows * width;
    kernel.template accumulate<NV>(block.rows.rows + t * stride, now, taps, chunk, panel, w, sums, fresh);
    if (done) kernel.finish(block.rows.out + t * kRows, sums, width, col, cols);
  }
}

// The weights of a panel that a chunk is part of: [tap][steps][width] words.
inline const float *panel_weight(const cs_conv &conv, int steps, const Chunk &chunk, int panel) {
  const int64_t columns = static_cast<int64_t>(panel) * kWidth;
  return second(conv, chunk) ? static_cast<const float *>(conv.weight2) + columns * conv.cin2
                             : static_cast<const float *>(conv.weight) + columns * conv.K * steps;
}

// The weights of a chunk in a panel.
inline Ahead slab(const cs_conv &conv, int steps, const Chunk &chunk, int panel) {
  const int64_t row = panel_vectors(conv.cout, panel) * kLanes * static_cast<int64_t>(sizeof(float));
  const int64_t tap = second(conv, chunk) ? 0 : chunk.tap0, taps = chunk.tap1 - chunk.tap0;
  const int64_t first = tap * steps + chunk.c0, last = (tap + taps - 1) * steps + chunk.c1;
  return {reinterpret_cast<const char *>(panel_weight(conv, steps, chunk, panel)) + first * row, (last - first) * row};
}

// input: what is left to fetch for the next block; each pass takes `share` of it.
template <class Kernel>
void panels(const Kernel &kernel, const ConvBlock &block, const Chunk &chunk, const Chunk &next, Ahead &input,
            int64_t share) {
  const cs_conv &conv = *block.conv;
  const int steps = kernel.steps();
  for (int p = block.panel0; p < block.panel1; ++p) {
    const float *w = panel_weight(conv, steps, chunk, p);
    const Ahead weights = p + 1 < block.panel1 ? slab(conv, steps, chunk, p + 1)
                          : next.tap0 < all_taps(conv) ? slab(conv, steps, next, block.panel0) : Ahead{nullptr, 0};
    const Ahead part = input.take(share);
    switch (panel_vectors(conv.cout, p)) {
      case 1: panel_pass<1>(kernel, block, chunk, p, w, weights, part); break;
      case 2: panel_pass<2>(kernel, block, chunk, p, w, weights, part); break;
      case 3: if constexpr (kVectors > 2) panel_pass<3>(kernel, block, chunk, p, w, weights, part); break;
      case 4: if constexpr (kVectors > 2) panel_pass<4>(kernel, block, chunk, p, w, weights, part); break;
      default: break;
    }
  }
}

// Chunks of the sum: whole taps when a tap is short, else even parts of one tap. All panels of a chunk run over the
// block while the block's part of the input is in the L2 cache and a panel's weights are in the L1 or L2.
template <class Kernel>
void walk(const Kernel &kernel, const ConvBlock &block) {
  const cs_conv &conv = *block.conv;
  const int steps = kernel.steps();
  const auto make = [&](int tap, int c) {
    const int all = tap < conv.K || !conv.x2 ? steps : conv.cin2, parts = (all + kMaxSteps - 1) / kMaxSteps;
    const int taps = tap == conv.K || parts > 1 ? 1 : kMaxSteps / all;
    const int part = ((all + parts - 1) / parts + 3) / 4 * 4;
    const int end = tap < conv.K && tap + taps > conv.K ? conv.K : tap + taps;
    return Chunk{tap, end, c, c + part < all ? c + part : all, tap == 0 && c == 0};
  };
  const auto after = [&](const Chunk &chunk) {
    return chunk.c1 < steps_of(conv, steps, chunk) ? make(chunk.tap0, chunk.c1) : make(chunk.tap1, 0);
  };
  int64_t passes = 0;
  for (Chunk chunk = make(0, 0); chunk.tap0 < all_taps(conv); chunk = after(chunk))
    passes += block.panel1 - block.panel0;
  Ahead input{block.next, block.next_bytes};
  const int64_t share = (block.next_bytes / passes + 64) / 64 * 64;
  for (Chunk chunk = make(0, 0); chunk.tap0 < all_taps(conv);) {
    const Chunk next = after(chunk);
    panels(kernel, block, chunk, next, input, share);
    chunk = next;
  }
}

}  // namespace

}  // namespace crispseg
#endif
