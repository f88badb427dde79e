// From kernel map to row pointers: what the convolution's tiles read. See ConvBlock for the layout.
#include <string.h>

#include "conv_kernels.h"

namespace crispseg {

namespace {

typedef int32_t int8x __attribute__((vector_size(32)));
typedef uint32_t uint8x __attribute__((vector_size(32)));
typedef int64_t long8x __attribute__((vector_size(64)));

// Pointers of one row of a 3x3 map: eight taps as a vector, the ninth alone. `both` keeps the sign bit of a tap as long
// as every row of the tile lacks it; `largest` the largest entry + 1.
struct NineTaps {
  int8x both;
  int32_t last_both;
  uint8x largest;
  uint32_t last_largest;

  inline void row(const int32_t *m, int64_t zero, int64_t bytes, const float **to) {
    int8x v;
    memcpy(&v, m, sizeof v);
    both &= v;
    last_both &= m[8];
    const uint8x from = (uint8x)v + 1u;
    largest = from > largest ? from : largest;
    const uint32_t last = static_cast<uint32_t>(m[8]) + 1u;
    last_largest = last > last_largest ? last : last_largest;
    const long8x at = __builtin_convertvector(from, long8x) * bytes + zero;
    memcpy(to, &at, sizeof at);
    to[8] = reinterpret_cast<const float *>(zero + static_cast<int64_t>(last) * bytes);
  }
  inline uint32_t missing() const {
    uint32_t bits = static_cast<uint32_t>(last_both < 0) << 8;
    for (int k = 0; k < 8; ++k) bits |= static_cast<uint32_t>(both[k] < 0) << k;
    return bits;
  }
};

// Any number of taps.
struct AnyTaps {
  int taps;
  uint32_t none, largest;

  inline void row(const int32_t *m, int64_t zero, int64_t bytes, const float **to) {
    uint32_t bits = 0;
    for (int k = 0; k < taps; ++k) {
      const uint32_t from = static_cast<uint32_t>(m[k]) + 1u;
      largest = from > largest ? from : largest;
      bits |= static_cast<uint32_t>(from == 0) << k;
      to[k] = reinterpret_cast<const float *>(zero + static_cast<int64_t>(from) * bytes);
    }
    none &= bits;
  }
};

inline void begin_tile(NineTaps &t) {
  t.both = int8x{} - 1;
  t.last_both = -1;
}
inline void begin_tile(AnyTaps &t) { t.none = ~uint32_t{0}; }
inline uint32_t missing(const NineTaps &t) { return t.missing(); }
inline uint32_t missing(const AnyTaps &t) { return t.none; }
inline uint32_t largest(const NineTaps &t) {
  uint32_t top = t.last_largest;
  for (int k = 0; k < 8; ++k) top = t.largest[k] > top ? t.largest[k] : top;
  return top;
}
inline uint32_t largest(const AnyTaps &t) { return t.largest; }

template <class Taps>
bool by_map(Taps &state, const cs_conv &c, int mr, int64_t begin, int64_t end, const ConvRows &g) {
  const int64_t bytes = c.ldx * static_cast<int64_t>(sizeof(float));
  const int64_t zero = c.x ? reinterpret_cast<int64_t>(c.x) - bytes : 0;
  const int taps = all_taps(c);
  const uint32_t all = 0xffffffffu >> (32 - c.K), second = c.x2 ? uint32_t{1} << c.K : 0;
  for (int64_t at = begin, t = 0; at < end; at += mr, ++t) {
    const float **rows = g.rows + t * taps * mr;
    begin_tile(state);
    for (int r = 0; r < mr; ++r, rows += taps) {
      if (at + r >= end) {
        g.out[t * mr + r] = -1;
        for (int k = 0; k < c.K; ++k) rows[k] = reinterpret_cast<const float *>(zero);
        if (second) rows[c.K] = c.x2;
        continue;
      }
      const int64_t row = c.order ? c.order[at + r] : at + r;
      if (row < 0 || row >= c.n_out) return false;
      g.out[t * mr + r] = static_cast<int32_t>(row);
      state.row(c.map + row * c.K, zero, bytes, rows);
      if (second) rows[c.K] = c.x2 + row * c.ldx2;
    }
    g.taps[t] = (~missing(state) & all) | second;
  }
  return largest(state) <= static_cast<uint32_t>(c.n_in);
}

// No map: output row i reads input row i.
bool identity(const cs_conv &c, int mr, int64_t begin, int64_t end, const ConvRows &g) {
  const int taps = all_taps(c);
  for (int64_t at = begin, t = 0; at < end; at += mr, ++t) {
    g.taps[t] = c.x2 ? 3 : 1;
    for (int r = 0; r < mr; ++r) {
      const int64_t row = at + r >= end ? -1 : c.order ? c.order[at + r] : at + r;
      if (at + r < end && (row < 0 || row >= c.n_out)) return false;
      g.out[t * mr + r] = static_cast<int32_t>(row);
      const float **rows = g.rows + (t * mr + r) * taps;
      rows[0] = c.x + row * c.ldx;
      if (c.x2) rows[1] = c.x2 + row * c.ldx2;
    }
  }
  return true;
}

bool gather(const cs_conv &c, int mr, int64_t begin, int64_t end, const ConvRows &g) {
  if (!c.map) return identity(c, mr, begin, end, g);
  if (c.K == 9) {
    NineTaps nine{};
    return by_map(nine, c, mr, begin, end, g);
  }
  AnyTaps any{c.K, 0, 0};
  return by_map(any, c, mr, begin, end, g);
}

}  // namespace

const GatherKernels CS_NAME(gather_kernels) = {gather};

}  // namespace crispseg
