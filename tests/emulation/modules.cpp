// The emulated driver: modules (kernels made by g++, or PTX), functions, launches.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "ptx/launch.h"
#include "state.h"

namespace cs_emu {
namespace {

constexpr char image_mark[] = "// emulated kernels\n";

Function *find_function(void *handle) {
  auto it = state().functions.find(static_cast<Function *>(handle));
  return it == state().functions.end() || !it->first->module->loaded ? nullptr : it->first;
}

// PTX of an architecture runs on that and later ones, that of sm_90a on 90 alone.
int load_ptx(const char *text, void **out) {
  if (std::strncmp(text, "//", 2) && std::strncmp(text, ".version", 8)) return invalid_image;
  try {
    auto ptx = ptx::load_module(text);
    if (ptx->specific ? ptx->target != state().capability : ptx->target > state().capability)
      throw ptx::Refused{"it is for sm_" + std::to_string(ptx->target) + (ptx->specific ? "a" : "") +
                         ", the device is sm_" + std::to_string(state().capability)};
    auto module = std::make_unique<Module>(Module{nullptr, nullptr, true, ptx});
    *out = module.get();
    state().modules[module.get()] = std::move(module);
    return ok;
  } catch (const ptx::Refused &refused) {
    std::fprintf(stderr, "emulated driver: PTX: %s\n", refused.text.c_str());
    return invalid_image;
  }
}

int find_ptx(Module *module, const char *name, void **out) {
  auto it = module->ptx->functions.find(name);
  if (it == module->ptx->functions.end() || !it->second.entry) return not_found;
  auto function = std::make_unique<Function>();
  function->module = module;
  function->ptx = &it->second;
  for (const ptx::Variable &v : it->second.parameters) function->sizes.push_back(static_cast<unsigned short>(v.bytes));
  const int threads = it->second.threads ? static_cast<int>(it->second.threads) : 1024;
  function->own = {function->ptx->name.c_str(),
                   threads,
                   module->ptx->target,
                   static_cast<int>(function->sizes.size()),
                   function->sizes.data(),
                   nullptr,
                   true};
  function->kernel = &function->own;
  *out = function.get();
  state().functions[function.get()] = std::move(function);
  return ok;
}

// Static shared and local memory: known of PTX only.
ptx::Sizes sizes(const Function &function) {
  if (!function.ptx) return {0, 0};
  try {
    return ptx::sizes(*function.module->ptx, *function.ptx);
  } catch (const ptx::Refused &) {
    return {0, 0};  // the launch will tell
  }
}

// Dynamic shared memory that a launch may ask for: with the static 48 KiB, unless cuFuncSetAttribute said more.
int dynamic_limit(const Function &function) {
  return function.dynamic_limit >= 0 ? function.dynamic_limit : (48 << 10) - sizes(function).static_shared;
}

}  // namespace
}  // namespace cs_emu

using namespace cs_emu;

// An image is a text: PTX; or the mark, then the path of a shared library made of kernels by g++ (__init__.py).
EXPORT CUresult cuModuleLoadData(void **out, const void *data) {
  ENTER;
  const int status = unsafe_in_capture();
  if (status) return status;
  const char *text = static_cast<const char *>(data);
  if (!text || !out) return invalid_image;
  if (std::strncmp(text, image_mark, sizeof image_mark - 1)) return load_ptx(text, out);
  text += sizeof image_mark - 1;
  const std::string path(text, std::strcspn(text, "\n"));
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::fprintf(stderr, "emulated driver: %s\n", dlerror());
    return invalid_image;
  }
  const Image *image = static_cast<const Image *>(dlsym(library, "cs_emu_image"));
  if (!image || image->version != runtime_version) return invalid_image;
  *image->runtime = runtime_table();
  auto module = std::make_unique<Module>(Module{library, image, true, nullptr});
  *out = module.get();
  state().modules[module.get()] = std::move(module);
  return ok;
}
EXPORT CUresult cuModuleUnload(void *handle) {
  ENTER_TO_END;
  auto it = state().modules.find(static_cast<Module *>(handle));
  if (it == state().modules.end() || !it->first->loaded) return invalid_handle;
  const int status = unsafe_in_capture();
  if (status) return status;
  drain(false);
  it->first->loaded = false;  // the library stays: graphs may still name its kernels
  return ended(ok);
}
EXPORT CUresult cuModuleGetFunction(void **out, void *handle, const char *name) {
  ENTER;
  auto it = state().modules.find(static_cast<Module *>(handle));
  if (it == state().modules.end() || !it->first->loaded) return invalid_handle;
  if (!out || !name || !*name) return invalid_value;
  if (it->first->ptx) return find_ptx(it->first, name, out);
  const Image *image = it->first->image;
  for (int i = 0; i < image->count; ++i) {
    const Kernel &kernel = image->kernels[i];
    if (!kernel.present || kernel.capability > state().capability || std::strcmp(kernel.name, name)) continue;
    auto function = std::make_unique<Function>();
    function->module = it->first;
    function->kernel = &kernel;
    *out = function.get();
    state().functions[function.get()] = std::move(function);
    return ok;
  }
  return not_found;
}

