// Rows of the refiner outside the U-Net: input features, ensemblers, labels, conversion between types.
#include "arguments.h"

namespace crispseg {
namespace {

constexpr int kThreads = CS_ROW_BLOCK;

bool row_type(csg_type type) { return type == CSG_F32 || type == CSG_F16; }

int ensemble(const char *who, const csg_context *ctx, const float *d_yi, int64_t ldi, csg_type yo_type,
             const void *d_yo, int64_t ldo, const int32_t *d_count, int32_t capacity, int C, float *d_ye, int64_t lde,
             CsEnsemble *a) {
  CSG_CHECK(ctx, "%s: no context", who);
  CSG_CHECK(capacity >= 0 && d_count && aligned(d_count, 4), "%s: capacity %d, or no count", who, capacity);
  CSG_CHECK(C >= 1 && C <= 256, "%s: C = %d, expected 1..256", who, C);
  CSG_CHECK(row_type(yo_type), "%s: refined logits: expected fp32 or fp16, found type %d", who,
            static_cast<int>(yo_type));
  if (capacity > 0)
    CSG_CHECK(
        good_matrix(CSG_F32, d_yi, ldi, C) && good_matrix(yo_type, d_yo, ldo, C) && good_matrix(CSG_F32, d_ye, lde, C),
        "%s: a matrix is NULL, not aligned, or its row stride is below C", who);
  *a = {d_yi, ldi, d_yo, ldo, static_cast<int32_t>(yo_type), d_count, capacity, C, 0, nullptr, d_ye, lde};
  return CSG_OK;
}

// Units of shared memory of csk_ensemble_gated<N>: see CsGateLayout.
size_t gate_bytes(int classes, int hidden) {
  return 4 * (static_cast<size_t>(hidden) * (4 * classes + 12) + CS_ROW_BLOCK * (CS_ROW_COLUMNS + 1));
}

}  // namespace
}  // namespace crispseg

