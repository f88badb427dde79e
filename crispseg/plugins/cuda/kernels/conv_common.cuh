// What the convolution kernels share: which tile a block computes, its rows and taps, and the fused epilogue.
#pragma once
#include "mma.cuh"

// CS_DEVICE is static; this is for the functions of objects.
#define CS_MEMBER __device__ __forceinline__

CS_DEVICE void conv_bits(unsigned bits, float &v) { v = __uint_as_float(bits); }
CS_DEVICE void conv_bits(unsigned bits, int &v) { v = (int)bits; }
CS_DEVICE unsigned conv_bits_of(float v) { return __float_as_uint(v); }
CS_DEVICE unsigned conv_bits_of(int v) { return (unsigned)v; }

// ---- epilogue: 8 columns of a row ----
struct alignas(16) Words4 {
  unsigned w[4];
};
struct alignas(8) Words2 {
  unsigned w[2];
};

CS_DEVICE float conv_load(const ConvMatrix &m, cs_i64 at) {
  return m.type == CONV_F16 ? cs_half_to_float(((const cs_half *)m.data)[at]) : ((const float *)m.data)[at];
}

CS_DEVICE void conv_load_8(const ConvMatrix &m, cs_i64 at, int columns, float *v) {
  if (columns < 8 || !m.wide) {
    for (int j = 0; j < 8; ++j) v[j] = j < columns ? conv_load(m, at + j) : 0.0f;
  } else if (m.type == CONV_F16) {
    const Words4 w = *(const Words4 *)((const cs_half *)m.data + at);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = cs_unpack_half2(w.w[j]);
      v[2 * j] = pair.x;
      v[2 * j + 1] = pair.y;
    }
  } else {
    const Words4 *from = (const Words4 *)((const float *)m.data + at);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Words4 w = from[h];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[4 * h + j] = __uint_as_float(w.w[j]);
    }
  }
}

CS_DEVICE float conv_quantise(float v, float quant) {
  const float q = rintf(__fdiv_rn(v, quant));
  return q < -127.0f ? -127.0f : q > 127.0f ? 127.0f : q;
}

CS_DEVICE void conv_store_8(const ConvMatrix &m, cs_i64 at, int columns, float *v) {
  if (m.type == CONV_I8) {
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = conv_quantise(v[j], m.quant);
  }
  if (columns < 8 || !m.wide) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j >= columns) break;
      if (m.type == CONV_F16) ((cs_half *)m.data)[at + j] = cs_float_to_half(v[j]);
      else if (m.type == CONV_F32) ((float *)m.data)[at + j] = v[j];
      else ((signed char *)m.data)[at + j] = (signed char)(int)v[j];
    }
  } else if (m.type == CONV_F16) {
    Words4 w;
#pragma unroll
    for (int j = 0; j < 4; ++j) w.w[j] = cs_pack_half2(v[2 * j], v[2 * j + 1]);
    *(Words4 *)((cs_half *)m.data + at) = w;
  } else if (m.type == CONV_F32) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Words4 w;
#pragma unroll
      for (int j = 0; j < 4; ++j) w.w[j] = __float_as_uint(v[4 * h + j]);
      ((Words4 *)((float *)m.data + at))[h] = w;
    }
  } else {
    Words2 w = {{0u, 0u}};
#pragma unroll
    for (int j = 0; j < 8; ++j) w.w[j / 4] |= (unsigned)((int)v[j] & 255) << (8 * (j % 4));
    *(Words2 *)((signed char *)m.data + at) = w;
  }
}

