"""A CUDA driver in which a kernel fails: the emulated one with a few functions before it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import emulation

SOURCE = r"""
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#define EXPORT __attribute__((visibility("default")))
#define REAL(type, name) ((type)dlsym(RTLD_NEXT, name))
// What fails: "refused" (the launch, once each time) or the status of a kernel that breaks the context for good.
static void *chosen; static int lost;
EXPORT void break_nothing(void) { chosen = 0; lost = 0; }
static const char *how(void) { const char *text = getenv("FAILING"); return text ? text : ""; }
EXPORT int cuModuleGetFunction(void **out, void *module, const char *name) {
  if (lost) return lost;
  int status = REAL(int (*)(void **, void *, const char *), "cuModuleGetFunction")(out, module, name);
  const char *wanted = getenv("FAILING_KERNEL");
  if (!status && wanted && strstr(name, wanted)) chosen = *out;
  return status;
}
EXPORT int cuLaunchKernel(void *f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned s,
                          void *stream, void **p, void **x) {
  if (lost) return lost;
  if (chosen && f == chosen && *how()) {
    if (!strcmp(how(), "refused")) return 701;
    lost = atoi(how());  // known only once something waits for it
    return 0;
  }
  return REAL(int (*)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                      void **), "cuLaunchKernel")(f, a, b, c, d, e, g, s, stream, p, x);
}
#define STICKY(name, parameters, arguments) \
  EXPORT int name parameters { return lost ? lost : REAL(int (*) parameters, #name) arguments; }
STICKY(cuMemAlloc_v2, (unsigned long long *p, size_t n), (p, n))
STICKY(cuMemFree_v2, (unsigned long long p), (p))
STICKY(cuMemcpyHtoD_v2, (unsigned long long p, const void *h, size_t n), (p, h, n))
STICKY(cuMemcpyDtoH_v2, (void *h, unsigned long long p, size_t n), (h, p, n))
STICKY(cuMemsetD8Async, (unsigned long long p, unsigned char v, size_t n, void *s), (p, v, n, s))
STICKY(cuModuleLoadData, (void **m, const void *i), (m, i))
STICKY(cuModuleUnload, (void *m), (m))
STICKY(cuCtxSynchronize, (void), ())
STICKY(cuMemGetInfo_v2, (size_t *f, size_t *t), (f, t))
STICKY(cuStreamCreate, (void **s, unsigned f), (s, f))
STICKY(cuStreamSynchronize, (void *s), (s))
STICKY(cuStreamBeginCapture_v2, (void *s, int m), (s, m))
STICKY(cuStreamEndCapture, (void *s, void **g), (s, g))
STICKY(cuGraphLaunch, (void *g, void *s), (g, s))
STICKY(cuEventRecord, (void *e, void *s), (e, s))
STICKY(cuEventSynchronize, (void *e), (e))
STICKY(cuMemcpyHtoDAsync_v2, (unsigned long long p, const void *h, size_t n, void *s), (p, h, n, s))
STICKY(cuMemcpyDtoHAsync_v2, (void *h, unsigned long long p, size_t n, void *s), (h, p, n, s))
EXPORT int cuGetErrorName(int status, const char **text) {
  if (status == 715) { *text = "CUDA_ERROR_ILLEGAL_INSTRUCTION"; return 0; }
  return REAL(int (*)(int, const char **), "cuGetErrorName")(status, text);
}
EXPORT int cuGetErrorString(int status, const char **text) {
  if (status == 715) { *text = "an illegal instruction was encountered"; return 0; }
  return REAL(int (*)(int, const char **), "cuGetErrorString")(status, text);
}
"""


def build(folder: Path) -> Path:
    """The driver as a library, to be named by CRISPSEG_LIBCUDA; $FAILING and $FAILING_KERNEL say what fails."""
    source, library = folder / "failing.c", folder / "libcuda_failing.so"
    source.write_text(SOURCE)
    command = [*emulation.compiler(), "-x", "c", "-D_GNU_SOURCE", "-w", "-shared", "-fPIC", str(source)]
    command += ["-x", "none", "-Wl,--no-as-needed"]
    subprocess.run([*command, str(emulation.driver()), "-o", str(library), "-ldl"], check=True)
    return library
