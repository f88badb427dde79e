// Kernel maps from a dense index grid (see grid.h).
#include <array>
#include <cstring>

#include "grid.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace crispseg {

namespace {

// out[0..2] = the rows in column `at` of three grid lines, top to bottom (taps ky = 0..2 of one kx).
inline void column(const int32_t *grid, int64_t stride, int64_t at, int32_t *out) {
  out[0] = grid[at] - 1;
  out[1] = grid[at + stride] - 1;
  out[2] = grid[at + 2 * stride] - 1;
}

void neighbours(const int32_t *grid, const int32_t *coords, int64_t begin, int64_t end, int W, int32_t *map) {
  const int64_t stride = W + 2;
  int64_t last = -2;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t at = coords[2 * i] * stride + coords[2 * i + 1];  // top left cell of the window
    int32_t *m = map + 9 * i;
    if (at == last + 1) {
      std::memcpy(m, m - 6, 6 * sizeof(int32_t));  // the window moved by one: two of its columns are known
    } else {
      column(grid, stride, at, m);
      column(grid, stride, at + 1, m + 3);
    }
    column(grid, stride, at + 2, m + 6);
    last = at;
  }
}

// Sites of the next level, in raster order; returns their number. start[y]: first site of line y, `lines` + 1 entries.
int64_t coarse_sites(const int32_t *coords, const int32_t *start, int oh, int ow, uint64_t *marks, int32_t *out) {
  const int words = (ow + 63) / 64;
  int64_t m = 0;
  for (int oy = 0; oy < oh; ++oy) {
    const int32_t begin = start[2 * oy], end = start[2 * oy + 3];
    if (begin == end) continue;
    for (int32_t i = begin; i < end; ++i) {
      const int x = coords[2 * i + 1], o = x >> 1;
      if (o < ow) marks[o >> 6] |= uint64_t{1} << (o & 63);
      if (!(x & 1) && o > 0 && o - 1 < ow) marks[(o - 1) >> 6] |= uint64_t{1} << ((o - 1) & 63);
    }
    for (int w = 0; w < words; ++w) {
      for (uint64_t bits = marks[w]; bits; bits &= bits - 1) {
        out[2 * m] = oy;
        out[2 * m + 1] = w * 64 + __builtin_ctzll(bits);
        ++m;
      }
      marks[w] = 0;
    }
  }
  return m;
}

void down_rows(const int32_t *grid, const int32_t *sites, int64_t begin, int64_t end, int W, int32_t *down) {
  const int64_t stride = W + 2;
  for (int64_t o = begin; o < end; ++o) {
    const int64_t at = (2 * sites[2 * o] + int64_t{1}) * stride + 2 * sites[2 * o + 1] + 1;
    for (int kx = 0; kx < 3; ++kx) column(grid, stride, at + kx, down + 9 * o + 3 * kx);
  }
}

// 2o + k = y: k = 1 for odd y, k = 0 and k = 2 for even y. Sites beyond the coarse grid fall on its empty border, as
// 0 <= y / 2 <= oh and 0 <= x / 2 <= ow.
void up_rows(const int32_t *coarse, const int32_t *coords, int64_t begin, int64_t end, int ow, int32_t *up) {
  const int64_t stride = ow + 2;
  for (int64_t i = begin; i < end; ++i) {
    const int y = coords[2 * i], x = coords[2 * i + 1];
    const int32_t *at = coarse + ((y >> 1) + 1) * stride + (x >> 1) + 1;
    int32_t *m = up + 9 * i;
    for (int k = 0; k < 9; ++k) m[k] = -1;
    switch (2 * (y & 1) + (x & 1)) {
      case 0:
        m[0] = at[0] - 1;
        m[2] = at[-stride] - 1;
        m[6] = at[-1] - 1;
        m[8] = at[-stride - 1] - 1;
        break;
      case 1:
        m[3] = at[0] - 1;
        m[5] = at[-stride] - 1;
        break;
      case 2:
        m[1] = at[0] - 1;
        m[7] = at[-1] - 1;
        break;
      default:
        m[4] = at[0] - 1;
    }
  }
}

constexpr int kSortedTaps = 9;

// Rank in the Gray code, where neighbours differ in one tap: a tile across two groups wastes little.
std::array<uint16_t, 1 << kSortedTaps> gray_ranks() {
  std::array<uint16_t, 1 << kSortedTaps> ranks{};
  for (unsigned code = 0; code < ranks.size(); ++code) {
    unsigned bits = code;
    for (unsigned shift = 1; shift < kSortedTaps; shift <<= 1) bits ^= bits >> shift;
    ranks[code] = static_cast<uint16_t>(bits);
  }
  return ranks;
}

// Bit k: entry k of a row of K names a row.
inline unsigned taps_of(const int32_t *row, int K) {
  unsigned missing = 0;
#if defined(__SSE2__)
  if (K == 9) {
    const auto signs = [](const int32_t *p) {
      const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
      return static_cast<unsigned>(_mm_movemask_ps(_mm_castsi128_ps(four)));
    };
    missing = signs(row) | signs(row + 4) << 4 | (static_cast<uint32_t>(row[8]) >> 31) << 8;
    return ~missing & 0x1ff;
  }
#endif
  for (int k = 0; k < K; ++k) missing |= (static_cast<uint32_t>(row[k]) >> 31) << k;
  return ~missing & ((1u << K) - 1);
}

}  // namespace

}  // namespace crispseg

