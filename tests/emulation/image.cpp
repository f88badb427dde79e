// The kernel table of an emulated image. CS_EMU_TABLE names the list of kernels; it is kernels/table.h for the
// product's.
#include <utility>

#include "base.cuh"

#define CS_KERNEL(name, threads, capability, parameters) CS_GLOBAL void name parameters;
#include CS_EMU_TABLE

namespace {

template <auto F> struct Invoker;
template <class... A, void (*F)(A...)> struct Invoker<F> {
  static constexpr int count = sizeof...(A);
  static constexpr unsigned short sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};
  template <size_t... I>
  static void call(void **arguments, std::index_sequence<I...>) {
    F(*static_cast<A *>(arguments[I])...);
  }
  static void invoke(void **arguments) { call(arguments, std::make_index_sequence<sizeof...(A)>()); }
};

const cs_emu::Kernel kernels[] = {
#define CS_KERNEL(name, threads, capability, parameters) \
  {#name, threads, capability, Invoker<&name>::count, Invoker<&name>::sizes, Invoker<&name>::invoke, &name != nullptr},
#include CS_EMU_TABLE
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const cs_emu::Image cs_emu_image = {
    cs_emu::runtime_version, kernels,   sizeof kernels / sizeof *kernels, &threadIdx, &blockIdx,
    &blockDim,               &gridDim,  &cs_emu::runtime,
};

// For tests (tests/emulation/__init__.py): what counted accesses have cost, and the wavefronts of given addresses.
extern "C" __attribute__((visibility("default"))) cs_emu::AccessCounts *cs_emu_access_counts() {
  return &cs_emu::access_counts;
}
extern "C" __attribute__((visibility("default"))) unsigned cs_emu_wavefronts(const uintptr_t *addresses,
                                                                             unsigned bytes) {
  return cs_emu::wavefronts(addresses, bytes);
}
