// Checks and sizes that the entry points share.
#pragma once
#include <algorithm>
#include <cstdint>

#include "launch.h"

namespace crispseg {

constexpr size_t kPiece = 256;  // alignment of the pieces of a workspace
inline size_t round_up(size_t bytes) { return (bytes + kPiece - 1) / kPiece * kPiece; }

inline bool aligned(const void *p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// Cuts a workspace into pieces; with memory NULL it only measures.
class Pieces {
 public:
  explicit Pieces(void *memory) : memory_(static_cast<uint8_t *>(memory)) {}
  template <class T>
  T *take(size_t count) {
    T *piece = reinterpret_cast<T *>(memory_ ? memory_ + used_ : nullptr);
    used_ += round_up(count * sizeof(T));
    return piece;
  }
  size_t bytes() const { return used_; }

 private:
  uint8_t *memory_;
  size_t used_ = 0;
};

inline size_t type_bytes(csg_type type) { return type == CSG_F32 ? 4 : type == CSG_F16 ? 2 : 1; }

// Row strides and addresses of fp16 and int8 matrices are multiples of 16 bytes, so that the convolutions can read
// them.
inline bool good_matrix(csg_type type, const void *p, int64_t ld, int64_t columns) {
  if (!p || ld < columns) return false;
  if (type == CSG_F32) return aligned(p, 4);
  return aligned(p, 16) && ld * static_cast<int64_t>(type_bytes(type)) % 16 == 0;
}

// Grid of a kernel that loops over rows in blocks of `rows`: as many blocks as there is work for, at most what the
// device holds.
template <class Tag>
unsigned row_blocks(const csg_context *ctx, Tag tag, int64_t capacity, int rows, int threads, size_t shared = 0) {
  const int64_t work = (capacity + rows - 1) / rows;
  return static_cast<unsigned>(std::min<int64_t>(work, resident_blocks(ctx, tag, threads, shared)));
}

inline int check_sites(const char *who, const csg_context *ctx, const int32_t *d_coords, const int32_t *d_count,
                       int32_t capacity, int H, int W) {
  CSG_CHECK(ctx, "%s: no context", who);
  CSG_CHECK(capacity >= 0 && d_count && (d_coords || capacity == 0),
            "%s: capacity %d, and coordinates or count are NULL", who, capacity);
  CSG_CHECK(aligned(d_coords, 8) && aligned(d_count, 4), "%s: coordinates must be aligned to 8 bytes, the count to 4",
            who);
  CSG_CHECK(H >= 1 && W >= 1 && static_cast<int64_t>(H) * W <= INT32_MAX / 2, "%s: grid %d x %d is out of range", who,
            H, W);
  return CSG_OK;
}

inline int check_workspace(const char *who, const void *d_workspace, size_t bytes, size_t wanted) {
  CSG_CHECK(d_workspace && bytes >= wanted, "%s: workspace: expected %zu bytes, found %zu", who, wanted,
            d_workspace ? bytes : 0);
  CSG_CHECK(aligned(d_workspace, 16), "%s: the workspace must be aligned to 16 bytes", who);
  return CSG_OK;
}

}  // namespace crispseg
