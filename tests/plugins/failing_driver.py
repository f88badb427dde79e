"""A CUDA driver in which a kernel fails: the emulated one with three functions before it."""

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
extern const char *cs_emu_check(void);
extern void cs_emu_break(int status);
// What fails: "memory" (there is none), "refused" (the launch, once each time) or the status of a kernel that breaks
// the context for good.
static void *chosen;
EXPORT void break_nothing(void) { chosen = 0; cs_emu_check(); }
static const char *how(void) { const char *text = getenv("FAILING"); return text ? text : ""; }
EXPORT int cuModuleGetFunction(void **out, void *module, const char *name) {
  int status = REAL(int (*)(void **, void *, const char *), "cuModuleGetFunction")(out, module, name);
  const char *wanted = getenv("FAILING_KERNEL");
  if (!status && wanted && strstr(name, wanted)) chosen = *out;
  return status;
}
EXPORT int cuMemAlloc_v2(unsigned long long *p, size_t bytes) {
  return strcmp(how(), "memory") ? REAL(int (*)(unsigned long long *, size_t), "cuMemAlloc_v2")(p, bytes) : 2;
}
EXPORT int cuLaunchKernel(void *f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned s,
                          void *stream, void **p, void **x) {
  if (chosen && f == chosen && *how()) {
    if (!strcmp(how(), "refused")) return 701;
    cs_emu_break(atoi(how()));  // known to the next call, not to this one
    return 0;
  }
  return REAL(int (*)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                      void **), "cuLaunchKernel")(f, a, b, c, d, e, g, s, stream, p, x);
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
