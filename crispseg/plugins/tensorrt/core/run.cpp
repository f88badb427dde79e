#include "run.h"

#include "device.h"

namespace crispseg {
namespace plugin {
namespace {

/* Access to the connected tensors by their bits; NULL for one that is not connected. */
struct Tensors {
  Params const &p;
  Call const &call;

  template <class T>
  T const *in(int bit) const {
    int const position = input_position(p, bit);
    return position < 0 ? nullptr : static_cast<T const *>(call.inputs[position]);
  }
  template <class T>
  T *out(int bit) const {
    int const position = output_position(p, bit);
    return position < 0 ? nullptr : static_cast<T *>(call.outputs[position]);
  }
  int32_t size(int bit, int axis) const {
    return static_cast<int32_t>(call.input_dims[input_position(p, bit)].d[axis]);
  }
  int32_t out_rows(int bit) const { return static_cast<int32_t>(call.output_dims[output_position(p, bit)].d[0]); }
};

int run_select(Params const &p, Call const &c, Tensors const &t) {
  return csg_select_pixels(c.ctx, c.stream, static_cast<csg_type>(p.logits_type), t.in<void>(0), t.size(0, 1),
                           t.size(0, 2), t.size(0, 3), p.height, p.width, static_cast<csg_upsample>(p.upsample),
                           p.threshold, p.capacity, t.out<uint8_t>(0), t.out<uint8_t>(4), t.out<int32_t>(1),
                           t.out<int32_t>(2), t.out<int32_t>(3), c.workspace, workspace_bytes(p));
}

int run_features(Params const &p, Call const &c, Tensors const &t) {
  int32_t const classes = p.has_input(3) ? t.size(3, 1) : 0;
  return csg_pixel_features(c.ctx, c.stream, t.in<uint8_t>(0), p.height, p.width, t.in<int32_t>(1), t.in<int32_t>(2),
                            t.size(1, 0), t.in<float>(3), classes, classes, &p.features,
                            static_cast<csg_type>(p.x_type), t.out<void>(0), p.columns);
}

int run_logits(Params const &p, Call const &c, Tensors const &t) {
  return csg_logits_at(c.ctx, c.stream, static_cast<csg_type>(p.logits_type), t.in<void>(0), t.size(0, 1), t.size(0, 2),
                       t.size(0, 3), p.height, p.width, static_cast<csg_upsample>(p.upsample), t.in<int32_t>(1),
                       t.in<int32_t>(2), t.size(1, 0), t.out<float>(0), t.size(0, 1));
}

int run_down(Params const &p, Call const &c, Tensors const &t) {
  int const status =
      csg_down_map(c.ctx, c.stream, t.in<int32_t>(0), t.in<int32_t>(1), t.size(0, 0), p.height, p.width,
                   static_cast<csg_extent>(p.extent), t.out_rows(0), t.out<int32_t>(0), t.out<int32_t>(1),
                   t.out<int32_t>(2), t.out<int32_t>(3), c.workspace, workspace_bytes(p));
  if (status != CSG_OK || !p.has_output(4)) return status;
  /* The workspace is free again: work on one stream runs in order. */
  return csg_parity_order(c.ctx, c.stream, t.in<int32_t>(0), t.in<int32_t>(1), t.size(0, 0), p.height, p.width,
                          t.out<int32_t>(4), c.workspace, workspace_bytes(p));
}

int run_conv(Params const &p, Call const &c, Tensors const &t) {
  csg_conv conv{};
  conv.type = static_cast<csg_type>(p.x_type);
  conv.d_x = t.in<void>(0);
  conv.ldx = p.cin;
  conv.d_map = t.in<int32_t>(1);
  conv.d_order = t.in<int32_t>(11);
  conv.d_count = t.in<int32_t>(2);
  conv.capacity = t.size(p.has_input(1) ? 1 : 0, 0);
  conv.K = p.taps;
  conv.cin = p.cin;
  conv.cout = p.cout;
  conv.d_weight = t.in<void>(3);
  conv.d_bias = t.in<float>(4);
  conv.residual_type = static_cast<csg_type>(p.residual_type);
  conv.d_residual = t.in<void>(5);
  conv.relu = p.relu;
  conv.y_type = static_cast<csg_type>(p.y_type);
  conv.d_y = t.out<void>(0);
  conv.y_quant = p.y_quant;
  conv.ldr = conv.ldy = p.cout;
  int32_t const types[2] = {p.z1_type, p.z2_type};
  float const quants[2] = {p.z1_quant, p.z2_quant};
  for (int i = 0; i < 2; ++i) {
    conv.d_scale[i] = t.in<float>(6 + 2 * i);
    conv.d_shift[i] = t.in<float>(7 + 2 * i);
    conv.z_type[i] = static_cast<csg_type>(types[i]);
    conv.d_z[i] = t.out<void>(1 + i);
    conv.ldz[i] = p.cout;
    conv.z_quant[i] = quants[i];
  }
  conv.d_dequant = t.in<float>(10);
  if (p.workspace > 0 && csg_conv_workspace(c.ctx, &conv) <= workspace_bytes(p)) {
    conv.d_workspace = c.workspace;
    conv.workspace_bytes = workspace_bytes(p);
  }
  return csg_sparse_conv(c.ctx, c.stream, &conv);
}

int run_ensemble(Params const &p, Call const &c, Tensors const &t) {
  int32_t const capacity = t.size(0, 0), C = t.size(0, 1), ldo = t.size(1, 1);
  auto const type = static_cast<csg_type>(p.yo_type);
  if (p.gated) {
    return csg_ensemble_gated(c.ctx, c.stream, t.in<float>(0), C, type, t.in<void>(1), ldo, t.in<int32_t>(2), capacity,
                              C, p.hidden, t.in<float>(3), t.out<float>(0), C);
  }
  return csg_ensemble_entropy(c.ctx, c.stream, t.in<float>(0), C, type, t.in<void>(1), ldo, t.in<int32_t>(2), capacity,
                              C, t.out<float>(0), C);
}

/* The op writes in place; a TensorRT output is another buffer, so the maps are copied first (2 x H x W bytes). */
int run_scatter(Params const &p, Call const &c, Tensors const &t) {
  auto const bytes = static_cast<size_t>(p.height) * static_cast<size_t>(p.width);
  for (int i = 0; i < 2; ++i) {
    int const status = copy_device(c.ctx, c.stream, t.out<void>(i), t.in<void>(i), bytes);
    if (status != CSG_OK) return status;
  }
  return csg_scatter_labels(c.ctx, c.stream, t.out<uint8_t>(0), t.out<uint8_t>(1), p.height, p.width, t.in<int32_t>(2),
                            t.in<int32_t>(3), t.size(4, 0), t.in<float>(4), t.size(4, 1), t.size(4, 1));
}

}  // namespace

int run(Params const &p, Call const &c) {
  Tensors const t{p, c};
  switch (p.op) {
    case Op::kSelectPixels: return run_select(p, c, t);
    case Op::kPixelFeatures: return run_features(p, c, t);
    case Op::kLogitsAt: return run_logits(p, c, t);
    case Op::kSubmanifoldMap:
      return csg_submanifold_map(c.ctx, c.stream, t.in<int32_t>(0), t.in<int32_t>(1), t.size(0, 0), p.height, p.width,
                                 t.out<int32_t>(0), c.workspace, workspace_bytes(p));
    case Op::kDownMap: return run_down(p, c, t);
    case Op::kSparseConv2d: return run_conv(p, c, t);
    case Op::kEnsembleLogits: return run_ensemble(p, c, t);
    default: return run_scatter(p, c, t);
  }
}

}  // namespace plugin
}  // namespace crispseg
