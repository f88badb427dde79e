// Entry points of the row-wise ops: colours and logits at the sites, softmax, labels, entropy ensembler.
#include <cmath>

#include "internal.h"
#include "rows_kernels.h"
#include "sampling.h"

namespace crispseg {
namespace {

constexpr int32_t kRowsPerBlock = 1024;  // a multiple of every block the kernels work on

bool inside(const int32_t *coords, int32_t n, int H, int W) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i)
    bad |= static_cast<uint32_t>(static_cast<uint32_t>(coords[2 * i]) >= static_cast<uint32_t>(H)) |
           static_cast<uint32_t>(static_cast<uint32_t>(coords[2 * i + 1]) >= static_cast<uint32_t>(W));
  return !bad;
}

template <class F> void for_rows(cs_context *ctx, int32_t n, F &&body) {
  parallel_for(ctx, ceil_div(n, kRowsPerBlock), [&](int64_t block, int worker) {
    const int32_t begin = static_cast<int32_t>(block) * kRowsPerBlock;
    const int32_t end = n - begin < kRowsPerBlock ? n : begin + kRowsPerBlock;
    body(begin, end, worker);
  });
}

}  // namespace
}  // namespace crispseg

extern "C" int cs_pixel_colours(cs_context *ctx, const uint8_t *image, int H, int W, const int32_t *coords, int32_t n,
                                const float mean[3], const float std[3], int bgr, float *x, int64_t ldx) {
  using namespace crispseg;
  if (!ctx || n < 0 || H < 1 || W < 1) return fail(CS_BAD_ARGUMENT, "cs_pixel_colours: n = %d, frame %d x %d", n, H, W);
  if (n == 0) return CS_OK;
  if (!image || !coords || !mean || !std || !x || ldx < 3)
    return fail(CS_BAD_ARGUMENT, "cs_pixel_colours: null pointer, or row stride below 3");
  if (!inside(coords, n, H, W)) return fail(CS_BAD_ARGUMENT, "cs_pixel_colours: a site lies outside %d x %d", H, W);
  float table[3][256];
  for (int c = 0; c < 3; ++c)
    for (int v = 0; v < 256; ++v) table[c][v] = (static_cast<float>(v) - mean[c]) / std[c];
  const int from[3] = {bgr ? 2 : 0, 1, bgr ? 0 : 2};
  for_rows(ctx, n, [&](int32_t begin, int32_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const uint8_t *pixel = image + (static_cast<int64_t>(coords[2 * i]) * W + coords[2 * i + 1]) * 3;
      float *row = x + i * ldx;
      for (int c = 0; c < 3; ++c) row[c] = table[c][pixel[from[c]]];
    }
  });
  return CS_OK;
}

extern "C" int cs_logits_at(cs_context *ctx, const float *logits, int C, int h, int w, int H, int W, cs_upsample up,
                            const int32_t *coords, int32_t n, float *y, int64_t ldy) {
  using namespace crispseg;
  if (!ctx || n < 0 || C < 1 || C > 256) return fail(CS_BAD_ARGUMENT, "cs_logits_at: n = %d, C = %d", n, C);
  if (h < 1 || w < 1 || H < 1 || W < 1 || static_cast<int64_t>(H) * W > INT32_MAX ||
      static_cast<int64_t>(h) * w > INT32_MAX)
    return fail(CS_BAD_ARGUMENT, "cs_logits_at: logits %d x %d, frame %d x %d: sizes out of range", h, w, H, W);
  if (up != CS_NEAREST && up != CS_BILINEAR && up != CS_BILINEAR_CORNERS)
    return fail(CS_BAD_ARGUMENT, "cs_logits_at: unknown upsampling rule %d", static_cast<int>(up));
  if (n == 0) return CS_OK;
  if (!logits || !coords || !y || ldy < C)
    return fail(CS_BAD_ARGUMENT, "cs_logits_at: null pointer, or row stride below C");
  if (!inside(coords, n, H, W)) return fail(CS_BAD_ARGUMENT, "cs_logits_at: a site lies outside %d x %d", H, W);
  const RowsKernels &kernels = CS_PICK(ctx->isa, rows_kernels);
  const int64_t low = static_cast<int64_t>(h) * w;
  float *pixels = ctx->scratch<float>(kSlotRowsA, static_cast<size_t>(low) * C);
  int32_t *tables = ctx->scratch<int32_t>(kSlotRowsB, 2 * (static_cast<size_t>(H) + W));
  if (!pixels || !tables) return CS_OUT_OF_MEMORY;
  const bool direct = up == CS_NEAREST || (h == H && w == W);
  LogitsAtJob job{};
  job.pixels = pixels;
  job.C = C;
  job.h = h;
  job.w = w;
  job.coords = coords;
  job.y = y;
  job.ldy = ldy;
  int32_t *y0 = tables, *x0 = tables + H;
  float *fy = reinterpret_cast<float *>(tables + H + W), *fx = fy + H;
  job.y0 = y0;
  job.x0 = x0;
  if (direct) {
    nearest_table(h, H, y0);
    nearest_table(w, W, x0);
  } else {
    linear_table(h, H, up, H, y0, fy);
    linear_table(w, W, up, W, x0, fx);
    job.fy = fy;
    job.fx = fx;
  }
  parallel_for(ctx, ceil_div(low, 4096), [&](int64_t block, int) {
    const int64_t begin = block * 4096, end = begin + 4096 < low ? begin + 4096 : low;
    kernels.transpose(logits, low, C, begin, end, pixels);
  });
  for_rows(ctx, n, [&](int32_t begin, int32_t end, int) { kernels.logits_at(job, begin, end); });
  return CS_OK;
}

