// Weights for the convolution kernels. fp32: as they are. fp16, int8: [64-byte chunk of cin][tap][cout padded to
// 16][64 bytes], so that what a block copies for one step (a chunk of one tap, its columns) is one run of memory, k
// inside as mma wants its B.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "launch.h"

namespace crispseg {
namespace {

// Round to nearest even; |f| < 65520 (checked by the caller).
uint16_t half_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  const uint32_t sign = u >> 16 & 0x8000u;
  u &= 0x7fffffffu;
  if (u < 0x38800000u) {  // below 2^-14: a subnormal half is a multiple of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &u, 4);
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 16777216.0f)));
  }
  u += 0xfffu + (u >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((u >> 13) - (112u << 10)));
}

bool sizes_fit(csg_type type, int K, int cin, int cout) {
  return (type == CSG_F32 || type == CSG_F16 || type == CSG_I8) && K >= 1 && K <= CONV_MAX_TAPS && cin >= 1 &&
         cout >= 1 && cin <= 1 << 16 && cout <= 1 << 16;
}

template <class Element, class Convert>
void pack(const float *weight, int K, int cin, int cout, Element *packed, Convert convert) {
  constexpr int depth = CONV_CHUNK / sizeof(Element);
  const size_t columns = (cout + 15) / 16 * 16;
  for (int k = 0; k < K; ++k)
    for (int i = 0; i < cin; ++i) {
      const float *from = weight + (static_cast<size_t>(k) * cin + i) * cout;
      Element *to = packed + ((static_cast<size_t>(i) / depth * K + k) * columns) * depth + i % depth;
      for (int o = 0; o < cout; ++o) to[static_cast<size_t>(o) * depth] = convert(from[o], o);
    }
}

}  // namespace
}  // namespace crispseg

using namespace crispseg;

size_t csg_packed_bytes(csg_type type, int K, int cin, int cout) {
  if (!sizes_fit(type, K, cin, cout)) return 0;
  if (type == CSG_F32) return sizeof(float) * K * cin * cout;
  const size_t depth = type == CSG_F16 ? CONV_CHUNK / 2 : CONV_CHUNK;
  return (cin + depth - 1) / depth * K * ((cout + 15) / 16 * 16) * CONV_CHUNK;
}

int csg_pack_weight(csg_type type, const float *weight, int K, int cin, int cout, void *packed, float *scales) {
  CSG_CHECK(sizes_fit(type, K, cin, cout),
            "csg_pack_weight: type %d, K = %d, cin = %d, cout = %d; expected a csg_type, K in 1..%d, channels 1..65536",
            static_cast<int>(type), K, cin, cout, static_cast<int>(CONV_MAX_TAPS));
  CSG_CHECK(weight && packed, "csg_pack_weight: weight or packed is NULL");
  CSG_CHECK(type != CSG_I8 || scales, "csg_pack_weight: int8 needs room for %d scales", cout);
  const size_t size = static_cast<size_t>(K) * cin * cout;
  const float limit = type == CSG_F16 ? 65520.0f : INFINITY;  // from here on a half is infinite
  for (size_t i = 0; i < size; ++i)
    CSG_CHECK(std::fabs(weight[i]) < limit, "csg_pack_weight: weight %zu is %g, expected a finite number%s", i,
              weight[i], type == CSG_F16 ? " in the range of fp16" : "");
  if (type == CSG_F32) {
    std::memcpy(packed, weight, size * sizeof(float));
    return CSG_OK;
  }
  std::memset(packed, 0, csg_packed_bytes(type, K, cin, cout));
  if (type == CSG_F16) {
    pack(weight, K, cin, cout, static_cast<uint16_t *>(packed), [](float w, int) { return half_bits(w); });
    return CSG_OK;
  }
  std::vector<float> largest(cout, 0.0f);
  for (size_t i = 0; i < size; ++i) largest[i % cout] = std::max(largest[i % cout], std::fabs(weight[i]));
  // A channel of zeros (or of subnormals, whose scale would lose its digits) keeps scale 1 and zeros.
  for (int o = 0; o < cout; ++o) scales[o] = largest[o] >= 127.0f * 1.2e-38f ? largest[o] / 127.0f : 1.0f;
  pack(weight, K, cin, cout, static_cast<int8_t *>(packed), [scales](float w, int o) {
    return static_cast<int8_t>(std::min(127.0f, std::max(-127.0f, std::nearbyint(w / scales[o]))));
  });
  return CSG_OK;
}
