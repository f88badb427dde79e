// Sparse convolution for compute capability 8.0 and later: gathered implicit GEMM with cp.async, ldmatrix and mma.sync.
//
// A block of 128 threads (4 warps) computes ROWS output rows x COLUMNS output channels. Each step multiplies one
// tap's 64 bytes of channels (32 fp16, 64 int8): the rows named by the kernel map and the packed weights go to shared
// memory by cp.async (zeros for -1 without reading), STAGES - 1 steps ahead; a row is 64 bytes, its four 16-byte
// pieces swizzled by (row / 2) % 4, so that neither the copies nor ldmatrix meet a bank conflict.
//
// Expected on an H200 (132 multiprocessors at 1.76 GHz; not measured yet), where it is the path beside wgmma
// (conv_wgmma.cuh). mma.sync reaches about 60 % of the 2048 fp16 multiply-adds a cycle and multiprocessor that wgmma
// does, say 1250. A step of 128 x 128 is 524,288 multiply-adds: 420 cycles of tensor cores. Shared memory moves 128
// bytes a cycle: four warps of 64 x 64 read 32 KB by ldmatrix and the copies write 16 KB, 384 cycles beside them.
// (Eight warps of 64 x 32 would read 48 KB: 512 cycles, the bound; hence few large warps with 128 sums a thread.) L2:
// 8 KB of weights a step and, as taps run inside chunks, about a third of the 8 KB of rows, the rest hits L1: 11 KB,
// 280 to 450 cycles at an assumed 24 to 39 bytes a cycle and multiprocessor. Two blocks share a
// multiprocessor (at most 255 registers a thread, 70 KB each), so that one hides the barriers, the fill and the
// epilogue of the other.
#pragma once
#include "conv_common.cuh"

#if CS_HAVE_MMA
// Bytes from the start of a tile of rows in shared memory.
CS_DEVICE int conv_swizzled(int row, int piece) { return row * CONV_CHUNK + ((piece ^ ((row >> 1) & 3)) << 4); }

