/* The state of a plugin as int32 words: what TensorRT writes into an engine file and hands back when it loads one.
 *
 *   magic, layout version, number of words, op, parameters in a fixed order (floats by their bits), checksum
 *
 * The same words serve IPluginV2::serialize (as bytes) and IPluginV3's fields (as one int32 array). An engine file is
 * untrusted: length, magic, version and checksum are compared, then every value goes through validate(). */
#ifndef CRISPSEG_TENSORRT_STATE_H
#define CRISPSEG_TENSORRT_STATE_H
#include "params.h"

namespace crispseg {
namespace plugin {

constexpr int32_t kStateVersion = 1;

std::vector<int32_t> write_state(Params const &params);
/* `data` needs no alignment. */
bool read_state(Op op, void const *data, size_t bytes, Params &params, std::string &error);
size_t state_bytes();

}  // namespace plugin
}  // namespace crispseg
#endif
