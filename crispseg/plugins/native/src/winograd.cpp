// cs_winograd_*: tile plan, weight transform, and cutting of the work into blocks of tiles (kernels: winograd.isa.cpp).
#include "winograd_kernels.h"

#include <algorithm>
#include <atomic>

#include "conv_driver.h"
#include "grid.h"

namespace crispseg {

namespace {

constexpr int kTaps = 9;

inline bool bad_tile(int tile) { return tile != 2 && tile != 4; }

inline int64_t mark_words(int W, int tile) { return ceil_div(ceil_div(W, tile), 64); }

// Positions (in tiles) of the tiles that have a site, in raster order; returns their number.
int64_t occupied(const int32_t *coords, int64_t n, int W, int tile, uint64_t *marks, int32_t *sites) {
  const int words = static_cast<int>(mark_words(W, tile)), shift = tile == 4 ? 2 : 1;
  int64_t m = 0;
  for (int64_t i = 0; i < n;) {
    const int ty = coords[2 * i] >> shift;
    for (; i < n && coords[2 * i] >> shift == ty; ++i) {
      const int tx = coords[2 * i + 1] >> shift;
      marks[tx >> 6] |= uint64_t{1} << (tx & 63);
    }
    for (int w = 0; w < words; ++w) {
      for (uint64_t bits = marks[w]; bits; bits &= bits - 1, ++m) {
        sites[2 * m] = ty;
        sites[2 * m + 1] = w * 64 + __builtin_ctzll(bits);
      }
      marks[w] = 0;
    }
  }
  return m;
}

// Returns the number of (site, neighbour) pairs.
int64_t fill_tiles(int tile, const int32_t *grid, int64_t stride, const int32_t *sites, int64_t begin, int64_t end,
                   int32_t *in, int32_t *out) {
  const int side = side_of(tile);
  const uint64_t column = 7, window = column | column << side | column << 2 * side;
  int64_t pairs = 0;
  in += begin * points_of(tile);
  out += begin * outputs_of(tile);
  for (int64_t t = begin; t < end; ++t) {
    const int32_t *cell = grid + tile * (sites[2 * t] * stride + sites[2 * t + 1]);  // top left of the input
    uint64_t active = 0;
    for (int x = 0, bit = 0; x < side; ++x)
      for (int y = 0; y < side; ++y, ++bit) {
        *in = cell[y * stride + x] - 1;
        active |= static_cast<uint64_t>(*in++ >= 0) << bit;
      }
    for (int x = 0; x < tile; ++x)
      for (int y = 0; y < tile; ++y) {
        *out = cell[(y + 1) * stride + x + 1] - 1;
        if (*out++ >= 0) pairs += __builtin_popcountll(active & window << (side * x + y));
      }
  }
  return pairs;
}

// G g of `n` kernels' three taps: point i of them at to + i * step. F(4,3): value of the kernel's polynomial at each
// point x_i, over the product of x_i - x_j; the last point, infinity, has its leading coefficient.
void weight_points(int tile, const double *a, const double *b, const double *c, int n, double *to, int step) {
  const auto points = [&](int point, double at, double scale) {
    double *even = to + point * step, *odd = even + step;
    for (int i = 0; i < n; ++i) {
      const double sum = a[i] + at * at * c[i];
      even[i] = (sum + at * b[i]) * scale;
      odd[i] = (sum - at * b[i]) * scale;
    }
  };
  constexpr double pp = kP * kP, qq = kQ * kQ;
  const double first = tile == 2 ? 1 : 1 / (pp * qq);
  for (int i = 0; i < n; ++i) to[i] = a[i] * first;
  if (tile == 2) {
    points(1, 1, 0.5);
  } else {
    points(1, kP, 0.5 / (pp * (pp - qq)));
    points(3, kQ, 0.5 / (qq * (qq - pp)));
  }
  double *last = to + (tile + 1) * step;
  for (int i = 0; i < n; ++i) last[i] = c[i];
}

// G g G' of `n` kernels of one input channel: g[ky + 3 * kx] (kMaxWidth apart) -> u[a + side * b] (likewise).
void weight_squares(int tile, const double *g, int n, double *u) {
  constexpr int w = kMaxWidth;
  const int side = side_of(tile);
  double t[3 * side_of(4) * w];
  for (int kx = 0; kx < 3; ++kx, g += 3 * w) weight_points(tile, g, g + w, g + 2 * w, n, t + side * kx * w, w);
  for (int a = 0; a < side; ++a)
    weight_points(tile, t + a * w, t + (side + a) * w, t + (2 * side + a) * w, n, u + a * w, side * w);
}

// `blocks` blocks of `tiles` tiles, each cut into groups of panels, and the scratch of a worker. Results do
// not depend on it.
struct Cut {
  int64_t tiles, blocks, groups, panels_per_group, ldv, v_point, m_point;
  int panels;
};

Cut cut(const ConvShape &k, const cs_conv &c, int tile, int64_t tiles, int threads) {
  Cut r;
  // Weights that fit into half of the L2 cache stay there, and with blocks this small most of v and m too. Larger ones
  // come from further away once a block; then blocks are large, so that fetching them hides behind the arithmetic
  // (measured on levels of 32 to 1024 channels: 48..96 tiles of 2x2 or 36 of 4x4 best where weights fit, 144..288 or
  // 144..240 beyond).
  const bool small = static_cast<int64_t>(sizeof(float)) * points_of(tile) * c.cin * c.cout <= input_bytes();
  r.blocks = ceil_div(tiles, tile == 2 ? (small ? 96 : 240) : (small ? 36 : 192));
  if (r.blocks < 8 * threads && (small || r.blocks >= threads)) r.blocks = round_up(r.blocks, threads);
  r.tiles = round_up(ceil_div(tiles, r.blocks), k.mr);
  r.blocks = ceil_div(tiles, r.tiles);
  r.panels = static_cast<int>(ceil_div(c.cout, k.width));
  // Several threads want two units of work each; panels of a block go to different units for that. A unit transforms
  // its input anew, which is cheap next to four panels.
  const int64_t units = threads == 1 ? 1 : 2 * threads;
  const int64_t few = r.blocks < threads ? 1 : 4;
  const int64_t share = ceil_div(r.panels, ceil_div(units, r.blocks));
  r.panels_per_group = share > few ? share : few < r.panels ? few : r.panels;
  r.groups = ceil_div(r.panels, r.panels_per_group);
  // 16 more floats: rows and points a power of two apart would share few cache sets.
  r.ldv = round_up(c.cin, 16) + 16;
  r.v_point = r.tiles * r.ldv + 16;
  r.m_point = r.tiles * r.panels_per_group * k.width + 16;
  return r;
}

}  // namespace

}  // namespace crispseg

