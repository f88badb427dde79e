// IPluginV2DynamicExt in TensorRT's order: create, clone into the network, types and shapes, formats, configure,
// workspace, initialize, serialise, deserialise, clone for two contexts; then enqueue and destroy.
#include "harness.h"

#if NV_TENSORRT_MAJOR < 10
#include <memory>

using namespace nvinfer1;

namespace {

struct Destroy {
  void operator()(IPluginV2DynamicExt *plugin) const {
    plugin->terminate();
    plugin->destroy();
  }
};
using Plugin = std::unique_ptr<IPluginV2DynamicExt, Destroy>;
Plugin own(IPluginV2 *plugin) { return Plugin(static_cast<IPluginV2DynamicExt *>(plugin)); }

IPluginCreator *creator_of(char const *op) {
  auto const get = reinterpret_cast<IPluginCreator *const *(*)(int32_t &)>(symbol("getPluginCreators"));
  EXPECT(get && !symbol("getCreators"));
  int32_t count = 0, again = 0;
  auto *const *const list = get(count);
  EXPECT(list && count == 8 && get(again) == list && again == count);
  std::set<std::string> names;
  IPluginCreator *found = nullptr;
  for (int32_t i = 0; i < count; ++i) {
    EXPECT(names.insert(list[i]->getPluginName()).second && !std::strcmp(list[i]->getPluginVersion(), "1"));
    if (!std::strcmp(list[i]->getPluginName(), op)) found = list[i];
  }
  EXPECT(found);
  return found;
}

struct DrivenV2 : Driven {
  Plugin engine, contexts[2];

  int32_t enqueue(int context, void const *const *in, void *const *out, void *scratch, void *stream) override {
    auto const inputs_now = in_descs(), outputs_now = out_descs();
    return contexts[context]->enqueue(inputs_now.data(), outputs_now.data(), in, out, scratch,
                                      static_cast<cudaStream_t>(stream));
  }
};

void check_build(IPluginV2DynamicExt *plugin, DrivenV2 &driven) {
  auto const inputs = static_cast<int32_t>(driven.inputs.size());
  int32_t const outputs = plugin->getNbOutputs();
  EXPECT(outputs >= 1 && outputs <= 5);
  std::vector<DataType> in_types;
  for (Tensor const &tensor : driven.inputs) in_types.push_back(static_cast<DataType>(tensor.type));
  Builder builder;
  std::vector<DimsExprs> in = expressions(driven.inputs, builder);
  for (int32_t i = 0; i < outputs; ++i) {
    DimsExprs const dims = plugin->getOutputDimensions(i, in.data(), inputs, builder);
    EXPECT(dims.nbDims >= 1);
    driven.outputs.push_back(tensor_of(dims, plugin->getOutputDataType(i, in_types.data(), inputs)));
  }
  EXPECT(plugin->getOutputDimensions(0, in.data(), inputs - 1, builder).nbDims == 0);
  EXPECT(plugin->getOutputDimensions(outputs, in.data(), inputs, builder).nbDims == 0);

  std::vector<Tensor> all = driven.inputs;
  all.insert(all.end(), driven.outputs.begin(), driven.outputs.end());
  std::vector<PluginTensorDesc> io;
  std::vector<DynamicPluginTensorDesc> open;
  for (Tensor const &tensor : all) {
    io.push_back(describe(tensor));
    open.push_back(describe_open(tensor));
  }
  check_formats(all, [&](int32_t position, DataType type, TensorFormat format) {
    std::vector<PluginTensorDesc> asked = io;
    asked[static_cast<size_t>(position)].type = type;
    asked[static_cast<size_t>(position)].format = format;
    return plugin->supportsFormatCombination(position, asked.data(), inputs, outputs);
  });
  EXPECT(!plugin->supportsFormatCombination(0, io.data(), inputs + 1, outputs));
  plugin->configurePlugin(open.data(), inputs, open.data() + inputs, outputs);
  driven.workspace = plugin->getWorkspaceSize(io.data(), inputs, io.data() + inputs, outputs);
}

}  // namespace

