// Warps of the block that runs: which lanes run next, and where lanes wait for each other.
#pragma once
#include <string>
#include <vector>

#include "block.h"

namespace cs_emu::ptx {

class Warps {
 public:
  enum class Outcome { barrier, yield, done };

  Warps(const Program &program, Block &block);

  void begin_launch(unsigned threads);
  void begin_block(const unsigned block_index[3]);
  void set_special(Special which, uint64_t value);  // the same in all threads
  Outcome run(int warp);
  // The barrier at which a warp waits; after it the warp goes on with `result` in the output, if there is one.
  const Instruction &barrier(int warp) const { return code_[warps_[static_cast<size_t>(warp)].at]; }
  const uint64_t *input(int warp, Place p) const;
  void release(int warp, uint64_t result);
  uint32_t alive(int warp) const { return warps_[static_cast<size_t>(warp)].alive; }
  uint32_t left(int warp) const;  // lanes that have left the kernel
  int count() const { return static_cast<int>(warps_.size()); }
  int line() const { return at_ ? at_->line : 0; }  // of the instruction that runs

 private:
  static constexpr int depth = 16;
  struct Warp {
    uint32_t alive, all, waiting, parked;
    int32_t at;  // barrier
    int32_t pc[32];
    int32_t stack[32][depth];
    uint8_t calls[32];
    bool follows;  // some registers hold values from memory that nobody wrote
  };
  enum class Next { run, yield, done };

  Next pick(Warp &w, uint32_t *lanes, int *pc, bool *met);
  // Are all lanes for which those that wait at pc wait there? Then they go on: their set, else 0.
  uint32_t complete(Warp &w, int pc, uint32_t lane);
  bool leave(Warp &w, uint32_t lanes, const Instruction &i, int *pc);
  void set(Warp &w, uint32_t lanes, int pc) {
    for (; lanes; lanes &= lanes - 1) w.pc[__builtin_ctz(lanes)] = pc;
  }
  // follow.cpp
  void begin_following(Warp &w, const Instruction &i);
  static bool after(const Instruction &i) { return i.role >= Role::load; }  // follow() is called when it has run
  void follow(const Instruction &i, uint32_t lanes);
  void follow_guard(const Instruction &i, uint32_t lanes);
  uint32_t &unwritten(Place p) {
    return unwritten_[static_cast<size_t>(block_.warp) * static_cast<size_t>(program_.registers) +
                      static_cast<size_t>(p >> 2)];
  }
  uint32_t unwritten_input(Place p) { return p >= 0 && (p & 3) == registers ? unwritten(p) : 0; }
  [[noreturn]] void unwritten_used(uint32_t lanes, const char *how);

  void synchronised(const Instruction &i, uint32_t lanes, const Warp &w);
  [[noreturn]] void stuck(Warp &w);
  [[noreturn]] void wrong(const std::string &text) const { throw Wrong{719, text}; }

  const Program &program_;
  Block &block_;
  const Instruction *code_;
  std::vector<Warp> warps_;
  std::vector<Register> &registers_;  // kept between launches: megabytes
  std::vector<Register> specials_;
  std::vector<uint32_t> unwritten_;  // per warp and register: lanes
  std::string unwritten_text_;
  Machine machine_;
  const Instruction *at_ = nullptr;
  uint64_t *executed_ = program_.executed.empty() ? nullptr : program_.executed.data();
};

}  // namespace cs_emu::ptx