// 8 values of an array by output channel; past the last channel the first of them.
CS_DEVICE void conv_channels(const ConvArgs &a, const float *from, int column, int columns, float *v) {
  from += column;
  if (columns == 8 && a.wide_channels) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Words4 w = ((const Words4 *)from)[h];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[4 * h + j] = __uint_as_float(w.w[j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = from[j < columns ? j : 0];
  }
}

// Products and sums are rounded one by one (no contraction), so that an int8 result can be checked bit by bit.
template <typename Sum> CS_DEVICE void conv_finish(const ConvArgs &a, cs_i64 row, int column, const Sum *sum) {
  const int columns = a.cout - column < 8 ? a.cout - column : 8;
  if (columns <= 0) return;
  float v[8], w[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) v[j] = (float)sum[j];
  if (a.dequant) {
    conv_channels(a, a.dequant, column, columns, w);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = __fmul_rn(v[j], w[j]);
  }
  if (a.bias) {
    conv_channels(a, a.bias, column, columns, w);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = __fadd_rn(v[j], w[j]);
  }
  if (a.residual.data) {
    conv_load_8(a.residual, row * a.residual.stride + column, columns, w);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = __fadd_rn(v[j], w[j]);
  }
  if (a.relu) {
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = v[j] < 0.0f ? 0.0f : v[j];
  }
  // Rolled: one copy of the stores in the code (and no indexing of parameters, which would move them to local memory).
#pragma unroll 1
  for (int i = 0; i < 3; ++i) {
    const ConvMatrix out = i == 0 ? a.out[0] : i == 1 ? a.out[1] : a.out[2];
    if (!out.data) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) w[j] = v[j];
    if (i > 0) {
      float scale[8], shift[8];
      conv_channels(a, i == 1 ? a.scale[0] : a.scale[1], column, columns, scale);
      conv_channels(a, i == 1 ? a.shift[0] : a.shift[1], column, columns, shift);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float u = __fadd_rn(__fmul_rn(v[j], scale[j]), shift[j]);
        w[j] = u < 0.0f ? 0.0f : u;
      }
    }
    conv_store_8(out, row * out.stride + column, columns, w);
  }
}

// ---- tiles ----
// `begin` .. `end` of the `steps` of a tile (taps x chunks) and where the sums go: `slot` of the workspace, or -1 =
// they are complete.
struct ConvTile {
  int row_tile, column_tile, begin, end, steps, slot;
};

CS_DEVICE int conv_count(const ConvArgs &a) { return *a.count < a.capacity ? *a.count : a.capacity; }
CS_DEVICE int conv_tiles(const ConvArgs &a, int count, int rows) {
  return count > 0 ? (count + rows - 1) / rows * a.column_tiles : 0;
}
// Tiles of one row tile follow each other, so that its rows stay in the caches.
CS_DEVICE void conv_place(const ConvArgs &a, int tile, ConvTile &t) {
  t.row_tile = tile / a.column_tiles;
  t.column_tile = tile - t.row_tile * a.column_tiles;
  t.begin = 0;
  t.end = t.steps = a.taps * a.chunks;
  t.slot = -1;
}

// A deep level has few rows and long sums: 4,500 rows x 512 channels are 144 tiles of 128 x 128 for 132
// multiprocessors, two on some and one on most. So the steps of all tiles are laid end to end and cut into equal
// shares, two a multiprocessor; what a block computes of a tile that it does not have whole goes to the workspace
// (the tile that its share starts in: slot 2 x block; the one that it ends in: slot 2 x block + 1), and
// conv_reduce adds these sums in the order of the steps: nothing depends on which block is first.
struct ConvShares {
  int blocks, size, longer;  // 0 blocks: no shares, one block a tile; the first `longer` shares have one step more

  // Costs in steps (420 cycles) from the figures in conv_mma.cuh: 6 to fill the pipeline and leave the sums of a
  // whole tile, 12 for the two parts of a share, 8 for the launch of conv_reduce and 14 for its traffic for each block
  // of a multiprocessor. A lone block hides less latency: 30 % more.
  CS_MEMBER ConvShares(const ConvArgs &a, int tiles) : blocks(0), size(0), longer(0) {
    if (!a.partial || tiles <= 0) return;
    const int cores = a.multiprocessors, steps = a.taps * a.chunks, all = tiles * steps;
    const int most = all / CONV_SHARE_STEPS, n = most < 2 * cores ? most : 2 * cores;
    if (n < 2) return;
    int whole = (tiles + cores - 1) / cores * (steps + 6);
    if (tiles <= cores) whole += whole / 10 * 3;
    const int shared = (n + cores - 1) / cores * (all / n + 1 + 12) + 8 + 14 * n / cores;
    if (whole <= shared) return;
    blocks = n;
    size = all / n;
    longer = all - n * size;
  }
  CS_MEMBER int begin(int block) const { return block * size + (block < longer ? block : longer); }
  CS_MEMBER int block_of(int step) const {
    const int edge = longer * (size + 1);
    return step < edge ? step / (size + 1) : longer + (step - edge) / size;
  }
};

