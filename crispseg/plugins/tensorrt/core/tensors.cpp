#include "tensors.h"

#include <algorithm>

namespace crispseg {
namespace plugin {
namespace {

constexpr Type kF32 = Type::kF32, kI32 = Type::kI32;

Role role(char const *name, Type type) { return {name, false, type, nullptr}; }
Role maybe(char const *name, Type type) { return {name, true, type, nullptr}; }
Role typed(char const *name, int32_t Params::*type) { return {name, false, kF32, type}; }
Role maybe_typed(char const *name, int32_t Params::*type) { return {name, true, kF32, type}; }

struct Roles {
  std::vector<Role> inputs, outputs;
};

std::vector<Roles> make_roles() {
  std::vector<Roles> all(kOps);
  auto const of = [&](Op op) -> Roles & { return all[static_cast<size_t>(op)]; };
  Role const coords = role("coords", kI32), count = role("count", kI32), logits = typed("logits", &Params::logits_type);
  of(Op::kSelectPixels) = {{logits},
                           {role("labels", kI32), coords, count, role("found", kI32), maybe("confidence", kI32)}};
  of(Op::kPixelFeatures) = {{role("image", kI32), coords, count, maybe("yi", kF32)}, {typed("x", &Params::x_type)}};
  of(Op::kLogitsAt) = {{logits, coords, count}, {role("yi", kF32)}};
  of(Op::kSubmanifoldMap) = {{coords, count}, {role("map", kI32)}};
  of(Op::kDownMap) = {{coords, count},
                      {role("coords_out", kI32), role("count_out", kI32), role("down", kI32), role("up", kI32),
                       maybe("order", kI32)}};
  of(Op::kSparseConv2d) = {
      {typed("x", &Params::x_type), maybe("map", kI32), count, role("weight", kI32), maybe("bias", kF32),
       maybe_typed("residual", &Params::residual_type), maybe("scale1", kF32), maybe("shift1", kF32),
       maybe("scale2", kF32), maybe("shift2", kF32), maybe("dequant", kF32), maybe("order", kI32)},
      {maybe_typed("y", &Params::y_type), maybe_typed("z1", &Params::z1_type), maybe_typed("z2", &Params::z2_type)}};
  of(Op::kEnsembleLogits) = {{role("yi", kF32), typed("yo", &Params::yo_type), count, maybe("gate", kF32)},
                             {role("ye", kF32)}};
  of(Op::kScatterLabels) = {{role("labels", kI32), role("confidence", kI32), coords, count, role("ye", kF32)},
                            {role("labels_out", kI32), role("confidence_out", kI32)}};
  return all;
}

Roles const &roles(Op op) {
  static std::vector<Roles> const all = make_roles();
  return all[static_cast<size_t>(op)];
}

int count_bits(int32_t mask) {
  int bits = 0;
  for (; mask; mask &= mask - 1) ++bits;
  return bits;
}

int position_of(int32_t mask, int bit) { return (mask >> bit) & 1 ? count_bits(mask & ((1 << bit) - 1)) : -1; }

int bit_at(int32_t mask, int position) {
  int bit = 0;
  for (;; ++bit) {
    if ((mask >> bit) & 1 && position-- == 0) return bit;
  }
}

Role const &role_at(Params const &p, int position) {
  int const inputs = input_count(p);
  return position < inputs ? roles(p.op).inputs[static_cast<size_t>(input_bit(p, position))]
                           : roles(p.op).outputs[static_cast<size_t>(output_bit(p, position - inputs))];
}

Dim constant(int64_t value) { return {Dim::kConstant, value, 0, 0, 0}; }

/* Columns of rows with C channels in a tensor of that csg_type. */
int64_t row_width(int64_t channels, int32_t type) { return type == CSG_I8 ? channels / 4 : channels; }

bool refuse(std::string &error, Params const &p, char const *tensor, std::string const &expected, Dims const &found) {
  error = std::string(op_name(p.op)) + ": " + tensor + ": expected " + expected + ", found [";
  for (int32_t i = 0; i < found.rank; ++i) error += (i ? "," : "") + std::to_string(found.d[i]);
  error += "]";
  return false;
}

/* What an input must look like: -1 = any size. A dimension that is found to be -1 is not known yet. */
struct Wanted {
  int bit;
  int32_t rank;
  int64_t d[4];
};

/* Size of one dimension of an input, -1 if it is not known. */
int64_t size_of(Params const &p, Dims const *inputs, int bit, int axis) {
  int const position = input_position(p, bit);
  return position < 0 || inputs[position].rank <= axis ? -1 : inputs[position].d[axis];
}

std::vector<Wanted> wanted(Params const &p, Dims const *inputs) {
  int64_t const plane = words(static_cast<int64_t>(p.height) * p.width);
  switch (p.op) {
    case Op::kSelectPixels: return {{0, 4, {1, -1, -1, -1}}};
    case Op::kPixelFeatures:
      return {{0, 1, {words(static_cast<int64_t>(p.height) * p.width * 3)}},
              {1, 2, {-1, 2}},
              {2, 1, {1}},
              {3, 2, {size_of(p, inputs, 1, 0), -1}}};
    case Op::kLogitsAt: return {{0, 4, {1, -1, -1, -1}}, {1, 2, {-1, 2}}, {2, 1, {1}}};
    case Op::kSubmanifoldMap:
    case Op::kDownMap: return {{0, 2, {-1, 2}}, {1, 1, {1}}};
    case Op::kSparseConv2d: {
      int64_t const rows = size_of(p, inputs, p.has_input(1) ? 1 : 0, 0);
      auto const type = static_cast<csg_type>(p.x_type);
      auto const packed = static_cast<int64_t>(csg_packed_bytes(type, p.taps, p.cin, p.cout));
      return {{0, 2, {-1, row_width(p.cin, p.x_type)}},
              {1, 2, {-1, p.taps}},
              {2, 1, {1}},
              {3, 1, {words(packed)}},
              {4, 1, {p.cout}},
              {5, 2, {rows, row_width(p.cout, p.residual_type)}},
              {6, 1, {p.cout}},
              {7, 1, {p.cout}},
              {8, 1, {p.cout}},
              {9, 1, {p.cout}},
              {10, 1, {p.cout}},
              {11, 1, {rows}}};
    }
    case Op::kEnsembleLogits: {
      int64_t const C = size_of(p, inputs, 0, 1), D = p.hidden;
      int64_t const gate = C < 0 ? -1 : D * (2 * C + 2) + D + 2 * D + 2 + D * C + D + C * D + C;
      return {{0, 2, {-1, -1}}, {1, 2, {size_of(p, inputs, 0, 0), -1}}, {2, 1, {1}}, {3, 1, {gate}}};
    }
    default: {
      int64_t const rows = size_of(p, inputs, 2, 0);
      return {{0, 1, {plane}}, {1, 1, {plane}}, {2, 2, {-1, 2}}, {3, 1, {1}}, {4, 2, {rows, -1}}};
    }
  }
}

/* Limits that are not equalities. */
bool check_limits(Params const &p, Dims const *inputs, std::string &error) {
  auto const dims = [&](int bit) -> Dims const & { return inputs[input_position(p, bit)]; };
  if (p.op == Op::kSelectPixels || p.op == Op::kLogitsAt) {
    Dims const &logits = dims(0);
    for (int i = 1; i < 4; ++i) {
      if (logits.d[i] == 0 || logits.d[i] > (i == 1 ? 256 : kMaxDim)) {
        return refuse(error, p, "logits", "1 to 256 classes and sides from 1", logits);
      }
    }
  }
  if (p.op == Op::kPixelFeatures && p.has_input(3) && dims(3).d[1] >= 0) {
    int64_t columns = 0;
    for (int32_t i = 0; i < p.features.features; ++i) {
      columns += p.features.kinds[i] == 0 ? 3 : p.features.kinds[i] == 1 ? 2 : dims(3).d[1];
    }
    if (columns > p.columns) {
      return refuse(error, p, "yi", std::to_string(p.columns) + " columns of features in all at most", dims(3));
    }
  }
  if (p.op == Op::kEnsembleLogits && dims(0).d[1] >= 0 && dims(1).d[1] >= 0 && dims(1).d[1] < dims(0).d[1]) {
    return refuse(error, p, "yo", "at least " + std::to_string(dims(0).d[1]) + " columns", dims(1));
  }
  return true;
}

}  // namespace

std::vector<Role> const &input_roles(Op op) { return roles(op).inputs; }
std::vector<Role> const &output_roles(Op op) { return roles(op).outputs; }
int input_count(Params const &p) { return count_bits(p.inputs); }
int output_count(Params const &p) { return count_bits(p.outputs); }
int input_position(Params const &p, int bit) { return position_of(p.inputs, bit); }
int output_position(Params const &p, int bit) { return position_of(p.outputs, bit); }
int input_bit(Params const &p, int position) { return bit_at(p.inputs, position); }
int output_bit(Params const &p, int position) { return bit_at(p.outputs, position); }
char const *tensor_name(Params const &p, int position) { return role_at(p, position).name; }

Type tensor_type(Params const &p, int position) {
  Role const &found = role_at(p, position);
  if (!found.typed) return found.type;
  int32_t const type = p.*found.typed;
  return type == CSG_F32 ? Type::kF32 : type == CSG_F16 ? Type::kF16 : Type::kI32;
}

Shape output_shape(Params const &p, int output) {
  int const bit = output_bit(p, output);
  /* The first dimension of the input with that bit. */
  auto const rows = [&](int input) { return Dim{Dim::kInput, 0, input_position(p, input), 0, 0}; };
  Dim const one = constant(1), plane = constant(words(static_cast<int64_t>(p.height) * p.width));
  switch (p.op) {
    case Op::kSelectPixels:
      if (bit == 0 || bit == 4) return {1, {plane, one}};
      return bit == 1 ? Shape{2, {constant(p.capacity), constant(2)}} : Shape{1, {one, one}};
    case Op::kPixelFeatures: return {2, {rows(1), constant(p.columns)}};
    case Op::kLogitsAt: return {2, {rows(1), Dim{Dim::kInput, 0, input_position(p, 0), 1, 0}}};
    case Op::kSubmanifoldMap: return {2, {rows(0), constant(9)}};
    case Op::kDownMap: {
      int64_t room = static_cast<int64_t>(std::max(0, (p.height - 1) / 2)) * std::max(0, (p.width - 1) / 2);
      if (p.capacity_out > 0) room = std::min<int64_t>(room, p.capacity_out);
      Dim const coarser{Dim::kScaled, std::max<int64_t>(room, 1), input_position(p, 0), 0, 4};
      if (bit == 0 || bit == 2) return {2, {coarser, constant(bit == 0 ? 2 : 9)}};
      return bit == 1 ? Shape{1, {one, one}} : bit == 3 ? Shape{2, {rows(0), constant(9)}} : Shape{1, {rows(0), one}};
    }
    case Op::kSparseConv2d: {
      int32_t const types[3] = {p.y_type, p.z1_type, p.z2_type};
      return {2, {rows(p.has_input(1) ? 1 : 0), constant(row_width(p.cout, types[bit]))}};
    }
    case Op::kEnsembleLogits: return {2, {rows(0), Dim{Dim::kInput, 0, input_position(p, 0), 1, 0}}};
    default: return {1, {plane, one}};
  }
}

bool infer_shapes(Params const &p, Dims const *inputs, Dims *outputs, std::string &error) {
  for (Wanted const &want : wanted(p, inputs)) {
    int const position = input_position(p, want.bit);
    if (position < 0) continue;
    Dims const &found = inputs[position];
    std::string expected = "[";
    bool fits = found.rank == want.rank;
    for (int32_t i = 0; i < want.rank; ++i) {
      expected += (i ? "," : "") + (want.d[i] < 0 ? std::string("?") : std::to_string(want.d[i]));
      fits = fits && (want.d[i] < 0 || found.d[i] == -1 || found.d[i] == want.d[i]) && found.d[i] >= -1 &&
             found.d[i] <= INT32_MAX;
    }
    if (!fits) return refuse(error, p, tensor_name(p, position), expected + "]", found);
  }
  if (!check_limits(p, inputs, error)) return false;
  for (int i = 0; i < output_count(p); ++i) {
    Shape const shape = output_shape(p, i);
    outputs[i] = Dims();
    outputs[i].rank = shape.rank;
    for (int32_t axis = 0; axis < shape.rank; ++axis) {
      Dim const &dim = shape.d[axis];
      int64_t value = dim.constant;
      if (dim.kind != Dim::kConstant) {
        int64_t const source = inputs[dim.input].d[dim.axis];
        bool const scaled = dim.kind == Dim::kScaled && source >= 0;
        value = scaled ? std::min(dim.scale * source, dim.constant) : source;
      }
      outputs[i].d[axis] = value;
    }
  }
  return true;
}

bool check_shapes(Params const &p, Dims const *inputs, Dims const *outputs, std::string &error) {
  Dims inferred[8];
  if (!infer_shapes(p, inputs, inferred, error)) return false;
  for (int i = 0; i < output_count(p); ++i) {
    bool fits = outputs[i].rank == inferred[i].rank;
    std::string expected = "[";
    for (int32_t axis = 0; axis < inferred[i].rank; ++axis) {
      int64_t const want = inferred[i].d[axis], found = outputs[i].d[axis];
      expected += (axis ? "," : "") + std::to_string(want);
      fits = fits && (want == found || want == -1 || found == -1);
    }
    if (!fits) return refuse(error, p, tensor_name(p, input_count(p) + i), expected + "]", outputs[i]);
  }
  return true;
}

size_t workspace_bytes(Params const &p) {
  switch (p.op) {
    case Op::kSelectPixels: return csg_select_workspace(p.height, p.width);
    case Op::kSubmanifoldMap:
    case Op::kDownMap: return csg_map_workspace(p.height, p.width);
    case Op::kSparseConv2d: return static_cast<size_t>(p.workspace);
    default: return 0;
  }
}

}  // namespace plugin
}  // namespace crispseg
