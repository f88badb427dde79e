/* Range and combination checks. A state read from an engine file goes through the same ones as a node's attributes. */
#include <cmath>

#include "attributes.h"
#include "tensors.h"

namespace crispseg {
namespace plugin {
namespace {

bool check_mask(Op op, char const *what, int32_t mask, std::vector<Role> const &roles, std::string &error) {
  int32_t needed = 0, known = 0;
  for (size_t bit = 0; bit < roles.size(); ++bit) {
    known |= 1 << bit;
    needed |= roles[bit].optional ? 0 : 1 << bit;
  }
  if ((mask & needed) == needed && (mask & ~known) == 0) return true;
  return refuse(error, op, what, "bits " + std::to_string(needed) + " of " + std::to_string(known),
                std::to_string(mask));
}

/* Columns of rows of one csg_type (params.h, 4). */
bool check_width(Params const &p, char const *name, int32_t type, int32_t width, std::string &error) {
  int32_t const step = type == CSG_I8 ? 32 : type == CSG_F16 ? 16 : 1;
  if (width % step == 0) return true;
  return refuse(error, p.op, name, "a multiple of " + std::to_string(step), std::to_string(width));
}

bool validate_conv(Params const &p, std::string &error) {
  char const *const scaled[2][3] = {{"scale1", "shift1", "z1"}, {"scale2", "shift2", "z2"}};
  for (int i = 0; i < 2; ++i) {
    bool const on = p.has_output(1 + i);
    if (p.has_input(6 + 2 * i) != on || p.has_input(7 + 2 * i) != on) {
      std::string const expected = std::string(scaled[i][0]) + " and " + scaled[i][1] + " connected with it";
      return refuse(error, p.op, scaled[i][2], expected,
                    "inputs " + std::to_string(p.inputs) + ", outputs " + std::to_string(p.outputs));
    }
  }
  if (p.outputs == 0) return refuse(error, p.op, "outputs", "at least one of y, z1, z2", "0");
  if (p.taps != 9 && p.taps != 1) return refuse(error, p.op, "taps", "1 or 9", std::to_string(p.taps));
  if (!p.has_input(1) && p.taps != 1) return refuse(error, p.op, "taps", "1 without a map", std::to_string(p.taps));
  if (p.has_input(11) && !p.has_input(1)) return refuse(error, p.op, "order", "a map with it", "none");
  if (p.has_input(10) != (p.x_type == CSG_I8)) {
    return refuse(error, p.op, "dequant", "connected exactly when x is int8", "inputs " + std::to_string(p.inputs));
  }
  int32_t const types[3] = {p.y_type, p.z1_type, p.z2_type};
  float const quants[3] = {p.y_quant, p.z1_quant, p.z2_quant};
  char const *const names[3] = {"y_quant", "z1_quant", "z2_quant"};
  for (int i = 0; i < 3; ++i) {
    if (!p.has_output(i)) continue;
    if (types[i] == CSG_I8 && !(quants[i] > 0.0f)) {
      return refuse(error, p.op, names[i], "a number above 0 for an int8 output", std::to_string(quants[i]));
    }
    if (!check_width(p, "cout", types[i], p.cout, error)) return false;
  }
  if (p.has_input(5) && !check_width(p, "cout", p.residual_type, p.cout, error)) return false;
  return check_width(p, "cin", p.x_type, p.cin, error);
}

bool validate_features(Params const &p, std::string &error) {
  csg_features const &f = p.features;
  if (f.features < 1 || f.features > 8) return refuse(error, p.op, "features", "1 to 8", std::to_string(f.features));
  bool wants = false;
  int32_t fixed = 0;
  for (int32_t i = 0; i < f.features; ++i) {
    if (f.kinds[i] < 0 || f.kinds[i] > 3 || !std::isfinite(f.values[i])) {
      return refuse(error, p.op, "features", "known kinds", std::to_string(f.kinds[i]));
    }
    wants = wants || f.kinds[i] >= 2;
    fixed += f.kinds[i] == 0 ? 3 : f.kinds[i] == 1 ? 2 : 0;
  }
  if (wants != p.has_input(3)) {
    return refuse(error, p.op, "yi", "connected exactly when a feature starts with p",
                  "inputs " + std::to_string(p.inputs));
  }
  if (p.columns < fixed) {
    return refuse(error, p.op, "columns", "at least " + std::to_string(fixed), std::to_string(p.columns));
  }
  for (int i = 0; i < 3; ++i) {
    if (!std::isfinite(f.mean[i]) || !std::isfinite(f.std[i]) || f.std[i] == 0.0f) {
      return refuse(error, p.op, "mean, std", "finite numbers, std other than 0", std::to_string(f.std[i]));
    }
  }
  if (f.bgr != 0 && f.bgr != 1) return refuse(error, p.op, "channel_order", "rgb or bgr", std::to_string(f.bgr));
  return check_width(p, "columns", p.x_type, p.columns, error);
}

}  // namespace

bool validate(Params const &p, std::string &error) {
  int32_t const op = static_cast<int32_t>(p.op);
  if (op < 0 || op >= kOps) {
    error = "plugin state: expected an op below " + std::to_string(kOps) + ", found " + std::to_string(op);
    return false;
  }
  if (!check_mask(p.op, "inputs", p.inputs, input_roles(p.op), error)) return false;
  if (!check_mask(p.op, "outputs", p.outputs, output_roles(p.op), error)) return false;
  for (auto const &entry : kInts) {
    if (!(entry.ops & (1u << op))) continue;
    int32_t const value = p.*entry.member;
    if (value < entry.least || value > entry.most) {
      return refuse(error, p.op, entry.name, std::to_string(entry.least) + " to " + std::to_string(entry.most),
                    std::to_string(value));
    }
  }
  for (auto const &entry : kFloats) {
    if ((entry.ops & (1u << op)) && !std::isfinite(p.*entry.member)) {
      return refuse(error, p.op, entry.name, "a finite number", std::to_string(p.*entry.member));
    }
  }
  for (auto const &entry : kChoices) {
    int32_t const most = entry.values[2] ? 2 : 1;
    if ((entry.ops & (1u << op)) && (p.*entry.member < 0 || p.*entry.member > most)) {
      return refuse(error, p.op, entry.name, "0 to " + std::to_string(most), std::to_string(p.*entry.member));
    }
  }
  bool const grid = p.op == Op::kSubmanifoldMap || p.op == Op::kDownMap; /* a coarse grid may be empty, a frame not */
  int64_t const pixels = static_cast<int64_t>(p.height) * p.width;
  if ((kSized >> op & 1) && (pixels > INT32_MAX || (!grid && pixels < 1))) {
    return refuse(error, p.op, "height x width", "1 to 2147483647 pixels", std::to_string(pixels));
  }
  switch (p.op) {
    case Op::kSparseConv2d: return validate_conv(p, error);
    case Op::kPixelFeatures: return validate_features(p, error);
    case Op::kEnsembleLogits:
      if (p.has_input(3) != (p.gated == 1)) {
        return refuse(error, p.op, "gate", "connected exactly when mode is gated",
                      "inputs " + std::to_string(p.inputs));
      }
      if (p.gated && p.hidden < 1) return refuse(error, p.op, "hidden", "1 to 128", std::to_string(p.hidden));
      return true;
    default: return true;
  }
}

}  // namespace plugin
}  // namespace crispseg
