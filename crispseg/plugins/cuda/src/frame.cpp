// Frames in and out: csg_prepare_frame (tables, columns, rows and packing: three launches, fewer where a size stays),
// csg_to_frame and csg_overlay.
#include <cmath>

#include "arguments.h"

namespace crispseg {
namespace {

// Room for the weights of one output position, as Pillow counts it.
int taps(int in, int out) {
  const double scale = static_cast<double>(in) / out;
  return 2 * static_cast<int>(std::ceil(scale < 1.0 ? 1.0 : scale)) + 1;
}

struct FrameSpace {
  int32_t *table_x, *table_y;
  uint8_t *middle;  // [H0, columns, 3]
  size_t bytes;
};

FrameSpace layout(void *memory, int H0, int W0, int rows, int columns) {
  FrameSpace space{};
  Pieces pieces(memory);
  space.table_x = pieces.take<int32_t>(static_cast<size_t>(columns) * (2 + taps(W0, columns)));
  space.table_y = pieces.take<int32_t>(static_cast<size_t>(rows) * (2 + taps(H0, rows)));
  space.middle = pieces.take<uint8_t>(static_cast<size_t>(H0) * columns * 3);
  space.bytes = pieces.bytes();
  return space;
}

bool good_size(int height, int width) {
  return height >= 1 && width >= 1 && static_cast<int64_t>(height) * width <= INT32_MAX / 4;
}

}  // namespace
}  // namespace crispseg

extern "C" {

size_t csg_resize_workspace(int H0, int W0, int rows, int columns) {
  using namespace crispseg;
  return good_size(H0, W0) && good_size(rows, columns) ? layout(nullptr, H0, W0, rows, columns).bytes : 0;
}

int csg_prepare_frame(csg_context *ctx, csg_stream stream, const uint8_t *d_frame, int H0, int W0, const csg_fit *fit,
                      csg_type type, void *d_out, int h, int w, uint8_t *d_small, void *d_workspace,
                      size_t workspace_bytes) {
  using namespace crispseg;
  const char *const who = "csg_prepare_frame";
  CSG_CHECK(ctx && fit && d_frame && (d_out || d_small), "%s: a required pointer is NULL", who);
  CSG_CHECK(type == CSG_F32 || type == CSG_F16, "%s: result: expected fp32 or fp16, found type %d", who,
            static_cast<int>(type));
  CSG_CHECK(good_size(H0, W0) && good_size(h, w), "%s: frame %d x %d, picture %d x %d: sizes out of range", who, H0, W0,
            h, w);
  CSG_CHECK(fit->top >= 0 && fit->left >= 0 && fit->rows >= 1 && fit->columns >= 1 && fit->rows <= h - fit->top &&
                fit->columns <= w - fit->left,
            "%s: rectangle (%d, %d) + %d x %d does not lie in %d x %d", who, fit->top, fit->left, fit->rows,
            fit->columns, h, w);
  CSG_CHECK(fit->std[0] != 0.0f && fit->std[1] != 0.0f && fit->std[2] != 0.0f, "%s: a std is 0", who);
  CSG_CHECK(aligned(d_out, type_bytes(type)), "%s: the result is not aligned", who);
  const int rows = fit->rows, columns = fit->columns;
  const FrameSpace space = layout(d_workspace, H0, W0, rows, columns);
  CSG_TRY(check_workspace(who, d_workspace, workspace_bytes, space.bytes));

  const int taps_x = taps(W0, columns), taps_y = taps(H0, rows);
  if (rows != H0 || columns != W0)
    CSG_TRY(launch(ctx, kernel::csk_resize_tables, div_up(int64_t{rows} + columns, 128), 128, 0, stream, W0, columns,
                   taps_x, space.table_x, H0, rows, taps_y, space.table_y));
  CsPack a{};
  a.source = d_frame;
  if (columns != W0) {
    CSG_TRY(launch(ctx, kernel::csk_resize_columns,
                   Dim(div_up(columns, 128), static_cast<unsigned>(std::min(H0, 65535))), 128, 0, stream, d_frame, H0,
                   W0, columns, space.table_x, taps_x, space.middle));
    a.source = space.middle;
  }
  a.weights = rows != H0 ? space.table_y : nullptr;
  a.taps = taps_y;
  a.top = fit->top;
  a.left = fit->left;
  a.rows = rows;
  a.columns = columns;
  a.height = h;
  a.width = w;
  for (int c = 0; c < 3; ++c) {
    a.mean[c] = fit->mean[c];
    a.std[c] = fit->std[c];
    a.pad[c] = fit->pad[c];
  }
  a.bgr = fit->bgr;
  a.type = type;
  a.out = d_out;
  a.small = d_small;
  return launch(ctx, kernel::csk_frame_pack, Dim(div_up(w, 128), static_cast<unsigned>(std::min(h, 65535))), 128, 0,
                stream, a);
}

int csg_to_frame(csg_context *ctx, csg_stream stream, const uint8_t *d_map, int H, int W, int top, int left, int rows,
                 int columns, uint8_t *d_out, int H0, int W0) {
  using namespace crispseg;
  const char *const who = "csg_to_frame";
  CSG_CHECK(ctx && d_map && d_out, "%s: a required pointer is NULL", who);
  CSG_CHECK(good_size(H, W) && good_size(H0, W0), "%s: map %d x %d, frame %d x %d: sizes out of range", who, H, W, H0,
            W0);
  CSG_CHECK(top >= 0 && left >= 0 && rows >= 1 && columns >= 1 && rows <= H - top && columns <= W - left,
            "%s: rectangle (%d, %d) + %d x %d does not lie in %d x %d", who, top, left, rows, columns, H, W);
  const unsigned lines = std::min(div_up(H0, 8), 65535u);  // some lines a block: the division along x is done once
  return launch(ctx, kernel::csk_to_frame, Dim(div_up(W0, 4 * 128), lines), 128, 0, stream, d_map, W, top, left, rows,
                columns, d_out, H0, W0);
}

int csg_overlay(csg_context *ctx, csg_stream stream, const uint8_t *d_frame, const uint8_t *d_labels, int H, int W,
                const uint8_t *d_palette, int colours, float alpha, uint8_t *d_out) {
  using namespace crispseg;
  const char *const who = "csg_overlay";
  CSG_CHECK(ctx && d_frame && d_labels && d_palette && d_out, "%s: a required pointer is NULL", who);
  CSG_CHECK(good_size(H, W), "%s: frame %d x %d is out of range", who, H, W);
  CSG_CHECK(colours >= 1 && colours <= 256, "%s: %d colours, expected 1..256", who, colours);
  CSG_CHECK(alpha >= 0.0f && alpha <= 1.0f, "%s: alpha = %g, expected 0..1", who, static_cast<double>(alpha));
  const int64_t pixels = static_cast<int64_t>(H) * W;
  const uint32_t weight = static_cast<uint32_t>(static_cast<double>(alpha) * 255.0 + 0.5);
  return launch(ctx, kernel::csk_overlay, row_blocks(ctx, kernel::csk_overlay, pixels, 1024, 256), 256, 0, stream,
                d_frame, d_labels, pixels, d_palette, colours, weight, d_out);
}

}  // extern "C"
