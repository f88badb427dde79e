// What is under way in a block: copies by thread, products by warp, and who uses which bytes of shared memory.
#pragma once
#include <deque>
#include <string>
#include <vector>

#include "async.h"
#include "fragments.h"

namespace cs_emu::ptx {

struct Copy {
  uint32_t to, bytes, count;  // count: bytes from the source, zeros after them
  uint64_t from;
};

struct ThreadWork {
  std::vector<Copy> copies;        // that have not landed, in the order of the program
  std::deque<size_t> groups;       // committed: how many of the copies belong to it
  size_t open = 0;                 // copies that belong to no group yet
  std::vector<uint32_t> unfenced;  // words it wrote since its last fence.proxy.async
};

// The registers of an accumulator of a warp. While a product is under way they hold a poison.
struct Accumulator {
  std::vector<Register *> registers;
  std::vector<uint32_t> values;  // 32 lanes a register
  int pending = 0;               // products under way
  int fence = 0;                 // number of the warp's last wgmma.fence when the results were stored
};

struct Read {
  uint32_t address;
  uint8_t bytes[16];
};

struct Product {
  size_t accumulator;
  std::vector<Read> reads;
};

struct WarpWork {
  std::vector<Accumulator> accumulators;
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
  int fences = 0, fence_at_wait = 0;
  size_t steps = 0;  // wgmma instructions executed
};

// One wgmma instruction of a warp group: its warps must all execute the same ones.
struct Step {
  const char *name;
  uint64_t a, b, scale;
  bool operator==(const Step &other) const {
    return name == other.name && a == other.a && b == other.b && scale == other.scale;
  }
};

struct GroupWork {
  std::deque<Step> steps;
  size_t first = 0;  // number of steps.front()
};

struct Async::Work {
  Work(int threads, Memory &memory) : memory(memory), threads(threads), thread(threads), warp((threads + 31) / 32) {
    group.resize((threads + 127) / 128);
  }
  Memory &memory;
  int threads;
  std::vector<ThreadWork> thread;
  std::vector<WarpWork> warp;
  std::vector<GroupWork> group;
  // Of shared memory, made when they are first needed.
  std::vector<uint16_t> copying;   // each word: 1 + the thread whose copy to it has not landed
  std::vector<uint32_t> unfenced;  // each word: stores through the generic proxy without a fence.proxy.async after them
  std::vector<uint16_t> reading;   // each 16 bytes: products under way that read them

  void begin() {
    if (!copying.empty()) return;
    const size_t words = memory.shared_bytes() / 16 * 4 + 4;
    copying.resize(words);
    unfenced.resize(words);
    reading.resize(words / 4);
  }
  // Remembers a store of a thread for its next fence.
  void stored(int number, uint32_t address, uint32_t bytes) {
    for (uint32_t word = address / 4; word <= (address + bytes - 1) / 4 && word < unfenced.size(); word++) {
      unfenced[word]++;
      thread[number].unfenced.push_back(word);
    }
  }
  void check_reading(int number, uint32_t address, uint32_t bytes) const {
    for (uint32_t piece = address / 16; piece <= (address + bytes - 1) / 16 && piece < reading.size(); piece++)
      if (reading[piece])
        throw Wrong{FAILED, "shared memory of a product under way was changed: byte " + std::to_string(address) +
                                ", by thread " + std::to_string(number)};
  }
};

void finish_products(Async::Work &work);  // wgmma.cpp

}  // namespace cs_emu::ptx
