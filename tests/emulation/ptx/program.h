// A decoded kernel: instructions whose operands are places in register files, and the machine that runs them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "module.h"
#include "warp.h"

namespace cs_emu::ptx {

class Block;
struct Machine;
struct Instruction;
typedef void (*Handler)(Machine &, const Instruction &);

// A register of 32 lanes: which file (0 constants of the program, 1 registers of the warp, 2 special registers), and
// where in it. -1: none.
typedef int32_t Place;
enum File : int32_t { constants = 0, registers = 1, specials = 2 };
inline Place place(File file, int index) { return index << 2 | file; }

// What the scheduler does with an instruction; `next`: run it and go on.
enum class Flow : uint8_t { next, branch, call, leave, sync, aligned, barrier, yield };

// What matters to following values that come from memory that nobody wrote.
enum class Role : uint8_t { other, select, and_pred, or_pred, load, store, atomic };

struct Instruction {
  Handler run = nullptr;
  Flow flow = Flow::next;
  bool negated = false;  // the guard
  uint8_t count = 1;     // elements of a vector access
  uint8_t inputs = 0, outputs = 0;
  Role role = Role::other;
  Place guard = -1;
  Place op[7] = {-1, -1, -1, -1, -1, -1, -1};  // outputs, then inputs
  int32_t target = -1;                         // branch, call: instruction. Warp instructions: which of Program::wide
  int32_t line = 0;
  int64_t offset = 0;         // of an address; or a mode
  uint64_t keep = ~0ull;      // bits of the register that takes the result
  Space space = Space::none;  // of a store, and its bytes
  uint8_t bytes = 0;
  mutable uint32_t hint = 0;  // range of global memory that it met last
};

struct Wide {  // an instruction of warp.h
  const WarpInstruction *what;
  std::vector<Place> out, in;
  std::vector<int64_t> offset;  // to add to the inputs that are addresses; 0 else
};

struct Program {
  std::vector<Instruction> code;  // functions that are called come before their callers
  int entry = 0;
  std::vector<Register> constants;
  std::vector<Wide> wide;
  int registers = 0;
  uint32_t parameter_bytes = 0;  // of the kernel
  uint32_t call_bytes = 0;       // parameters of calls, of one thread
  uint32_t local_bytes = 0;      // of one thread
  uint32_t static_shared = 0;    // the dynamic shared memory follows it
  uint32_t dynamic_shared = 0;   // where it begins: aligned
  bool products = false;         // wgmma is in it
  std::vector<Text> opcodes;     // of `code`
  // Where executions are counted (profile.h): warps that executed each instruction, and launches.
  mutable std::vector<uint64_t> executed;
  mutable uint64_t launches = 0;
};

// Throws Refused.
std::shared_ptr<Program> decode(Module &module, const Function &kernel);

// Generic addresses: windows of address space that nobody else has.
constexpr uint64_t window_bytes = 16 << 20;
struct Windows {
  uint64_t shared, local;
};
const Windows &windows();
// Addresses in parameter space: those of the kernel from 0, those of calls from here.
constexpr uint64_t call_parameters = uint64_t(1) << 32;

// The special registers of a warp, in their order in file 2.
enum Special {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid,
  nwarpid,
  lanemask_eq,
  lanemask_le,
  lanemask_lt,
  lanemask_ge,
  lanemask_gt,
  dynamic_smem_size,
  total_smem_size,
  zero,
  special_count
};

// The warp that runs now.
struct Machine {
  const uint64_t *files[3];
  uint32_t active;      // lanes that execute the instruction
  uint64_t chosen[32];  // all ones in these lanes, zero in others
  Block *block;
  int warp;

  const uint64_t *in(Place p) const { return files[p & 3] + static_cast<size_t>(p >> 2) * 32; }
  uint64_t *out(Place p) const { return const_cast<uint64_t *>(files[p & 3]) + static_cast<size_t>(p >> 2) * 32; }
  bool all() const { return active == 0xffffffffu; }
  void choose(uint32_t lanes) {
    active = lanes;
    if (!all())
      for (unsigned l = 0; l < 32; ++l) chosen[l] = 0 - static_cast<uint64_t>(lanes >> l & 1u);
  }
  uint32_t true_lanes(Place p) const {
    const uint64_t *v = in(p);
    uint32_t lanes = 0;
    for (unsigned l = 0; l < 32; ++l) lanes |= static_cast<uint32_t>(v[l] & 1u) << l;
    return lanes;
  }
};

// For every active lane l.
#define CS_LANES(m, l)                                                                                          \
  for (uint32_t cs_left = (m).active, l = cs_left ? static_cast<uint32_t>(__builtin_ctz(cs_left)) : 0; cs_left; \
       cs_left &= cs_left - 1, l = cs_left ? static_cast<uint32_t>(__builtin_ctz(cs_left)) : 0)

}  // namespace cs_emu::ptx
