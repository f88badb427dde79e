// Nodes as strip.py writes them, for the core's tests.
#pragma once
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../../../crispseg/plugins/tensorrt/core/params.h"
#include "../../../crispseg/plugins/tensorrt/core/tensors.h"

using namespace crispseg::plugin;

// Attributes of a node; copies share the values.
struct Node {
  std::vector<std::shared_ptr<void>> values;
  std::vector<Field> fields;

  template <class T>
  T *keep(T value) {
    auto kept = std::make_shared<T>(std::move(value));
    values.push_back(kept);
    return kept.get();
  }

  Node &set(char const *name, int32_t value) {
    drop(name);
    fields.push_back({name, keep(value), FieldType::kInt32, 1});
    return *this;
  }
  Node &set(char const *name, std::vector<float> value) {
    drop(name);
    auto const length = static_cast<int32_t>(value.size());
    fields.push_back({name, keep(value)->data(), FieldType::kFloat32, length});
    return *this;
  }
  Node &set(char const *name, char const *value, bool with_nul = true) {
    drop(name);
    auto const length = static_cast<int32_t>(std::strlen(value)) + (with_nul ? 1 : 0);
    fields.push_back({name, keep(std::string(value))->c_str(), FieldType::kChar, length});
    return *this;
  }
  Node &drop(char const *name) {
    for (size_t i = 0; i < fields.size(); ++i) {
      if (!std::strcmp(fields[i].name, name)) fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(i--));
    }
    return *this;
  }
};

inline Node node(Op op) {
  Node n;
  n.set("plugin_version", "1").set("plugin_namespace", "");
  switch (op) {
    case Op::kSelectPixels:
      n.set("inputs", 1).set("outputs", 31).set("height", 9).set("width", 11).set("upsample", "bilinear");
      return n.set("threshold", std::vector<float>{0.5f}).set("capacity", 40).set("logits_type", 1);
    case Op::kPixelFeatures:
      n.set("inputs", 15).set("outputs", 1).set("height", 9).set("width", 11).set("features", "rgb, xy,p,p>0.25");
      n.set("channel_order", "bgr").set("mean", {1.0f, 2.0f, 3.0f}).set("std", {4.0f, 5.0f, 6.0f});
      return n.set("columns", 32).set("x_type", 1);
    case Op::kLogitsAt:
      return n.set("inputs", 7).set("outputs", 1).set("height", 9).set("width", 11).set("upsample", "bilinear_corners");
    case Op::kSubmanifoldMap: return n.set("inputs", 3).set("outputs", 1).set("height", 9).set("width", 11);
    case Op::kDownMap:
      n.set("inputs", 3).set("outputs", 31).set("height", 9).set("width", 11).set("extent", "image");
      return n.set("capacity_out", 0);
    case Op::kSparseConv2d:
      n.set("inputs", 0xbff).set("outputs", 7).set("relu", 1).set("taps", 9).set("cin", 32).set("cout", 48);
      n.set("packed", 1).set("x_type", 1).set("residual_type", 1).set("y_type", 1).set("z1_type", 1);
      return n.set("z2_type", 1).set("workspace", 1000);
    case Op::kEnsembleLogits:
      return n.set("inputs", 15).set("outputs", 1).set("mode", "gated").set("hidden", 6).set("yo_type", 1);
    default: return n.set("inputs", 31).set("outputs", 3).set("height", 9).set("width", 11);
  }
}

// Dimensions of the connected inputs of node(op), N = 40, C = 5.
inline std::vector<Dims> input_dims(Op op) {
  auto const dims = [](std::vector<int64_t> d) {
    Dims made;
    made.rank = static_cast<int32_t>(d.size());
    for (size_t i = 0; i < d.size(); ++i) made.d[i] = d[i];
    return made;
  };
  Dims const logits = dims({1, 5, 4, 6}), coords = dims({40, 2}), count = dims({1}), plane = dims({25});
  switch (op) {
    case Op::kSelectPixels: return {logits};
    case Op::kPixelFeatures: return {dims({75}), coords, count, dims({40, 5})};
    case Op::kLogitsAt: return {logits, coords, count};
    case Op::kSubmanifoldMap:
    case Op::kDownMap: return {coords, count};
    case Op::kSparseConv2d: {
      Dims const channels = dims({48});
      int64_t const words = (2 * 9 * 32 * 48 + 2 + 3) / 4;
      return {dims({50, 32}), dims({40, 9}), count,    dims({words}), channels,  dims({40, 48}),
              channels,       channels,      channels, channels,      dims({40})};
    }
    case Op::kEnsembleLogits: {
      int64_t const C = 5, D = 6, gate = D * (2 * C + 2) + D + 2 * D + 2 + D * C + D + C * D + C;
      return {dims({40, 5}), dims({40, 16}), count, dims({gate})};
    }
    default: return {plane, plane, coords, count, dims({40, 5})};
  }
}

inline std::string text(Dims const &dims) {
  std::string made;
  for (int32_t i = 0; i < dims.rank; ++i) made += (i ? "," : "") + std::to_string(dims.d[i]);
  return made;
}
