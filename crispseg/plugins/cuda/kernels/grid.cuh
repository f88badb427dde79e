// The index grid behind kernel maps, held as bits and ranks: rows are in raster order, so the row of a site is the
// number of sites before it, and a cell of 32 positions needs only its bits and the row of its first site. A grid of
// 1024 x 2048 takes 0.5 MB (an index for every pixel would take 8 MB to clear, and a scattered write and nine scattered
// reads a site): it stays in the L2 cache, and the three lines of a window take three 8-byte loads.
#pragma once
#include "base.cuh"
#include "front_params.h"

CS_DEVICE cs_i64 cs_cell(const CsGrid &grid, int line, int position) {
  return (cs_i64)line * grid.pitch + (position >> 5);
}

// Rows of the 3 x 3 positions from (line, start) on, k = ky + 3 * kx; -1 where there is none or the row is not below n.
CS_DEVICE void cs_window(const CsGrid &grid, int line, int start, int n, cs_i32 *out) {
  const int shift = start & 31;
  for (int ky = 0; ky < 3; ++ky) {
    const cs_i64 at = cs_cell(grid, line + ky, start);
    const uint2 low = ((const uint2 *)grid.cells)[at];
    uint2 high = make_uint2(0u, 0u);
    if (shift > 29) high = ((const uint2 *)grid.cells)[at + 1];
    for (int kx = 0; kx < 3; ++kx) {
      const int position = shift + kx;
      const uint2 cell = position < 32 ? low : high;
      const cs_u32 bit = 1u << (position & 31);
      const int row = (int)cell.y + __popc(cell.x & (bit - 1));
      out[ky + 3 * kx] = (cell.x & bit) && row < n ? row : -1;
    }
  }
}

// Row of one position, or -1.
CS_DEVICE int cs_lookup(const CsGrid &grid, int line, int position, int n) {
  const uint2 cell = ((const uint2 *)grid.cells)[cs_cell(grid, line, position)];
  const cs_u32 bit = 1u << (position & 31);
  const int row = (int)cell.y + __popc(cell.x & (bit - 1));
  return (cell.x & bit) && row < n ? row : -1;
}

// Enters the sites; the cells are zero before. largest_x (zero before) or null: gets the largest x. Sites outside of
// the grid are left out. The lanes of a warp that share a cell are neighbours: their bits are joined first, one atomic
// or follows.
CS_GLOBAL void CS_LAUNCH_BOUNDS(256)
    csk_grid_enter(CsGrid grid, const cs_i32 *coords, const cs_i32 *count, int capacity, cs_i32 *largest_x) {
  const int n = cs_clamp(*count, 0, capacity), lane = cs_lane();
  int largest = -1;
  for (int first = (int)(blockIdx.x * blockDim.x); first < n; first += (int)(gridDim.x * blockDim.x)) {
    const int i = first + (int)threadIdx.x;
    cs_i64 key = -1;
    cs_u32 bits = 0;
    if (i < n) {
      const int2 site = ((const int2 *)coords)[i];
      if ((cs_u32)site.x < (cs_u32)grid.height && (cs_u32)site.y < (cs_u32)grid.width) {
        key = cs_cell(grid, site.x + 1, site.y + 1);
        bits = 1u << ((site.y + 1) & 31);
        largest = max(largest, site.y);
      }
    }
    cs_i64 before = __shfl_up_sync(CS_FULL_MASK, key, 1);
    for (int d = 1; d < 32; d <<= 1) {
      const cs_u32 other = __shfl_down_sync(CS_FULL_MASK, bits, d);
      const cs_i64 where = __shfl_down_sync(CS_FULL_MASK, key, d);
      if (lane + d < 32 && where == key) bits |= other;
    }
    if (key >= 0 && (lane == 0 || before != key)) {
      atomicOr(grid.cells + 2 * key, bits);
      if (lane == 0) {
        before = -1;
        if (i > 0) {
          const int2 site = ((const int2 *)coords)[i - 1];
          before = cs_cell(grid, site.x + 1, site.y + 1);
        }
      }
      if (before != key) grid.cells[2 * key + 1] = (cs_u32)i;  // the first site of the cell
    }
  }
  if (!largest_x) return;
  largest = cs_warp_max(largest);
  if (lane == 0 && largest > cs_load_volatile(largest_x)) atomicMax(largest_x, largest);
}

// Rows of a map from shared memory to global memory, 16 bytes a thread where the address allows.
CS_DEVICE void cs_write_map(const cs_i32 *tile, cs_i32 *map, int rows) {
  const int total = rows * 9;
  int done = 0;
  if (((cs_u64)map & 15u) == 0) {
    for (int i = (int)threadIdx.x; i < total / 4; i += (int)blockDim.x) ((int4 *)map)[i] = ((const int4 *)tile)[i];
    done = total / 4 * 4;
  }
  for (int i = done + (int)threadIdx.x; i < total; i += (int)blockDim.x) map[i] = tile[i];
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(128)
    csk_submanifold_rows(CsGrid grid, const cs_i32 *coords, const cs_i32 *count, int capacity, cs_i32 *map) {
  CS_SHARED(int4, vectors, [CS_ROW_BLOCK * 9 / 4]);
  cs_i32 *tile = (cs_i32 *)vectors;
  const int n = cs_clamp(*count, 0, capacity);
  for (int first = (int)blockIdx.x * CS_ROW_BLOCK; first < n; first += (int)gridDim.x * CS_ROW_BLOCK) {
    const int rows = min(n - first, (int)CS_ROW_BLOCK);
    if ((int)threadIdx.x < rows) {
      const int2 site = ((const int2 *)coords)[first + (int)threadIdx.x];
      const int y = cs_clamp(site.x, 0, grid.height - 1), x = cs_clamp(site.y, 0, grid.width - 1);
      cs_window(grid, y, x, n, tile + threadIdx.x * 9);
    }
    cs_sync();
    cs_write_map(tile, map + (cs_i64)first * 9, rows);
    cs_sync();
  }
}
