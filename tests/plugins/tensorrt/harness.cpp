// Drives the plugin library as TensorRT does, without TensorRT: built with its headers alone, called from Python.
#include "harness.h"

#include <dlfcn.h>

#include <map>
#include <memory>

namespace {

void *library = nullptr;
std::string failure, logged;
std::map<int, std::unique_ptr<Driven>> nodes;

#if NV_TENSORRT_MAJOR >= 10 || NV_TENSORRT_MINOR >= 6
struct Logger : nvinfer1::ILogger {
  void log(Severity, nvinfer1::AsciiChar const *message) noexcept override { logged = message; }
} logger;
struct Finder : nvinfer1::ILoggerFinder {
  nvinfer1::ILogger *findLogger() override { return &logger; }
} finder;
#define HAS_FINDER 1
#endif

template <class Body>
int guarded(Body &&body) {
  failure.clear();
  try {
    return body();
  } catch (std::exception const &e) {
    failure = e.what();
    return -1;
  }
}

}  // namespace

std::string heard() {
  auto const last = reinterpret_cast<char const *(*)()>(symbol("crispseg_plugin_error"));
  return last ? last() : "";
}

void *symbol(char const *name) { return library ? dlsym(library, name) : nullptr; }

std::vector<nvinfer1::PluginField> plugin_fields(FieldData const *fields, int32_t count) {
  std::vector<nvinfer1::PluginField> made;
  for (int32_t i = 0; i < count; ++i) {
    auto const type = static_cast<nvinfer1::PluginFieldType>(fields[i].type);
    made.emplace_back(fields[i].name, fields[i].data, type, fields[i].length);
  }
  return made;
}

extern "C" {

// Says whose interfaces these are, as libnvinfer does.
int32_t getInferLibVersion() { return NV_TENSORRT_VERSION; }
char const *harness_error() { return failure.c_str(); }
char const *harness_logged() { return logged.c_str(); }
int harness_version() { return NV_TENSORRT_VERSION; }

int harness_open(char const *path) {
  return guarded([&] {
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) throw Failure(dlerror());
    auto const version = reinterpret_cast<int32_t (*)()>(symbol("crispseg_tensorrt_version"));
    EXPECT(version && version() > 0);
    auto const info = reinterpret_cast<char const *(*)()>(symbol("crispseg_plugin_info"));
    EXPECT(info && std::string(info()).find("\"ops\": 8") != std::string::npos);
    EXPECT(symbol("setLoggerFinder"));
#if HAS_FINDER  // 8.5 has no ILoggerFinder
    reinterpret_cast<void (*)(nvinfer1::ILoggerFinder *)>(symbol("setLoggerFinder"))(&finder);
#endif
    return 0;
  });
}

// Creates the plugin, checks it through build, serialisation and two contexts. -> number of the node, or -1.
int harness_create(char const *op, FieldData const *fields, int32_t field_count, Tensor const *inputs, int32_t count) {
  return guarded([&] {
    std::unique_ptr<Driven> made(
        drive(op, plugin_fields(fields, field_count), std::vector<Tensor>(inputs, inputs + count)));
    int const id = nodes.empty() ? 0 : nodes.rbegin()->first + 1;
    nodes[id] = std::move(made);
    return id;
  });
}

int64_t harness_outputs(int node, Tensor *outputs, int32_t most) {
  Driven const &driven = *nodes.at(node);
  for (size_t i = 0; i < driven.outputs.size() && i < static_cast<size_t>(most); ++i) outputs[i] = driven.outputs[i];
  return static_cast<int64_t>(driven.outputs.size());
}

uint64_t harness_workspace(int node) { return nodes.at(node)->workspace; }

int harness_enqueue(int node, int context, void const *const *in, void *const *out, void *workspace, void *stream) {
  return guarded([&] { return nodes.at(node)->enqueue(context, in, out, workspace, stream); });
}

void harness_clear() { nodes.clear(); }

}  // extern "C"