extern "C" int cs_submanifold_map(cs_context *ctx, const int32_t *coords, int32_t n, int H, int W, int32_t *map) {
  using namespace crispseg;
  if (const int bad = check_sites("cs_submanifold_map", ctx, coords, n, H, W)) return bad;
  if (n == 0) return CS_OK;
  if (!map) return fail(CS_BAD_ARGUMENT, "cs_submanifold_map: no room for the map");
  int32_t *grid = ctx->scratch_zeroed<int32_t>(kSlotGrid, grid_cells(H, W));
  if (!grid) return CS_OUT_OF_MEMORY;
  fill(ctx, grid, coords, n, W);
  by_rows(ctx, n, [&](int64_t begin, int64_t end) { neighbours(grid, coords, begin, end, W, map); });
  clear(ctx, grid, coords, n, W);
  return CS_OK;
}

extern "C" int cs_down_map(cs_context *ctx, const int32_t *coords, int32_t n, int H, int W, cs_extent extent,
                           int32_t *coords_out, int32_t *count_out, int32_t *down, int32_t *up) {
  using namespace crispseg;
  if (const int bad = check_sites("cs_down_map", ctx, coords, n, H, W)) return bad;
  if (!count_out) return fail(CS_BAD_ARGUMENT, "cs_down_map: no room for the count");
  if (extent != CS_EXTENT_ACTIVE && extent != CS_EXTENT_IMAGE)
    return fail(CS_BAD_ARGUMENT, "cs_down_map: extent %d, expected 0 or 1", static_cast<int>(extent));
  *count_out = 0;
  if (n == 0) return CS_OK;
  if (!up) return fail(CS_BAD_ARGUMENT, "cs_down_map: no room for the map");

  int my = H - 1, mx = W - 1;
  if (extent == CS_EXTENT_ACTIVE) {
    my = coords[2 * (int64_t{n} - 1)];
    mx = 0;
    for (int64_t i = 0; i < n; ++i) mx = coords[2 * i + 1] > mx ? coords[2 * i + 1] : mx;
  }
  const int oh = my >= 2 ? (my - 2) / 2 + 1 : 0, ow = mx >= 2 ? (mx - 2) / 2 + 1 : 0;
  if (oh == 0 || ow == 0) {
    std::memset(up, 0xff, 9 * sizeof(int32_t) * static_cast<size_t>(n));
    return CS_OK;
  }
  if (!coords_out || !down) return fail(CS_BAD_ARGUMENT, "cs_down_map: no room for the next level");

  int32_t *grid = ctx->scratch_zeroed<int32_t>(kSlotGrid, grid_cells(H, W));
  int32_t *coarse = ctx->scratch_zeroed<int32_t>(kSlotCoarseGrid, grid_cells(oh, ow));
  uint64_t *marks = ctx->scratch_zeroed<uint64_t>(kSlotMarks, (ow + 63) / 64);
  int32_t *start = ctx->scratch<int32_t>(kSlotRowStart, static_cast<size_t>(H) + 2);
  if (!grid || !coarse || !marks || !start) return CS_OUT_OF_MEMORY;

  int32_t line = 0;
  for (int32_t i = 0; i < n; ++i)
    while (line <= coords[2 * static_cast<int64_t>(i)]) start[line++] = i;
  while (line <= H) start[line++] = n;

  const int64_t m = coarse_sites(coords, start, oh, ow, marks, coords_out);
  *count_out = static_cast<int32_t>(m);
  fill(ctx, grid, coords, n, W);
  fill(ctx, coarse, coords_out, m, ow);
  by_rows(ctx, m, [&](int64_t begin, int64_t end) { down_rows(grid, coords_out, begin, end, W, down); });
  by_rows(ctx, n, [&](int64_t begin, int64_t end) { up_rows(coarse, coords, begin, end, ow, up); });
  clear(ctx, grid, coords, n, W);
  clear(ctx, coarse, coords_out, m, ow);
  return CS_OK;
}

extern "C" int cs_plan_map(cs_context *ctx, const int32_t *map, int32_t n, int K, int32_t *order) {
  using namespace crispseg;
  constexpr int64_t kRows = 1920;  // small enough that the rows of a block and their neighbours stay in the L2 cache
  static const std::array<uint16_t, 1 << kSortedTaps> ranks = gray_ranks();
  if (!ctx || n < 0 || K < 1 || (n > 0 && (!map || !order)))
    return fail(CS_BAD_ARGUMENT, "cs_plan_map: missing pointer, or n = %d, K = %d out of range", n, K);
  if (K > kSortedTaps) {
    for (int32_t i = 0; i < n; ++i) order[i] = i;
    return CS_OK;
  }
  parallel_for(ctx, ceil_div(n, kRows), [&](int64_t block, int) {
    const int64_t begin = block * kRows, rows = begin + kRows < n ? kRows : n - begin;
    uint16_t mask[kRows];
    int32_t place[1 << kSortedTaps] = {};
    for (int64_t i = 0; i < rows; ++i) {
      mask[i] = ranks[taps_of(map + (begin + i) * K, K)];
      ++place[mask[i]];
    }
    int32_t at = static_cast<int32_t>(begin);
    for (int bits = 0; bits < 1 << K; ++bits) {
      const int32_t count = place[bits];
      place[bits] = at;
      at += count;
    }
    for (int64_t i = 0; i < rows; ++i) order[place[mask[i]]++] = static_cast<int32_t>(begin + i);
  });
  return CS_OK;
}
