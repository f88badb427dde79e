// Sparse convolution for compute capability 9.0: the tiles, steps, copies and epilogue of conv_mma.cuh with the
// products by wgmma, which reads both operands from shared memory by itself, in the layout that they have there.
//
// A block is one group of four warps; a warp has 16 of each 64 rows and all 128 columns. The products of two steps are
// under way at once: a step's are started as soon as its copies are there, and the stage that is filled meanwhile is
// that of two steps before, whose products every warp has waited for before the last barrier. So the copies are two
// steps ahead. A step is 256 cycles of tensor cores at their full rate, where mma.sync takes 420; wgmma reads 24 KB of
// shared memory and the copies write 16 KB: 320 cycles.
#pragma once
#include "conv_mma.cuh"
#include "wgmma.cuh"

#if CS_HAVE_WGMMA
template <bool I8> struct ConvWgmma {
  using Sum = typename MmaTypes<I8>::Sum;
  using Mma = ConvMma<I8, 128, 64, 64>;
  static constexpr int ROWS = CONV_ROWS, COLUMNS = 128, STAGES = CONV_MMA_STAGES, AHEAD = STAGES - 2;
  static constexpr int A_BYTES = Mma::A_BYTES, STAGE_BYTES = Mma::STAGE_BYTES;

  CS_DEVICE void tile(const ConvArgs &a, const ConvTile &t, unsigned char *memory) {
    SharedAddress stages = shared_address(memory);
    keep_address(stages);
    const SharedAddress index = stages + STAGES * STAGE_BYTES + (ROWS + 4) * 4;
    int *const rows = (int *)(memory + STAGES * STAGE_BYTES), *const inputs = rows + ROWS + 4;
    const unsigned mask = conv_tile_rows<ROWS, Mma::THREADS>(a, t, rows, inputs, (unsigned *)(rows + ROWS));
    ConvSteps ahead(a, t, mask);
    const int steps = ahead.steps, warp = cs_warp(), lane = cs_lane();
    const typename Mma::Lane mine(a, 0, 0, t.column_tile * COLUMNS);

    Sum sum[2][64];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 64; ++i) sum[m][i] = 0;
    wgmma_hold(sum[0]);
    wgmma_hold(sum[1]);

    int ahead_step = 0;
    if (steps > 0) {
#pragma unroll 1
      for (; ahead_step < AHEAD; ++ahead_step) {
        Mma::copy(mine, stages + ahead_step * STAGE_BYTES, index, ahead, a.taps, ahead_step < steps);
        copy_async_commit();
        ahead.next();
      }
    }
    int stage = 0, next = AHEAD;
#pragma unroll 1
    for (int step = 0; step < steps; ++step, ++ahead_step) {
      copy_async_wait<AHEAD - 1>();
      wgmma_async_fence();
      cs_sync();  // everyone's copies of this step are there; everyone's products of the step before the last are done
      const cs_u64 x = wgmma_descriptor(wgmma_address(stages + stage * STAGE_BYTES));
      const cs_u64 w = wgmma_descriptor(wgmma_address(stages + stage * STAGE_BYTES + A_BYTES));
      wgmma_start();
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int m = 0; m < 2; ++m)
          wgmma_64x128<I8>(sum[m], x + (m * 64 * CONV_CHUNK + k * 32) / 16, w + k * 32 / 16);
      wgmma_commit();
      Mma::copy(mine, stages + next * STAGE_BYTES, index, ahead, a.taps, ahead_step < steps);
      copy_async_commit();
      ahead.next();
      wgmma_wait<1>();
      stage = stage + 1 == STAGES ? 0 : stage + 1;
      next = next + 1 == STAGES ? 0 : next + 1;
    }
    wgmma_wait<0>();
    wgmma_hold(sum[0]);
    wgmma_hold(sum[1]);
    copy_async_wait<0>();
    cs_sync();

    using Stage = ConvStage<COLUMNS, true>;
    Sum *const own = (Sum *)memory + warp * 32 * Stage::STRIDE;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 64; i += 2) {
        const Words2 pair = {{conv_bits_of(sum[m][i]), conv_bits_of(sum[m][i + 1])}};
        shared_store_8(own + Stage::at(16 * m + lane / 4 + (i & 2) * 4, i / 4 * 8 + lane % 4 * 2), pair);
      }
    __syncwarp();
#pragma unroll 1
    for (int m = 0; m < 2; ++m)
      conv_leave<ROWS, COLUMNS, COLUMNS, true, 16>(a, t, rows, own + m * 16 * Stage::STRIDE, 64 * m + 16 * warp, 0);
  }

  CS_DEVICE void run(const ConvArgs &a, unsigned char *memory) {
    memory += -wgmma_address(shared_address(memory)) & (CONV_WGMMA_ALIGN - 1);
    ConvWork work(a, conv_tiles(a, conv_count(a), ROWS));
    ConvTile t;
#pragma unroll 1
    while (work.next(a, t)) tile(a, t, memory);
  }
};

CS_GLOBAL void CS_LAUNCH_BOUNDS(128, 2) csk_conv_f16_wgmma_128x128(ConvArgs a) {
  CS_DYNAMIC_SHARED(unsigned char, memory);
  ConvWgmma<false>::run(a, memory);
}
CS_GLOBAL void CS_LAUNCH_BOUNDS(128, 2) csk_conv_i8_wgmma_128x128(ConvArgs a) {
  CS_DYNAMIC_SHARED(unsigned char, memory);
  ConvWgmma<true>::run(a, memory);
}
#endif
