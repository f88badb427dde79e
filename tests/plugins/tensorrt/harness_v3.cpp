// IPluginV3 in TensorRT's order: create, clone into the network, types and shapes, formats, configure, workspace,
// fields to serialise, recreate, attach to two contexts, shape change; then enqueue.
#include "harness.h"

#if NV_TENSORRT_MAJOR >= 10
#include <memory>

using namespace nvinfer1;

namespace {

template <class T>
T *capability(IPluginV3 *plugin, PluginCapabilityType type) {
  auto *const found = static_cast<T *>(plugin->getCapabilityInterface(type));
  EXPECT(found);
  return found;
}

IPluginCreatorV3One *creator_of(char const *op) {
  auto const get = reinterpret_cast<IPluginCreatorInterface *const *(*)(int32_t &)>(symbol("getCreators"));
  EXPECT(get);
  int32_t count = 0, again = 0;
  auto *const *const list = get(count);
  EXPECT(list && count == 8 && get(again) == list && again == count);  // deregisterLibrary compares pointers
  auto const old = reinterpret_cast<IPluginCreator *const *(*)(int32_t &)>(symbol("getPluginCreators"));
  EXPECT(old && old(again) && again == 0);
  std::set<std::string> names;
  IPluginCreatorV3One *found = nullptr;
  for (int32_t i = 0; i < count; ++i) {
    EXPECT(std::string(list[i]->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
    auto *const creator = static_cast<IPluginCreatorV3One *>(list[i]);
    EXPECT(names.insert(creator->getPluginName()).second);
    EXPECT(!std::strcmp(creator->getPluginVersion(), "1") && !std::strcmp(creator->getPluginNamespace(), ""));
    if (!std::strcmp(creator->getPluginName(), op)) found = creator;
  }
  EXPECT(found);
  return found;
}

// A copy of the serialised fields whose data lies at an odd address, as in an engine file.
struct Stored {
  std::vector<std::vector<char>> data;
  std::vector<std::string> names;
  std::vector<PluginField> fields;
  PluginFieldCollection collection{};

  explicit Stored(PluginFieldCollection const *from) {
    EXPECT(from && from->nbFields > 0);
    for (int32_t i = 0; i < from->nbFields; ++i) {
      EXPECT(from->fields[i].type == PluginFieldType::kINT32 && from->fields[i].length > 0);
      size_t const bytes = static_cast<size_t>(from->fields[i].length) * 4;
      data.emplace_back(bytes + 1);
      std::memcpy(data.back().data() + 1, from->fields[i].data, bytes);
      names.emplace_back(from->fields[i].name);
    }
    for (size_t i = 0; i < data.size(); ++i) {
      fields.emplace_back(names[i].c_str(), data[i].data() + 1, PluginFieldType::kINT32,
                          static_cast<int32_t>((data[i].size() - 1) / 4));
    }
    collection.nbFields = static_cast<int32_t>(fields.size());
    collection.fields = fields.data();
  }
};

struct DrivenV3 : Driven {
  std::unique_ptr<IPluginV3> engine, contexts[2];

  IPluginV3OneRuntime *runtime(int context) {
    return capability<IPluginV3OneRuntime>(contexts[context].get(), PluginCapabilityType::kRUNTIME);
  }
  int32_t enqueue(int context, void const *const *in, void *const *out, void *scratch, void *stream) override {
    auto const inputs_now = in_descs(), outputs_now = out_descs();
    return runtime(context)->enqueue(inputs_now.data(), outputs_now.data(), in, out, scratch,
                                     static_cast<cudaStream_t>(stream));
  }
};

void check_build(IPluginV3 *plugin, DrivenV3 &driven) {
  auto *const build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
  auto const inputs = static_cast<int32_t>(driven.inputs.size());
  int32_t const outputs = build->getNbOutputs();
  EXPECT(outputs >= 1 && outputs <= 5);
  std::vector<DataType> in_types, out_types(static_cast<size_t>(outputs), DataType::kBOOL);
  for (Tensor const &tensor : driven.inputs) in_types.push_back(static_cast<DataType>(tensor.type));
  EXPECT(build->getOutputDataTypes(out_types.data(), outputs, in_types.data(), inputs) == 0);
  EXPECT(build->getOutputDataTypes(out_types.data(), outputs, in_types.data(), inputs + 1) != 0);
  Builder builder;
  std::vector<DimsExprs> in = expressions(driven.inputs, builder), out(static_cast<size_t>(outputs));
  EXPECT(build->getOutputShapes(in.data(), inputs, nullptr, 0, out.data(), outputs, builder) == 0);
  EXPECT(build->getOutputShapes(in.data(), inputs - 1, nullptr, 0, out.data(), outputs, builder) != 0);
  for (size_t i = 0; i < out.size(); ++i) driven.outputs.push_back(tensor_of(out[i], out_types[i]));

  std::vector<Tensor> all = driven.inputs;
  all.insert(all.end(), driven.outputs.begin(), driven.outputs.end());
  std::vector<DynamicPluginTensorDesc> io;
  for (Tensor const &tensor : all) io.push_back(describe_open(tensor));
  check_formats(all, [&](int32_t position, DataType type, TensorFormat format) {
    std::vector<DynamicPluginTensorDesc> asked = io;
    asked[static_cast<size_t>(position)].desc.type = type;
    asked[static_cast<size_t>(position)].desc.format = format;
    return build->supportsFormatCombination(position, asked.data(), inputs, outputs);
  });
  EXPECT(!build->supportsFormatCombination(0, io.data(), inputs + 1, outputs));
  EXPECT(build->configurePlugin(io.data(), inputs, io.data() + inputs, outputs) == 0);
  driven.workspace = build->getWorkspaceSize(io.data(), inputs, io.data() + inputs, outputs);
  EXPECT(build->getNbTactics() == 0);
  EXPECT(build->getTimingCacheID() && *build->getTimingCacheID());
  EXPECT(build->getMetadataString() && *build->getMetadataString());
}

}  // namespace

Driven *drive(char const *op, std::vector<PluginField> const &fields, std::vector<Tensor> const &inputs) {
  auto driven = std::make_unique<DrivenV3>();
  driven->inputs = inputs;
  IPluginCreatorV3One *const creator = creator_of(op);
  PluginFieldCollection given{static_cast<int32_t>(fields.size()), fields.data()};
  std::unique_ptr<IPluginV3> created(creator->createPlugin("node", &given, TensorRTPhase::kBUILD));
  if (!created) throw Failure(heard());
  auto *const core = capability<IPluginV3OneCore>(created.get(), PluginCapabilityType::kCORE);
  EXPECT(!std::strcmp(core->getPluginName(), op) && !std::strcmp(core->getPluginVersion(), "1"));
  EXPECT(!std::strcmp(core->getPluginNamespace(), ""));
  std::unique_ptr<IPluginV3> network(created->clone());
  EXPECT(network);
  created.reset();
  check_build(network.get(), *driven);

  std::unique_ptr<IPluginV3> timed(network->clone());  // the builder times clones
  auto *const writer = capability<IPluginV3OneRuntime>(timed.get(), PluginCapabilityType::kRUNTIME);
  Stored stored(writer->getFieldsToSerialize());
  network.reset();
  timed.reset();

  for (auto &bytes : stored.data) {  // a damaged engine is refused
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
    EXPECT(!creator->createPlugin("node", &stored.collection, TensorRTPhase::kRUNTIME));
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
  }
  driven->engine.reset(creator->createPlugin("node", &stored.collection, TensorRTPhase::kRUNTIME));
  EXPECT(driven->engine);
  auto *const deserialised = capability<IPluginV3OneRuntime>(driven->engine.get(), PluginCapabilityType::kRUNTIME);
  auto const in = driven->in_descs(), out = driven->out_descs();
  auto const total = static_cast<int32_t>(in.size()), results = static_cast<int32_t>(out.size());
  std::vector<void *> nothing(16, nullptr);
  EXPECT(deserialised->enqueue(in.data(), out.data(), nothing.data(), nothing.data(), nullptr, nullptr) != 0);
  for (auto &context : driven->contexts) {
    context.reset(deserialised->attachToContext(nullptr));
    if (!context) throw Failure(heard());
  }
  for (int i = 0; i < 2; ++i) {
    EXPECT(driven->runtime(i)->onShapeChange(in.data(), total, out.data(), results) == 0);
    auto wrong = in;
    wrong[0].dims.d[wrong[0].dims.nbDims - 1] += 1;
    wrong[0].dims.nbDims -= 1;
    EXPECT(driven->runtime(i)->onShapeChange(wrong.data(), total, out.data(), results) != 0);
    wrong = in;
    wrong[0].type = DataType::kBOOL;
    EXPECT(driven->runtime(i)->onShapeChange(wrong.data(), total, out.data(), results) != 0);
  }
  return driven.release();
}
#endif
