/* What the library exports. Neither libnvinfer nor libcudart is linked: TensorRT comes to us, never the reverse.
 *
 * 8.5           loads no libraries: crispseg_register with the registry that libnvinfer's getPluginRegistry returns
 * 8.6           IPluginRegistry::loadLibrary: setLoggerFinder, getPluginCreators
 * 10.0 to 11.x  loadLibrary: setLoggerFinder, getCreators; crispseg_register works too
 */
#include <cstdio>

#include "runtime.h"
#include "shell.h"

namespace {

#if CRISPSEG_V3 || (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR >= 6)
#define CRISPSEG_FINDER 1
nvinfer1::ILoggerFinder *finder = nullptr;

void to_logger(char const *message) {
  nvinfer1::ILogger *const logger = finder ? finder->findLogger() : nullptr;
  if (logger) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, message);
  } else {
    std::fprintf(stderr, "%s\n", message);
  }
}
#endif

}  // namespace

#if CRISPSEG_FINDER
CRISPSEG_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder *given) {
  /* Under another major version messages go to stderr. */
  finder = crispseg::plugin::runtime_major(given) == NV_TENSORRT_MAJOR ? given : nullptr;
  crispseg::plugin::set_sink(to_logger);
}
#else
/* 8.5 never calls it, but 8.6 refuses a library without it, and this one serves both. Messages go to stderr. */
CRISPSEG_EXPORT void setLoggerFinder(void *) {}
#endif

#if CRISPSEG_V3
CRISPSEG_EXPORT nvinfer1::IPluginCreatorInterface *const *getCreators(int32_t &count) {
  count = crispseg::plugin::kOps;
  return crispseg::plugin::creators();
}
/* The older name, for V2 creators; this library has none. A loader that knows both asks for getCreators first. */
CRISPSEG_EXPORT nvinfer1::IPluginCreator *const *getPluginCreators(int32_t &count) {
  static nvinfer1::IPluginCreator *const none[1] = {nullptr};
  count = 0;
  return none;
}
#else
CRISPSEG_EXPORT nvinfer1::IPluginCreator *const *getPluginCreators(int32_t &count) {
  count = crispseg::plugin::kOps;
  return crispseg::plugin::creators();
}
#endif

/* Registers every creator with an IPluginRegistry, of the TensorRT major that this library was built for. Returns how
 * many were taken: all, or 0 when they are registered already; -1 without a registry, -2 for one of another major. */
CRISPSEG_EXPORT int32_t crispseg_register(void *registry, char const *name_space) {
  if (!registry) return -1;
  int32_t const major = crispseg::plugin::runtime_major(registry);
  if (major != NV_TENSORRT_MAJOR) {
    crispseg::plugin::report("crispseg_register: expected a registry of TensorRT " + std::to_string(NV_TENSORRT_MAJOR) +
                             ", found " + (major ? "TensorRT " + std::to_string(major) : "an unknown one"));
    return -2;
  }
  auto *const to = static_cast<nvinfer1::IPluginRegistry *>(registry);
  int32_t taken = 0;
  for (int32_t i = 0; i < crispseg::plugin::kOps; ++i) {
    taken += to->registerCreator(*crispseg::plugin::creators()[i], name_space ? name_space : "") ? 1 : 0;
  }
  return taken;
}

/* The kernel image, where the library was built without nvcc or for other devices: a file, or memory (copied). 0, or
 * negative with crispseg_plugin_error. Before the first engine is built or loaded. */
CRISPSEG_EXPORT int32_t crispseg_set_kernels(char const *path) {
  std::string error;
  return crispseg::plugin::set_kernels(path, error) || crispseg::plugin::report(error) ? 0 : CSG_BAD_ARGUMENT;
}
CRISPSEG_EXPORT int32_t crispseg_set_kernel_image(void const *image, size_t bytes) {
  std::string error;
  return crispseg::plugin::set_kernels(image, bytes, error) || crispseg::plugin::report(error) ? 0 : CSG_BAD_ARGUMENT;
}

/* Last message of this thread, "" if there was none. */
CRISPSEG_EXPORT char const *crispseg_plugin_error() { return crispseg::plugin::last_report(); }

/* TensorRT of the headers: 8503, 8601 (8.x: four digits), 101300, 110100. */
CRISPSEG_EXPORT int32_t crispseg_tensorrt_version() { return NV_TENSORRT_VERSION; }

/* {"tensorrt": "10.16.0", "shell": "IPluginV3", "ops": 8, "cuda": csg_build_info} */
CRISPSEG_EXPORT char const *crispseg_plugin_info() {
  static std::string const text = [] {
    std::string const version = std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + "." +
                                std::to_string(NV_TENSORRT_PATCH);
    size_t bytes = 0;
    csg_embedded_image(&bytes);
    return "{\"tensorrt\": \"" + version + "\", \"shell\": \"" + (CRISPSEG_V3 ? "IPluginV3" : "IPluginV2DynamicExt") +
           "\", \"ops\": " + std::to_string(crispseg::plugin::kOps) + ", \"contract\": " +
           crispseg::plugin::kPluginVersion + ", \"kernel_bytes\": " + std::to_string(bytes) + ", \"cuda\": \"" +
           csg_build_info() + "\"}";
  }();
  return text.c_str();
}
