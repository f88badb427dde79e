// Attributes that the core refuses, and the reasons that it gives.
#include <cmath>

#include "core_check.h"

namespace {

// Refused, with both pieces in the message.
void refused(int line, Op op, Node const &from, char const *field, char const *piece) {
  Params p;
  std::string error;
  bool const taken = parse_fields(op, from.fields, p, error);
  bool const said = error.find(field) != std::string::npos && error.find(piece) != std::string::npos;
  if (!taken && said && error.find(op_name(op)) != std::string::npos) return;
  char const *const found = taken ? "none" : error.c_str();
  std::printf("line %d: expected a refusal with %s and %s, found %s\n", line, field, piece, found);
  ++failures;
}
#define REFUSED(op, from, field, piece) refused(__LINE__, op, from, field, piece)

}  // namespace

void test_bad_fields() {
  for (int32_t i = 0; i < kOps; ++i) {
    Op const op = static_cast<Op>(i);
    REFUSED(op, node(op).drop("inputs"), "inputs", "none");
    REFUSED(op, node(op).set("outputs", 0), "outputs", "found 0");
    REFUSED(op, node(op).set("inputs", 1 << 13), "inputs", "8192");
    REFUSED(op, node(op).set("colour", 1), "colour", "unknown");
    REFUSED(op, node(op).set("inputs", "3"), "inputs", "int32");
  }
  Op op = Op::kSelectPixels;
  REFUSED(op, node(op).set("upsample", "cubic"), "upsample", "'cubic'");
  REFUSED(op, node(op).set("capacity", 0), "capacity", "found 0");
  REFUSED(op, node(op).set("height", -1), "height", "-1");
  REFUSED(op, node(op).set("height", 1 << 20).set("width", 1 << 20), "height x width", "1099511627776");
  REFUSED(op, node(op).set("height", 0), "height x width", "found 0");
  REFUSED(op, node(op).set("threshold", std::vector<float>{NAN}), "threshold", "finite");
  REFUSED(op, node(op).drop("threshold"), "threshold", "none");
  REFUSED(op, node(op).set("outputs", 15 - 8), "outputs", "bits 15");
  op = Op::kPixelFeatures;
  REFUSED(op, node(op).set("features", "rgb,depth"), "features", "'depth'");
  REFUSED(op, node(op).set("features", "p>"), "features", "'p>'");
  REFUSED(op, node(op).set("features", "p>1x"), "features", "'p>1x'");
  REFUSED(op, node(op).set("features", "p>nan"), "features", "p>nan");
  REFUSED(op, node(op).set("features", ""), "features", "''");
  REFUSED(op, node(op).set("features", "p,p,p,p,p,p,p,p,p"), "features", "at most 8");
  REFUSED(op, node(op).set("inputs", 7), "yi", "inputs 7");
  REFUSED(op, node(op).set("features", "rgb"), "yi", "inputs 15");
  REFUSED(op, node(op).set("columns", 4), "columns", "at least 5");
  REFUSED(op, node(op).set("columns", 24), "columns", "multiple of 16");
  REFUSED(op, node(op).set("std", {1.0f, 0.0f, 1.0f}), "std", "other than 0");
  REFUSED(op, node(op).set("mean", std::vector<float>{1.0f, 0.0f}), "mean", "3 numbers");
  REFUSED(op, node(op).set("channel_order", "hsv"), "channel_order", "'hsv'");
  REFUSED(op, node(op).set("x_type", 2), "x_type", "found 2");
  op = Op::kSparseConv2d;
  REFUSED(op, node(op).drop("packed"), "packed", "none");
  REFUSED(op, node(op).set("packed", 0), "packed", "found 0");
  REFUSED(op, node(op).set("taps", 4), "taps", "1 or 9");
  REFUSED(op, node(op).set("inputs", 0xbff & ~2 & ~(1 << 11)), "taps", "1 without a map");
  REFUSED(op, node(op).set("inputs", 0xbff & ~2).set("taps", 1), "order", "a map");
  REFUSED(op, node(op).set("inputs", 0xbff | 1 << 10), "dequant", "int8");
  REFUSED(op, node(op).set("x_type", 2), "dequant", "int8");
  REFUSED(op, node(op).set("inputs", 0xbff & ~(1 << 6)), "z1", "scale1");
  REFUSED(op, node(op).set("outputs", 3), "z2", "scale2");
  REFUSED(op, node(op).set("cin", 24), "cin", "multiple of 16");
  REFUSED(op, node(op).set("cout", 40), "cout", "multiple of 16");
  REFUSED(op, node(op).set("y_type", 2).set("cout", 64), "y_quant", "above 0");
  REFUSED(op, node(op).set("residual_type", 2), "residual_type", "found 2");
  REFUSED(op, node(op).set("workspace", -1), "workspace", "-1");
  op = Op::kEnsembleLogits;
  REFUSED(op, node(op).set("mode", "entropy"), "gate", "mode is gated");
  REFUSED(op, node(op).set("inputs", 7), "gate", "inputs 7");
  REFUSED(op, node(op).set("hidden", 0), "hidden", "found 0");
  REFUSED(op, node(op).set("hidden", 129), "hidden", "129");
}
