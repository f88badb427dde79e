// What the convolution kernels share: which tile a block computes, its rows and taps, and the parts of shared tiles.
#pragma once
#include "mma.cuh"

// CS_DEVICE is static; this is for the functions of objects.
#define CS_MEMBER __device__ __forceinline__

// ---- tiles ----
// `begin` .. `end` of the `steps` of a tile (taps x chunks) and where the sums go: `slot` of the workspace, or -1 =
// they are complete.
struct ConvTile {
  int row_tile, column_tile, begin, end, steps, slot;
};

#include "conv_epilogue.cuh"

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

// A deep level has few rows and long sums: 9,000 rows x 256 channels are 142 tiles of 128 x 128 for 132
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
  const int c = threadIdx.x % groups * 8, row[1] = {a.order ? a.order[place] : place};
  Words4 residual[1][2];
  conv_fetch_residual(a, row, column_tile * COLUMNS + c, residual);
  Sum v[1][8];
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
        v[0][4 * h + j] = block > from ? v[0][4 * h + j] + u : u;
      }
    }
  }
  conv_finish(a, row, column_tile * COLUMNS + c, v, residual);
}
