// Running a kernel of a PTX module (driver.cpp).
#pragma once
#include "../execute.h"
#include "module.h"

namespace cs_emu::ptx {

struct Launch {
  std::shared_ptr<Module> module;
  const Function *function;
  Index grid, block;
  size_t dynamic_shared, shared_limit;
  void **arguments;
};

Failure execute(const Launch &launch);

struct Sizes {
  int static_shared, local;
};
// Decodes the kernel. Throws Refused.
Sizes sizes(Module &module, const Function &function);
const Program &program(Module &module, const Function &function);

}  // namespace cs_emu::ptx
