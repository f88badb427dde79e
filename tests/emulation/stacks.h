// Stacks of fibers, kept for the life of the process; a page without access lies below each.
#pragma once
#include <sys/mman.h>

#include <cstdlib>
#include <vector>

#include "fiber.h"

namespace cs_emu {

class Stacks {
 public:
  explicit Stacks(void (*entry)()) : entry_(entry) {}
  // A free stack, with a fiber that begins (or goes on) in entry.
  int take() {
    if (free_.empty()) {
      const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
      void *base = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, kind, -1, 0);
      if (base == MAP_FAILED) std::abort();
      mprotect(base, page, PROT_NONE);
      bases_.push_back(static_cast<unsigned char *>(base) + page);
      pointers_.push_back(fiber_prepare(bases_.back(), usable(bases_.size() - 1), entry_));
      free_.push_back(static_cast<int>(bases_.size()) - 1);
    }
    const int stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void give(int stack) { free_.push_back(stack); }
  void *&pointer(int stack) { return pointers_[static_cast<size_t>(stack)]; }
  // After a failure: what was on the stacks is gone.
  void reset() {
    free_.clear();
    for (size_t i = 0; i < bases_.size(); ++i) {
      pointers_[i] = fiber_prepare(bases_[i], usable(i), entry_);
      free_.push_back(static_cast<int>(i));
    }
  }

 private:
  static constexpr size_t page = 4096, bytes = 128 * 1024;
  // Stacks begin at different offsets in their pages: else the hot lines of all fibers share a few sets of the cache.
  static size_t usable(size_t stack) { return bytes - stack * 448 % 16384; }

  void (*entry_)();
  std::vector<unsigned char *> bases_;
  std::vector<void *> pointers_;
  std::vector<int> free_;
};

}  // namespace cs_emu