extern "C" int cs_winograd_plan(cs_context *ctx, const int32_t *coords, int32_t n, int H, int W, int tile,
                                int32_t *tiles_in, int32_t *tiles_out, int32_t *count, int64_t *pairs) {
  using namespace crispseg;
  if (bad_tile(tile)) return fail(CS_BAD_ARGUMENT, "cs_winograd_plan: tile: expected 2 or 4, found %d", tile);
  if (const int bad = check_sites("cs_winograd_plan", ctx, coords, n, H, W)) return bad;
  if (!count || !pairs) return fail(CS_BAD_ARGUMENT, "cs_winograd_plan: no room for the counts");
  *count = 0;
  *pairs = 0;
  if (n == 0) return CS_OK;
  if (!tiles_in || !tiles_out) return fail(CS_BAD_ARGUMENT, "cs_winograd_plan: no room for the tiles");
  // A tile may hang over the lower or right edge of an odd grid.
  const int Ht = static_cast<int>(round_up(H, tile)), Wt = static_cast<int>(round_up(W, tile));
  int32_t *grid = ctx->scratch_zeroed<int32_t>(kSlotGrid, grid_cells(Ht, Wt));
  uint64_t *marks = ctx->scratch_zeroed<uint64_t>(kSlotMarks, mark_words(Wt, tile));
  int32_t *sites = ctx->scratch<int32_t>(kSlotTileSites, 2 * static_cast<size_t>(n));
  if (!grid || !marks || !sites) return CS_OUT_OF_MEMORY;
  const int64_t tiles = occupied(coords, n, Wt, tile, marks, sites);
  *count = static_cast<int32_t>(tiles);
  fill(ctx, grid, coords, n, Wt);
  std::atomic<int64_t> found{0};
  by_rows(ctx, tiles, [&](int64_t begin, int64_t end) {
    found.fetch_add(fill_tiles(tile, grid, Wt + 2, sites, begin, end, tiles_in, tiles_out), std::memory_order_relaxed);
  });
  *pairs = found.load();
  clear(ctx, grid, coords, n, Wt);
  return CS_OK;
}

extern "C" size_t cs_winograd_bytes(const cs_context *ctx, int tile, int cin, int cout) {
  using namespace crispseg;
  if (!ctx || bad_tile(tile) || bad_shape(kTaps, cin, cout)) return 0;
  const ConvShape &k = CS_PICK(ctx->isa, conv_kernels).shape;
  return static_cast<size_t>(padded(k, cout)) * points_of(tile) * cin * sizeof(float);
}

