// The block that runs: its memory in all address spaces, with the checks of every access.
#pragma once
#include <string>
#include <vector>

#include "async.h"
#include "program.h"
#include "shadow.h"

namespace cs_emu::ptx {

struct Range {
  uint64_t begin, end;
};

class Block final : public Memory {
 public:
  const uint8_t *read_shared(int thread, uint32_t address, uint32_t bytes) override;
  void write_shared(int thread, uint32_t address, const void *value, uint32_t bytes) override;
  const uint8_t *read_global(int thread, uint64_t address, uint32_t bytes) override;
  void write_global(int thread, uint64_t address, const void *value, uint32_t bytes) override;
  uint32_t shared_bytes() const override { return shared_size; }
  const uint8_t *shared() const override { return shared_data; }

  // Throws: what thread `lane` of the warp that runs does wrong.
  [[noreturn]] void wrong(int status, uint32_t lane, const std::string &text) const {
    wrong_thread(status, thread_of(lane), text);
  }
  [[noreturn]] void wrong_thread(int status, int thread, const std::string &text) const;
  std::string name(int thread) const;  // "thread (x,y,z)"
  int thread_of(uint32_t lane) const { return warp * 32 + static_cast<int>(lane); }

  // Where the bytes are, after the checks of range and alignment. hint: see Instruction.
  uint8_t *global(int thread, uint64_t address, uint32_t bytes, bool write, uint32_t *hint) {
    if (address & (bytes - 1)) misaligned(thread, "global", address, bytes, write);
    const Range &r = ranges[*hint < ranges.size() ? *hint : 0];
    if (address >= r.begin && address + bytes <= r.end) return reinterpret_cast<uint8_t *>(address);
    return far(thread, address, bytes, write, hint);
  }
  uint8_t *shared_at(int thread, uint64_t address, uint32_t bytes, bool write) {
    if (address & (bytes - 1)) misaligned(thread, "shared", address, bytes, write);
    if (address + bytes > shared_size || address + bytes < bytes)
      outside(thread, "shared", address, bytes, write, shared_size);
    return shared_data + address;
  }
  uint8_t *local_at(int thread, uint64_t address, uint32_t bytes, bool write) {
    if (address & (bytes - 1)) misaligned(thread, "local", address, bytes, write);
    if (address + bytes > local_bytes || address + bytes < bytes)
      outside(thread, "local", address, bytes, write, local_bytes);
    return local.data() + static_cast<size_t>(thread) * local_bytes + address;
  }
  const uint8_t *parameter_at(int thread, uint64_t address, uint32_t bytes, bool write);
  // Before a read, and around a write, of shared memory by a plain instruction or an atomic.
  void check_read(int thread, uint32_t address, uint32_t bytes) {
    if (async->copies_under_way()) async->reads_shared(thread, address, bytes);
    if (!checks) return;
    const Shadow::Finding found = shadow.read(thread, address, bytes);
    if (found.mistake == Shadow::Mistake::unwritten) {  // a mistake when the value is used (follow.cpp)
      if (!unwritten) unwritten_at = address;
      unwritten |= 1u << (thread % 32);
    } else report(found, thread, address, bytes);
  }
  void check_write(int thread, uint32_t address, uint32_t bytes, const uint8_t *after, bool atomic) {
    if (async->watches_stores()) async->wrote_shared(thread, address, bytes);
    if (checks)
      report(shadow.write(thread, address, bytes, shared_data + address, after, atomic), thread, address, bytes);
  }
  void report(Shadow::Finding found, int thread, uint32_t address, uint32_t bytes) const {
    if (found.mistake != Shadow::Mistake::none) mistake(found, thread, address, bytes);
  }

  uint8_t *shared_data = nullptr;
  uint32_t shared_size = 0;
  std::vector<uint8_t> local, calls;  // of all threads
  uint32_t local_bytes = 0, call_bytes = 0;
  std::vector<uint8_t> parameters;
  std::vector<Range> ranges;  // of global memory, sorted; never empty
  const Program *program = nullptr;
  Async *async = nullptr;
  bool checks = true;
  Shadow shadow;
  uint32_t unwritten = 0, unwritten_at = 0;  // lanes that have just read what nobody wrote, and one of the addresses
  int warp = 0;                              // that runs
  unsigned block_dim[3] = {1, 1, 1};

 private:
  uint8_t *far(int thread, uint64_t address, uint32_t bytes, bool write, uint32_t *hint) const;
  [[noreturn]] void misaligned(int thread, const char *space, uint64_t address, uint32_t bytes, bool write) const;
  [[noreturn]] void outside(int thread, const char *space, uint64_t address, uint32_t bytes, bool write,
                            uint64_t size) const;
  [[noreturn]] void mistake(Shadow::Finding found, int thread, uint32_t address, uint32_t bytes) const;
  uint32_t hint_ = 0;
};

}  // namespace cs_emu::ptx
