// Kernel maps: csg_submanifold_map (clear, enter, look up), csg_down_map (clear, enter, bits, sites, look up) and
// csg_parity_order (count, write). All maps of six levels are 6 * 3 + 5 * (5 + 2) = 53 small launches in a graph.
#include "arguments.h"

namespace crispseg {
namespace {

constexpr size_t kHeader = 64;  // words before the finer grid, cleared with it; the first is the largest x

struct MapSpace {
  uint32_t *header;
  CsGrid fine, coarse;
  int32_t *line_counts, *chunks;
  size_t clear_words;
  size_t bytes;
};

CsGrid grid(int H, int W) { return {nullptr, (W + 2 + 31) / 32, H, W}; }
size_t cells(const CsGrid &g) { return (static_cast<size_t>(g.height) + 2) * g.pitch; }

MapSpace layout(void *memory, int H, int W) {
  MapSpace space{};
  space.fine = grid(H, W);
  space.coarse = grid((H - 1) / 2, (W - 1) / 2);
  Pieces pieces(memory);
  space.clear_words = kHeader + 2 * cells(space.fine);
  space.header = pieces.take<uint32_t>(space.clear_words);
  space.fine.cells = space.header ? space.header + kHeader : nullptr;
  space.coarse.cells = pieces.take<uint32_t>(2 * cells(space.coarse));
  space.line_counts = pieces.take<int32_t>(static_cast<size_t>(space.coarse.height));
  Pieces order(memory);  // csg_parity_order uses the same memory in another way
  space.chunks = order.take<int32_t>(4 * ((static_cast<size_t>(H) * W + CS_PARITY_CHUNK - 1) / CS_PARITY_CHUNK));
  space.bytes = std::max(pieces.bytes(), order.bytes());
  return space;
}

int enter(const csg_context *ctx, csg_stream stream, const MapSpace &space, const int32_t *d_coords,
          const int32_t *d_count, int32_t capacity, int32_t *largest_x) {
  CSG_TRY(fill_words(ctx, stream, space.header, 0, space.clear_words));
  return launch(ctx, kernel::csk_grid_enter, row_blocks(ctx, kernel::csk_grid_enter, capacity, 256, 256), 256, 0,
                stream, space.fine, d_coords, d_count, capacity, largest_x);
}

}  // namespace
}  // namespace crispseg