// The tiles, or parts of tiles, of this block.
struct ConvWork {
  int at, end, first;
  bool shared;
  CS_MEMBER ConvWork(const ConvArgs &a, int tiles) {
    const ConvShares shares(a, tiles);
    shared = shares.blocks > 0;
    const int block = blockIdx.x, steps = a.taps * a.chunks;
    at = shared ? shares.begin(block) : block;
    end = shared ? shares.begin(block + 1) : block + 1;
    if (block >= (shared ? shares.blocks : tiles)) at = end;
    first = shared ? at / steps : 0;
  }
  CS_MEMBER bool next(const ConvArgs &a, ConvTile &t) {
    if (at >= end) return false;
    if (!shared) {
      conv_place(a, at++, t);
      return true;
    }
    const int tile = at / (a.taps * a.chunks);
    conv_place(a, tile, t);
    const int start = tile * t.steps;
    t.begin = at - start;
    t.end = end - start < t.steps ? end - start : t.steps;
    at = start + t.end;
    if (t.begin > 0 || t.end < t.steps) t.slot = 2 * (int)blockIdx.x + (tile != first);
    return true;
  }
};

// Output row of each row of the tile (-1 past the count) and its input rows by tap; returns the taps that any row has.
template <int ROWS, int THREADS>
CS_DEVICE unsigned conv_tile_rows(const ConvArgs &a, const ConvTile &t, int *rows, int *inputs, unsigned *mask) {
  const int count = conv_count(a);
  if (threadIdx.x == 0) *mask = 0;
  cs_sync();
  unsigned taps = 0;
  for (int i = threadIdx.x; i < ROWS; i += THREADS) {
    const int place = t.row_tile * ROWS + i;
    const int row = place >= count ? -1 : a.order ? a.order[place] : place;
    rows[i] = row;
    // A 3x3 map: nine loads, all under way before the first is used.
    const int *const from = a.map && row >= 0 ? a.map + (cs_i64)row * a.taps : nullptr;
    int k = 0;
    for (; k + 9 <= a.taps; k += 9) {
      int input[9];
#pragma unroll
      for (int j = 0; j < 9; ++j) input[j] = from ? from[k + j] : -1;
#pragma unroll
      for (int j = 0; j < 9; ++j) {
        inputs[(k + j) * ROWS + i] = input[j];
        if (input[j] >= 0) taps |= 1u << (k + j);
      }
    }
    for (; k < a.taps; ++k) {
      const int input = a.map ? from ? from[k] : -1 : row;
      inputs[k * ROWS + i] = input;
      if (input >= 0) taps |= 1u << k;
    }
  }
  if (taps) atomicOr(mask, taps);
  cs_sync();
  return *mask;
}

// The steps of a tile: chunks of 64 bytes of channels outside, taps inside. The nine taps of a tile read nearly the
// same rows, so most of the reads of a chunk find them in L1. Taps that no row of the tile has take no step.
struct ConvSteps {
  unsigned taps, left;
  int chunk, steps;
  CS_MEMBER ConvSteps(const ConvArgs &a, const ConvTile &t, unsigned mask)
      : taps(mask), left(mask), chunk(0), steps(0) {
    if (!mask) return;
    const int per_chunk = __popc(mask), all = per_chunk * a.chunks;  // at most t.steps, of which this is a part
    const int begin = (int)((cs_i64)all * t.begin / t.steps);
    steps = (int)((cs_i64)all * t.end / t.steps) - begin;
    chunk = begin / per_chunk;
    for (int i = begin - chunk * per_chunk; i > 0; --i) left &= left - 1;
  }
  CS_MEMBER int tap() const { return __ffs((int)left) - 1; }
  CS_MEMBER void next() {
    left &= left - 1;
    if (!left) {
      left = taps;
      ++chunk;
    }
  }
};

