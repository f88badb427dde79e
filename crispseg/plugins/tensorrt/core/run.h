/* One plugin call: validated parameters and TensorRT's buffers to the csg_* functions. */
#ifndef CRISPSEG_TENSORRT_RUN_H
#define CRISPSEG_TENSORRT_RUN_H
#include "tensors.h"

namespace crispseg {
namespace plugin {

/* Buffers of the connected tensors, in table order. */
struct Call {
  csg_context *ctx;
  csg_stream stream;
  Dims const *input_dims, *output_dims; /* as check_shapes accepted them; all known */
  void const *const *inputs;
  void *const *outputs;
  void *workspace; /* workspace_bytes(params) */
};
/* Enqueues the op. Does not wait or allocate. csg_status; csg_last_error says why. */
int run(Params const &params, Call const &call);

}  // namespace plugin
}  // namespace crispseg
#endif
