// Counts how often warps execute each instruction of the kernels of PTX modules.
#pragma once
#include "program.h"

namespace cs_emu::ptx {

// Before a launch: where counting is on, the program has room for counts.
void count_launch(const Program &program);

}  // namespace cs_emu::ptx
