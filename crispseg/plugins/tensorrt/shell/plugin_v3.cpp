/* IPluginV3 shell, TensorRT 10.0 to 11.x. One binary serves all of them, built with headers of either major. */
#include "shell.h"

#if CRISPSEG_V3
#include <cstdio>
#include <new>

namespace crispseg {
namespace plugin {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

class PluginV3 final : public nvinfer1::IPluginV3,
                       public nvinfer1::IPluginV3OneCore,
                       public nvinfer1::IPluginV3OneBuild,
                       public nvinfer1::IPluginV3OneRuntime {
 public:
  PluginV3(Params const &params, std::shared_ptr<csg_context> ctx)
      : params_(params), ctx_(std::move(ctx)), state_(write_state(params)) {
    field_ = {kStateField, state_.data(), nvinfer1::PluginFieldType::kINT32, static_cast<int32_t>(state_.size())};
    fields_.nbFields = 1;
    fields_.fields = &field_;
    char id[48];
    std::snprintf(id, sizeof id, "crispseg-%s-%d-%08x", kPluginVersion, static_cast<int>(params.op),
                  static_cast<unsigned>(state_.back()));
    timing_id_ = id;
    about_ = op_name(params.op);
    if (params.op == Op::kSparseConv2d) {
      char const *const types[] = {"fp32", "fp16", "int8"};
      about_ += " " + std::to_string(params.taps) + " x " + std::to_string(params.cin) + " -> " +
                std::to_string(params.cout) + " " + types[params.x_type];
    }
  }

  nvinfer1::IPluginCapability *getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore *>(this);
      case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild *>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime *>(this);
      default: return nullptr;
    }
  }
  nvinfer1::IPluginV3 *clone() noexcept override { return make(params_, ctx_); }

  static PluginV3 *make(Params const &params, std::shared_ptr<csg_context> const &ctx) noexcept {
    try {
      return new PluginV3(params, ctx);
    } catch (std::exception const &e) {
      report(e.what());
      return nullptr;
    }
  }

  /* core */
  char const *getPluginName() const noexcept override { return op_name(params_.op); }
  char const *getPluginVersion() const noexcept override { return kPluginVersion; }
  char const *getPluginNamespace() const noexcept override { return ""; }

  /* build */
  int32_t getNbOutputs() const noexcept override { return output_count(params_); }
  int32_t getOutputDataTypes(DataType *types, int32_t count, DataType const *, int32_t inputs) const noexcept override {
    if (!check_counts(params_, inputs, count)) return -1;
    for (int32_t i = 0; i < count; ++i) types[i] = data_type(params_, inputs + i);
    return 0;
  }
  int32_t getOutputShapes(DimsExprs const *inputs, int32_t count, DimsExprs const *, int32_t, DimsExprs *outputs,
                          int32_t output_total, nvinfer1::IExprBuilder &builder) noexcept override {
    if (output_total != output_count(params_) || !check_expressions(params_, inputs, count)) return -1;
    for (int32_t i = 0; i < output_total; ++i) outputs[i] = output_expressions(params_, i, inputs, builder);
    return 0;
  }
  bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const *tensors, int32_t inputs,
                                 int32_t outputs) noexcept override {
    return supports(params_, position, tensors, inputs, outputs);
  }
  int32_t configurePlugin(DynamicPluginTensorDesc const *inputs, int32_t count, DynamicPluginTensorDesc const *outputs,
                          int32_t output_total) noexcept override {
    return check_tensors(params_, inputs, count, outputs, output_total) ? 0 : -1;
  }
  size_t getWorkspaceSize(DynamicPluginTensorDesc const *, int32_t, DynamicPluginTensorDesc const *,
                          int32_t) const noexcept override {
    return workspace_bytes(params_);
  }
  char const *getTimingCacheID() noexcept override { return timing_id_.c_str(); }
  char const *getMetadataString() noexcept override { return about_.c_str(); }

  /* runtime */
  int32_t onShapeChange(PluginTensorDesc const *inputs, int32_t count, PluginTensorDesc const *outputs,
                        int32_t output_total) noexcept override {
    return check_tensors(params_, inputs, count, outputs, output_total) ? 0 : -1;
  }
  int32_t enqueue(PluginTensorDesc const *inputs, PluginTensorDesc const *outputs, void const *const *input_data,
                  void *const *output_data, void *workspace, cudaStream_t stream) noexcept override {
    return enqueue_op(params_, ctx_.get(), inputs, outputs, input_data, output_data, workspace, stream);
  }
  nvinfer1::IPluginV3 *attachToContext(nvinfer1::IPluginResourceContext *) noexcept override {
    std::string error;
    std::shared_ptr<csg_context> ctx = acquire_context(error);
    if (!ctx) {
      report(std::string(op_name(params_.op)) + ": " + error);
      return nullptr;
    }
    return make(params_, ctx);
  }
  nvinfer1::PluginFieldCollection const *getFieldsToSerialize() noexcept override { return &fields_; }

 private:
  Params params_;
  std::shared_ptr<csg_context> ctx_;
  std::vector<int32_t> state_;
  nvinfer1::PluginField field_;
  nvinfer1::PluginFieldCollection fields_{};
  std::string timing_id_, about_;
};

class CreatorV3 final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit CreatorV3(Op op) : op_(op), names_(op) {}
  nvinfer1::IPluginV3 *createPlugin(char const *, nvinfer1::PluginFieldCollection const *fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    Params params;
    return read_collection(op_, fields, params) ? PluginV3::make(params, nullptr) : nullptr;
  }
  nvinfer1::PluginFieldCollection const *getFieldNames() noexcept override { return names_.get(); }
  char const *getPluginName() const noexcept override { return op_name(op_); }
  char const *getPluginVersion() const noexcept override { return kPluginVersion; }
  char const *getPluginNamespace() const noexcept override { return ""; }

 private:
  Op op_;
  FieldNames names_;
};

}  // namespace

nvinfer1::IPluginCreatorInterface *const *creators() {
  /* deregisterLibrary calls getCreators again and compares pointers: static, and alive until the library is gone. */
  static CreatorV3 all[kOps] = {CreatorV3(Op(0)), CreatorV3(Op(1)), CreatorV3(Op(2)), CreatorV3(Op(3)),
                                CreatorV3(Op(4)), CreatorV3(Op(5)), CreatorV3(Op(6)), CreatorV3(Op(7))};
  static nvinfer1::IPluginCreatorInterface *const list[kOps] = {&all[0], &all[1], &all[2], &all[3],
                                                                &all[4], &all[5], &all[6], &all[7]};
  return list;
}

}  // namespace plugin
}  // namespace crispseg
#endif
