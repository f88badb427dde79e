// csg_check_logits, csg_select_pixels and csg_logits_at. Selection is a clear and three launches, whatever is found.
#include <cmath>
#include <limits>

#include "arguments.h"

namespace crispseg {
namespace {

struct SelectSpace {
  uint32_t *histogram, *words, *ties;
  CsCut *cut;
  int32_t *chunks;
  uint16_t *bins;
  int words_per_row;
  int64_t chunk_count;
  size_t bytes;
};

SelectSpace layout(void *memory, int H, int W) {
  SelectSpace space{};
  space.words_per_row = (W + 31) / 32;
  const size_t words = static_cast<size_t>(H) * space.words_per_row;
  space.chunk_count = static_cast<int64_t>((words + CS_SELECT_CHUNK - 1) / CS_SELECT_CHUNK);
  Pieces pieces(memory);
  space.histogram = pieces.take<uint32_t>(CS_SELECT_BINS);
  space.cut = pieces.take<CsCut>(1);
  space.chunks = pieces.take<int32_t>(2 * static_cast<size_t>(space.chunk_count));
  space.words = pieces.take<uint32_t>(words);
  space.ties = pieces.take<uint32_t>(words);
  space.bins = pieces.take<uint16_t>(static_cast<size_t>(H) * W);
  space.bytes = pieces.bytes();
  return space;
}

// The lead of the best logit from which on the entropy cannot exceed the threshold, NaN when there is none. Among C
// classes the entropy under "every other logit is at least m below" is largest when all are exactly m below.
float safe_margin(int C, float threshold) {
  const float none = std::numeric_limits<float>::quiet_NaN();
  const double target = static_cast<double>(threshold) - 1e-4;  // far above the rounding of the kernel
  if (!(target > 1e-4)) return none;
  const auto bound = [C](double m) {
    const double q = (C - 1) * std::exp(-m);
    return std::log1p(q) + q * m / (1 + q);
  };
  double low = 0, high = 40;
  if (bound(high) > target) return none;
  if (bound(low) <= target) return 0.0f;
  for (int i = 0; i < 60; ++i) {
    const double middle = 0.5 * (low + high);
    (bound(middle) > target ? low : high) = middle;
  }
  return static_cast<float>(high + 1e-3);
}

// Without interpolation every rule is the nearest one.
CsSampling sampling(int h, int w, int H, int W, csg_upsample up) {
  return {h, w, H, W, h == H && w == W ? static_cast<int>(CS_RULE_NEAREST) : static_cast<int>(up)};
}

// Most low-resolution columns under the 64 columns of a tile, second taps included.
int64_t tile_columns(const CsSampling &s) {
  const int64_t span = CS_SELECT_WIDTH - 1;
  const int64_t in = s.rule == CS_RULE_CORNERS ? s.low_width - 1 : s.low_width;
  const int64_t out = s.rule == CS_RULE_CORNERS ? std::max(s.width - 1, 1) : s.width;
  return std::min<int64_t>(span * in / out + 3, static_cast<int64_t>(s.low_width) + 1);
}

constexpr int64_t kTileBytes = 24 << 10;    // several blocks on a multiprocessor
constexpr int64_t kLargestTile = 44 << 10;  // beside the tables, within the 48 KiB that need no permission

// Chooses the kernel; fills in the tile of `a`. Returns the dynamic shared memory.
size_t choose(CsSelect *a, bool half, KernelId *id) {
  const auto pick = [half](KernelId single, KernelId other) { return half ? other : single; };
  const int64_t line = 4 * tile_columns(a->sampling) * a->classes;
  a->log_rows = 3;
  if (a->sampling.rule == CS_RULE_NEAREST) {
    *id = a->classes <= 32 ? pick(KernelId::csk_select_pixel32_f32, KernelId::csk_select_pixel32_f16)
                           : pick(KernelId::csk_select_pixel_f32, KernelId::csk_select_pixel_f16);
    return 0;
  }
  if (line > kLargestTile) {
    *id = pick(KernelId::csk_select_taps_f32, KernelId::csk_select_taps_f16);
    return 0;
  }
  while (a->log_rows > 0 && line << a->log_rows > kTileBytes) --a->log_rows;
  a->columns = static_cast<int>(tile_columns(a->sampling));
  a->log_group = 0;
  while (a->log_group < 5 && 1 << a->log_group < a->columns) ++a->log_group;
  *id = a->classes <= 20   ? pick(KernelId::csk_select_tile20_f32, KernelId::csk_select_tile20_f16)
        : a->classes <= 32 ? pick(KernelId::csk_select_tile32_f32, KernelId::csk_select_tile32_f16)
                           : pick(KernelId::csk_select_tile_f32, KernelId::csk_select_tile_f16);
  return static_cast<size_t>(line << a->log_rows);
}

int check_logits(const char *who, csg_type type, const void *d_logits, int C, int h, int w, int H, int W,
                 csg_upsample up) {
  CSG_CHECK(type == CSG_F32 || type == CSG_F16, "%s: logits: expected fp32 or fp16, found type %d", who,
            static_cast<int>(type));
  CSG_CHECK(C >= 1 && C <= 256, "%s: C = %d, expected 1..256", who, C);
  CSG_CHECK(h >= 1 && w >= 1 && H >= 1 && W >= 1 && static_cast<int64_t>(h) * w <= INT32_MAX &&
                static_cast<int64_t>(H) * W <= INT32_MAX / 2,
            "%s: logits %d x %d, frame %d x %d: sizes out of range", who, h, w, H, W);
  CSG_CHECK(up == CSG_NEAREST || up == CSG_BILINEAR || up == CSG_BILINEAR_CORNERS, "%s: unknown upsampling rule %d",
            who, static_cast<int>(up));
  CSG_CHECK(d_logits && aligned(d_logits, type_bytes(type)), "%s: logits are NULL or not aligned", who);
  return CSG_OK;
}

}  // namespace
}  // namespace crispseg

