/* What both shells share: TensorRT's structures to those of the core and back. */
#ifndef CRISPSEG_TENSORRT_SHELL_H
#define CRISPSEG_TENSORRT_SHELL_H
#include <NvInferRuntime.h>
#include <NvInferVersion.h>

#include <memory>
#include <string>
#include <vector>

#include "../core/kernels.h"
#include "../core/params.h"
#include "../core/report.h"
#include "../core/run.h"
#include "../core/state.h"
#include "../core/tensors.h"

#if NV_TENSORRT_MAJOR < 8 || (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR < 5)
#error "TensorRT 8.5 or newer is needed"
#endif

/* V2DynamicExt compiled with headers of 10 breaks silently under 11 (two virtual functions left IPluginV2Ext), and 8.x
 * has no V3: one shell a library. */
#define CRISPSEG_V3 (NV_TENSORRT_MAJOR >= 10)
#define CRISPSEG_EXPORT extern "C" __attribute__((visibility("default")))

namespace crispseg {
namespace plugin {

inline FieldType field_type(nvinfer1::PluginFieldType type) {
  switch (type) {
    case nvinfer1::PluginFieldType::kINT32: return FieldType::kInt32;
    case nvinfer1::PluginFieldType::kFLOAT32: return FieldType::kFloat32;
    case nvinfer1::PluginFieldType::kFLOAT64: return FieldType::kFloat64;
    case nvinfer1::PluginFieldType::kCHAR: return FieldType::kChar;
#if CRISPSEG_V3
    case nvinfer1::PluginFieldType::kINT64: return FieldType::kInt64;
#endif
    default: return FieldType::kOther;
  }
}

inline std::vector<Field> to_fields(nvinfer1::PluginFieldCollection const *collection) {
  std::vector<Field> fields;
  for (int32_t i = 0; collection && i < collection->nbFields; ++i) {
    nvinfer1::PluginField const &field = collection->fields[i];
    fields.push_back({field.name, field.data, field_type(field.type), field.length});
  }
  return fields;
}

/* Names of an op's attributes, as the parser asks for them. */
class FieldNames {
 public:
  explicit FieldNames(Op op) {
    for (FieldName const &name : field_names(op)) {
      auto const type = name.type == FieldType::kInt32     ? nvinfer1::PluginFieldType::kINT32
                        : name.type == FieldType::kFloat32 ? nvinfer1::PluginFieldType::kFLOAT32
                                                           : nvinfer1::PluginFieldType::kCHAR;
      fields_.emplace_back(name.name, nullptr, type, name.length);
    }
    collection_.nbFields = static_cast<int32_t>(fields_.size());
    collection_.fields = fields_.data();
  }
  nvinfer1::PluginFieldCollection const *get() const { return &collection_; }

