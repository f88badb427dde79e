// What an instruction of a warp sees and changes: registers of 32 lanes, memory, work that is under way.
#pragma once
#include <array>
#include <cstdint>
#include <string>

namespace cs_emu::ptx {

// One register in the 32 lanes. Narrower values are zero-extended; predicates are 0 or 1; f32 and f64 are their bits.
typedef std::array<uint64_t, 32> Register;

// What is wrong with a kernel: ends the launch. status: a CUresult (700 address, 716 misaligned, 719 launch failed).
struct Wrong {
  int status;
  std::string text;
};

// Memory of the block that runs. Addresses are offsets in shared memory, and host addresses for global memory; every
// access is checked (range, alignment to its size, what the checks of races and of memory that nobody wrote want to
// know). Throws Wrong.
class Memory {
 public:
  virtual ~Memory() = default;
  // thread: number in the block. The bytes may be read until the next call.
  virtual const uint8_t *read_shared(int thread, uint32_t address, uint32_t bytes) = 0;
  virtual void write_shared(int thread, uint32_t address, const void *value, uint32_t bytes) = 0;
  virtual const uint8_t *read_global(int thread, uint64_t address, uint32_t bytes) = 0;
  virtual void write_global(int thread, uint64_t address, const void *value, uint32_t bytes) = 0;
  virtual uint32_t shared_bytes() const = 0;  // static and dynamic together
  // The bytes without any check, for what reads shared memory on behalf of a whole warp group.
  virtual const uint8_t *shared() const = 0;
};

class Async;  // async.h: copies and products under way, of one block

// One instruction as a warp executes it. Operands in the order of the text: {a, b} gives two, [r + 4] one (the sum),
// an immediate one (the same in all lanes). Lanes outside of `active` must not be changed.
struct Call {
  int warp;         // number in the block
  uint32_t active;  // lanes that execute it
  Register *const *out;
  int outs;
  const Register *const *in;
  int ins;
  Memory &memory;
  Async &async;
};

// An instruction for whole warps or asynchronous work. aligned: every lane of the warp must execute it together.
struct WarpInstruction {
  const char *opcode;  // as written in PTX, all modifiers
  int outs, ins;
  bool aligned;
  void (*run)(Call &);
  int optional = 0;  // how many of the last operands may be missing (cp.async's size of the source)
};

// tensor.cpp, async.cpp: null when there is none of that name.
const WarpInstruction *find_warp_instruction(const std::string &opcode);

}  // namespace cs_emu::ptx