// Packed: [point][panel][cin][panel width], the last panel padded with zeros to whole vectors.
extern "C" int cs_winograd_pack(const cs_context *ctx, const float *weight, int tile, int cin, int cout,
                                void *packed) {
  using namespace crispseg;
  if (!ctx || !weight || !packed || bad_tile(tile) || bad_shape(kTaps, cin, cout))
    return fail(CS_BAD_ARGUMENT, "cs_winograd_pack: missing pointer, or tile = %d (2, 4), cin = %d, cout = %d out of "
                "range", tile, cin, cout);
  const ConvShape &k = CS_PICK(ctx->isa, conv_kernels).shape;
  const int64_t columns = padded(k, cout), point = columns * cin, tap = static_cast<int64_t>(cin) * cout;
  float *const to = static_cast<float *>(packed);
  double g[kTaps * kMaxWidth], u[points_of(4) * kMaxWidth];
  for (int col = 0; col < cout; col += k.width) {
    const int cols = cout - col < k.width ? cout - col : k.width, width = padded(k, cols);
    std::fill(g, g + kTaps * kMaxWidth, 0.0);
    for (int64_t c = 0; c < cin; ++c) {
      for (int t = 0; t < kTaps; ++t)
        for (int i = 0; i < cols; ++i) g[t * kMaxWidth + i] = weight[t * tap + c * cout + col + i];
      weight_squares(tile, g, width, u);
      float *at = to + static_cast<int64_t>(col) * cin + c * width;
      for (int p = 0; p < points_of(tile); ++p, at += point)
        for (int i = 0; i < width; ++i) at[i] = static_cast<float>(u[p * kMaxWidth + i]);
    }
  }
  return CS_OK;
}

extern "C" int cs_winograd_conv(cs_context *ctx, const cs_conv *conv, int tile, const int32_t *tiles_in,
                                const int32_t *tiles_out, int32_t tiles) {
  using namespace crispseg;
  if (const int bad = check_conv("cs_winograd_conv", ctx, conv)) return bad;
  if (bad_tile(tile)) return fail(CS_BAD_ARGUMENT, "cs_winograd_conv: tile: expected 2 or 4, found %d", tile);
  if (conv->x2) return fail(CS_BAD_ARGUMENT, "cs_winograd_conv: a second source: only cs_sparse_conv takes one");
  if (conv->K != kTaps || conv->n_in != conv->n_out || tiles < 0 || tiles > conv->n_out)
    return fail(CS_BAD_ARGUMENT, "cs_winograd_conv: expected K = 9, n_in = n_out and at most n_out tiles; found "
                "K = %d, n_in = %d, n_out = %d, %d tiles", conv->K, conv->n_in, conv->n_out, tiles);
  if (conv->n_out == 0 || tiles == 0) return CS_OK;
  if (!tiles_in || !tiles_out) return fail(CS_BAD_ARGUMENT, "cs_winograd_conv: no tiles");
  const ConvShape &k = CS_PICK(ctx->isa, conv_kernels).shape;
  const Cut work = cut(k, *conv, tile, tiles, ctx->threads);
  const int points = points_of(tile), outputs = outputs_of(tile);
  const int64_t v_size = points * work.v_point, m_size = points * work.m_point;
  float *v = ctx->scratch<float>(kSlotTileIn, static_cast<size_t>(v_size) * ctx->threads);
  float *m = ctx->scratch<float>(kSlotTileOut, static_cast<size_t>(m_size) * ctx->threads);
  if (!v || !m) return CS_OUT_OF_MEMORY;

  std::atomic<bool> bad{false};
  parallel_for(ctx, work.blocks * work.groups, [&](int64_t unit, int worker) {
    const int64_t begin = unit / work.groups * work.tiles;
    const int64_t count = begin + work.tiles < tiles ? work.tiles : tiles - begin;
    const int panel0 = static_cast<int>(unit % work.groups * work.panels_per_group);
    const int64_t panel1 = panel0 + work.panels_per_group < work.panels ? panel0 + work.panels_per_group : work.panels;
    const WinogradBlock block{conv, tiles_in + points * begin, tiles_out + outputs * begin, count, panel0,
                              static_cast<int>(panel1), v + v_size * worker, m + m_size * worker, work.v_point,
                              work.m_point, work.ldv};
    const WinogradKernels &kernels = CS_PICK(ctx->isa, winograd_kernels);
    if (!(tile == 4 ? kernels.block4 : kernels.block2)(block)) bad.store(true, std::memory_order_relaxed);
  });
  if (bad.load())
    return fail(CS_BAD_ARGUMENT, "cs_winograd_conv: a tile points outside of the %d rows", conv->n_out);
  return CS_OK;
}