// The packed weights of a chunk of a tap: cout_padded columns of 64 bytes.
CS_DEVICE const char *conv_weight(const ConvArgs &a, int chunk, int tap) {
  return (const char *)a.weight + ((cs_i64)chunk * a.taps + tap) * a.cout_padded * CONV_CHUNK;
}

// ---- from a warp's sums to the outputs ----
// A warp stages 16 rows x COLUMNS sums in its own piece of shared memory (rows COLUMNS + 8 apart: no bank conflict on
// the way in) and leaves them as 8 columns a lane: whole sectors of every output, and columns known although wmma
// hides its layout.
template <int COLUMNS> static constexpr int CONV_STAGE_STRIDE = COLUMNS + 8;

template <int ROWS, int TILE_COLUMNS, int COLUMNS, typename Sum>
CS_DEVICE void conv_leave(const ConvArgs &a, const ConvTile &t, const int *rows, const Sum *stage, int row0,
                          int column0) {
  constexpr int lanes = COLUMNS / 8, stride = CONV_STAGE_STRIDE<COLUMNS>;
  const int lane = cs_lane(), c = lane % lanes * 8;
#pragma unroll 1
  for (int r = lane / lanes; r < 16; r += 32 / lanes) {
    if (rows[row0 + r] < 0) continue;
    Sum v[8];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Words4 w = *(const Words4 *)(stage + r * stride + c + 4 * h);
#pragma unroll
      for (int j = 0; j < 4; ++j) conv_bits(w.w[j], v[4 * h + j]);
    }
    if (t.slot < 0) {
      conv_finish(a, rows[row0 + r], t.column_tile * TILE_COLUMNS + column0 + c, v);
    } else {
      Words4 *to = (Words4 *)((Sum *)a.partial + ((cs_i64)t.slot * ROWS + row0 + r) * TILE_COLUMNS + column0 + c);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        Words4 w;
#pragma unroll
        for (int j = 0; j < 4; ++j) w.w[j] = conv_bits_of(v[4 * h + j]);
        to[h] = w;
      }
    }
  }
}

// Adds the parts of each tile in the order of its steps and finishes the rows. A block of 128 threads: 8 rows x 128
// columns.
template <int ROWS, int COLUMNS, typename Sum> CS_DEVICE void conv_reduce(const ConvArgs &a) {
  constexpr int groups = COLUMNS / 8;
  const int count = conv_count(a);
  const ConvShares shares(a, conv_tiles(a, count, ROWS));
  const int column_tile = blockIdx.x % a.column_tiles;
  const int place = blockIdx.x / a.column_tiles * (128 / groups) + threadIdx.x / groups;
  if (!shares.blocks || place >= count) return;
  const int steps = a.taps * a.chunks, tile = place / ROWS * a.column_tiles + column_tile;
  const int from = shares.block_of(tile * steps), to = shares.block_of(tile * steps + steps - 1);
  if (from == to) return;  // one block had it whole
  const int c = threadIdx.x % groups * 8;
  Sum v[8];
  for (int block = from; block <= to; ++block) {
    const cs_i64 slot = 2 * block + (shares.begin(block) / steps != tile);
    const Words4 *part = (const Words4 *)((const Sum *)a.partial + (slot * ROWS + place % ROWS) * COLUMNS + c);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Words4 w = part[h];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Sum u;
        conv_bits(w.w[j], u);
        v[4 * h + j] = block > from ? v[4 * h + j] + u : u;
      }
    }
  }
  conv_finish(a, a.order ? a.order[place] : place, column_tile * COLUMNS + c, v);
}
