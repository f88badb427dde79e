// What an emulated kernel image (kernels compiled by g++) and the emulated driver know of each other.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cs_emu {

constexpr int runtime_version = 1;
constexpr size_t shared_guard = 128;

struct Index {
  unsigned x, y, z;
};

// Combines what the lanes of a warp brought: slots[lane] of every lane in `present`; the others are null.
typedef void (*Combine)(void **slots, unsigned present);

struct Runtime {
  const unsigned long long *epoch;  // another number for every block that runs
  // Waits for the whole block; returns the number of threads with predicate != 0.
  int (*barrier)(int predicate, const char *file, int line);
  // Waits for the lanes of mask that have not left the kernel; the last one calls combine for all.
  void (*warp)(unsigned mask, void *slot, Combine combine, const char *file, int line);
  void (*spin)();                                      // lets the other threads of the block run
  void (*touch_shared)(unsigned char *before, size_t size);  // first use of a static shared variable by this block
  void *(*dynamic_shared)();
  void (*trap)(const char *text);                      // ends the launch with an error
};

struct Kernel {
  const char *name;
  int threads, capability;
  int arguments;
  const unsigned short *sizes;  // bytes of every argument
  void (*invoke)(void **arguments);
  bool present;  // defined in this image
};

struct Image {
  int version;
  const Kernel *kernels;
  int count;
  Index *thread, *block, *block_dim, *grid_dim;
  const Runtime **runtime;
};

}  // namespace cs_emu
