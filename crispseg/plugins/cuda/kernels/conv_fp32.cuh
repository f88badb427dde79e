// Sparse convolution in fp32 with plain multiply-adds, for checks and for engines that are built with fp32: 64 output
// rows x 64 output channels a block of 256 threads; each thread two rows x 8 channels. Weights as they came:
// [K][cin][cout].
#pragma once
#include "conv_common.cuh"

CS_GLOBAL void CS_LAUNCH_BOUNDS(256) csk_conv_f32(ConvArgs a) {
  constexpr int ROWS = CONV_F32_ROWS, COLUMNS = 64, DEPTH = 16;
  CS_SHARED(float, x, [DEPTH][ROWS + 4]);
  CS_SHARED(float, w, [DEPTH][COLUMNS]);
  CS_SHARED(int, rows, [ROWS]);
  CS_SHARED(int, inputs, [CONV_MAX_TAPS * ROWS]);
  CS_SHARED(unsigned, mask, [1]);
  if ((int)blockIdx.x >= conv_tiles(a, conv_count(a), ROWS)) return;
  ConvTile t;
  conv_place(a, blockIdx.x, t);
  unsigned taps = conv_tile_rows<ROWS, 256>(a, t, rows, inputs, mask);
  const int tid = threadIdx.x, r = tid / 8 * 2, c = tid % 8 * 8;
  const float *source = (const float *)a.x, *weight = (const float *)a.weight;

  float sum[2][8];
#pragma unroll
  for (int i = 0; i < 16; ++i) sum[i / 8][i % 8] = 0.0f;
  for (; taps; taps &= taps - 1) {
    const int tap = __ffs((int)taps) - 1;
    for (int k0 = 0; k0 < a.cin; k0 += DEPTH) {
#pragma unroll
      for (int i = tid; i < ROWS * DEPTH; i += 256) {
        const int row = i / DEPTH, k = i % DEPTH, input = inputs[tap * ROWS + row];
        x[k][row] = input >= 0 && k0 + k < a.cin ? source[(cs_i64)input * a.x_stride + k0 + k] : 0.0f;
      }
#pragma unroll
      for (int i = tid; i < COLUMNS * DEPTH; i += 256) {
        const int k = i / COLUMNS, n = t.column_tile * COLUMNS + i % COLUMNS;
        w[k][i % COLUMNS] = k0 + k < a.cin && n < a.cout ? weight[((cs_i64)tap * a.cin + k0 + k) * a.cout + n] : 0.0f;
      }
      cs_sync();
#pragma unroll
      for (int k = 0; k < DEPTH; ++k)
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          sum[0][j] = fmaf(x[k][r], w[k][c + j], sum[0][j]);
          sum[1][j] = fmaf(x[k][r + 1], w[k][c + j], sum[1][j]);
        }
      cs_sync();
    }
  }
  const int row[2] = {rows[r], rows[r + 1]}, column = t.column_tile * COLUMNS + c;
  Words4 residual[2][2];
  conv_fetch_residual(a, row, column, residual);
  conv_finish(a, row, column, sum, residual);
}
