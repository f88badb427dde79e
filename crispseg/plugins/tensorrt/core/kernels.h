/* Kernel image and contexts of the plugins.
 *
 * The image is, in this order: the one given to set_kernels, the file that $CRISPSEG_KERNELS names (for trtexec and
 * other programs that do not call us), the one that nvcc left in the library. All plugins of a CUDA context share one
 * csg_context; it goes with the last of them. */
#ifndef CRISPSEG_TENSORRT_KERNELS_H
#define CRISPSEG_TENSORRT_KERNELS_H
#include <memory>
#include <string>

#include "crispseg_cuda.h"

namespace crispseg {
namespace plugin {

/* Copies an image / reads one from a file. Contexts that exist keep theirs. False sets `error`. */
bool set_kernels(void const *image, size_t bytes, std::string &error);
bool set_kernels(char const *path, std::string &error);

/* The context for this thread's CUDA context; loads the image at the first call. Allocates and may take milliseconds:
 * for initialize and attachToContext, never for enqueue. NULL sets `error`. */
std::shared_ptr<csg_context> acquire_context(std::string &error);

}  // namespace plugin
}  // namespace crispseg
#endif
