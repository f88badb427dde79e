// What the V2 and V3 parts of the harness share. A check that fails throws Failure with the line and what was expected.
#pragma once
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "expressions.h"

using nvinfer1::DataType;
using nvinfer1::TensorFormat;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
#define EXPECT(condition)                                                                                        \
  do {                                                                                                           \
    if (!(condition)) throw Failure(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #condition + \
                                    "; last message: " + heard());                                               \
  } while (0)

extern "C" {
// One tensor as the caller describes it. open: the first dimension is no constant while the network is built.
struct Tensor {
  int32_t type, rank, open;
  int64_t dims[8];
};
struct FieldData {
  char const *name;
  void const *data;
  int32_t type, length;
};
}

// Last message of the plugin library.
std::string heard();

inline nvinfer1::Dims dims_of(Tensor const &tensor, bool hidden = false) {
  nvinfer1::Dims dims{};
  dims.nbDims = tensor.rank;
  for (int32_t i = 0; i < tensor.rank; ++i) {
    dims.d[i] = hidden && tensor.open && i == 0 ? -1 : static_cast<Extent>(tensor.dims[i]);
  }
  return dims;
}

inline nvinfer1::PluginTensorDesc describe(Tensor const &tensor) {
  nvinfer1::PluginTensorDesc desc{};
  desc.dims = dims_of(tensor);
  desc.type = static_cast<DataType>(tensor.type);
  desc.format = TensorFormat::kLINEAR;
  desc.scale = 1.0f;
  return desc;
}

inline nvinfer1::DynamicPluginTensorDesc describe_open(Tensor const &tensor) {
  nvinfer1::DynamicPluginTensorDesc desc{};
  desc.desc = describe(tensor);
  desc.desc.dims = dims_of(tensor, true);
  desc.min = desc.max = dims_of(tensor);
#if NV_TENSORRT_MAJOR >= 10
  desc.opt = desc.max;
#endif
  return desc;
}

// The input expressions; `builder` owns them.
inline std::vector<nvinfer1::DimsExprs> expressions(std::vector<Tensor> const &inputs, Builder &builder) {
  std::vector<nvinfer1::DimsExprs> made(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    made[i].nbDims = inputs[i].rank;
    for (int32_t axis = 0; axis < inputs[i].rank; ++axis) {
      made[i].d[axis] = builder.inside.add(!(inputs[i].open && axis == 0), inputs[i].dims[axis]);
    }
  }
  return made;
}

inline Tensor tensor_of(nvinfer1::DimsExprs const &dims, DataType type) {
  Tensor tensor{};
  tensor.type = static_cast<int32_t>(type);
  tensor.rank = dims.nbDims;
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    tensor.dims[i] = value_of(dims.d[i]);
    if (i == 0) tensor.open = !dims.d[i]->isConstant();
  }
  return tensor;
}

// Asks for every type at every position, and for formats other than linear: exactly the described ones are taken.
// `supports(position, type, format)` asks with all other positions as described.
template <class Supports>
void check_formats(std::vector<Tensor> const &tensors, Supports &&supports) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (int32_t type = 0; type <= 5; ++type) {
      bool const taken = supports(static_cast<int32_t>(i), static_cast<DataType>(type), TensorFormat::kLINEAR);
      EXPECT(taken == (type == tensors[i].type));
    }
    for (auto const format : {TensorFormat::kCHW2, TensorFormat::kHWC8, TensorFormat::kCHW4, TensorFormat::kCHW32}) {
      EXPECT(!supports(static_cast<int32_t>(i), static_cast<DataType>(tensors[i].type), format));
    }
  }
}

// One plugin from creation to destruction.
struct Driven {
  std::vector<Tensor> inputs, outputs;
  size_t workspace = 0;
  virtual ~Driven() = default;
  // Runs execution context 0 or 1.
  virtual int32_t enqueue(int context, void const *const *in, void *const *out, void *workspace, void *stream) = 0;

  std::vector<nvinfer1::PluginTensorDesc> in_descs() const { return descs(inputs); }
  std::vector<nvinfer1::PluginTensorDesc> out_descs() const { return descs(outputs); }

 private:
  static std::vector<nvinfer1::PluginTensorDesc> descs(std::vector<Tensor> const &tensors) {
    std::vector<nvinfer1::PluginTensorDesc> made;
    for (Tensor const &tensor : tensors) made.push_back(describe(tensor));
    return made;
  }
};

std::vector<nvinfer1::PluginField> plugin_fields(FieldData const *fields, int32_t count);
// Library functions that both parts use.
void *symbol(char const *name);
Driven *drive(char const *op, std::vector<nvinfer1::PluginField> const &fields, std::vector<Tensor> const &inputs);
