// IExprBuilder without TensorRT: expressions keep their formula and give its value afterwards, so that a dimension that
// is not a constant for the plugin has a number for the test.
#pragma once
#include <NvInferRuntime.h>
#include <NvInferVersion.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#if NV_TENSORRT_MAJOR >= 10
using Extent = int64_t;
#else
using Extent = int32_t;
#endif

struct Value : nvinfer1::apiv::VDimensionExpr {
  bool constant;
  int64_t value;
  Value(bool constant_, int64_t value_) : constant(constant_), value(value_) {}
  bool isConstant() const override { return constant; }
  // TensorRT gives INT_MIN for what is no constant: a plugin that uses it anyway shows.
  Extent getConstantValue() const override { return constant ? static_cast<Extent>(value) : INT32_MIN; }
#if NV_TENSORRT_MAJOR >= 10
  bool isSizeTensor() const override { return false; }
#endif
};

struct Expression : nvinfer1::IDimensionExpr {
  Value inside;
  Expression(bool constant, int64_t value) : inside(constant, value) { mImpl = &inside; }
};

inline int64_t value_of(nvinfer1::IDimensionExpr const *expression) {
  return static_cast<Expression const *>(expression)->inside.value;
}

struct Formulas : nvinfer1::apiv::VExprBuilder {
  std::vector<std::unique_ptr<Expression>> made;

  Expression const *add(bool constant, int64_t value) {
    made.emplace_back(new Expression(constant, value));
    return made.back().get();
  }
  nvinfer1::IDimensionExpr const *constant(Extent value) override { return add(true, value); }
  nvinfer1::IDimensionExpr const *operation(nvinfer1::DimensionOperation what, nvinfer1::IDimensionExpr const &a,
                                            nvinfer1::IDimensionExpr const &b) override {
    int64_t const x = value_of(&a), y = value_of(&b);
    bool const constant = a.isConstant() && b.isConstant();
    switch (what) {
      case nvinfer1::DimensionOperation::kSUM: return add(constant, x + y);
      case nvinfer1::DimensionOperation::kPROD: return add(constant, x * y);
      case nvinfer1::DimensionOperation::kMAX: return add(constant, std::max(x, y));
      case nvinfer1::DimensionOperation::kMIN: return add(constant, std::min(x, y));
      case nvinfer1::DimensionOperation::kSUB: return add(constant, x - y);
      default: return nullptr;  // not used by the plugins
    }
  }
#if NV_TENSORRT_MAJOR >= 10
  nvinfer1::IDimensionExpr const *declareSizeTensor(int32_t, nvinfer1::IDimensionExpr const &,
                                                    nvinfer1::IDimensionExpr const &) override {
    return nullptr;
  }
#endif
};

struct Builder : nvinfer1::IExprBuilder {
  Formulas inside;
  Builder() { mImpl = &inside; }
};
