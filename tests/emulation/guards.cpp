// Allocations of the emulated device and page-locked host memory.
#include "guards.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

namespace cs_emu {
namespace {

constexpr size_t page = 4096, alignment = 256, front = 256;
constexpr size_t moat = 1 << 20;  // without access, on both sides: costs addresses, not memory
constexpr unsigned char fence = 0xe7;

struct Allocation {
  unsigned char *base;  // of the mapping
  size_t mapped, bytes;
  unsigned char *fence_begin,
      *fence_end;  // guard bytes before the memory start at fence_begin, those after end at fence_end
  bool reported;
};

std::map<uintptr_t, Allocation> device, host;
size_t used;
uint64_t version;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

std::map<uintptr_t, Allocation>::iterator find(std::map<uintptr_t, Allocation> &all, const void *p) {
  auto it = all.upper_bound(reinterpret_cast<uintptr_t>(p));
  return it == all.begin() ? all.end() : std::prev(it);
}

bool inside(std::map<uintptr_t, Allocation> &all, const void *p, size_t bytes) {
  auto it = find(all, p);
  if (it == all.end()) return false;
  const size_t offset = reinterpret_cast<uintptr_t>(p) - it->first;
  return offset <= it->second.bytes && bytes <= it->second.bytes - offset;
}

std::string damage(uintptr_t address, Allocation &a) {
  unsigned char *p = reinterpret_cast<unsigned char *>(address);
  char text[160] = "";
  for (unsigned char *q = a.fence_begin; q < p && !*text; ++q)
    if (*q != fence)
      std::snprintf(text, sizeof text, "%td bytes before an allocation of %zu bytes were written", p - q, a.bytes);
  for (unsigned char *q = p + a.bytes; q < a.fence_end && !*text; ++q)
    if (*q != fence)
      std::snprintf(text, sizeof text, "byte %td of an allocation of %zu bytes was written", q - p, a.bytes);
  if (*text && a.reported) return "";
  if (*text) a.reported = true;
  return text;
}

}  // namespace

void poison(void *p, size_t bytes) {
  unsigned char *q = static_cast<unsigned char *>(p);
  if (!bytes) return;
  q[0] = 0xcd;
  if (bytes > 1) q[1] = 0xff;
  for (size_t done = 2; done < bytes;) {
    const size_t n = done < bytes - done ? done : bytes - done;
    std::memcpy(q + done, q, n);
    done += n;
  }
}

size_t memory_total() {
  static const size_t total = [] {
    const char *mib = std::getenv("CRISPSEG_EMULATION_MIB");
    return static_cast<size_t>(mib && *mib ? std::strtoull(mib, nullptr, 10) : 4096) << 20;
  }();
  return total;
}
size_t memory_used() { return used; }
uint64_t allocations_version() { return version; }
void each_allocation(void (*visit)(uintptr_t begin, size_t bytes)) {
  for (const auto *all : {&device, &host})
    for (const auto &entry : *all) visit(entry.first, entry.second.bytes);
}
size_t live_allocations() { return device.size(); }

void *device_alloc(size_t bytes) {
  if (bytes > memory_total() || used + bytes > memory_total()) return nullptr;
  const size_t body = round_up(round_up(bytes, alignment) + front, page);
  void *base = mmap(nullptr, body + 2 * moat, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  unsigned char *begin = static_cast<unsigned char *>(base) + moat, *end = begin + body;
  if (mprotect(begin, body, PROT_READ | PROT_WRITE) != 0) {
    munmap(base, body + 2 * moat);
    return nullptr;
  }
  unsigned char *p = end - round_up(bytes, alignment);
  std::memset(p - front, fence, front);
  poison(p, bytes);
  std::memset(p + bytes, fence, static_cast<size_t>(end - (p + bytes)));
  device[reinterpret_cast<uintptr_t>(p)] = {
      static_cast<unsigned char *>(base), body + 2 * moat, bytes, p - front, end, false};
  used += bytes;
  ++version;
  return p;
}

int device_free(void *p, std::string *text) {
  if (!p) return 0;
  auto it = device.find(reinterpret_cast<uintptr_t>(p));
  if (it == device.end()) return 1;  // CUDA_ERROR_INVALID_VALUE
  *text = damage(it->first, it->second);
  used -= it->second.bytes;
  munmap(it->second.base, it->second.mapped);
  device.erase(it);
  ++version;
  return 0;
}

bool is_device(const void *p, size_t bytes) { return inside(device, p, bytes); }

void *host_alloc(size_t bytes) {
  void *p = nullptr;
  if (posix_memalign(&p, page, round_up(bytes, page)) != 0) return nullptr;
  poison(p, bytes);
  host[reinterpret_cast<uintptr_t>(p)] = {static_cast<unsigned char *>(p), 0, bytes, nullptr, nullptr, false};
  ++version;
  return p;
}

int host_free(void *p) {
  auto it = host.find(reinterpret_cast<uintptr_t>(p));
  if (it == host.end()) return 1;
  std::free(p);
  host.erase(it);
  ++version;
  return 0;
}

bool is_pinned(const void *p, size_t bytes) { return inside(host, p, bytes); }

std::string check_guards() {
  for (auto &entry : device) {
    const std::string text = damage(entry.first, entry.second);
    if (!text.empty()) return text;
  }
  return "";
}

std::string describe_address(const void *p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  const Allocation *nearest = nullptr;
  uintptr_t start = 0;
  uintptr_t distance = 1 << 20;
  for (const auto &entry : device) {
    const uintptr_t end = entry.first + entry.second.bytes;
    const uintptr_t away = address < entry.first ? entry.first - address : address >= end ? address - end : 0;
    if (away < distance) {
      distance = away;
      nearest = &entry.second;
      start = entry.first;
    }
  }
  if (!nearest) return "far from any allocation";
  char text[160];
  if (address < start)
    std::snprintf(text, sizeof text, "%zu bytes before an allocation of %zu bytes", start - address, nearest->bytes);
  else std::snprintf(text, sizeof text, "byte %zu of an allocation of %zu bytes", address - start, nearest->bytes);
  return text;
}

}  // namespace cs_emu
