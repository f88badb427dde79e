// What the drivers of the direct (conv.cpp), int8 (conv_int8.cpp) and Winograd (winograd.cpp) convolutions share.
#ifndef CRISPSEG_CONV_DRIVER_H
#define CRISPSEG_CONV_DRIVER_H
#include <unistd.h>

#include <atomic>

#include "conv_kernels.h"
#include "internal.h"

namespace crispseg {

constexpr int kMaxChannels = 1 << 16;
constexpr int64_t kMaxBlockRows = 480;  // 540 KB of input a chunk: what is fetched ahead lies beside it in the L2 cache

// Input of the next block is fetched while a block runs, up to so many bytes: it lies in the L2 cache then, beside this
// block's input, sums and weights. Neighbours of the next row of the image are part of it: kHalo rows further on.
constexpr int64_t kMaxAhead = 256 << 10, kHalo = 256;

// Half of the L2 cache: the part of the input that a block keeps there.
inline int64_t input_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  constexpr int64_t cache = 0;
#endif
  const int64_t half = cache / 2, least = 384 << 10, most = 1024 << 10;
  return half < least ? least : half > most ? most : half;
}

inline int padded(const ConvShape &k, int cout) { return static_cast<int>(round_up(cout, k.lanes)); }

inline bool bad_shape(int K, int cin, int cout) {
  return K < 1 || K > kMaxTaps || cin < 1 || cin > kMaxChannels || cout < 1 || cout > kMaxChannels;
}

// CS_OK, or a status with its text.
int check_conv(const char *who, const cs_context *ctx, const cs_conv *c);  // everything but the map
int check_map(const char *who, const cs_conv *c);

// How a convolution is cut: `blocks` blocks of `rows` output rows, each cut into `groups` groups of panels. Which
// numbers come out has no influence on the results. steps: words (4 bytes) of an input row.
struct ConvCut {
  int64_t rows, blocks;
  int groups, panels, panels_per_group;
};
ConvCut cut_conv(const ConvShape &k, int64_t n_out, int64_t n_in, int steps, int cout, int threads);

// Scratch of one worker for the ConvRows of a block.
inline size_t rows_bytes(int64_t rows, int taps, int mr) {
  return static_cast<size_t>(
      round_up(rows * taps * sizeof(void *) + rows / mr * sizeof(uint32_t) + rows * sizeof(int32_t), 64));
}

inline ConvRows rows_at(char *memory, int64_t rows, int taps, int mr) {
  char *const bits = memory + rows * taps * sizeof(void *), *const out = bits + rows / mr * sizeof(uint32_t);
  return {reinterpret_cast<const float **>(memory), reinterpret_cast<uint32_t *>(bits),
          reinterpret_cast<int32_t *>(out)};
}

// The part of the input that outputs [begin, end) read and those before them did not: raster order is one on both
// sides, whatever the map.
struct InputBytes {
  const char *at;
  int64_t bytes;
};
inline InputBytes input_of(const cs_conv &conv, int64_t begin, int64_t end) {
  const auto row = [&](int64_t out) {
    const int64_t in = (out + kHalo) * conv.n_in / conv.n_out;
    return in < conv.n_in ? in : conv.n_in;
  };
  const int64_t stride = conv.ldx * static_cast<int64_t>(sizeof(float)), bytes = (row(end) - row(begin)) * stride;
  return {reinterpret_cast<const char *>(conv.x) + row(begin) * stride, bytes <= kMaxAhead ? bytes : 0};
}

// Cuts a convolution, finds the row pointers of every block and runs `kernel` on it, on all threads of the context.
// conv: x, ldx, map, order and sizes are read; rows of x in words (floats, or four bytes each).
template <class Kernel>
int run_blocks(cs_context *ctx, const char *who, const cs_conv &conv, const ConvShape &k, int steps, Kernel &&kernel) {
  if (conv.n_out == 0) return CS_OK;
  const ConvCut work = cut_conv(k, conv.n_out, conv.n_in, steps, conv.cout, ctx->threads);
  const int taps = all_taps(conv);
  const size_t row_bytes = rows_bytes(work.rows, taps, k.mr);
  const size_t acc = static_cast<size_t>(work.rows) * work.panels_per_group * k.width;
  const bool one_chunk = static_cast<int64_t>(conv.K) * steps <= k.max_steps && !conv.x2;
  char *memory = ctx->scratch<char>(kSlotConvRows, row_bytes * ctx->threads);
  float *sums = one_chunk ? nullptr : ctx->scratch<float>(kSlotConvAcc, acc * ctx->threads);
  if (!memory || (!one_chunk && !sums)) return CS_OUT_OF_MEMORY;

  std::atomic<bool> bad{false};
  parallel_for(ctx, work.blocks * work.groups, [&](int64_t unit, int worker) {
    const int64_t begin = unit / work.groups * work.rows;
    const int64_t end = begin + work.rows < conv.n_out ? begin + work.rows : conv.n_out;
    const int panel0 = static_cast<int>(unit % work.groups) * work.panels_per_group;
    const int panel1 = panel0 + work.panels_per_group < work.panels ? panel0 + work.panels_per_group : work.panels;
    const ConvRows g = rows_at(memory + row_bytes * worker, work.rows, taps, k.mr);
    if (!CS_PICK(ctx->isa, gather_kernels).gather(conv, k.mr, begin, end, g)) {
      bad.store(true, std::memory_order_relaxed);
      return;
    }
    const int64_t next = (unit + ctx->threads) / work.groups * work.rows;  // where this worker is likely to go on
    const InputBytes ahead = next == begin ? InputBytes{nullptr, 0} : input_of(conv, next, next + work.rows);
    kernel(ConvBlock{&conv, ceil_div(end - begin, k.mr), g, panel0, panel1, ahead.at, ahead.bytes,
                     sums ? sums + acc * worker : nullptr});
  });
  if (!bad.load()) return CS_OK;
  return fail(CS_BAD_ARGUMENT, "%s: the map or the order points outside of its rows (n_in = %d, n_out = %d)", who,
              conv.n_in, conv.n_out);
}

}  // namespace crispseg
#endif
