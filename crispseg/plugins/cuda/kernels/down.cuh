// Sites of the next level and the maps in both directions, from the bits of the finer grid (grid.cuh).
// Launches: clear and enter the finer grid, csk_down_bits, csk_down_sites, csk_down_rows. A warp takes a line of the
// coarser grid.
#pragma once
#include "grid.cuh"

// The even bits of v, packed.
CS_DEVICE cs_u32 cs_even_bits(cs_u64 v) {
  v &= 0x5555555555555555ull;
  v = (v | v >> 1) & 0x3333333333333333ull;
  v = (v | v >> 2) & 0x0f0f0f0f0f0f0f0full;
  v = (v | v >> 4) & 0x00ff00ff00ff00ffull;
  v = (v | v >> 8) & 0x0000ffff0000ffffull;
  return (cs_u32)(v | v >> 16);
}

// Coarse cell j holds the sites ox = 32j - 1 + b, which cover the fine positions (x + 1) 64j - 1 + 2b and the two after
// it: an or of the fine cells 2j and 2j + 1 shifted by -1, 0 and 1, of which the even bits stay. Writes all bits of the
// coarse grid, border included, and the number of sites of each line.
CS_GLOBAL void CS_LAUNCH_BOUNDS(256) csk_down_bits(CsDown a) {
  const int lane = cs_lane(), line = (int)(blockIdx.x * (blockDim.x >> 5)) + cs_warp();
  if (line >= a.coarse.height + 2) return;
  const int n = cs_clamp(*a.count, 0, a.capacity);
  int my = a.fine.height - 1, mx = a.fine.width - 1;
  if (a.extent == CS_EXTENT_OF_ACTIVE) {
    my = n > 0 ? cs_clamp(a.coords[2 * (cs_i64)(n - 1)], 0, my) : 0;  // the last site has the largest y
    mx = min(*a.largest_x, mx);
  }
  const int oy = line - 1, oh = min(my >> 1, a.coarse.height), ow = min(mx >> 1, a.coarse.width);
  const bool real = oy >= 0 && oy < oh;
  int sites = 0;
  for (int j = lane; j < a.coarse.pitch; j += 32) {
    cs_u32 bits = 0;
    if (real) {
      cs_u64 both = 0;
      cs_u32 before = 0;
      for (int k = 0; k < 3; ++k) {
        const cs_u32 *cells = a.fine.cells + 2 * (cs_i64)(2 * oy + 1 + k) * a.fine.pitch;
        if (2 * j < a.fine.pitch) both |= cells[4 * j];
        if (2 * j + 1 < a.fine.pitch) both |= (cs_u64)cells[4 * j + 2] << 32;
        if (j > 0 && 2 * j - 1 < a.fine.pitch) before |= cells[4 * j - 2] >> 31;
      }
      bits = cs_even_bits(both | both >> 1 | both << 1 | before);
      // Positions 1 .. ow are sites.
      const int last = ow - 32 * j;
      if (j == 0) bits &= ~1u;
      if (last < 31) bits &= last < 0 ? 0u : (2u << last) - 1u;
    }
    a.coarse.cells[2 * ((cs_i64)line * a.coarse.pitch + j)] = bits;
    sites += __popc(bits);
  }
  sites = cs_warp_sum(sites);
  if (lane == 0 && oy >= 0 && oy < a.coarse.height) a.line_counts[oy] = sites;
}

// Ranks and coordinates of the coarser sites. Each block adds up the lines before its own.
CS_GLOBAL void CS_LAUNCH_BOUNDS(256) csk_down_sites(CsDown a) {
  CS_SHARED(int, scratch, [33]);
  const int lane = cs_lane(), warps = 8, first = (int)blockIdx.x * warps, oy = first + cs_warp();
  int sum = 0, before;
  for (int i = (int)threadIdx.x; i < first; i += 256) sum += a.line_counts[i];
  cs_block_scan(sum, 256, scratch, &before);
  for (int i = first; i < min(oy, a.coarse.height); ++i) before += a.line_counts[i];
  if (oy < a.coarse.height) {
    for (int j0 = 0; j0 < a.coarse.pitch; j0 += 32) {
      const int j = j0 + lane;
      const cs_i64 cell = (cs_i64)(oy + 1) * a.coarse.pitch + j;
      const cs_u32 bits = j < a.coarse.pitch ? a.coarse.cells[2 * cell] : 0;
      const int inclusive = cs_warp_scan(__popc(bits));
      int row = before + inclusive - __popc(bits);
      if (bits) a.coarse.cells[2 * cell + 1] = (cs_u32)row;
      for (cs_u32 left = bits; left && row < a.capacity_out; left &= left - 1, ++row)
        ((int2 *)a.coords_out)[row] = make_int2(oy, 32 * j + __ffs((int)left) - 2);
      before += __shfl_sync(CS_FULL_MASK, inclusive, 31);
    }
  }
  // The warp of the last line knows the total; without lines the first warp of the only block says 0.
  if (lane == 0 && oy == max(a.coarse.height - 1, 0)) *a.count_out = min(before, a.capacity_out);
}

// out[9] = coarse rows of which the fine site (y, x) is a tap: 2o + k = (y, x), k = 1 for odd and k = 0 and 2 for even
// coordinates.
CS_DEVICE void cs_up_row(const CsGrid &coarse, int y, int x, int m, cs_i32 *out) {
  for (int k = 0; k < 9; ++k) out[k] = -1;
  for (int kx = x & 1; kx < 3; kx += 2)
    for (int ky = y & 1; ky < 3; ky += 2) {
      const int oy = (y - ky) >> 1, ox = (x - kx) >> 1;  // -1 is the border
      if (oy < coarse.height && ox < coarse.width) out[ky + 3 * kx] = cs_lookup(coarse, oy + 1, ox + 1, m);
    }
}

CS_GLOBAL void CS_LAUNCH_BOUNDS(128) csk_down_rows(CsDown a) {
  CS_SHARED(int4, vectors, [CS_ROW_BLOCK * 9 / 4]);
  cs_i32 *tile = (cs_i32 *)vectors;
  const int n = cs_clamp(*a.count, 0, a.capacity), m = *a.count_out;
  const int down_blocks = cs_div_up(m, CS_ROW_BLOCK), blocks = down_blocks + cs_div_up(n, CS_ROW_BLOCK);
  for (int block = (int)blockIdx.x; block < blocks; block += (int)gridDim.x) {
    const bool down = block < down_blocks;
    const int first = (down ? block : block - down_blocks) * CS_ROW_BLOCK;
    const int rows = min((down ? m : n) - first, (int)CS_ROW_BLOCK);
    if ((int)threadIdx.x < rows) {
      const int2 site = ((const int2 *)(down ? a.coords_out : a.coords))[first + (int)threadIdx.x];
      cs_i32 *out = tile + threadIdx.x * 9;
      if (down) {
        cs_window(a.fine, 2 * site.x + 1, 2 * site.y + 1, n, out);
      } else {
        cs_up_row(a.coarse, cs_clamp(site.x, 0, a.fine.height - 1), cs_clamp(site.y, 0, a.fine.width - 1), m, out);
      }
    }
    cs_sync();
    cs_write_map(tile, (down ? a.down : a.up) + (cs_i64)first * 9, rows);
    cs_sync();
  }
}
