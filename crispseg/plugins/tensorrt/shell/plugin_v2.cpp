/* IPluginV2DynamicExt shell, TensorRT 8.5 and 8.6 (one binary serves both). */
#include "shell.h"

#if !CRISPSEG_V3
#include <cstring>
#include <new>

namespace crispseg {
namespace plugin {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

class PluginV2 final : public nvinfer1::IPluginV2DynamicExt {
 public:
  PluginV2(Params const &params, std::shared_ptr<csg_context> ctx, std::string name_space)
      : params_(params), ctx_(std::move(ctx)), namespace_(std::move(name_space)) {}

  static PluginV2 *make(Params const &params, std::shared_ptr<csg_context> const &ctx,
                        std::string const &name_space) noexcept {
    try {
      return new PluginV2(params, ctx, name_space);
    } catch (std::exception const &e) {
      report(e.what());
      return nullptr;
    }
  }

  char const *getPluginType() const noexcept override { return op_name(params_.op); }
  char const *getPluginVersion() const noexcept override { return kPluginVersion; }
  void setPluginNamespace(char const *name) noexcept override { namespace_ = name ? name : ""; }
  char const *getPluginNamespace() const noexcept override { return namespace_.c_str(); }
  IPluginV2DynamicExt *clone() const noexcept override { return make(params_, ctx_, namespace_); }
  void destroy() noexcept override { delete this; }

  int32_t getNbOutputs() const noexcept override { return output_count(params_); }
  DataType getOutputDataType(int32_t index, DataType const *, int32_t) const noexcept override {
    bool const known = index >= 0 && index < output_count(params_);
    return known ? data_type(params_, input_count(params_) + index) : DataType::kFLOAT;
  }
  DimsExprs getOutputDimensions(int32_t index, DimsExprs const *inputs, int32_t count,
                                nvinfer1::IExprBuilder &builder) noexcept override {
    /* There is no way to say no here: without dimensions the network is refused. */
    if (index < 0 || index >= output_count(params_) || !check_expressions(params_, inputs, count)) return DimsExprs{};
    return output_expressions(params_, index, inputs, builder);
  }
  bool supportsFormatCombination(int32_t position, PluginTensorDesc const *tensors, int32_t inputs,
                                 int32_t outputs) noexcept override {
    return supports(params_, position, tensors, inputs, outputs);
  }
  void configurePlugin(DynamicPluginTensorDesc const *inputs, int32_t count, DynamicPluginTensorDesc const *outputs,
                       int32_t output_total) noexcept override {
    check_tensors(params_, inputs, count, outputs, output_total); /* reports; enqueue refuses */
  }
  size_t getWorkspaceSize(PluginTensorDesc const *, int32_t, PluginTensorDesc const *,
                          int32_t) const noexcept override {
    return workspace_bytes(params_);
  }

  int32_t initialize() noexcept override { return attach() ? 0 : -1; }
  void terminate() noexcept override {}
  void attachToContext(cudnnContext *, cublasContext *, nvinfer1::IGpuAllocator *) noexcept override { attach(); }
  int32_t enqueue(PluginTensorDesc const *inputs, PluginTensorDesc const *outputs, void const *const *input_data,
                  void *const *output_data, void *workspace, cudaStream_t stream) noexcept override {
    return enqueue_op(params_, ctx_.get(), inputs, outputs, input_data, output_data, workspace, stream);
  }

  size_t getSerializationSize() const noexcept override { return state_bytes(); }
  void serialize(void *buffer) const noexcept override {
    std::vector<int32_t> const words = write_state(params_);
    std::memcpy(buffer, words.data(), words.size() * 4);
  }

 private:
  bool attach() noexcept {
    std::string error;
    if (!ctx_) ctx_ = acquire_context(error);
    return ctx_ || report(std::string(op_name(params_.op)) + ": " + error);
  }

  Params params_;
  std::shared_ptr<csg_context> ctx_;
  std::string namespace_;
};

class CreatorV2 final : public nvinfer1::IPluginCreator {
 public:
  explicit CreatorV2(Op op) : op_(op), names_(op) {}
  char const *getPluginName() const noexcept override { return op_name(op_); }
  char const *getPluginVersion() const noexcept override { return kPluginVersion; }
  nvinfer1::PluginFieldCollection const *getFieldNames() noexcept override { return names_.get(); }
  nvinfer1::IPluginV2 *createPlugin(char const *, nvinfer1::PluginFieldCollection const *fields) noexcept override {
    Params params;
    return read_collection(op_, fields, params) ? PluginV2::make(params, nullptr, namespace_) : nullptr;
  }
  nvinfer1::IPluginV2 *deserializePlugin(char const *, void const *data, size_t bytes) noexcept override {
    Params params;
    std::string error;
    if (read_state(op_, data, bytes, params, error)) return PluginV2::make(params, nullptr, namespace_);
    report(error);
    return nullptr;
  }
  void setPluginNamespace(char const *name) noexcept override { namespace_ = name ? name : ""; }
  char const *getPluginNamespace() const noexcept override { return namespace_.c_str(); }

 private:
  Op op_;
  FieldNames names_;
  std::string namespace_;
};

}  // namespace

nvinfer1::IPluginCreator *const *creators() {
  static CreatorV2 all[kOps] = {CreatorV2(Op(0)), CreatorV2(Op(1)), CreatorV2(Op(2)), CreatorV2(Op(3)),
                                CreatorV2(Op(4)), CreatorV2(Op(5)), CreatorV2(Op(6)), CreatorV2(Op(7))};
  static nvinfer1::IPluginCreator *const list[kOps] = {&all[0], &all[1], &all[2], &all[3],
                                                       &all[4], &all[5], &all[6], &all[7]};
  return list;
}

}  // namespace plugin
}  // namespace crispseg
#endif
