#include "params.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "attributes.h"

namespace crispseg {
namespace plugin {
namespace {

constexpr char const *kNames[kOps] = {"SelectPixels", "PixelFeatures", "LogitsAt",       "SubmanifoldMap",
                                      "DownMap",      "SparseConv2d",  "EnsembleLogits", "ScatterLabels"};

template <class T>
T at(Field const &field, int32_t index) { /* a field's data has no alignment that one may rely on */
  T value;
  std::memcpy(&value, static_cast<char const *>(field.data) + index * sizeof(T), sizeof(T));
  return value;
}

bool is_number(Field const &field, int32_t length) {
  return field.data && field.length == length && field.type != FieldType::kChar && field.type != FieldType::kOther;
}

double number(Field const &field, int32_t index) {
  switch (field.type) {
    case FieldType::kInt32: return at<int32_t>(field, index);
    case FieldType::kInt64: return static_cast<double>(at<int64_t>(field, index));
    case FieldType::kFloat32: return at<float>(field, index);
    default: return at<double>(field, index);
  }
}

bool read_int(Op op, Field const &field, int32_t &value, std::string &error) {
  bool const whole = field.type == FieldType::kInt32 || field.type == FieldType::kInt64;
  if (!whole || !is_number(field, 1)) return refuse(error, op, field.name, "one int32", "a field of another kind");
  double const found = number(field, 0);
  if (found < INT32_MIN || found > INT32_MAX) return refuse(error, op, field.name, "an int32", std::to_string(found));
  value = static_cast<int32_t>(found);
  return true;
}

bool read_floats(Op op, Field const &field, float *values, int32_t count, std::string &error) {
  if (!is_number(field, count)) {
    return refuse(error, op, field.name, std::to_string(count) + " numbers", std::to_string(field.length) + " values");
  }
  for (int32_t i = 0; i < count; ++i) values[i] = static_cast<float>(number(field, i));
  return true;
}

/* The parser counts the final NUL in the length, Python does not. */
bool read_text(Op op, Field const &field, std::string &text, std::string &error) {
  if (field.type != FieldType::kChar || field.length < 0 || field.length > 4096 || (field.length && !field.data)) {
    return refuse(error, op, field.name, "text", "a field of another kind");
  }
  auto const *data = static_cast<char const *>(field.data);
  int32_t length = 0;
  while (length < field.length && data[length]) ++length;
  text.assign(data ? data : "", static_cast<size_t>(length));
  return true;
}

/* "rgb,xy,p,p>0.5", as plugins/ops.py: parse_features. */
bool read_features(Op op, std::string const &text, csg_features &features, std::string &error) {
  features.features = 0;
  for (size_t start = 0; start <= text.size();) {
    size_t const comma = std::min(text.find(',', start), text.size());
    std::string name = text.substr(start, comma - start);
    name.erase(std::remove(name.begin(), name.end(), ' '), name.end());
    if (features.features == 8) return refuse(error, op, "features", "at most 8", quoted(text));
    int32_t const i = features.features++;
    features.values[i] = 0.0f;
    if (name == "rgb" || name == "xy" || name == "p") {
      features.kinds[i] = name == "rgb" ? 0 : name == "xy" ? 1 : 2;
    } else {
      char *end = nullptr;
      double const limit = name.compare(0, 2, "p>") ? NAN : std::strtod(name.c_str() + 2, &end);
      if (!end || end == name.c_str() + 2 || *end || !std::isfinite(limit)) {
        return refuse(error, op, "features", "rgb, xy, p or p>number", quoted(name));
      }
      features.kinds[i] = 3;
      features.values[i] = static_cast<float>(limit);
    }
    start = comma + 1;
  }
  return true;
}

std::vector<FieldName> make_names(uint32_t op) {
  std::vector<FieldName> names;
  for (auto const &entry : kInts) {
    if (entry.ops & op) names.push_back({entry.name, FieldType::kInt32, 1});
  }
  for (auto const &entry : kFloats) {
    if (entry.ops & op) names.push_back({entry.name, FieldType::kFloat32, 1});
  }
  for (auto const &entry : kChoices) {
    if (entry.ops & op) names.push_back({entry.name, FieldType::kChar, 0});
  }
  if (op & on(Op::kPixelFeatures)) {
    names.push_back({"features", FieldType::kChar, 0});
    names.push_back({"channel_order", FieldType::kChar, 0});
    names.push_back({"mean", FieldType::kFloat32, 3});
    names.push_back({"std", FieldType::kFloat32, 3});
  }
  return names;
}

/* Reads one field; `known` says whether the op has it. */
bool read_field(Field const &field, Params &params, bool &known, std::string &error) {
  uint32_t const op = on(params.op);
  known = true;
  for (auto const &entry : kInts) {
    if ((entry.ops & op) && !std::strcmp(entry.name, field.name)) {
      return read_int(params.op, field, params.*entry.member, error);
    }
  }
  for (auto const &entry : kFloats) {
    if ((entry.ops & op) && !std::strcmp(entry.name, field.name)) {
      return read_floats(params.op, field, &(params.*entry.member), 1, error);
    }
  }
  std::string text;
  for (auto const &entry : kChoices) {
    if (!(entry.ops & op) || std::strcmp(entry.name, field.name)) continue;
    if (!read_text(params.op, field, text, error)) return false;
    std::string choices;
    for (int32_t i = 0; i < 3 && entry.values[i]; ++i) {
      if (text == entry.values[i]) {
        params.*entry.member = i;
        return true;
      }
      choices += (i ? ", " : "one of ") + std::string(entry.values[i]);
    }
    return refuse(error, params.op, field.name, choices, quoted(text));
  }
  if (op & on(Op::kPixelFeatures)) {
    if (!std::strcmp(field.name, "mean")) return read_floats(params.op, field, params.features.mean, 3, error);
    if (!std::strcmp(field.name, "std")) return read_floats(params.op, field, params.features.std, 3, error);
    if (!std::strcmp(field.name, "features")) {
      return read_text(params.op, field, text, error) && read_features(params.op, text, params.features, error);
    }
    if (!std::strcmp(field.name, "channel_order")) {
      if (!read_text(params.op, field, text, error)) return false;
      params.features.bgr = text == "bgr";
      return text == "rgb" || text == "bgr" || refuse(error, params.op, field.name, "rgb or bgr", quoted(text));
    }
  }
  known = false;
  return true;
}

}  // namespace

char const *op_name(Op op) { return kNames[static_cast<int32_t>(op)]; }

std::vector<FieldName> const &field_names(Op op) {
  static std::vector<std::vector<FieldName>> const all = [] {
    std::vector<std::vector<FieldName>> made;
    for (int32_t i = 0; i < kOps; ++i) made.push_back(make_names(1u << i));
    return made;
  }();
  return all[static_cast<size_t>(op)];
}

bool parse_fields(Op op, std::vector<Field> const &fields, Params &params, std::string &error) {
  params = Params();
  params.op = op;
  params.gated = op == Op::kEnsembleLogits ? 1 : 0; /* the contract's defaults */
  params.features.features = op == Op::kPixelFeatures ? 1 : 0;
  std::vector<std::string> seen;
  for (auto const &field : fields) {
    if (!field.name) continue;
    if (!std::strcmp(field.name, "plugin_version") || !std::strcmp(field.name, "plugin_namespace")) continue;
    bool known = false;
    if (!read_field(field, params, known, error)) return false;
    if (!known) return refuse(error, op, field.name, "an attribute of contract version 1", "an unknown one");
    seen.emplace_back(field.name);
  }
  auto const present = [&](char const *name) {
    return std::find(seen.begin(), seen.end(), name) != seen.end() ||
           refuse(error, op, name, "a value", "none; crispseg build prepares the graph and writes it");
  };
  for (auto const &entry : kInts) {
    if ((entry.ops & (1u << static_cast<int32_t>(op))) && entry.required && !present(entry.name)) return false;
  }
  for (auto const &entry : kFloats) {
    if ((entry.ops & (1u << static_cast<int32_t>(op))) && entry.required && !present(entry.name)) return false;
  }
  if (op == Op::kPixelFeatures && !(present("mean") && present("std"))) return false;
  return validate(params, error);
}

}  // namespace plugin
}  // namespace crispseg
