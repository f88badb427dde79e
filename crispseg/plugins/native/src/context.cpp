// Context: instruction set, worker pool, scratch memory; errors; build information.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(CS_HAVE_AVXVNNI)
#include <cpuid.h>
#endif

#include "internal.h"

#define CS_TEXT_OF(value) #value
#define CS_TEXT(macro) CS_TEXT_OF(macro)

namespace crispseg {

namespace {

thread_local char last_error[512] = "";

#if defined(CS_HAVE_AVXVNNI)
bool cpu_has_avx_vnni() {  // __builtin_cpu_supports knows the name since GCC 13 only
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

bool supported(Isa isa) {
  switch (isa) {
#if defined(CS_HAVE_AVX512)
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#endif
#if defined(CS_HAVE_AVX2)
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    case Isa::generic: return true;
    default: return false;
  }
}

bool has_vnni(Isa isa) {
  const char *allowed = std::getenv("CRISPSEG_VNNI");
  if (allowed && !std::strcmp(allowed, "0")) return false;
  switch (isa) {
#if defined(CS_HAVE_AVX512VNNI)
    case Isa::avx512: return __builtin_cpu_supports("avx512vnni");
#endif
#if defined(CS_HAVE_AVXVNNI)
    case Isa::avx2: return cpu_has_avx_vnni();
#endif
    default: return false;
  }
}

bool choose(const char *name, Isa *isa) {
  if (!name || !*name) name = std::getenv("CRISPSEG_ISA");
  if (!name || !*name) {
    *isa = supported(Isa::avx512) ? Isa::avx512 : supported(Isa::avx2) ? Isa::avx2 : Isa::generic;
    return true;
  }
  if (!std::strcmp(name, "avx512")) *isa = Isa::avx512;
  else if (!std::strcmp(name, "avx2")) *isa = Isa::avx2;
  else if (!std::strcmp(name, "generic")) *isa = Isa::generic;
  else {
    fail(CS_BAD_ARGUMENT, "unknown instruction set '%s': expected avx512, avx2 or generic", name);
    return false;
  }
  if (supported(*isa)) return true;
  fail(CS_UNSUPPORTED, "instruction set '%s' is not available on this CPU or in this build (%s)", name,
       cs_build_info());
  return false;
}

}  // namespace

int fail(int status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  return status;
}

}  // namespace crispseg

void *cs_context::grow(crispseg::Slot slot, size_t bytes, bool zeroed) {
  Memory &m = memory[slot];
  if (m.data && m.bytes >= bytes) return m.data;
  // A quarter more than asked: frames differ a little in their number of sites.
  size_t want = bytes + bytes / 4 + 64;
  want = (want + 4095) / 4096 * 4096;
  std::free(m.data);
  m.data = nullptr;
  m.bytes = 0;
  void *data = nullptr;
  if (posix_memalign(&data, 4096, want) != 0) {
    crispseg::fail(CS_OUT_OF_MEMORY, "no memory for %zu bytes of scratch", want);
    return nullptr;
  }
  if (zeroed) std::memset(data, 0, want);
  m.data = data;
  m.bytes = want;
  return data;
}

extern "C" {

int cs_abi_version(void) { return CS_ABI_VERSION; }

const char *cs_last_error(void) { return crispseg::last_error; }

const char *cs_build_info(void) {
  return "crispseg native, ABI " CS_TEXT(CS_ABI_VERSION) ", " __VERSION__ ", generic"
#if defined(CS_HAVE_AVX2)
         " avx2"
#endif
#if defined(CS_HAVE_AVX512)
         " avx512"
#endif
      ;
}

cs_context *cs_create(int threads, const char *isa) {
  using namespace crispseg;
  if (threads < 1 || threads > 1024) {
    fail(CS_BAD_ARGUMENT, "threads = %d, expected 1..1024", threads);
    return nullptr;
  }
  Isa chosen;
  if (!choose(isa, &chosen)) return nullptr;
  cs_context *ctx = new (std::nothrow) cs_context();
  if (!ctx) {
    fail(CS_OUT_OF_MEMORY, "no memory for a context");
    return nullptr;
  }
  ctx->isa = chosen;
  ctx->vnni = has_vnni(chosen);
  ctx->threads = threads;
  ctx->pool = pool_create(threads);
  if (!ctx->pool) {
    delete ctx;
    fail(CS_OUT_OF_MEMORY, "cannot start %d worker threads", threads - 1);
    return nullptr;
  }
  return ctx;
}

void cs_destroy(cs_context *ctx) {
  if (!ctx) return;
  crispseg::pool_destroy(ctx->pool);
  for (auto &m : ctx->memory) std::free(m.data);
  delete ctx;
}

const char *cs_isa(const cs_context *ctx) {
  if (!ctx) return "";
  return ctx->isa == crispseg::Isa::avx512 ? "avx512" : ctx->isa == crispseg::Isa::avx2 ? "avx2" : "generic";
}

int cs_threads(const cs_context *ctx) { return ctx ? ctx->threads : 0; }

size_t cs_scratch_bytes(const cs_context *ctx) {
  size_t total = 0;
  if (ctx)
    for (const auto &m : ctx->memory) total += m.bytes;
  return total;
}

}  // extern "C"