extern "C" {

size_t csg_map_workspace(int H, int W) { return H < 1 || W < 1 ? 0 : crispseg::layout(nullptr, H, W).bytes; }

int csg_submanifold_map(csg_context *ctx, csg_stream stream, const int32_t *d_coords, const int32_t *d_count,
                        int32_t capacity, int H, int W, int32_t *d_map, void *d_workspace, size_t workspace_bytes) {
  using namespace crispseg;
  const char *const who = "csg_submanifold_map";
  CSG_TRY(check_sites(who, ctx, d_coords, d_count, capacity, H, W));
  const MapSpace space = layout(d_workspace, H, W);
  CSG_TRY(check_workspace(who, d_workspace, workspace_bytes, space.bytes));
  if (capacity == 0) return CSG_OK;
  CSG_CHECK(d_map && aligned(d_map, 4), "%s: no room for the map, or it is not aligned", who);
  CSG_TRY(enter(ctx, stream, space, d_coords, d_count, capacity, nullptr));
  return launch(ctx, kernel::csk_submanifold_rows,
                row_blocks(ctx, kernel::csk_submanifold_rows, capacity, CS_ROW_BLOCK, CS_ROW_BLOCK), CS_ROW_BLOCK, 0,
                stream, space.fine, d_coords, d_count, capacity, d_map);
}

int32_t csg_down_capacity(int32_t capacity, int H, int W) {
  if (capacity < 0 || H < 1 || W < 1) return 0;
  const int64_t sites = static_cast<int64_t>((H - 1) / 2) * ((W - 1) / 2);
  return static_cast<int32_t>(std::min<int64_t>({4 * static_cast<int64_t>(capacity), sites, INT32_MAX}));
}

int csg_down_map(csg_context *ctx, csg_stream stream, const int32_t *d_coords, const int32_t *d_count, int32_t capacity,
                 int H, int W, csg_extent extent, int32_t capacity_out, int32_t *d_coords_out, int32_t *d_count_out,
                 int32_t *d_down, int32_t *d_up, void *d_workspace, size_t workspace_bytes) {
  using namespace crispseg;
  const char *const who = "csg_down_map";
  CSG_TRY(check_sites(who, ctx, d_coords, d_count, capacity, H, W));
  CSG_CHECK(extent == CSG_EXTENT_ACTIVE || extent == CSG_EXTENT_IMAGE, "%s: extent %d, expected 0 or 1", who,
            static_cast<int>(extent));
  CSG_CHECK(capacity_out >= 0 && d_count_out && aligned(d_count_out, 4),
            "%s: capacity_out %d, or no room for the count", who, capacity_out);
  CSG_CHECK(capacity_out == 0 || (d_coords_out && d_down && aligned(d_coords_out, 8) && aligned(d_down, 4)),
            "%s: no room for the next level, or it is not aligned", who);
  CSG_CHECK(capacity == 0 || (d_up && aligned(d_up, 4)), "%s: no room for the map upwards, or it is not aligned", who);
  const MapSpace space = layout(d_workspace, H, W);
  CSG_TRY(check_workspace(who, d_workspace, workspace_bytes, space.bytes));
  int32_t *largest_x = reinterpret_cast<int32_t *>(space.header);
  CSG_TRY(enter(ctx, stream, space, d_coords, d_count, capacity, largest_x));
  const CsDown a{space.fine,   space.coarse, d_coords,          d_count,      capacity,    static_cast<int32_t>(extent),
                 capacity_out, largest_x,    space.line_counts, d_coords_out, d_count_out, d_down,
                 d_up};
  constexpr int lines = 8;  // of a block
  CSG_TRY(launch(ctx, kernel::csk_down_bits, div_up(space.coarse.height + 2, lines), 32 * lines, 0, stream, a));
  CSG_TRY(
      launch(ctx, kernel::csk_down_sites, div_up(std::max(space.coarse.height, 1), lines), 32 * lines, 0, stream, a));
  const int64_t rows =
      static_cast<int64_t>(capacity) + std::min(capacity_out, csg_down_capacity(capacity, H, W)) + CS_ROW_BLOCK;
  return launch(ctx, kernel::csk_down_rows, row_blocks(ctx, kernel::csk_down_rows, rows, CS_ROW_BLOCK, CS_ROW_BLOCK),
                CS_ROW_BLOCK, 0, stream, a);
}

int csg_parity_order(csg_context *ctx, csg_stream stream, const int32_t *d_coords, const int32_t *d_count,
                     int32_t capacity, int H, int W, int32_t *d_order, void *d_workspace, size_t workspace_bytes) {
  using namespace crispseg;
  const char *const who = "csg_parity_order";
  CSG_TRY(check_sites(who, ctx, d_coords, d_count, capacity, H, W));
  const MapSpace space = layout(d_workspace, H, W);
  CSG_TRY(check_workspace(who, d_workspace, workspace_bytes, space.bytes));
  const int32_t rows = std::min(capacity, H * W);  // there are no more sites than pixels
  if (rows == 0) return CSG_OK;
  CSG_CHECK(d_order && aligned(d_order, 4), "%s: no room for the order, or it is not aligned", who);
  const unsigned chunks = div_up(rows, CS_PARITY_CHUNK);
  CSG_TRY(launch(ctx, kernel::csk_parity_count, chunks, 256, 0, stream, d_coords, d_count, rows, space.chunks));
  return launch(ctx, kernel::csk_parity_write, chunks, 256, 0, stream, d_coords, d_count, rows, space.chunks, d_order);
}

}  // extern "C"
