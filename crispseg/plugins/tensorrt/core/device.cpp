#include "device.h"

#include "../../cuda/src/launch.h"

namespace crispseg {
namespace plugin {

void *current_cuda_context() {
  Driver const *cu = driver();
  CUcontext current = nullptr;
  if (!cu || cu->cuCtxGetCurrent(&current) != CUDA_SUCCESS) return nullptr;
  return current;
}

int copy_device(csg_context *ctx, csg_stream stream, void *d_to, void const *d_from, size_t bytes) {
  return d_to == d_from ? CSG_OK : copy_bytes(ctx, stream, d_to, d_from, bytes);
}

}  // namespace plugin
}  // namespace crispseg