EXPORT CUresult cuFuncGetAttribute(int *value, int attribute, void *handle) {
  ENTER;
  Function *function = find_function(handle);
  if (!function) return invalid_handle;
  if (!value || attribute < 0 || attribute > 9) return invalid_value;
  // Registers are not known here: 0.
  *value = attribute == 0                     ? function->kernel->threads
           : attribute == 1                   ? sizes(*function).static_shared
           : attribute == 3                   ? sizes(*function).local
           : attribute == 5 || attribute == 6 ? state().capability
           : attribute == 8                   ? dynamic_limit(*function)
                                              : 0;
  return ok;
}
EXPORT CUresult cuFuncSetAttribute(void *handle, int attribute, int value) {
  ENTER;
  Function *function = find_function(handle);
  if (!function) return invalid_handle;
  if (attribute != 8 && attribute != 9) return invalid_value;
  if (attribute == 8 && (value < 0 || value > shared_optin() - sizes(*function).static_shared)) return invalid_value;
  if (attribute == 8) function->dynamic_limit = value;
  return ok;
}
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *handle, int threads, size_t shared) {
  ENTER;
  Function *function = find_function(handle);
  if (!function) return invalid_handle;
  if (!blocks || threads < 1) return invalid_value;
  const int by_threads = 2048 / ((threads + 31) / 32 * 32),
            by_shared = (shared_optin() + 1024) / (static_cast<int>(shared) + sizes(*function).static_shared + 1024);
  *blocks = threads > function->kernel->threads || shared > static_cast<size_t>(dynamic_limit(*function)) ? 0
            : by_threads < by_shared                                                                      ? by_threads
                                                                                                          : by_shared;
  return ok;
}

EXPORT CUresult cuLaunchKernel(void *handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                               unsigned bz, unsigned shared, void *stream_handle, void **parameters, void **extra) {
  ENTER;
  Function *function = find_function(handle);
  Stream *stream = find_stream(stream_handle);
  if (!function || !stream) return invalid_handle;
  const uint64_t count = static_cast<uint64_t>(bx) * by * bz;
  if (extra || !gx || !gy || !gz || !count || gx > 2147483647u || gy > 65535 || gz > 65535 || bx > 1024 || by > 1024 ||
      bz > 64 || count > 1024 || shared > static_cast<unsigned>(dynamic_limit(*function)) ||
      (function->kernel->arguments && !parameters))
    return invalid_value;
  if (count > static_cast<uint64_t>(function->kernel->threads)) return launch_out_of_resources;
  // The arguments are copied now, as the real driver does.
  const Kernel *kernel = function->kernel;
  auto values = std::make_shared<std::vector<std::vector<unsigned char>>>();
  for (int i = 0; i < kernel->arguments; ++i) {
    const unsigned char *p = static_cast<const unsigned char *>(parameters[i]);
    values->emplace_back(p, p + kernel->sizes[i]);
  }
  const ptx::Function *ptx = function->ptx;
  if (ptx && ptx->required[0] && (bx != ptx->required[0] || by != ptx->required[1] || bz != ptx->required[2]))
    return invalid_value;
  Module *module = function->module;
  return enqueue(
      stream, Node{kernel->name, [=] {
                     std::vector<void *> arguments;
                     for (auto &value : *values)
                       arguments.push_back(value.data());  // new keeps them aligned for any type
                     arguments.push_back(nullptr);
                     ++state().launches;
                     const Index grid{gx, gy, gz}, block{bx, by, bz};
                     const size_t limit = static_cast<size_t>(shared_optin());
                     const Failure failure =
                         ptx ? ptx::execute({module->ptx, ptx, grid, block, shared, limit, arguments.data()})
                             : execute(Launch{module->image, kernel, grid, block, shared, limit, arguments.data()});
                     if (failure.status) return fail_work(failure.status, failure.text);
                     const std::string damage = check_guards();
                     if (!damage.empty())
                       return fail_work(error_illegal_address, std::string("kernel ") + kernel->name + ": " + damage);
                     return 0;
                   }});
}
