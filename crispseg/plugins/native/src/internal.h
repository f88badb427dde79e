// Inside of the library: context, worker pool, scratch memory, errors. Not for *.isa.cpp files (see isa.h).
//
// A C function of the ABI looks like this:
//
//   extern "C" int cs_thing(cs_context *ctx, ...) {
//     using namespace crispseg;
//     if (!ctx || n < 0) return fail(CS_BAD_ARGUMENT, "cs_thing: n = %d, expected >= 0", n);
//     float *tmp = ctx->scratch<float>(kSlotSelectA, count);  // grows, keeps, 64-byte aligned, content undefined
//     if (!tmp) return CS_OUT_OF_MEMORY;                      // message already set
//     parallel_for(ctx, blocks, [&](int64_t block, int worker) { ... });
//     return CS_OK;
//   }
//
// Scratch comes in slots, one use per slot; a new use gets a new slot in the enum below (append). A pointer
// is valid until the next call with the same slot. Memory per worker: ask for threads * bytes and index by `worker`.
// parallel_for: blocks are handed out in any order to any thread, so a block must write only what is its own and must
// not depend on other blocks; then the result does not depend on the number of threads. Reductions: one partial result
// per BLOCK (not per worker), combined in block order by the caller. Bodies must not throw or nest parallel_for.
#ifndef CRISPSEG_INTERNAL_H
#define CRISPSEG_INTERNAL_H
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "crispseg.h"
#include "isa.h"

namespace crispseg {

enum Slot {
  kSlotGrid,        // maps: index grid of the level; all zero between calls (scratch_zeroed)
  kSlotCoarseGrid,  // maps: index grid of the next level; all zero between calls
  kSlotMarks,       // maps: bits of one coarse row; all zero between calls
  kSlotRowStart,    // maps: first site of every grid row
  kSlotConvRows,    // conv: per worker, row pointers of a block
  kSlotConvAcc,     // conv: per worker, partial sums of a block
  kSlotSelectA, kSlotSelectB, kSlotSelectC, kSlotSelectD,
  kSlotRowsA, kSlotRowsB,
  kSlotEnsembleA, kSlotEnsembleB,
  kSlotTileSites,   // winograd: position of every tile of a plan
  kSlotTileIn,      // winograd: per worker, transformed input of a block of tiles
  kSlotTileOut,     // winograd: per worker, products of a block before the output transform
  kSlotCount
};

// Sets cs_last_error() of this thread and returns `status`.
int fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));

class Pool;

}  // namespace crispseg

struct cs_context {
  crispseg::Isa isa;
  bool vnni;  // the CPU has 8-bit dot products for the vectors of `isa`, and may use them
  int threads;
  crispseg::Pool *pool;
  struct Memory { void *data; size_t bytes; } memory[crispseg::kSlotCount];

  // nullptr (and the error text) when memory is out. The content is undefined after growing.
  template <class T> T *scratch(crispseg::Slot slot, size_t count) {
    return static_cast<T *>(grow(slot, count * sizeof(T), false));
  }
  // All zero when handed out the first time or grown; the user leaves it all zero again.
  template <class T> T *scratch_zeroed(crispseg::Slot slot, size_t count) {
    return static_cast<T *>(grow(slot, count * sizeof(T), true));
  }
  void *grow(crispseg::Slot slot, size_t bytes, bool zeroed);
};

namespace crispseg {

using BlockBody = void (*)(void *state, int64_t block, int worker);
void pool_run(Pool *pool, int64_t blocks, BlockBody body, void *state);
Pool *pool_create(int threads);  // nullptr when a thread cannot be started
void pool_destroy(Pool *pool);

// Calls body(block, worker) for every block in [0, blocks); worker in [0, ctx->threads). Returns when all are done.
template <class F> void parallel_for(cs_context *ctx, int64_t blocks, F &&body) {
  using Body = std::remove_reference_t<F>;
  const auto call = [](void *state, int64_t block, int worker) { (*static_cast<Body *>(state))(block, worker); };
  pool_run(ctx->pool, blocks, call, const_cast<void *>(static_cast<const void *>(&body)));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace crispseg
#endif
