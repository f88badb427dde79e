// Contexts: the kernel image is loaded, its kernels are looked up and asked for their needs; launches.
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>

#include "launch.h"

// The image that nvcc made when this library was built: two symbols of an object made by CMake.
#if defined(CRISPSEG_HAVE_IMAGE)
extern "C" const unsigned char crispseg_kernel_image[];
extern "C" const unsigned char crispseg_kernel_image_end[];
#endif

namespace crispseg {

const KernelInfo kernel_table[] = {
#define CS_KERNEL(name, threads, capability, parameters) {#name, threads, capability},
#include "../kernels/table.h"
};

namespace {

constexpr int default_shared_limit = 48 * 1024;

int load_kernel(csg_context *ctx, int index) {
  const Driver *cu = ctx->cu;
  const KernelInfo &info = kernel_table[index];
  LoadedKernel &loaded = ctx->kernels[index];
  // Those of 9.0 run there alone, and only an image for sm_90a has them.
  const bool optional = info.capability == 90;
  if (optional ? ctx->capability != 90 : ctx->capability < info.capability) return CSG_OK;
  CUresult result = cu->cuModuleGetFunction(&loaded.function, ctx->module, info.name);
  if (optional && result == CUDA_ERROR_NOT_FOUND) {
    loaded.function = nullptr;
    return CSG_OK;
  }
  if (result == CUDA_ERROR_NOT_FOUND)
    return fail(CSG_UNSUPPORTED,
                "kernel image: expected kernel %s, found none: the image was made from other sources or for a compute "
                "capability below %d.%d; compile it again with crispseg build",
                info.name, info.capability / 10, info.capability % 10);
  if (result != CUDA_SUCCESS) return fail_driver(cu, result, "cuModuleGetFunction");
  const struct { int attribute; int *value; } wanted[] = {
      {CU_FUNC_ATTRIBUTE_NUM_REGS, &loaded.registers},
      {CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, &loaded.shared},
      {CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, &loaded.local},
      {CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, &loaded.threads},
  };
  for (const auto &w : wanted) {
    result = cu->cuFuncGetAttribute(w.value, w.attribute, loaded.function);
    if (result != CUDA_SUCCESS) return fail_driver(cu, result, "cuFuncGetAttribute");
  }
  if (loaded.threads < info.threads)
    return fail(CSG_UNSUPPORTED,
                "kernel %s: expected blocks of %d threads, the device takes %d (%d registers a thread)", info.name,
                info.threads, loaded.threads, loaded.registers);
  loaded.dynamic_limit = default_shared_limit - loaded.shared;
  // More than 48 KiB only for kernels that ask for it. Set here once: a launch changes no state.
  if (ctx->shared_limit > default_shared_limit) {
    const int limit = ctx->shared_limit - loaded.shared;
    result = cu->cuFuncSetAttribute(loaded.function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, limit);
    if (result != CUDA_SUCCESS) return fail_driver(cu, result, "cuFuncSetAttribute");
    loaded.dynamic_limit = limit;
  }
  return CSG_OK;
}

void write_report(csg_context *ctx) {
  ctx->report = "[";
  for (int i = 0; i < kernel_count; ++i) {
    const LoadedKernel &k = ctx->kernels[i];
    if (!k.function) continue;
    char row[256];
    std::snprintf(row, sizeof row,
                  "%s{\"name\": \"%s\", \"registers\": %d, \"shared_bytes\": %d, \"local_bytes\": %d, \"threads\": %d}",
                  ctx->report.size() > 1 ? ", " : "", kernel_table[i].name, k.registers, k.shared, k.local, k.threads);
    ctx->report += row;
  }
  ctx->report += "]";
}

int set_up(csg_context *ctx, const void *image) {
  const Driver *cu = ctx->cu;
  CUresult result = cu->cuCtxGetCurrent(&ctx->context);
  if (result != CUDA_SUCCESS) return fail_driver(cu, result, "cuCtxGetCurrent");
  if (!ctx->context)
    return fail(CSG_BAD_ARGUMENT, "csg_create: expected a current CUDA context on this thread, found none");
  CUdevice device = 0;
  result = cu->cuCtxGetDevice(&device);
  if (result != CUDA_SUCCESS) return fail_driver(cu, result, "cuCtxGetDevice");
  int major = 0, minor = 0;
  const struct { int attribute; int *value; } wanted[] = {
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &major},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &minor},
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &ctx->multiprocessors},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &ctx->shared_limit},
  };
  for (const auto &w : wanted) {
    result = cu->cuDeviceGetAttribute(w.value, w.attribute, device);
    if (result != CUDA_SUCCESS) return fail_driver(cu, result, "cuDeviceGetAttribute");
  }
  ctx->capability = 10 * major + minor;
  char name[128] = "";
  cu->cuDeviceGetName(name, sizeof name, device);
  if (ctx->capability < 72)
    return fail(CSG_UNSUPPORTED, "%s has compute capability %d.%d, expected 7.2 or higher; use --backend native", name,
                major, minor);
  result = cu->cuModuleLoadData(&ctx->module, image);
  if (result != CUDA_SUCCESS) {
    char what[256];
    std::snprintf(
        what, sizeof what,
        "kernel image: it does not load on %s (compute capability %d.%d); compile it for this device with crispseg "
        "build --backend cuda",
        name, major, minor);
    const int status = fail_driver(cu, result, what);
    return result == CUDA_ERROR_NO_BINARY_FOR_GPU ? CSG_UNSUPPORTED : status;
  }
  for (int i = 0; i < kernel_count; ++i) CSG_TRY(load_kernel(ctx, i));
  CSG_TRY(check_wgmma(ctx));
  write_report(ctx);
  return CSG_OK;
}