Driven *drive(char const *op, std::vector<PluginField> const &fields, std::vector<Tensor> const &inputs) {
  auto driven = std::make_unique<DrivenV2>();
  driven->inputs = inputs;
  IPluginCreator *const creator = creator_of(op);
  creator->setPluginNamespace("");
  PluginFieldCollection given{static_cast<int32_t>(fields.size()), fields.data()};
  Plugin created = own(creator->createPlugin("node", &given));
  if (!created) throw Failure(heard());
  EXPECT(!std::strcmp(created->getPluginType(), op) && !std::strcmp(created->getPluginVersion(), "1"));
  created->setPluginNamespace("somewhere");
  Plugin network(created->clone());
  EXPECT(network && !std::strcmp(network->getPluginNamespace(), "somewhere"));
  created.reset();
  check_build(network.get(), *driven);
  auto const in = driven->in_descs(), out = driven->out_descs();
  std::vector<void *> nothing(16, nullptr);
  EXPECT(network->enqueue(in.data(), out.data(), nothing.data(), nothing.data(), nullptr, nullptr) != 0);
  if (network->initialize() != 0) throw Failure(heard());

  size_t const bytes = network->getSerializationSize();
  std::vector<char> stored(bytes + 1 + 16, '\x5a');  // guard bytes, and an odd address
  network->serialize(stored.data() + 1);
  for (size_t i = bytes + 1; i < stored.size(); ++i) EXPECT(stored[i] == '\x5a');
  network.reset();
  EXPECT(!creator->deserializePlugin("node", stored.data() + 1, bytes - 1));
  EXPECT(!creator->deserializePlugin("node", nullptr, 0));
  stored[bytes / 2] = static_cast<char>(stored[bytes / 2] ^ 4);
  EXPECT(!creator->deserializePlugin("node", stored.data() + 1, bytes));
  stored[bytes / 2] = static_cast<char>(stored[bytes / 2] ^ 4);
  driven->engine = own(creator->deserializePlugin("node", stored.data() + 1, bytes));
  EXPECT(driven->engine);
  driven->engine->setPluginNamespace("");
  if (driven->engine->initialize() != 0) throw Failure(heard());
  for (auto &context : driven->contexts) {
    context.reset(driven->engine->clone());
    EXPECT(context);
    context->attachToContext(nullptr, nullptr, nullptr);
    std::vector<DynamicPluginTensorDesc> open;
    for (Tensor const &tensor : driven->inputs) open.push_back(describe_open(tensor));
    for (Tensor const &tensor : driven->outputs) open.push_back(describe_open(tensor));
    context->configurePlugin(open.data(), static_cast<int32_t>(in.size()), open.data() + in.size(),
                             static_cast<int32_t>(out.size()));
  }
  return driven.release();
}

#if NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR == 5
// 8.5 loads no plugin libraries: the registry is handed over. Later versions have other functions in theirs, and a real
// one to test with.
namespace {

struct Registry : IPluginRegistry {
  std::vector<IPluginCreator *> creators;
  bool registerCreator(IPluginCreator &creator, AsciiChar const *const name_space) noexcept override {
    for (IPluginCreator *known : creators) {
      if (!std::strcmp(known->getPluginName(), creator.getPluginName())) return false;
    }
    creator.setPluginNamespace(name_space);
    creators.push_back(&creator);
    return true;
  }
  IPluginCreator *const *getPluginCreatorList(int32_t *const count) const noexcept override {
    *count = static_cast<int32_t>(creators.size());
    return creators.data();
  }
  IPluginCreator *getPluginCreator(AsciiChar const *const name, AsciiChar const *const,
                                   AsciiChar const *const) noexcept override {
    for (IPluginCreator *known : creators) {
      if (!std::strcmp(known->getPluginName(), name)) return known;
    }
    return nullptr;
  }
  void setErrorRecorder(IErrorRecorder *const) noexcept override {}
  IErrorRecorder *getErrorRecorder() const noexcept override { return nullptr; }
  bool deregisterCreator(IPluginCreator const &) noexcept override { return true; }
};

}  // namespace

extern "C" int harness_register(char const *name_space) {
  auto const offer = reinterpret_cast<int32_t (*)(void *, char const *)>(symbol("crispseg_register"));
  Registry registry;
  if (!offer || offer(nullptr, "") >= 0) return -2;
  int32_t const taken = offer(static_cast<IPluginRegistry *>(&registry), name_space);
  if (offer(static_cast<IPluginRegistry *>(&registry), name_space) != 0) return -3;
  IPluginCreator *const found = registry.getPluginCreator("SparseConv2d", "1", name_space);
  if (!found || std::strcmp(found->getPluginNamespace(), name_space ? name_space : "")) return -4;
  return taken;
}
#endif
#endif
