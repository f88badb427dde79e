// Sparse convolution for compute capability 7.2 and 7.5 (Xavier, Turing): gathered implicit GEMM through wmma
// m16n16k16. It compiles and runs everywhere later too.
//
// A block of 128 threads computes 128 output rows x COLUMNS output channels. There is no cp.async: while the tensor
// cores work on one of two buffers in shared memory, the next step's 16-byte pieces travel through registers. Rows of
// a buffer are 96 bytes apart: the 32 bytes that fp16 wmma loads are aligned to, and no more than two rows of eight
// in the same banks.
#pragma once
#include "conv_common.cuh"

template <bool I8, int COLUMNS, int WARP_ROWS, int WARP_COLUMNS> struct ConvWmma {
  using Sum = typename MmaTypes<I8>::Sum;
  static constexpr int ROWS = CONV_ROWS, THREADS = 128, M = WARP_ROWS / 16, N = WARP_COLUMNS / 16, WORDS = I8 ? 2 : 8;
  static constexpr int PITCH = CONV_WMMA_PITCH, A_BYTES = ROWS * PITCH, BUFFER_BYTES = A_BYTES + COLUMNS * PITCH;
  static constexpr int SIZE = I8 ? 1 : 2, K_STEPS = CONV_CHUNK / (16 * SIZE);
  static constexpr int PIECES = (ROWS + COLUMNS) / 32;
  static_assert((ROWS / WARP_ROWS) * (COLUMNS / WARP_COLUMNS) * 32 == THREADS, "four warps");
  static_assert(4 * 16 * ConvStage<WARP_COLUMNS, false>::STRIDE * 4 <= 2 * BUFFER_BYTES, "the epilogue's place");

  CS_DEVICE void fetch(const ConvArgs &a, Words4 (&w)[PIECES], const int *inputs, const ConvSteps &at, int column0) {
    const int piece = threadIdx.x & 3, first = threadIdx.x >> 2, tap = at.tap(), x_piece = at.chunk * 4 + piece;
    const char *const x = (const char *)a.x + x_piece * 16;
    const char *const weight = conv_weight(a, at.chunk, tap) + (column0 + first) * CONV_CHUNK + piece * 16;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
      const int input = i < ROWS / 32 ? inputs[tap * ROWS + first + 32 * i] : 0, n = i - ROWS / 32;
      const bool live = i < ROWS / 32 ? input >= 0 && x_piece < a.x_pieces : column0 + first + 32 * n < a.cout_padded;
      const char *from = i < ROWS / 32 ? x + (cs_i64)input * a.x_stride : weight + n * 32 * CONV_CHUNK;
      w[i].w[0] = w[i].w[1] = w[i].w[2] = w[i].w[3] = 0;
      if (live) w[i] = *(const Words4 *)from;
    }
  }
  CS_DEVICE void put(const Words4 (&w)[PIECES], unsigned char *buffer) {
    const int piece = threadIdx.x & 3, first = threadIdx.x >> 2;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) *(Words4 *)(buffer + (first + 32 * i) * PITCH + piece * 16) = w[i];
  }
  CS_DEVICE void multiply(Sum (&sum)[M][N][8], SharedAddress buffer, int row0, int column0) {
#pragma unroll
    for (int k = 0; k < K_STEPS; ++k) {
      unsigned w[N][WORDS];
#pragma unroll
      for (int n = 0; n < N; ++n)
        wmma_load_b<I8>(w[n], buffer + A_BYTES + (column0 + 16 * n) * PITCH + k * 16 * SIZE, PITCH / SIZE);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        unsigned x[WORDS];
        wmma_load_a<I8>(x, buffer + (row0 + 16 * m) * PITCH + k * 16 * SIZE, PITCH / SIZE);
#pragma unroll
        for (int n = 0; n < N; ++n) wmma_16x16<I8>(sum[m][n], x, w[n]);
      }
    }
  }

  CS_DEVICE void run(const ConvArgs &a, unsigned char *memory) {
    if ((int)blockIdx.x >= conv_tiles(a, conv_count(a), ROWS)) return;
    ConvTile t;
    conv_place(a, blockIdx.x, t);
    int *const rows = (int *)(memory + 2 * BUFFER_BYTES), *const inputs = rows + ROWS + 4;
    const unsigned mask = conv_tile_rows<ROWS, THREADS>(a, t, rows, inputs, (unsigned *)(rows + ROWS));
    ConvSteps ahead(a, t, mask);
    const int steps = ahead.steps, tile_column = t.column_tile * COLUMNS, warp = cs_warp();
    const int row0 = warp % (ROWS / WARP_ROWS) * WARP_ROWS, column0 = warp / (ROWS / WARP_ROWS) * WARP_COLUMNS;

    Sum sum[M][N][8];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[m][n][i] = 0;

    Words4 w[PIECES];
    if (steps > 0) {
      fetch(a, w, inputs, ahead, tile_column);
      put(w, memory);
    }
    cs_sync();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const int now = step & 1;
      if (step + 1 < steps) {
        ahead.next();
        fetch(a, w, inputs, ahead, tile_column);
      }
      multiply(sum, shared_address(memory + now * BUFFER_BYTES), row0, column0);
      if (step + 1 < steps) put(w, memory + (1 - now) * BUFFER_BYTES);
      cs_sync();
    }

    constexpr int stride = ConvStage<WARP_COLUMNS, false>::STRIDE;
    Sum *const own = (Sum *)memory + warp * 16 * stride;
#pragma unroll 1
    for (int m = 0; m < M; ++m) {  // rolled: one copy of the epilogue, but each m its own stores (sums are registers)
#pragma unroll
      for (int i = 0; i < M; ++i) {
        if (i != m) continue;
#pragma unroll
        for (int n = 0; n < N; ++n) wmma_store<I8>(shared_address(own + 16 * n), sum[i][n], stride);
      }
      __syncwarp();
      conv_leave<ROWS, COLUMNS, WARP_COLUMNS, false, 16>(a, t, rows, own, row0 + 16 * m, column0);
      __syncwarp();
    }
  }
};

#define CONV_WMMA_KERNEL(name, blocks, ...)                              \
  CS_GLOBAL void CS_LAUNCH_BOUNDS(128, blocks) name(ConvArgs a) {        \
    CS_DYNAMIC_SHARED(unsigned char, memory);                            \
    ConvWmma<__VA_ARGS__>::run(a, memory);                               \
  }
CONV_WMMA_KERNEL(csk_conv_f16_wmma_128x64, 2, false, 64, 64, 32)
CONV_WMMA_KERNEL(csk_conv_f16_wmma_128x32, 2, false, 32, 32, 32)
CONV_WMMA_KERNEL(csk_conv_i8_wmma_128x64, 2, true, 64, 64, 32)
CONV_WMMA_KERNEL(csk_conv_i8_wmma_128x32, 2, true, 32, 32, 32)
#undef CONV_WMMA_KERNEL
