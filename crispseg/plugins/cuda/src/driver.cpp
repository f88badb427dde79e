// Opens the CUDA driver; error texts.
#include "driver.h"

#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "crispseg_cuda.h"

namespace crispseg {

namespace {

thread_local char last_error[1024] = "";
std::mutex lock;
std::map<std::string, Driver> drivers;  // by library name: tests use an emulated one beside the real one

const char *library_name() {
  const char *name = std::getenv("CRISPSEG_LIBCUDA");
  return name && *name ? name : "libcuda.so.1";
}

}  // namespace

int fail(int status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  return status;
}

int fail_driver(const Driver *cu, CUresult result, const char *what) {
  const char *name = nullptr, *text = nullptr;
  cu->cuGetErrorName(result, &name);
  cu->cuGetErrorString(result, &text);
  return fail(CSG_DRIVER_ERROR, "%s: %s: %s", what, name ? name : "unknown CUDA error", text ? text : "no description");
}

const Driver *driver() {
  std::lock_guard<std::mutex> guard(lock);
  const char *name = library_name();
  const auto known = drivers.find(name);
  if (known != drivers.end()) return &known->second;
  // Never closed: the driver does not survive being unloaded.
  void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char *why = dlerror();
    fail(CSG_NO_DRIVER,
         "CUDA driver: expected %s, found none (%s); install NVIDIA's driver (in a container: --gpus all or --runtime "
         "nvidia), or use --backend native",
         name, why ? why : "no reason given");
    return nullptr;
  }
  const char *missing = nullptr;
  Driver found;
#define CRISPSEG_LOOK_UP(function, parameters)                                      \
  found.function = reinterpret_cast<CUresult(*) parameters>(dlsym(library, #function)); \
  if (!found.function && !missing) missing = #function;
  CRISPSEG_DRIVER_FUNCTIONS(CRISPSEG_LOOK_UP)
#undef CRISPSEG_LOOK_UP
  if (missing) {
    fail(CSG_NO_DRIVER, "CUDA driver: expected %s in %s, found none; update the driver to CUDA 11.4 or newer", missing,
         name);
    return nullptr;
  }
  const CUresult result = found.cuInit(0);
  if (result != CUDA_SUCCESS) {
    const char *code = nullptr, *text = nullptr;
    found.cuGetErrorName(result, &code);
    found.cuGetErrorString(result, &text);
    fail(CSG_NO_DRIVER,
         "CUDA driver: cuInit: %s: %s; check nvidia-smi (on Jetson: tegrastats), or use --backend native",
         code ? code : "unknown error", text ? text : "no description");
    return nullptr;
  }
  return &(drivers[name] = found);
}

}  // namespace crispseg

extern "C" const char *csg_last_error(void) { return crispseg::last_error; }
