// cp.async and fence.proxy.async.
//
// PTX ISA, "Data movement and conversion instructions: cp.async", "cp.async.commit_group", "cp.async.wait_group":
// nothing orders a copy before the wait of its own thread. So from the issue on the destination holds a poison, nobody
// may touch it, and source and destination are read and written at the wait.
#include "work.h"

namespace cs_emu::ptx {

Async::Async(int threads, Memory &memory) : work(new Work(threads, memory)) {}
Async::~Async() = default;

void Async::finish() { finish_products(*work); }

void Async::reads_shared(int thread, uint32_t address, uint32_t bytes) {
  for (uint32_t word = address / 4; word <= (address + bytes - 1) / 4 && word < work->copying.size(); word++)
    if (work->copying[word])
      throw Wrong{FAILED, "thread " + std::to_string(thread) + " uses byte " + std::to_string(word * 4) +
                              " of shared memory, which a copy under way writes, a cp.async of thread " +
                              std::to_string(work->copying[word] - 1)};
}

void Async::wrote_shared(int thread, uint32_t address, uint32_t bytes) {
  work->begin();
  if (copies) reads_shared(thread, address, bytes);
  work->check_reading(thread, address, bytes);
  if (stores) work->stored(thread, address, bytes);
}

namespace {

constexpr uint32_t POISON = 0xfff1dea5;  // not a number as float and as halves

// Source bytes; a count that is no power of two byte by byte.
void read_source(Memory &memory, int thread, uint64_t from, uint32_t count, uint8_t *to) {
  const uint32_t piece = count == 4 || count == 8 || count == 16 ? count : 1;
  for (uint32_t done = 0; done < count; done += piece)
    std::memcpy(to + done, memory.read_global(thread, from + done, piece), piece);
}

// in: destination, source, size, and the bytes to copy where they are given (the rest is zeros).
template <bool L1>
void copy(Call &call) {
  Async::Work &work = *call.async.work;
  work.begin();
  for (int lane = 0; lane < 32; lane++) {
    if (!(call.active >> lane & 1)) continue;
    const int thread = call.warp * 32 + lane;
    Copy one{uint32_t((*call.in[0])[lane]), uint32_t((*call.in[2])[lane]), 0, (*call.in[1])[lane]};
    one.count = call.ins > 3 ? uint32_t((*call.in[3])[lane]) : one.bytes;
    const bool size = one.bytes == 16 || (L1 && (one.bytes == 4 || one.bytes == 8));
    if (!size) throw Wrong{FAILED, "cp.async of " + std::to_string(one.bytes) + " bytes"};
    if (one.count > one.bytes)
      throw Wrong{FAILED,
                  "cp.async copies " + std::to_string(one.count) + " of " + std::to_string(one.bytes) + " bytes"};
    if (one.to % one.bytes || one.from % one.bytes)
      throw Wrong{MISALIGNED, "cp.async of " + std::to_string(one.bytes) + " bytes from " + std::to_string(one.from) +
                                  " to " + std::to_string(one.to)};
    if (call.async.copies_under_way()) call.async.reads_shared(thread, one.to, one.bytes);
    work.check_reading(thread, one.to, one.bytes);
    uint8_t bytes[16];
    read_source(call.memory, thread, one.from, one.count, bytes);  // an address that is none shows here
    for (int i = 0; i < 16; i += 4) std::memcpy(bytes + i, &POISON, 4);
    call.memory.write_shared(thread, one.to, bytes, one.bytes);
    for (uint32_t word = one.to / 4; word < (one.to + one.bytes) / 4 && word < work.copying.size(); word++)
      work.copying[word] = uint16_t(thread + 1);
    work.thread[thread].copies.push_back(one);
    work.thread[thread].open++;
    call.async.copies++;
  }
}

void commit(ThreadWork &thread) {
  thread.groups.push_back(thread.open);
  thread.open = 0;
}

void land(Call &call, int number, size_t groups_left) {
  Async::Work &work = *call.async.work;
  ThreadWork &thread = work.thread[number];
  size_t landing = 0;
  for (; thread.groups.size() > groups_left; thread.groups.pop_front()) landing += thread.groups.front();
  for (size_t i = 0; i < landing; i++) {
    const Copy &one = thread.copies[i];
    uint8_t bytes[16] = {};
    read_source(call.memory, number, one.from, one.count, bytes);
    call.memory.write_shared(number, one.to, bytes, one.bytes);
    for (uint32_t word = one.to / 4; word < (one.to + one.bytes) / 4 && word < work.copying.size(); word++)
      work.copying[word] = 0;
    call.async.copies--;
    if (call.async.watched()) work.stored(number, one.to, one.bytes);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + landing);
}

void commit_group(Call &call) {
  for (int lane = 0; lane < 32; lane++)
    if (call.active >> lane & 1) commit(call.async.work->thread[call.warp * 32 + lane]);
}

void wait_group(Call &call) {
  for (int lane = 0; lane < 32; lane++)
    if (call.active >> lane & 1) land(call, call.warp * 32 + lane, size_t(uint32_t((*call.in[0])[lane])));
}

void wait_all(Call &call) {
  commit_group(call);
  for (int lane = 0; lane < 32; lane++)
    if (call.active >> lane & 1) land(call, call.warp * 32 + lane, 0);
}

// PTX ISA, "Parallel synchronization and communication instructions: membar / fence", "Async proxy": what this thread
// wrote through the generic proxy, products may see from here on.
void fence_proxy(Call &call) {
  Async::Work &work = *call.async.work;
  for (int lane = 0; lane < 32; lane++) {
    if (!(call.active >> lane & 1)) continue;
    ThreadWork &thread = work.thread[call.warp * 32 + lane];
    for (uint32_t word : thread.unfenced) work.unfenced[word]--;
    thread.unfenced.clear();
  }
}

}  // namespace

void add_copies(Instructions &table) {
  const std::string spaces[] = {".shared.global", ".shared::cta.global"},
                    hints[] = {"", ".L2::64B", ".L2::128B", ".L2::256B"};
  for (const std::string &space : spaces)
    for (const std::string &hint : hints) {
      table["cp.async.ca" + space + hint] = {"", 0, 4, false, copy<true>, 1};
      table["cp.async.cg" + space + hint] = {"", 0, 4, false, copy<false>, 1};
    }
  table["cp.async.commit_group"] = {"", 0, 0, false, commit_group};
  table["cp.async.wait_group"] = {"", 0, 1, false, wait_group};
  table["cp.async.wait_all"] = {"", 0, 0, false, wait_all};
  table["fence.proxy.async.shared::cta"] = {"", 0, 0, false, fence_proxy};
  table["fence.proxy.async"] = {"", 0, 0, false, fence_proxy};
}

}  // namespace cs_emu::ptx