 private:
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

inline nvinfer1::DataType data_type(Params const &params, int position) {
  Type const type = tensor_type(params, position);
  return type == Type::kF32   ? nvinfer1::DataType::kFLOAT
         : type == Type::kF16 ? nvinfer1::DataType::kHALF
                              : nvinfer1::DataType::kINT32;
}

inline Dims to_dims(nvinfer1::Dims const &dims) {
  Dims converted;
  converted.rank = dims.nbDims < 0 || dims.nbDims > 8 ? -1 : dims.nbDims;
  for (int32_t i = 0; i < converted.rank; ++i) converted.d[i] = dims.d[i];
  return converted;
}

inline nvinfer1::PluginTensorDesc const &desc(nvinfer1::PluginTensorDesc const &tensor) { return tensor; }
inline nvinfer1::PluginTensorDesc const &desc(nvinfer1::DynamicPluginTensorDesc const &tensor) { return tensor.desc; }

/* The only format of every tensor; see params.h, 3. */
template <class Desc>
bool supports(Params const &params, int32_t position, Desc const *tensors, int32_t inputs, int32_t outputs) {
  if (inputs != input_count(params) || outputs != output_count(params)) return false;
  if (position < 0 || position >= inputs + outputs) return false;
  nvinfer1::PluginTensorDesc const &tensor = desc(tensors[position]);
  return tensor.format == nvinfer1::TensorFormat::kLINEAR && tensor.type == data_type(params, position);
}

inline bool check_counts(Params const &params, int32_t inputs, int32_t outputs) {
  if (inputs == input_count(params) && outputs == output_count(params)) return true;
  return report(std::string(op_name(params.op)) + ": expected " + std::to_string(input_count(params)) + " inputs and " +
                std::to_string(output_count(params)) + " outputs (attributes `inputs` and `outputs`), found " +
                std::to_string(inputs) + " and " + std::to_string(outputs));
}

constexpr int kMostInputs = 12, kMostOutputs = 5;

/* Types, formats and dimensions of all tensors; dimensions of -1 pass. */
template <class Desc>
bool check_tensors(Params const &params, Desc const *inputs, int32_t input_total, Desc const *outputs,
                   int32_t output_total) {
  if (!check_counts(params, input_total, output_total)) return false;
  Dims in[kMostInputs], out[kMostOutputs];
  for (int32_t i = 0; i < input_total; ++i) in[i] = to_dims(desc(inputs[i]).dims);
  for (int32_t i = 0; i < output_total; ++i) out[i] = to_dims(desc(outputs[i]).dims);
  for (int32_t i = 0; i < input_total + output_total; ++i) {
    nvinfer1::PluginTensorDesc const &tensor = desc(i < input_total ? inputs[i] : outputs[i - input_total]);
    if (tensor.type != data_type(params, i) || tensor.format != nvinfer1::TensorFormat::kLINEAR) {
      return report(std::string(op_name(params.op)) + ": " + tensor_name(params, i) + ": expected data type " +
                    std::to_string(static_cast<int32_t>(data_type(params, i))) + " in linear format, found type " +
                    std::to_string(static_cast<int32_t>(tensor.type)) + " in format " +
                    std::to_string(static_cast<int32_t>(tensor.format)));
    }
  }
  std::string error;
  return check_shapes(params, in, out, error) || report(error);
}

/* Dimensions of one output as expressions. */
inline nvinfer1::DimsExprs output_expressions(Params const &params, int32_t output, nvinfer1::DimsExprs const *inputs,
                                              nvinfer1::IExprBuilder &builder) {
  Shape const shape = output_shape(params, output);
  nvinfer1::DimsExprs made{};
  made.nbDims = shape.rank;
  for (int32_t i = 0; i < shape.rank; ++i) {
    Dim const &dim = shape.d[i];
    if (dim.kind == Dim::kConstant) {
      made.d[i] = builder.constant(static_cast<int32_t>(dim.constant));
      continue;
    }
    made.d[i] = inputs[dim.input].d[dim.axis];
    if (dim.kind == Dim::kScaled) {
      auto const *scale = builder.constant(static_cast<int32_t>(dim.scale));
      auto const *most = builder.constant(static_cast<int32_t>(dim.constant));
      auto const *scaled = builder.operation(nvinfer1::DimensionOperation::kPROD, *made.d[i], *scale);
      made.d[i] = builder.operation(nvinfer1::DimensionOperation::kMIN, *scaled, *most);
    }
  }
  return made;
}

/* Inputs of a node while the network is defined: ranks, and those dimensions that are constants. */
inline bool check_expressions(Params const &params, nvinfer1::DimsExprs const *inputs, int32_t count) {
  if (!check_counts(params, count, output_count(params))) return false;
  Dims in[kMostInputs], out[kMostOutputs];
  for (int32_t i = 0; i < count; ++i) {
    in[i].rank = inputs[i].nbDims < 0 || inputs[i].nbDims > 8 ? -1 : inputs[i].nbDims;
    for (int32_t axis = 0; axis < in[i].rank; ++axis) {
      auto const *expression = inputs[i].d[axis];
      in[i].d[axis] = expression->isConstant() ? static_cast<int64_t>(expression->getConstantValue()) : -1;
    }
  }
  std::string error;
  return infer_shapes(params, in, out, error) || report(error);
}

/* Enqueues the op; 0 or a csg_status, as TensorRT wants it. */
inline int32_t enqueue_op(Params const &params, csg_context *ctx, nvinfer1::PluginTensorDesc const *inputs,
                          nvinfer1::PluginTensorDesc const *outputs, void const *const *input_data,
                          void *const *output_data, void *workspace, void *stream) {
  if (!ctx) {
    report(std::string(op_name(params.op)) + ": enqueue without a context: initialize or attachToContext did not run");
    return CSG_BAD_ARGUMENT;
  }
  Dims in[kMostInputs], out[kMostOutputs];
  for (int32_t i = 0; i < input_count(params); ++i) in[i] = to_dims(inputs[i].dims);
  for (int32_t i = 0; i < output_count(params); ++i) out[i] = to_dims(outputs[i].dims);
  std::string error;
  if (!check_shapes(params, in, out, error)) {
    report(error);
    return CSG_BAD_ARGUMENT;
  }
  int const status = run(params, {ctx, stream, in, out, input_data, output_data, workspace});
  if (status != CSG_OK) report(std::string(op_name(params.op)) + ": " + csg_last_error());
  return status;
}

/* Parameters from a node's attributes, or from the state that an engine file holds. */
inline bool read_collection(Op op, nvinfer1::PluginFieldCollection const *collection, Params &params) {
  std::vector<Field> const fields = to_fields(collection);
  std::string error;
  if (fields.size() == 1 && fields[0].name && std::string(fields[0].name) == kStateField) {
    bool const words = fields[0].type == FieldType::kInt32 && fields[0].length > 0;
    size_t const bytes = words ? static_cast<size_t>(fields[0].length) * 4 : 0;
    return read_state(op, fields[0].data, bytes, params, error) || report(error);
  }
  return parse_fields(op, fields, params, error) || report(error);
}

/* The creators, kOps in all, in the order of Op. */
#if CRISPSEG_V3
nvinfer1::IPluginCreatorInterface *const *creators();
#else
nvinfer1::IPluginCreator *const *creators();
#endif

}  // namespace plugin
}  // namespace crispseg
#endif
