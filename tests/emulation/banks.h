// Counts what the accesses of whole warps to shared memory cost: a wavefront serves each of the 32 banks once, so that
// 32 lanes of 4 bytes, 16 of 8 or 8 of 16 take one wavefront where no two of their words share a bank. The lanes of a
// warp are taken to make the n-th access of a kind together, which holds where the code around it does not diverge.
#pragma once
#include <algorithm>
#include <cstdint>
#include <deque>

#include "runtime.h"

namespace cs_emu {

enum class Access { copy, matrix, store, load, count };  // cp.async, ldmatrix, plain stores and loads

struct AccessTotals {
  unsigned long long requests, wavefronts, fewest;  // of shared memory
  unsigned long long sectors, fewest_sectors;       // 32-byte pieces of global memory that a copy reads
};
struct AccessCounts {
  int on;
  AccessTotals of[static_cast<int>(Access::count)];
};
inline AccessCounts access_counts;

struct Request {
  int lanes;
  uintptr_t shared[32], global[32];
};

// Wavefronts of one request of 32 lanes.
inline unsigned wavefronts(const uintptr_t *addresses, unsigned bytes) {
  unsigned total = 0;
  const unsigned phase = 128 / bytes;
  for (unsigned first = 0; first < 32; first += phase) {
    uintptr_t words[32];
    unsigned count = 0, in_bank[32] = {}, most = 0;
    for (unsigned i = first; i < first + phase; ++i)
      for (unsigned b = 0; b < bytes; b += 4) words[count++] = (addresses[i] + b) / 4;
    std::sort(words, words + count);
    count = static_cast<unsigned>(std::unique(words, words + count) - words);  // the same word is read once
    for (unsigned i = 0; i < count; ++i) most = std::max(most, ++in_bank[words[i] % 32]);
    total += most;
  }
  return total;
}

inline unsigned sectors(const uintptr_t *addresses, unsigned bytes, unsigned *fewest) {
  uintptr_t found[32];
  unsigned count = 0;
  for (int i = 0; i < 32; ++i)
    if (addresses[i]) found[count++] = addresses[i] / 32;
  *fewest = (count * bytes + 31) / 32;
  std::sort(found, found + count);
  return static_cast<unsigned>(std::unique(found, found + count) - found);
}

// One lane's part of an access. `global`: what a copy reads, null where it reads nothing.
inline void count_access(unsigned lane, unsigned warp, unsigned long long epoch, Access kind, const void *shared,
                         unsigned bytes, const void *global) {
  struct Queue {
    unsigned long long epoch, done, next[32];
    std::deque<Request> open;
  };
  static Queue queues[32][static_cast<int>(Access::count)];
  Queue &q = queues[warp % 32][static_cast<int>(kind)];
  if (q.epoch != epoch) q = Queue{epoch, 0, {}, {}};
  const unsigned long long index = q.next[lane]++ - q.done;
  if (index >= q.open.size()) q.open.push_back(Request{});
  Request &r = q.open[static_cast<size_t>(index)];
  r.shared[lane] = reinterpret_cast<uintptr_t>(shared);
  r.global[lane] = reinterpret_cast<uintptr_t>(global);
  if (++r.lanes < 32) return;
  AccessTotals &t = access_counts.of[static_cast<int>(kind)];
  unsigned fewest = 0;
  ++t.requests;
  t.wavefronts += wavefronts(r.shared, bytes);
  t.fewest += bytes / 4;
  t.sectors += sectors(r.global, bytes, &fewest);
  t.fewest_sectors += fewest;
  q.open.pop_front();  // lanes finish their accesses in order, so that the first is done first
  ++q.done;
}

}  // namespace cs_emu
