// Memory of a block: what is said when an access is wrong.
#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "../guards.h"

namespace cs_emu::ptx {
namespace {

constexpr int illegal_address = 700, misaligned_address = 716, launch_failed = 719;

__attribute__((format(printf, 1, 2))) std::string format(const char *pattern, ...) {
  char text[400];
  va_list args;
  va_start(args, pattern);
  std::vsnprintf(text, sizeof text, pattern, args);
  va_end(args);
  return text;
}

}  // namespace

const Windows &windows() {
  static const Windows the = [] {
    void *room = mmap(nullptr, 2 * window_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) std::abort();
    const uint64_t base = reinterpret_cast<uint64_t>(room);
    return Windows{base, base + window_bytes};
  }();
  return the;
}

std::string Block::name(int thread) const {
  const unsigned n = static_cast<unsigned>(thread);
  return format("thread (%u,%u,%u)", n % block_dim[0], n / block_dim[0] % block_dim[1],
                n / block_dim[0] / block_dim[1]);
}

void Block::wrong_thread(int status, int thread, const std::string &text) const {
  throw Wrong{status, name(thread) + " " + text};
}

void Block::misaligned(int thread, const char *space, uint64_t address, uint32_t bytes, bool write) const {
  wrong_thread(misaligned_address, thread,
               format("%s %u bytes at %s address 0x%llx, which is no multiple of %u", write ? "writes" : "reads", bytes,
                      space, static_cast<unsigned long long>(address), bytes));
}

void Block::outside(int thread, const char *space, uint64_t address, uint32_t bytes, bool write, uint64_t size) const {
  wrong_thread(illegal_address, thread,
               format("%s %u bytes at %lld of %llu bytes of %s memory", write ? "writes" : "reads", bytes,
                      static_cast<long long>(address), static_cast<unsigned long long>(size), space));
}

uint8_t *Block::far(int thread, uint64_t address, uint32_t bytes, bool write, uint32_t *hint) const {
  auto it =
      std::upper_bound(ranges.begin(), ranges.end(), address, [](uint64_t a, const Range &r) { return a < r.begin; });
  if (it != ranges.begin() && address + bytes <= std::prev(it)->end && address + bytes > address) {
    *hint = static_cast<uint32_t>(std::prev(it) - ranges.begin());
    return reinterpret_cast<uint8_t *>(address);
  }
  wrong_thread(illegal_address, thread,
               format("%s %u bytes at address 0x%llx, which is %s", write ? "writes" : "reads", bytes,
                      static_cast<unsigned long long>(address),
                      describe_address(reinterpret_cast<const void *>(address)).c_str()));
}

const uint8_t *Block::parameter_at(int thread, uint64_t address, uint32_t bytes, bool write) {
  if (address & (bytes - 1)) misaligned(thread, "parameter", address, bytes, write);
  if (address >= call_parameters) {
    address -= call_parameters;
    if (address + bytes > call_bytes) outside(thread, "parameter", address, bytes, write, call_bytes);
    return calls.data() + static_cast<size_t>(thread) * call_bytes + address;
  }
  if (write || address + bytes > parameters.size())
    outside(thread, "parameter", address, bytes, write, parameters.size());
  return parameters.data() + address;
}

void Block::mistake(Shadow::Finding found, int thread, uint32_t address, uint32_t bytes) const {
  const std::string other = name(found.other);
  const char *barrier = found.other / 32 == thread / 32 ? "no barrier of the warp" : "no barrier of the block";
  const std::string where = format("%u bytes of shared memory at %u", bytes, address);
  std::string text;
  switch (found.mistake) {
    case Shadow::Mistake::unwritten:
      text = "reads " + where + ", some of which nobody wrote since the block began";
      break;
    case Shadow::Mistake::read_after_write:
      text = "reads " + where + ", which " + other + " wrote, with " + barrier + " between: a race on shared memory";
      break;
    case Shadow::Mistake::write_after_write:
      text = "writes " + where + ", which " + other + " wrote, with " + barrier + " between: a race on shared memory";
      break;
    default:
      text =
          "writes " + where + ", which " + other + " has read, with " + barrier + " between: a race on shared memory";
  }
  wrong_thread(launch_failed, thread, text);
}

const uint8_t *Block::read_shared(int thread, uint32_t address, uint32_t bytes) {
  const uint8_t *p = shared_at(thread, address, bytes, false);
  if (checks) report(shadow.read(thread, address, bytes), thread, address, bytes);
  return p;
}

void Block::write_shared(int thread, uint32_t address, const void *value, uint32_t bytes) {
  uint8_t *p = shared_at(thread, address, bytes, true);
  if (checks)
    report(shadow.write(thread, address, bytes, p, static_cast<const uint8_t *>(value), false), thread, address, bytes);
  std::memcpy(p, value, bytes);
}

const uint8_t *Block::read_global(int thread, uint64_t address, uint32_t bytes) {
  return global(thread, address, bytes, false, &hint_);
}

void Block::write_global(int thread, uint64_t address, const void *value, uint32_t bytes) {
  std::memcpy(global(thread, address, bytes, true, &hint_), value, bytes);
}

}  // namespace cs_emu::ptx