// Images are opaque to us but for their first bytes. A null-terminated text (PTX) or a self-describing binary is all
// that cuModuleLoadData takes: it gets no size, so that a truncated file would make it read past the end.
bool plausible(const unsigned char *image, size_t bytes) {
  if (bytes < 64) return false;
  const bool elf = !std::memcmp(image, "\x7f" "ELF", 4);
  const bool fat = !std::memcmp(image, "\x50\xed\x55\xba", 4);
  if (fat) {  // magic u32, version u16, header size u16, size of what follows u64
    uint16_t header = 0;
    uint64_t body = 0;
    std::memcpy(&header, image + 6, 2);
    std::memcpy(&body, image + 8, 8);
    return header <= bytes && body <= bytes - header;
  }
  if (elf) {  // the section table is the last part of a cubin
    uint64_t table = 0;
    uint16_t size = 0, count = 0;
    std::memcpy(&table, image + 0x28, 8);
    std::memcpy(&size, image + 0x3a, 2);
    std::memcpy(&count, image + 0x3c, 2);
    return table <= bytes && static_cast<uint64_t>(size) * count <= bytes - table;
  }
  return std::memchr(image, 0, bytes) != nullptr;  // PTX
}

}  // namespace

int launch_raw(const csg_context *ctx, KernelId id, Dim grid, Dim block, size_t shared_bytes, csg_stream stream,
               void **parameters) {
  if (!ctx) return fail(CSG_BAD_ARGUMENT, "context is NULL");
  const int index = static_cast<int>(id);
  const KernelInfo &info = kernel_table[index];
  const LoadedKernel &loaded = ctx->kernels[index];
  if (!loaded.function)
    return fail(CSG_UNSUPPORTED, "kernel %s needs compute capability %d.%d, this device has %d.%d", info.name,
                info.capability / 10, info.capability % 10, ctx->capability / 10, ctx->capability % 10);
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > static_cast<uint64_t>(info.threads))
    return fail(CSG_INTERNAL, "kernel %s: block of %llu threads, expected 1..%d", info.name,
                static_cast<unsigned long long>(threads), info.threads);
  if (shared_bytes > static_cast<size_t>(loaded.dynamic_limit))
    return fail(CSG_UNSUPPORTED, "kernel %s: %zu bytes of shared memory, the device has %d", info.name, shared_bytes,
                loaded.dynamic_limit);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return CSG_OK;  // nothing to do
  const CUresult result =
      ctx->cu->cuLaunchKernel(loaded.function, grid.x, grid.y, grid.z, block.x, block.y, block.z,
                              static_cast<unsigned>(shared_bytes), static_cast<CUstream>(stream), parameters, nullptr);
  return result == CUDA_SUCCESS ? CSG_OK : fail_driver(ctx->cu, result, info.name);
}

int resident_blocks(const csg_context *ctx, KernelId id, int threads, size_t shared_bytes) {
  const LoadedKernel &loaded = ctx->kernels[static_cast<int>(id)];
  int blocks = 1;
  if (!loaded.function || ctx->cu->cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, loaded.function, threads,
                                                                               shared_bytes) != CUDA_SUCCESS)
    blocks = 1;
  return (blocks > 1 ? blocks : 1) * (ctx->multiprocessors > 1 ? ctx->multiprocessors : 1);
}