template <bool I8, int COLUMNS, int WARP_ROWS, int WARP_COLUMNS> struct ConvMma {
  using Sum = typename MmaTypes<I8>::Sum;
  static constexpr int ROWS = CONV_ROWS, STAGES = CONV_MMA_STAGES, THREADS = 128;
  static constexpr int M = WARP_ROWS / 16, N = WARP_COLUMNS / 16;
  static constexpr int A_BYTES = ROWS * CONV_CHUNK, STAGE_BYTES = A_BYTES + COLUMNS * CONV_CHUNK;
  static_assert((ROWS / WARP_ROWS) * (COLUMNS / WARP_COLUMNS) * 32 == THREADS, "four warps");
  static_assert(ROWS * COLUMNS * 4 <= STAGES * STAGE_BYTES, "the epilogue reuses the stages");

  // What a thread needs for its addresses, computed once. Places are bytes from the start of a stage.
  struct Lane {
    int x, w, to;         // ldmatrix of rows and of columns (the second half of a step: bit 5 flipped); copies
    int inputs;           // bytes from the start of the index: of this thread's first row
    int pieces, columns;  // 16-byte pieces of x from this thread's on; columns of the weights likewise
    unsigned x_stride, w_stride;  // bytes
    const char *x_from, *w_from;
    CS_MEMBER Lane(const ConvArgs &a, int row0, int column0, int tile_column) {
      const int lane = cs_lane(), piece = threadIdx.x & 3, first = threadIdx.x >> 2;
      x = conv_swizzled(row0 + (lane & 15), lane >> 4);
      w = A_BYTES + conv_swizzled(column0 + (lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
      to = conv_swizzled(first, piece);
      inputs = first * 4;
      pieces = a.x_pieces - piece;
      columns = a.cout_padded - tile_column - first;
      x_stride = (unsigned)a.x_stride;
      w_stride = (unsigned)a.cout_padded * CONV_CHUNK;
      x_from = (const char *)a.x + piece * 16;
      w_from = (const char *)a.weight + (tile_column + first) * CONV_CHUNK + piece * 16;
      cs_keep(x);
      cs_keep(w);
      cs_keep(to);
      cs_keep(inputs);
      cs_keep(columns);
      cs_keep(x_from);
      cs_keep(w_from);
    }
  };

  // One step's rows and weights. No branch: pieces that are absent, or all of them when the step is past the last,
  // become zeros without reading their address, so that ptxas can lay these instructions between those of the tensor
  // cores.
  CS_DEVICE void copy(const Lane &l, SharedAddress stage, SharedAddress index, const ConvSteps &at, int taps,
                      bool live) {
    const SharedAddress to = stage + l.to, inputs = index + l.inputs;
    const int tap = at.tap();
    const char *const x = l.x_from + at.chunk * CONV_CHUNK;
    const bool x_live = live && at.chunk * 4 < l.pieces;
#pragma unroll
    for (int i = 0; i < ROWS / 32; ++i) {  // 32 rows further the swizzle is the same
      const int input = shared_load_int(inputs + tap * ROWS * 4 + 32 * i * 4);
      // Unsigned: one instruction; the address of row -1 is not read.
      copy_async_16(to + i * 32 * CONV_CHUNK, x + (cs_u64)(unsigned)input * l.x_stride, x_live && input >= 0, true);
    }
    const char *const w = l.w_from + (cs_u64)(unsigned)(at.chunk * taps + tap) * l.w_stride;
#pragma unroll
    for (int i = 0; i < COLUMNS / 32; ++i)
      copy_async_16(to + A_BYTES + i * 32 * CONV_CHUNK, w + i * 32 * CONV_CHUNK, live && 32 * i < l.columns, false);
  }

  // 32 bytes along k of the warp's rows and columns. Matrices of x: rows 0-7, rows 8-15, then the same of the next 16
  // bytes; of w: columns 0-7 and the next 16 bytes, columns 8-15 and the next 16 bytes. 16 rows further the swizzle is
  // the same.
  CS_DEVICE void load(const Lane &l, unsigned (&x)[M][4], unsigned (&w)[N][4], SharedAddress stage, int k) {
#pragma unroll
    for (int m = 0; m < M; ++m) load_matrices(x[m], stage + (l.x ^ 32 * k) + m * 16 * CONV_CHUNK);
#pragma unroll
    for (int n = 0; n < N; ++n) load_matrices(w[n], stage + (l.w ^ 32 * k) + n * 16 * CONV_CHUNK);
  }
  CS_DEVICE void multiply(Sum (&sum)[M][2 * N][4], const unsigned (&x)[M][4], const unsigned (&w)[N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        mma_16x8<I8>(sum[m][2 * n], x[m], w[n][0], w[n][1]);
        mma_16x8<I8>(sum[m][2 * n + 1], x[m], w[n][2], w[n][3]);
      }
  }

  CS_DEVICE void tile(const ConvArgs &a, const ConvTile &t, unsigned char *memory) {
    SharedAddress stages = shared_address(memory);
    keep_address(stages);
    const SharedAddress index = stages + STAGES * STAGE_BYTES + (ROWS + 4) * 4;
    int *const rows = (int *)(memory + STAGES * STAGE_BYTES), *const inputs = rows + ROWS + 4;
    const unsigned mask = conv_tile_rows<ROWS, THREADS>(a, t, rows, inputs, (unsigned *)(rows + ROWS));
    ConvSteps ahead(a, t, mask);
    const int steps = ahead.steps, tile_column = t.column_tile * COLUMNS;
    const int warp = cs_warp(), lane = cs_lane();
    const int row0 = warp % (ROWS / WARP_ROWS) * WARP_ROWS, column0 = warp / (ROWS / WARP_ROWS) * WARP_COLUMNS;

    const Lane mine(a, row0, column0, tile_column);

    Sum sum[M][2 * N][4];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < 2 * N; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][n][i] = 0;

    // One group a step, empty ones at the end, so that "all but the last STAGES - 2 groups" always means "this step".
    int ahead_step = 0;
    if (steps > 0) {
#pragma unroll 1
      for (; ahead_step < STAGES - 1; ++ahead_step) {
        copy(mine, stages + ahead_step * STAGE_BYTES, index, ahead, a.taps, ahead_step < steps);
        copy_async_commit();
        ahead.next();
      }
    }
    int stage = 0, next = STAGES - 1;
#pragma unroll 1
    for (int step = 0; step < steps; ++step, ++ahead_step) {
      unsigned x[2][M][4], w[2][N][4];
      const SharedAddress now = stages + stage * STAGE_BYTES;
      copy_async_wait<STAGES - 2>();
      cs_sync();  // everyone's copies of this step are there, and everyone is done with the stage that is filled next
      load(mine, x[0], w[0], now, 0);
      load(mine, x[1], w[1], now, 1);
      copy(mine, stages + next * STAGE_BYTES, index, ahead, a.taps, ahead_step < steps);
      copy_async_commit();
      ahead.next();
      multiply(sum, x[0], w[0]);
      multiply(sum, x[1], w[1]);
      stage = stage + 1 == STAGES ? 0 : stage + 1;
      next = next + 1 == STAGES ? 0 : next + 1;
    }
    copy_async_wait<0>();
    cs_sync();

    using Stage = ConvStage<WARP_COLUMNS, true>;
    Sum *const own = (Sum *)memory + warp * WARP_ROWS * Stage::STRIDE;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < 2 * N; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Words2 pair = {{conv_bits_of(sum[m][n][2 * h]), conv_bits_of(sum[m][n][2 * h + 1])}};
          shared_store_8(own + Stage::at(16 * m + lane / 4 + 8 * h, 8 * n + 2 * (lane % 4)), pair);
        }
    __syncwarp();
    conv_leave<ROWS, COLUMNS, WARP_COLUMNS, true, WARP_ROWS>(a, t, rows, own, row0, column0);
  }

  CS_DEVICE void run(const ConvArgs &a, unsigned char *memory) {
    const int tiles = conv_tiles(a, conv_count(a), ROWS);
    ConvTile t;
    if constexpr (COLUMNS == CONV_SHARE_COLUMNS) {
      ConvWork work(a, tiles);
#pragma unroll 1
      while (work.next(a, t)) tile(a, t, memory);
    } else if ((int)blockIdx.x < tiles) {
      conv_place(a, blockIdx.x, t);
      tile(a, t, memory);
    }
  }
};

