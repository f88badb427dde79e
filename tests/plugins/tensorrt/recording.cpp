#include "recording.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "../../../crispseg/plugins/tensorrt/core/device.h"

std::vector<Recorded> &recorded() {
  static std::vector<Recorded> all;
  return all;
}
int answer = CSG_OK;
bool have_context = true;
int live_contexts = 0, made_contexts = 0;
std::string last_image;

namespace {

int note(char const *format, ...) {
  char text[2048];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  recorded().push_back({text});
  return answer;
}
unsigned at(void const *p) { return static_cast<unsigned>(reinterpret_cast<uintptr_t>(p)); }
int wide(int64_t value) { return static_cast<int>(value); }

}  // namespace

namespace crispseg {
namespace plugin {

void *current_cuda_context() { return have_context ? &have_context : nullptr; }
int copy_device(csg_context *, csg_stream, void *to, void const *from, size_t bytes) {
  return note("copy to=%x from=%x bytes=%zu", at(to), at(from), bytes);
}

}  // namespace plugin
}  // namespace crispseg

extern "C" {

const char *csg_last_error(void) { return "the device said no"; }
const char *csg_build_info(void) { return "recording"; }
const void *csg_embedded_image(size_t *bytes) {
  if (bytes) *bytes = 0;
  return nullptr;
}
csg_context *csg_create(const void *image, size_t bytes) {
  last_image.assign(static_cast<char const *>(image), bytes);
  if (answer != CSG_OK) return nullptr;
  ++live_contexts, ++made_contexts;
  return reinterpret_cast<csg_context *>(new int(made_contexts));
}
void csg_destroy(csg_context *ctx) {
  --live_contexts;
  delete reinterpret_cast<int *>(ctx);
}
size_t csg_select_workspace(int H, int W) { return static_cast<size_t>(H) * 1000 + W; }
size_t csg_map_workspace(int H, int W) { return static_cast<size_t>(H) * 2000 + W; }
size_t csg_packed_bytes(csg_type type, int K, int cin, int cout) {
  return static_cast<size_t>(type == CSG_F32 ? 4 : type == CSG_F16 ? 2 : 1) * K * cin * cout + 2;  // no whole words
}
size_t csg_conv_workspace(const csg_context *, const csg_conv *conv) {
  return static_cast<size_t>(conv->capacity) * 10;
}

int csg_select_pixels(csg_context *, csg_stream s, csg_type type, const void *logits, int C, int h, int w, int H, int W,
                      csg_upsample up, float threshold, int32_t capacity, uint8_t *labels, uint8_t *confidence,
                      int32_t *coords, int32_t *count, int32_t *found, void *scratch, size_t bytes) {
  return note("select s=%x type=%d logits=%x C=%d h=%d w=%d H=%d W=%d up=%d threshold=%g capacity=%d labels=%x "
              "confidence=%x coords=%x count=%x found=%x scratch=%x bytes=%zu",
              at(s), type, at(logits), C, h, w, H, W, up, static_cast<double>(threshold), capacity, at(labels),
              at(confidence), at(coords), at(count), at(found), at(scratch), bytes);
}
int csg_pixel_features(csg_context *, csg_stream, const uint8_t *image, int H, int W, const int32_t *coords,
                       const int32_t *count, int32_t capacity, const float *yi, int64_t ldyi, int C,
                       const csg_features *f, csg_type type, void *x, int64_t ldx) {
  std::string kinds;
  for (int i = 0; i < f->features; ++i) kinds += std::to_string(f->kinds[i]);
  return note("features image=%x H=%d W=%d coords=%x count=%x capacity=%d yi=%x ldyi=%d C=%d kinds=%s value=%g mean=%g "
              "std=%g bgr=%d type=%d x=%x ldx=%d",
              at(image), H, W, at(coords), at(count), capacity, at(yi), wide(ldyi), C, kinds.c_str(),
              static_cast<double>(f->values[f->features - 1]), static_cast<double>(f->mean[2]),
              static_cast<double>(f->std[0]), f->bgr, type, at(x), wide(ldx));
}
int csg_logits_at(csg_context *, csg_stream, csg_type type, const void *logits, int C, int h, int w, int H, int W,
                  csg_upsample up, const int32_t *coords, const int32_t *count, int32_t capacity, float *y,
                  int64_t ldy) {
  return note("logits type=%d logits=%x C=%d h=%d w=%d H=%d W=%d up=%d coords=%x count=%x capacity=%d y=%x ldy=%d",
              type, at(logits), C, h, w, H, W, up, at(coords), at(count), capacity, at(y), wide(ldy));
}
int csg_submanifold_map(csg_context *, csg_stream, const int32_t *coords, const int32_t *count, int32_t capacity, int H,
                        int W, int32_t *map, void *scratch, size_t bytes) {
  return note("submanifold coords=%x count=%x capacity=%d H=%d W=%d map=%x scratch=%x bytes=%zu", at(coords), at(count),
              capacity, H, W, at(map), at(scratch), bytes);
}
int csg_down_map(csg_context *, csg_stream, const int32_t *coords, const int32_t *count, int32_t capacity, int H, int W,
                 csg_extent extent, int32_t capacity_out, int32_t *coords_out, int32_t *count_out, int32_t *down,
                 int32_t *up, void *scratch, size_t bytes) {
  return note("down coords=%x count=%x capacity=%d H=%d W=%d extent=%d capacity_out=%d coords_out=%x count_out=%x "
              "down=%x up=%x scratch=%x bytes=%zu",
              at(coords), at(count), capacity, H, W, extent, capacity_out, at(coords_out), at(count_out), at(down),
              at(up), at(scratch), bytes);
}
int csg_parity_order(csg_context *, csg_stream, const int32_t *coords, const int32_t *count, int32_t capacity, int H,
                     int W, int32_t *order, void *scratch, size_t bytes) {
  return note("parity coords=%x count=%x capacity=%d H=%d W=%d order=%x scratch=%x bytes=%zu", at(coords), at(count),
              capacity, H, W, at(order), at(scratch), bytes);
}
int csg_sparse_conv(csg_context *, csg_stream, const csg_conv *c) {
  return note("conv type=%d x=%x ldx=%d map=%x order=%x count=%x capacity=%d K=%d cin=%d cout=%d weight=%x bias=%x "
              "residual=%d:%x ldr=%d relu=%d y=%d:%x ldy=%d z1=%d:%x %x %x z2=%d:%x %x %x dequant=%x quants=%g,%g,%g "
              "scratch=%x bytes=%zu",
              c->type, at(c->d_x), wide(c->ldx), at(c->d_map), at(c->d_order), at(c->d_count), c->capacity, c->K,
              c->cin, c->cout, at(c->d_weight), at(c->d_bias), c->residual_type, at(c->d_residual), wide(c->ldr),
              c->relu,
              c->y_type, at(c->d_y), wide(c->ldy), c->z_type[0], at(c->d_z[0]), at(c->d_scale[0]), at(c->d_shift[0]),
              c->z_type[1], at(c->d_z[1]), at(c->d_scale[1]), at(c->d_shift[1]), at(c->d_dequant),
              static_cast<double>(c->y_quant), static_cast<double>(c->z_quant[0]), static_cast<double>(c->z_quant[1]),
              at(c->d_workspace), c->workspace_bytes);
}
int csg_ensemble_gated(csg_context *, csg_stream, const float *yi, int64_t ldi, csg_type type, const void *yo,
                       int64_t ldo, const int32_t *count, int32_t capacity, int C, int hidden, const float *gate,
                       float *ye, int64_t lde) {
  return note("gated yi=%x ldi=%d yo=%d:%x ldo=%d count=%x capacity=%d C=%d hidden=%d gate=%x ye=%x lde=%d", at(yi),
              wide(ldi), type, at(yo), wide(ldo), at(count), capacity, C, hidden, at(gate), at(ye), wide(lde));
}
int csg_ensemble_entropy(csg_context *, csg_stream, const float *yi, int64_t ldi, csg_type type, const void *yo,
                         int64_t ldo, const int32_t *count, int32_t capacity, int C, float *ye, int64_t lde) {
  return note("entropy yi=%x ldi=%d yo=%d:%x ldo=%d count=%x capacity=%d C=%d ye=%x lde=%d", at(yi), wide(ldi), type,
              at(yo), wide(ldo), at(count), capacity, C, at(ye), wide(lde));
}
int csg_scatter_labels(csg_context *, csg_stream, uint8_t *labels, uint8_t *confidence, int H, int W,
                       const int32_t *coords, const int32_t *count, int32_t capacity, const float *logits, int64_t ld,
                       int C) {
  return note("scatter labels=%x confidence=%x H=%d W=%d coords=%x count=%x capacity=%d logits=%x ld=%d C=%d",
              at(labels), at(confidence), H, W, at(coords), at(count), capacity, at(logits), wide(ld), C);
}

}  // extern "C"
