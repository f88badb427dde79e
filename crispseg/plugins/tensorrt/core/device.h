/* The two things that the plugins ask of the driver beyond the csg_* functions. */
#ifndef CRISPSEG_TENSORRT_DEVICE_H
#define CRISPSEG_TENSORRT_DEVICE_H
#include "crispseg_cuda.h"

namespace crispseg {
namespace plugin {

/* CUcontext of this thread, or NULL (csg_last_error says why when there is no driver). */
void *current_cuda_context();
/* Enqueues a copy between device buffers; nothing when both are the same. csg_status. */
int copy_device(csg_context *ctx, csg_stream stream, void *d_to, void const *d_from, size_t bytes);

}  // namespace plugin
}  // namespace crispseg
#endif
