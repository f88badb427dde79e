// The convolution's inner loops: an indirect matrix product in register tiles. A tile is MR output rows by NV vectors
// of output columns; every tap adds MR input rows (found through pointers) times a [cin, NV * lanes] slab of weights.
// Sums run over taps, then input channels, in chunks that depend on K and cin alone, so that results do not depend on
// the blocking.
#include "conv_walk.h"

namespace crispseg {

namespace {

// float32: a step is a channel.
struct FloatKernel {
  using Sum = float;
  const cs_conv &conv;

  int steps() const { return conv.cin; }
  template <int NV>
  void accumulate(const float *const *rows, uint32_t taps, uint32_t, const Chunk &chunk, int, const float *w,
                  float *sums, bool fresh) const {
    const int stride = all_taps(conv);
    if (second(conv, chunk)) crispseg::accumulate<NV>(rows + conv.K, 1, chunk, stride, conv.cin2, w, sums, fresh);
    else crispseg::accumulate<NV>(rows, taps, chunk, stride, conv.cin, w, sums, fresh);
  }
  void finish(const int32_t *out, const float *sums, int width, int col, int cols) const {
    crispseg::finish(conv, out, kRows, sums, width, col, cols);
  }
};

void run_block(const ConvBlock &block) { walk(FloatKernel{*block.conv}, block); }

}  // namespace

const ConvKernels CS_NAME(conv_kernels) = {kShape, run_block};

}  // namespace crispseg
