// Contexts and launches, for the sources beside this file:
//
//   return launch(ctx, kernel::csk_fill_u32, grid, 256, 0, stream, p, value, n);
//
// enqueues one kernel and returns CSG_OK, or a negative status with csg_last_error set. Arguments are converted to the
// parameter types of kernels/table.h; void pointers become typed ones. Nothing waits or allocates: everything is
// capturable.
#pragma once
#include <string>
#include <type_traits>

#include "../kernels/params.h"
#include "crispseg_cuda.h"
#include "driver.h"

namespace crispseg {

struct Dim {
  unsigned x, y, z;
  constexpr Dim(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

enum class KernelId : int {
#define CS_KERNEL(name, threads, capability, parameters) name,
#include "../kernels/table.h"
  count
};
constexpr int kernel_count = static_cast<int>(KernelId::count);

template <KernelId ID, class... P> struct KernelTag {
  static constexpr KernelId id = ID;
};
template <KernelId ID, class F> struct TagOf;
template <KernelId ID, class... P> struct TagOf<ID, void(P...)> {
  using type = KernelTag<ID, P...>;
};

namespace kernel {
#define CS_KERNEL(name, threads, capability, parameters) constexpr TagOf<KernelId::name, void parameters>::type name{};
#include "../kernels/table.h"
}  // namespace kernel

struct KernelInfo {
  const char *name;
  int threads, capability;
};
extern const KernelInfo kernel_table[];

struct LoadedKernel {
  CUfunction function = nullptr;  // nullptr: not for this compute capability
  int registers = 0, shared = 0, local = 0, threads = 0;
  int dynamic_limit = 0;  // most dynamic shared memory that a launch may ask for
};

}  // namespace crispseg

struct csg_context {
  const crispseg::Driver *cu = nullptr;
  crispseg::CUcontext context = nullptr;
  crispseg::CUmodule module = nullptr;
  int capability = 0;       // 10 * major + minor
  int multiprocessors = 0;
  int shared_limit = 0;     // bytes of shared memory that a block can opt in to
  crispseg::LoadedKernel kernels[crispseg::kernel_count];
  std::string report;
};

namespace crispseg {

// Untyped form. parameters: addresses of the values, already of the kernel's types.
int launch_raw(const csg_context *ctx, KernelId id, Dim grid, Dim block, size_t shared_bytes, csg_stream stream,
               void **parameters);

// Blocks of a kernel that fit on the device at once (at least 1): the grid of a kernel that loops over its work.
int resident_blocks(const csg_context *ctx, KernelId id, int threads, size_t shared_bytes);
template <class Tag> int resident_blocks(const csg_context *ctx, Tag, int threads, size_t shared_bytes) {
  return resident_blocks(ctx, Tag::id, threads, shared_bytes);
}

// Leaves out the kernels for wgmma unless they are right on this device.
int check_wgmma(csg_context *ctx);

int fill_bytes(const csg_context *ctx, csg_stream stream, void *d_p, unsigned char value, size_t bytes);
int fill_words(const csg_context *ctx, csg_stream stream, void *d_p, uint32_t value, size_t words);
int copy_bytes(const csg_context *ctx, csg_stream stream, void *d_to, const void *d_from, size_t bytes);

namespace detail {

template <class P, class A> P convert(const A &a) {
  if constexpr (std::is_pointer_v<P> && std::is_pointer_v<A>) {
    using To = std::remove_pointer_t<P>;
    using From = std::remove_pointer_t<A>;
    static_assert(std::is_const_v<To> || !std::is_const_v<From>, "a kernel would write through a pointer to const");
    static_assert(std::is_void_v<From> || std::is_void_v<To> ||
                      sizeof(std::remove_cv_t<To>) == sizeof(std::remove_cv_t<From>),
                  "pointer to elements of another size");
    return (P)a;
  } else {
    static_assert(!std::is_pointer_v<A> && (!std::is_pointer_v<P> || std::is_null_pointer_v<A>),
                  "pointer and number mixed up");
    return static_cast<P>(a);
  }
}

}  // namespace detail

template <KernelId ID, class... P, class... A>
int launch(const csg_context *ctx, KernelTag<ID, P...>, Dim grid, Dim block, size_t shared_bytes, csg_stream stream,
           const A &...arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "number of kernel arguments");
  struct Launch {
    static int now(const csg_context *c, Dim g, Dim b, size_t s, csg_stream st, P... values) {
      void *parameters[sizeof...(P) + 1] = {const_cast<void *>(static_cast<const void *>(&values))..., nullptr};
      return launch_raw(c, ID, g, b, s, st, parameters);
    }
  };
  return Launch::now(ctx, grid, block, shared_bytes, stream, detail::convert<P>(arguments)...);
}

inline unsigned div_up(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

}  // namespace crispseg

// In a function that returns a status: leave at the first failure.
#define CSG_TRY(expression)                    \
  do {                                         \
    const int csg_try_status_ = (expression);  \
    if (csg_try_status_ != CSG_OK) return csg_try_status_; \
  } while (0)
// Checks an argument: CSG_CHECK(C > 0 && C <= 256, "C = %d, expected 1..256", C);
#define CSG_CHECK(condition, ...) \
  do {                            \
    if (!(condition)) return ::crispseg::fail(CSG_BAD_ARGUMENT, __VA_ARGS__); \
  } while (0)
