// Copies (cp.async) and products (wgmma) under way in one block.
#pragma once
#include <cstdint>
#include <memory>

#include "warp.h"

namespace cs_emu::ptx {

class Async {
 public:
  Async(int threads, Memory &memory);
  ~Async();
  // Called when a block ends, after every thread has left. A product that was never waited for is a mistake (Wrong), a
  // copy that never landed is none: nobody has read its bytes.
  void finish();

  // Plain loads and stores to shared memory tell what they touch: they must not touch what a copy or a product under
  // way uses, and products must not see what their writer has not fenced. Only needed while the flags are true.
  bool copies_under_way() const { return copies != 0; }
  bool watches_stores() const { return stores || copies != 0; }
  bool watched() const { return stores; }
  void watch_stores(bool on) { stores = on; }  // on: the kernel contains wgmma
  void reads_shared(int thread, uint32_t address, uint32_t bytes);
  void wrote_shared(int thread, uint32_t address, uint32_t bytes);

  struct Work;
  std::unique_ptr<Work> work;
  int copies = 0;  // cp.async that have not landed

 private:
  bool stores = false;
};

}  // namespace cs_emu::ptx