extern "C" {

int csg_pixel_features(csg_context *ctx, csg_stream stream, const uint8_t *d_image, int H, int W,
                       const int32_t *d_coords, const int32_t *d_count, int32_t capacity, const float *d_yi,
                       int64_t ldyi, int C, const csg_features *features, csg_type type, void *d_x, int64_t ldx) {
  using namespace crispseg;
  const char *const who = "csg_pixel_features";
  CSG_TRY(check_sites(who, ctx, d_coords, d_count, capacity, H, W));
  CSG_CHECK(features && features->features >= 1 && features->features <= CS_MAX_FEATURES,
            "%s: expected 1 to %d features", who, CS_MAX_FEATURES);
  CSG_CHECK(row_type(type), "%s: columns: expected fp32 or fp16, found type %d", who, static_cast<int>(type));
  CsPixelFeatures a{};
  int64_t columns = 0;
  bool probabilities = false;
  for (int f = 0; f < features->features; ++f) {
    const int kind = features->kinds[f];
    CSG_CHECK(kind >= 0 && kind <= 3, "%s: feature %d has kind %d, expected 0..3", who, f, kind);
    probabilities = probabilities || kind >= 2;
    columns += kind == 0 ? 3 : kind == 1 ? 2 : C;
    a.list.kinds[f] = kind;
    a.list.values[f] = features->values[f];
  }
  for (int c = 0; c < 3; ++c) {
    CSG_CHECK(features->std[c] != 0.0f, "%s: std[%d] is 0", who, c);
    a.list.mean[c] = features->mean[c];
    a.list.std[c] = features->std[c];
  }
  a.list.features = features->features;
  a.list.bgr = features->bgr;
  CSG_CHECK(!probabilities || (C >= 1 && C <= 256), "%s: C = %d, expected 1..256", who, C);
  if (capacity == 0) return CSG_OK;
  CSG_CHECK(d_image, "%s: no image", who);
  CSG_CHECK(!probabilities || good_matrix(CSG_F32, d_yi, ldyi, C),
            "%s: base logits: NULL, not aligned, or row stride below C", who);
  CSG_CHECK(good_matrix(type, d_x, ldx, columns), "%s: columns: NULL, not aligned, or row stride below %lld", who,
            static_cast<long long>(columns));
  CSG_CHECK(ldx <= 1 << 20, "%s: row stride %lld is out of range", who, static_cast<long long>(ldx));
  a.image = d_image;
  a.height = H;
  a.width = W;
  a.coords = d_coords;
  a.count = d_count;
  a.capacity = capacity;
  a.yi = probabilities ? d_yi : nullptr;
  a.ldi = ldyi;
  a.classes = C;
  a.type = type;
  a.x = d_x;
  a.ldx = ldx;
  return launch(ctx, kernel::csk_pixel_features,
                row_blocks(ctx, kernel::csk_pixel_features, capacity, CS_ROW_BLOCK, kThreads), kThreads, 0, stream, a);
}

int csg_ensemble_gated(csg_context *ctx, csg_stream stream, const float *d_yi, int64_t ldi, csg_type yo_type,
                       const void *d_yo, int64_t ldo, const int32_t *d_count, int32_t capacity, int C, int hidden,
                       const float *d_gate, float *d_ye, int64_t lde) {
  using namespace crispseg;
  const char *const who = "csg_ensemble_gated";
  CsEnsemble a;
  CSG_TRY(ensemble(who, ctx, d_yi, ldi, yo_type, d_yo, ldo, d_count, capacity, C, d_ye, lde, &a));
  CSG_CHECK(hidden >= 1 && hidden <= 128, "%s: hidden = %d, expected 1..128", who, hidden);
  CSG_CHECK(d_gate && aligned(d_gate, 4), "%s: weights are NULL or not aligned", who);
  if (capacity == 0) return CSG_OK;
  a.hidden = hidden;
  a.gate = d_gate;
  const int padded = C <= 20 ? 20 : 32;
  const size_t shared = gate_bytes(padded, hidden);
  const KernelId id = padded == 20 ? KernelId::csk_ensemble_gated20 : KernelId::csk_ensemble_gated32;
  if (C <= 32 && shared <= static_cast<size_t>(ctx->kernels[static_cast<int>(id)].dynamic_limit)) {
    const int rows = CS_ROW_BLOCK * (padded == 32 ? 1 : 2);
    const unsigned blocks =
        std::min(div_up(capacity, rows), static_cast<unsigned>(resident_blocks(ctx, id, kThreads, shared)));
    void *parameters[] = {&a, nullptr};
    return launch_raw(ctx, id, blocks, kThreads, shared, stream, parameters);
  }
  // Two warps of four rows; see ensemble_wide.cuh.
  const size_t wide = 2 * 4 * sizeof(float) * (2 * static_cast<size_t>(C) + 2 + hidden);
  return launch(ctx, kernel::csk_ensemble_gated_wide,
                row_blocks(ctx, kernel::csk_ensemble_gated_wide, capacity, 8, 64, wide), 64, wide, stream, a);
}

int csg_ensemble_entropy(csg_context *ctx, csg_stream stream, const float *d_yi, int64_t ldi, csg_type yo_type,
                         const void *d_yo, int64_t ldo, const int32_t *d_count, int32_t capacity, int C, float *d_ye,
                         int64_t lde) {
  using namespace crispseg;
  CsEnsemble a;
  CSG_TRY(ensemble("csg_ensemble_entropy", ctx, d_yi, ldi, yo_type, d_yo, ldo, d_count, capacity, C, d_ye, lde, &a));
  return launch(ctx, kernel::csk_ensemble_entropy,
                row_blocks(ctx, kernel::csk_ensemble_entropy, capacity, CS_ROW_BLOCK, kThreads), kThreads, 0, stream,
                a);
}

int csg_scatter_labels(csg_context *ctx, csg_stream stream, uint8_t *d_labels, uint8_t *d_confidence, int H, int W,
                       const int32_t *d_coords, const int32_t *d_count, int32_t capacity, const float *d_logits,
                       int64_t ld, int C) {
  using namespace crispseg;
  const char *const who = "csg_scatter_labels";
  CSG_TRY(check_sites(who, ctx, d_coords, d_count, capacity, H, W));
  CSG_CHECK(C >= 1 && C <= 256, "%s: C = %d, expected 1..256", who, C);
  if (capacity == 0) return CSG_OK;
  CSG_CHECK(d_labels, "%s: no labels", who);
  CSG_CHECK(good_matrix(CSG_F32, d_logits, ld, C), "%s: logits: NULL, not aligned, or row stride below C", who);
  const CsScatter a{d_labels, d_confidence, H, W, d_coords, d_count, capacity, d_logits, ld, C};
  return launch(ctx, kernel::csk_scatter_labels,
                row_blocks(ctx, kernel::csk_scatter_labels, capacity, CS_ROW_BLOCK, kThreads), kThreads, 0, stream, a);
}

int csg_convert_rows(csg_context *ctx, csg_stream stream, csg_type from, const void *d_x, int64_t ldx, csg_type to,
                     void *d_y, int64_t ldy, const int32_t *d_count, int32_t capacity, int columns, float quant) {
  using namespace crispseg;
  const char *const who = "csg_convert_rows";
  CSG_CHECK(ctx, "%s: no context", who);
  CSG_CHECK(capacity >= 0 && columns >= 1 && d_count && aligned(d_count, 4), "%s: capacity %d, columns %d, or no count",
            who, capacity, columns);
  CSG_CHECK((row_type(from) || from == CSG_I8) && (row_type(to) || to == CSG_I8), "%s: types %d and %d, expected 0..2",
            who, static_cast<int>(from), static_cast<int>(to));
  CSG_CHECK((from != CSG_I8 && to != CSG_I8) || quant > 0.0f, "%s: quant = %g, expected a positive number", who,
            static_cast<double>(quant));
  if (capacity == 0) return CSG_OK;
  CSG_CHECK(good_matrix(from, d_x, ldx, columns) && good_matrix(to, d_y, ldy, columns),
            "%s: a matrix is NULL, not aligned, or its row stride is below %d", who, columns);
  const CsConvert a{d_x,     ldx,      d_y,     ldy,  static_cast<int32_t>(from), static_cast<int32_t>(to),
                    d_count, capacity, columns, quant};
  return launch(ctx, kernel::csk_convert_rows, row_blocks(ctx, kernel::csk_convert_rows, capacity, 8, 256), 256, 0,
                stream, a);
}

}  // extern "C"