extern "C" int cs_softmax_rows(cs_context *ctx, const float *x, int64_t ldx, int32_t n, int C, float *y, int64_t ldy) {
  using namespace crispseg;
  if (!ctx || n < 0 || C < 1) return fail(CS_BAD_ARGUMENT, "cs_softmax_rows: n = %d, C = %d", n, C);
  if (n == 0) return CS_OK;
  if (!x || !y || ldx < C || ldy < C)
    return fail(CS_BAD_ARGUMENT, "cs_softmax_rows: null pointer, or row stride below C");
  const RowsKernels &kernels = CS_PICK(ctx->isa, rows_kernels);
  const int64_t piece = round_up(rows_work_floats(C), 64);
  float *work = ctx->scratch<float>(kSlotRowsB, static_cast<size_t>(piece) * ctx->threads);
  if (!work) return CS_OUT_OF_MEMORY;
  for_rows(ctx, n, [&](int32_t begin, int32_t end, int worker) {
    kernels.softmax(x + begin * ldx, ldx, end - begin, C, y + begin * ldy, ldy, work + worker * piece);
  });
  return CS_OK;
}

extern "C" int cs_scatter_labels(cs_context *ctx, uint8_t *labels, uint8_t *confidence, int H, int W,
                                 const int32_t *coords, int32_t n, const float *logits, int64_t ld, int C) {
  using namespace crispseg;
  if (!ctx || n < 0 || C < 1 || C > 256 || H < 1 || W < 1)
    return fail(CS_BAD_ARGUMENT, "cs_scatter_labels: n = %d, C = %d, frame %d x %d", n, C, H, W);
  if (n == 0) return CS_OK;
  if (!labels || !coords || !logits || ld < C)
    return fail(CS_BAD_ARGUMENT, "cs_scatter_labels: null pointer, or row stride below C");
  if (!inside(coords, n, H, W)) return fail(CS_BAD_ARGUMENT, "cs_scatter_labels: a site lies outside %d x %d", H, W);
  const RowsKernels &kernels = CS_PICK(ctx->isa, rows_kernels);
  const int64_t piece = round_up(rows_work_floats(C), 64);
  float *work = ctx->scratch<float>(kSlotRowsB, static_cast<size_t>(piece) * ctx->threads);
  if (!work) return CS_OUT_OF_MEMORY;
  for_rows(ctx, n, [&](int32_t begin, int32_t end, int worker) {
    kernels.scatter(logits + begin * ld, ld, coords + 2 * static_cast<int64_t>(begin), end - begin, C, W, labels,
                    confidence, work + worker * piece);
  });
  return CS_OK;
}

extern "C" int cs_ensemble_entropy(cs_context *ctx, const float *yi, int64_t ldi, const float *yo, int64_t ldo,
                                   int32_t n, int C, float *ye, int64_t lde) {
  using namespace crispseg;
  if (!ctx || n < 0 || C < 1) return fail(CS_BAD_ARGUMENT, "cs_ensemble_entropy: n = %d, C = %d", n, C);
  if (n == 0) return CS_OK;
  if (!yi || !yo || !ye || ldi < C || ldo < C || lde < C)
    return fail(CS_BAD_ARGUMENT, "cs_ensemble_entropy: null pointer, or row stride below C");
  const RowsKernels &kernels = CS_PICK(ctx->isa, rows_kernels);
  const int64_t piece = round_up(rows_work_floats(C), 64);
  float *work = ctx->scratch<float>(kSlotRowsB, static_cast<size_t>(piece) * ctx->threads);
  if (!work) return CS_OUT_OF_MEMORY;
  for_rows(ctx, n, [&](int32_t begin, int32_t end, int worker) {
    kernels.pick_certain(yi + begin * ldi, ldi, yo + begin * ldo, ldo, end - begin, C, ye + begin * lde, lde,
                         work + worker * piece);
  });
  return CS_OK;
}