#define CONV_MMA_KERNEL(name, blocks, ...)                               \
  CS_GLOBAL void CS_LAUNCH_BOUNDS(128, blocks) name(ConvArgs a) {        \
    CS_DYNAMIC_SHARED(unsigned char, memory);                            \
    ConvMma<__VA_ARGS__>::run(a, memory);                                \
  }
CONV_MMA_KERNEL(csk_conv_f16_mma_128x128, 2, false, 128, 64, 64)
CONV_MMA_KERNEL(csk_conv_f16_mma_128x64, 3, false, 64, 64, 32)
CONV_MMA_KERNEL(csk_conv_f16_mma_128x32, 4, false, 32, 32, 32)
CONV_MMA_KERNEL(csk_conv_i8_mma_128x128, 2, true, 128, 64, 64)
CONV_MMA_KERNEL(csk_conv_i8_mma_128x64, 3, true, 64, 64, 32)
CONV_MMA_KERNEL(csk_conv_i8_mma_128x32, 4, true, 32, 32, 32)
#undef CONV_MMA_KERNEL

CS_GLOBAL void CS_LAUNCH_BOUNDS(128) csk_conv_f32_reduce(ConvArgs a) {
  conv_reduce<CONV_ROWS, CONV_SHARE_COLUMNS, float>(a);
}
CS_GLOBAL void CS_LAUNCH_BOUNDS(128) csk_conv_i32_reduce(ConvArgs a) {
  conv_reduce<CONV_ROWS, CONV_SHARE_COLUMNS, int>(a);
}
#endif