extern "C" {

int csg_check_logits(csg_context *ctx, csg_stream stream, csg_type type, void *d_logits, int C, int h, int w,
                     int32_t *d_not_finite) {
  using namespace crispseg;
  const char *const who = "csg_check_logits";
  CSG_CHECK(ctx, "%s: no context", who);
  CSG_TRY(check_logits(who, type, d_logits, C, h, w, 1, 1, CSG_NEAREST));
  CSG_CHECK(d_not_finite && aligned(d_not_finite, 4), "%s: the count is NULL or not aligned", who);
  CSG_TRY(fill_words(ctx, stream, d_not_finite, 0, 1));
  const int pixels = h * w;
  if (type == CSG_F16)
    return launch(ctx, kernel::csk_check_logits_f16, row_blocks(ctx, kernel::csk_check_logits_f16, pixels, 256, 256),
                  256, 0, stream, static_cast<cs_half *>(d_logits), C, pixels, d_not_finite);
  return launch(ctx, kernel::csk_check_logits_f32, row_blocks(ctx, kernel::csk_check_logits_f32, pixels, 256, 256), 256,
                0, stream, static_cast<float *>(d_logits), C, pixels, d_not_finite);
}

size_t csg_select_workspace(int H, int W) { return H < 1 || W < 1 ? 0 : crispseg::layout(nullptr, H, W).bytes; }

int csg_select_pixels(csg_context *ctx, csg_stream stream, csg_type type, const void *d_logits, int C, int h, int w,
                      int H, int W, csg_upsample up, float threshold, int32_t capacity, uint8_t *d_labels,
                      uint8_t *d_confidence, int32_t *d_coords, int32_t *d_count, int32_t *d_found, void *d_workspace,
                      size_t workspace_bytes) {
  using namespace crispseg;
  const char *const who = "csg_select_pixels";
  CSG_CHECK(ctx, "%s: no context", who);
  CSG_TRY(check_logits(who, type, d_logits, C, h, w, H, W, up));
  CSG_CHECK(capacity >= 0, "%s: capacity is negative", who);
  CSG_CHECK(threshold == threshold, "%s: threshold is NaN", who);
  CSG_CHECK(d_labels && d_count && d_found && (d_coords || capacity == 0), "%s: a required pointer is NULL", who);
  CSG_CHECK(aligned(d_coords, 8), "%s: coordinates must be aligned to 8 bytes", who);
  const SelectSpace space = layout(d_workspace, H, W);
  CSG_TRY(check_workspace(who, d_workspace, workspace_bytes, space.bytes));

  CsSelect a{};
  a.logits = d_logits;
  a.sampling = sampling(h, w, H, W, up);
  a.classes = C;
  a.threshold = threshold;
  a.margin = safe_margin(C, threshold);
  a.bin_scale = C > 1 ? static_cast<float>(CS_SELECT_BINS / std::log(static_cast<double>(C))) : 0.0f;
  a.words_per_row = space.words_per_row;
  a.labels = d_labels;
  a.confidence = d_confidence;
  a.words = space.words;
  a.bins = space.bins;
  a.histogram = space.histogram;
  KernelId id;
  const size_t shared = choose(&a, type == CSG_F16, &id);
  const int rows = 1 << a.log_rows;
  const unsigned tiles = div_up(H, rows);
  CSG_CHECK(tiles <= 65535, "%s: frame of %d rows, expected at most %d", who, H, 65535 * rows);

  CSG_TRY(fill_words(ctx, stream, space.histogram, 0, CS_SELECT_BINS));
  void *parameters[] = {&a, nullptr};
  CSG_TRY(launch_raw(ctx, id, Dim(div_up(W, CS_SELECT_WIDTH), tiles), CS_SELECT_WIDTH * std::min(rows, 4), shared,
                     stream, parameters));
  const CsCompact compact{space.histogram,     space.words, space.ties, space.bins, space.chunks, space.cut, H, W,
                          space.words_per_row, capacity,    d_coords,   d_count,    d_found};
  const unsigned chunks = static_cast<unsigned>(space.chunk_count);
  CSG_TRY(launch(ctx, kernel::csk_select_count, chunks, CS_SELECT_CHUNK, 0, stream, compact));
  return launch(ctx, kernel::csk_select_write, chunks, CS_SELECT_CHUNK, 0, stream, compact);
}

int csg_logits_at(csg_context *ctx, csg_stream stream, csg_type type, const void *d_logits, int C, int h, int w, int H,
                  int W, csg_upsample up, const int32_t *d_coords, const int32_t *d_count, int32_t capacity, float *d_y,
                  int64_t ldy) {
  using namespace crispseg;
  const char *const who = "csg_logits_at";
  CSG_TRY(check_sites(who, ctx, d_coords, d_count, capacity, H, W));
  CSG_TRY(check_logits(who, type, d_logits, C, h, w, H, W, up));
  if (capacity == 0) return CSG_OK;
  CSG_CHECK(good_matrix(CSG_F32, d_y, ldy, C), "%s: result: NULL, not aligned, or row stride below C", who);
  const CsSampling s = sampling(h, w, H, W, up);
  if (type == CSG_F16)
    return launch(ctx, kernel::csk_logits_at_f16,
                  row_blocks(ctx, kernel::csk_logits_at_f16, capacity, CS_ROW_BLOCK, CS_ROW_BLOCK), CS_ROW_BLOCK, 0,
                  stream, static_cast<const cs_half *>(d_logits), C, s, d_coords, d_count, capacity, d_y, ldy);
  return launch(ctx, kernel::csk_logits_at_f32,
                row_blocks(ctx, kernel::csk_logits_at_f32, capacity, CS_ROW_BLOCK, CS_ROW_BLOCK), CS_ROW_BLOCK, 0,
                stream, static_cast<const float *>(d_logits), C, s, d_coords, d_count, capacity, d_y, ldy);
}

}  // extern "C"
