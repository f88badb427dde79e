/* The attributes of the ops as data (table in params.h): reading and checking walk the same lists. */
#ifndef CRISPSEG_TENSORRT_ATTRIBUTES_H
#define CRISPSEG_TENSORRT_ATTRIBUTES_H
#include "params.h"

namespace crispseg {
namespace plugin {

constexpr uint32_t on(Op op) { return 1u << static_cast<int32_t>(op); }
template <class... Ops>
constexpr uint32_t on(Op op, Ops... more) {
  return on(op) | on(more...);
}
constexpr uint32_t kAll = (1u << kOps) - 1;
constexpr uint32_t kConv = on(Op::kSparseConv2d);
constexpr uint32_t kSized = kAll & ~on(Op::kSparseConv2d, Op::kEnsembleLogits);

/* A whole number in a range. */
struct Int {
  char const *name;
  uint32_t ops;
  int32_t Params::*member;
  bool required;
  int32_t least, most;
};
constexpr Int kInts[] = {
    {"inputs", kAll, &Params::inputs, true, 0, (1 << 12) - 1},
    {"outputs", kAll, &Params::outputs, true, 1, (1 << 5) - 1},
    {"height", kSized, &Params::height, true, 0, kMaxDim},
    {"width", kSized, &Params::width, true, 0, kMaxDim},
    {"capacity", on(Op::kSelectPixels), &Params::capacity, true, 1, INT32_MAX},
    {"capacity_out", on(Op::kDownMap), &Params::capacity_out, false, 0, INT32_MAX},
    {"columns", on(Op::kPixelFeatures), &Params::columns, true, 1, kMaxChannels},
    {"hidden", on(Op::kEnsembleLogits), &Params::hidden, false, 0, 128},
    {"relu", kConv, &Params::relu, false, 0, 1},
    {"taps", kConv, &Params::taps, true, 1, 9},
    {"cin", kConv, &Params::cin, true, 1, kMaxChannels},
    {"cout", kConv, &Params::cout, true, 1, kMaxChannels},
    {"packed", kConv, &Params::packed, true, 1, 1},
    {"workspace", kConv, &Params::workspace, false, 0, INT32_MAX},
    {"logits_type", on(Op::kSelectPixels, Op::kLogitsAt), &Params::logits_type, false, CSG_F32, CSG_F16},
    {"x_type", kConv, &Params::x_type, false, CSG_F32, CSG_I8},
    {"x_type", on(Op::kPixelFeatures), &Params::x_type, false, CSG_F32, CSG_F16},
    {"residual_type", kConv, &Params::residual_type, false, CSG_F32, CSG_F16},
    {"y_type", kConv, &Params::y_type, false, CSG_F32, CSG_I8},
    {"z1_type", kConv, &Params::z1_type, false, CSG_F32, CSG_I8},
    {"z2_type", kConv, &Params::z2_type, false, CSG_F32, CSG_I8},
    {"yo_type", on(Op::kEnsembleLogits), &Params::yo_type, false, CSG_F32, CSG_F16},
};

struct Float {
  char const *name;
  uint32_t ops;
  float Params::*member;
  bool required;
};
constexpr Float kFloats[] = {
    {"threshold", on(Op::kSelectPixels), &Params::threshold, true},
    {"y_quant", kConv, &Params::y_quant, false},
    {"z1_quant", kConv, &Params::z1_quant, false},
    {"z2_quant", kConv, &Params::z2_quant, false},
};

/* Text from a list; the value is the position in it. */
struct Choice {
  char const *name;
  uint32_t ops;
  int32_t Params::*member;
  char const *values[3];
};
constexpr Choice kChoices[] = {
    {"upsample", on(Op::kSelectPixels, Op::kLogitsAt), &Params::upsample, {"nearest", "bilinear", "bilinear_corners"}},
    {"extent", on(Op::kDownMap), &Params::extent, {"active", "image", nullptr}},
    {"mode", on(Op::kEnsembleLogits), &Params::gated, {"entropy", "gated", nullptr}},
};

inline std::string quoted(std::string const &text) { return "'" + text + "'"; }

/* Sets `error` and returns false. */
inline bool refuse(std::string &error, Op op, std::string const &what, std::string const &expected,
                   std::string const &found) {
  error = std::string(op_name(op)) + ": " + what + ": expected " + expected + ", found " + found;
  return false;
}

}  // namespace plugin
}  // namespace crispseg
#endif