int fill_bytes(const csg_context *ctx, csg_stream stream, void *d_p, unsigned char value, size_t bytes) {
  if (bytes == 0) return CSG_OK;
  const CUresult result =
      ctx->cu->cuMemsetD8Async(reinterpret_cast<CUdeviceptr>(d_p), value, bytes, static_cast<CUstream>(stream));
  return result == CUDA_SUCCESS ? CSG_OK : fail_driver(ctx->cu, result, "cuMemsetD8Async");
}

int fill_words(const csg_context *ctx, csg_stream stream, void *d_p, uint32_t value, size_t words) {
  if (words == 0) return CSG_OK;
  const CUresult result =
      ctx->cu->cuMemsetD32Async(reinterpret_cast<CUdeviceptr>(d_p), value, words, static_cast<CUstream>(stream));
  return result == CUDA_SUCCESS ? CSG_OK : fail_driver(ctx->cu, result, "cuMemsetD32Async");
}

int copy_bytes(const csg_context *ctx, csg_stream stream, void *d_to, const void *d_from, size_t bytes) {
  if (bytes == 0) return CSG_OK;
  const CUresult result = ctx->cu->cuMemcpyDtoDAsync_v2(
      reinterpret_cast<CUdeviceptr>(d_to), reinterpret_cast<CUdeviceptr>(d_from), bytes, static_cast<CUstream>(stream));
  return result == CUDA_SUCCESS ? CSG_OK : fail_driver(ctx->cu, result, "cuMemcpyDtoDAsync");
}

}  // namespace crispseg

extern "C" {

int csg_abi_version(void) { return CSG_ABI_VERSION; }

const char *csg_build_info(void) {
  return "crispseg cuda, ABI 2, " __VERSION__
#if defined(CRISPSEG_IMAGE_INFO)
         ", kernels for " CRISPSEG_IMAGE_INFO
#else
         ", no kernels inside"
#endif
      ;
}

const void *csg_embedded_image(size_t *bytes) {
#if defined(CRISPSEG_HAVE_IMAGE)
  if (bytes) *bytes = static_cast<size_t>(crispseg_kernel_image_end - crispseg_kernel_image);
  return crispseg_kernel_image;
#else
  if (bytes) *bytes = 0;
  return nullptr;
#endif
}

csg_context *csg_create(const void *image, size_t bytes) {
  using namespace crispseg;
  if (!image) {
    image = csg_embedded_image(&bytes);
    if (!image) {
      fail(CSG_UNSUPPORTED,
           "kernel image: none was given and this library was built without nvcc; make one with crispseg build "
           "--backend cuda");
      return nullptr;
    }
  }
  const Driver *cu = driver();
  if (!cu) return nullptr;
  if (!plausible(static_cast<const unsigned char *>(image), bytes)) {
    fail(CSG_BAD_ARGUMENT,
         "kernel image: expected a whole cubin, fatbin or PTX text, found %zu bytes of something else; make it "
         "again with crispseg build",
         bytes);
    return nullptr;
  }
  std::unique_ptr<csg_context> ctx(new (std::nothrow) csg_context());
  if (!ctx) {
    fail(CSG_INTERNAL, "no memory for a context");
    return nullptr;
  }
  ctx->cu = cu;
  if (set_up(ctx.get(), image) != CSG_OK) {
    if (ctx->module) cu->cuModuleUnload(ctx->module);
    return nullptr;
  }
  return ctx.release();
}

void csg_destroy(csg_context *ctx) {
  if (!ctx) return;
  // The module belongs to its own CUDA context; any other may be current here.
  if (ctx->module && ctx->cu->cuCtxPushCurrent_v2(ctx->context) == crispseg::CUDA_SUCCESS) {
    ctx->cu->cuModuleUnload(ctx->module);
    crispseg::CUcontext popped = nullptr;
    ctx->cu->cuCtxPopCurrent_v2(&popped);
  }
  delete ctx;
}

int csg_compute_capability(const csg_context *ctx) { return ctx ? ctx->capability : 0; }

const char *csg_kernel_report(const csg_context *ctx) { return ctx ? ctx->report.c_str() : "[]"; }

}  // extern "C"
