/* Which TensorRT is calling. The plugin interfaces are the same from 10.0 to 11.x, but ILogger, ILoggerFinder and
 * IPluginRegistry have other tables of functions in 11 than in 10: a call through the wrong one ends the process. */
#ifndef CRISPSEG_TENSORRT_RUNTIME_H
#define CRISPSEG_TENSORRT_RUNTIME_H
#include <dlfcn.h>

#include <cstdint>

namespace crispseg {
namespace plugin {

/* Major version of the library that implements `object` (a pointer to something with virtual functions): the library
 * that holds its table of functions says it. 0 if that cannot be found out. */
inline int32_t runtime_major(void const *object) {
  Dl_info found{};
  if (!object || !dladdr(*static_cast<void *const *>(object), &found) || !found.dli_fname) return 0;
  void *const library = dlopen(found.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  /* Without a library TensorRT is part of the program. */
  void *const symbol = dlsym(library ? library : RTLD_DEFAULT, "getInferLibVersion");
  int32_t const version = symbol ? reinterpret_cast<int32_t (*)()>(symbol)() : 0;
  if (library) dlclose(library); /* only the count that dlopen added */
  return version < 10000 ? version / 1000 : version / 10000; /* 8601, 101600 */
}

}  // namespace plugin
}  // namespace crispseg
#endif
