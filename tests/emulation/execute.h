// Runs one kernel: blocks one after the other, the threads of a block as fibers.
#pragma once
#include <cstdint>
#include <string>

#include "order.h"
#include "runtime.h"

namespace cs_emu {

struct Failure {
  int status;  // CUresult; 0 = none
  std::string text;
};

struct Launch {
  const Image *image;
  const Kernel *kernel;
  Index grid, block;
  size_t dynamic_shared;
  size_t shared_limit;  // of a block, static and dynamic together
  void **arguments;
};

// Order of blocks, and of threads inside a block. A result that depends on it is a missing barrier or a race.
void set_order(Order order, uint64_t seed);
void get_order(Order *order, uint64_t *seed);
Failure execute(const Launch &launch);
const Runtime *runtime_table();

}  // namespace cs_emu
