// The dense index grid behind kernel maps and tile plans: grid[y+1][x+1] = row + 1 of the site at (y, x), 0 = none. A
// border of one cell makes every 3x3 lookup legal. The grids are all zero between calls; only the cells of the sites
// are written and cleared again, so that the cost follows the number of sites, not the size of the image.
#ifndef CRISPSEG_GRID_H
#define CRISPSEG_GRID_H
#include "internal.h"

namespace crispseg {

constexpr int64_t kBlock = 8192;  // sites in one unit of work

// Row numbers are stored in int32 and the ABI counts sites in int32.
inline bool bad_extent(int H, int W) { return H < 1 || W < 1 || static_cast<int64_t>(H) * W > INT32_MAX / 2; }

inline int64_t grid_cells(int H, int W) { return (static_cast<int64_t>(H) + 2) * (W + 2); }

// Index of the first site that is outside of the grid or not in raster order, or n.
inline int64_t first_bad(const int32_t *coords, int64_t n, int H, int W) {
  int64_t last = -1;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t y = coords[2 * i], x = coords[2 * i + 1];
    if (static_cast<uint32_t>(y) >= static_cast<uint32_t>(H) || static_cast<uint32_t>(x) >= static_cast<uint32_t>(W))
      return i;
    const int64_t at = static_cast<int64_t>(y) * W + x;
    if (at <= last) return i;
    last = at;
  }
  return n;
}

inline int check_sites(const char *who, const cs_context *ctx, const int32_t *coords, int32_t n, int H, int W) {
  if (!ctx) return fail(CS_BAD_ARGUMENT, "%s: no context", who);
  if (n < 0 || (n > 0 && !coords)) return fail(CS_BAD_ARGUMENT, "%s: n = %d without coordinates", who, n);
  if (bad_extent(H, W)) return fail(CS_BAD_ARGUMENT, "%s: grid %d x %d is out of range", who, H, W);
  const int64_t bad = first_bad(coords, n, H, W);
  if (bad < n)
    return fail(CS_BAD_ARGUMENT, "%s: site %lld = (%d, %d) is outside of %d x %d or not in raster order", who,
                static_cast<long long>(bad), coords[2 * bad], coords[2 * bad + 1], H, W);
  return CS_OK;
}

inline int64_t cell(const int32_t *coords, int64_t i, int64_t stride) {
  return (coords[2 * i] + int64_t{1}) * stride + coords[2 * i + 1] + 1;
}

inline void fill(cs_context *ctx, int32_t *grid, const int32_t *coords, int64_t n, int W) {
  const int64_t stride = W + 2;
  parallel_for(ctx, ceil_div(n, kBlock), [&](int64_t block, int) {
    const int64_t end = block * kBlock + kBlock < n ? block * kBlock + kBlock : n;
    for (int64_t i = block * kBlock; i < end; ++i) grid[cell(coords, i, stride)] = static_cast<int32_t>(i) + 1;
  });
}

inline void clear(cs_context *ctx, int32_t *grid, const int32_t *coords, int64_t n, int W) {
  const int64_t stride = W + 2;
  parallel_for(ctx, ceil_div(n, kBlock), [&](int64_t block, int) {
    const int64_t end = block * kBlock + kBlock < n ? block * kBlock + kBlock : n;
    for (int64_t i = block * kBlock; i < end; ++i) grid[cell(coords, i, stride)] = 0;
  });
}

template <class F> void by_rows(cs_context *ctx, int64_t n, F &&body) {
  parallel_for(ctx, ceil_div(n, kBlock), [&](int64_t block, int) {
    const int64_t begin = block * kBlock;
    body(begin, begin + kBlock < n ? begin + kBlock : n);
  });
}

}  // namespace crispseg
#endif
