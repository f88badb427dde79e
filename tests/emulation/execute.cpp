// The scheduler of emulated kernels: fibers, barriers, warp collectives, shared memory, and what goes wrong with them.
#include "execute.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "fault.h"
#include "guards.h"
#include "stacks.h"

namespace cs_emu {
namespace {

constexpr int illegal_address = 700, launch_failed = 719;

enum class State : unsigned char { ready, running, barrier, warp, spinning, done };
const char *const state_names[] = {
    "ready", "running", "at a barrier", "at a warp collective", "waiting for another block", "done"};

struct Thread {
  State state;
  int stack;  // -1: not started
  int result;
  Index id;
  const char *file;
  int line;
};

struct Group {  // lanes of a warp that meet in a collective
  unsigned mask, arrived;
  Combine combine;
  void *slots[32];
};

struct Warp {
  unsigned alive;
  std::vector<Group> groups;
};

struct Touched {
  unsigned char *before;
  size_t size;
};

const Launch *launch;
std::vector<Thread> threads;
std::vector<Warp> warps;
std::vector<Touched> touched;
std::vector<int> permutation;
std::vector<unsigned char> dynamic_memory;
unsigned char *dynamic_base;
void *scheduler_pointer;
int current, arrived, positive, finished, idle;
const char *barrier_file;
int barrier_line;
Index block_index;
unsigned long long epoch;
Failure failure;
Order order = Order::forward;
uint64_t seed;

Runtime table;

void fiber_entry();
Stacks stacks(fiber_entry);

struct {  // the threads that can run, each at most once
  std::vector<int> ring;
  size_t head = 0, count = 0;
  void push(int index) {
    size_t at = head + count++;
    if (at >= ring.size()) at -= ring.size();
    ring[at] = index;
  }
  int pop() {
    const int index = ring[head];
    if (++head == ring.size()) head = 0;
    --count;
    return index;
  }
} ready;

__attribute__((format(printf, 2, 3))) void fail(int status, const char *format, ...) {
  if (failure.status) return;
  char text[600], where[200];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  std::snprintf(where, sizeof where, "kernel %s, block (%u,%u,%u): ", launch->kernel->name, block_index.x,
                block_index.y, block_index.z);
  failure = {status, std::string(where) + text};
}

std::string name(const Thread &t) {
  char text[300];
  std::snprintf(text, sizeof text, "thread (%u,%u,%u)", t.id.x, t.id.y, t.id.z);
  return text;
}

// Back to the scheduler; returns when the thread goes on.
void leave(State state) {
  Thread &t = threads[current];
  t.state = state;
  const int self = current;
  cs_emu_switch(&stacks.pointer(threads[self].stack), scheduler_pointer);
}

[[noreturn]] void abandon() {  // the launch has failed: this fiber never runs again
  leave(State::done);
  std::abort();
}

void wake(int index) {
  threads[index].state = State::ready;
  ready.push(index);
}

void release_barrier() {
  const int total = positive;
  arrived = positive = 0;
  for (int index : permutation) {
    Thread &t = threads[index];
    t.result = total;
    if (t.state == State::barrier) wake(index);
  }
}

int barrier(int predicate, const char *file, int line) {
  Thread &t = threads[current];
  t.file = file;
  t.line = line;
  if (finished > 0) {
    fail(launch_failed,
         "%s waits at the barrier %s:%d, %d threads have left the kernel: every thread of the block must reach it",
         name(t).c_str(), file, line, finished);
    abandon();
  }
  if (arrived == 0) {
    barrier_file = file;
    barrier_line = line;
  } else if (line != barrier_line || std::strcmp(file, barrier_file)) {
    fail(launch_failed, "%s waits at the barrier %s:%d, others at %s:%d: barriers must not diverge", name(t).c_str(),
         file, line, barrier_file, barrier_line);
    abandon();
  }
  positive += predicate != 0;
  if (++arrived == static_cast<int>(threads.size())) {
    release_barrier();
    return threads[current].result;
  }
  leave(State::barrier);
  return threads[current].result;
}

void complete(Group &group, int warp_index) {
  group.combine(group.slots, group.arrived);
  const unsigned lanes = group.arrived;
  group.mask = group.arrived = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (lanes >> lane & 1u && threads[warp_index * 32 + lane].state == State::warp) wake(warp_index * 32 + lane);
}

void warp_collective(unsigned mask, void *slot, Combine combine, const char *file, int line) {
  Thread &t = threads[current];
  t.file = file;
  t.line = line;
  const int index = current / 32;
  const unsigned lane = current % 32;
  Warp &warp = warps[index];
  if (!(mask >> lane & 1u)) {
    fail(launch_failed, "%s calls a warp collective at %s:%d with mask %08x, which lacks its own lane %u",
         name(t).c_str(), file, line, mask, lane);
    abandon();
  }
  Group *group = nullptr;
  for (Group &g : warp.groups)
    if (g.arrived && g.mask == mask) group = &g;
  if (!group) {
    for (Group &g : warp.groups)
      if (!g.arrived) group = &g;
    if (!group) {
      warp.groups.emplace_back();
      group = &warp.groups.back();
    }
    *group = Group{mask, 0, combine, {}};
  } else if (group->combine != combine) {
    fail(launch_failed, "%s: lanes of one warp (mask %08x) are in different collectives, this one at %s:%d",
         name(t).c_str(), mask, file, line);
    abandon();
  }
  group->arrived |= 1u << lane;
  group->slots[lane] = slot;
  if (group->arrived == (mask & warp.alive)) {
    complete(*group, index);
    return;
  }
  leave(State::warp);
}

void spin() { leave(State::spinning); }

constexpr unsigned char shared_fence = 0xe7;

void touch_shared(unsigned char *before, size_t size) {
  std::memset(before, shared_fence, shared_guard);
  poison(before + shared_guard, size);
  std::memset(before + shared_guard + size, shared_fence, shared_guard);
  touched.push_back({before, size});
}

void *dynamic_shared() { return dynamic_base; }

void trap(const char *text) {
  fail(launch_failed, "%s: %s", name(threads[current]).c_str(), text);
  abandon();
}

void fiber_entry() {
  for (;;) {
    launch->kernel->invoke(launch->arguments);
    leave(State::done);
  }
}

void finish(int index) {
  Thread &t = threads[index];
  stacks.give(t.stack);
  ++finished;
  if (arrived > 0) {
    fail(launch_failed,
         "%s has left the kernel, %d threads wait at the barrier %s:%d: every thread of the block must reach it",
         name(t).c_str(), arrived, barrier_file, barrier_line);
    return;
  }
  Warp &warp = warps[index / 32];
  warp.alive &= ~(1u << (index % 32));
  for (Group &g : warp.groups)
    if (g.arrived && g.arrived == (g.mask & warp.alive)) complete(g, index / 32);
}

void report_deadlock() {
  std::string text = "no thread can go on:";
  int shown = 0;
  for (const Thread &t : threads) {
    if (t.state == State::done || shown == 3) continue;
    char row[400];
    std::snprintf(row, sizeof row, " %s is %s (%s:%d);", name(t).c_str(), state_names[static_cast<int>(t.state)],
                  t.file, t.line);
    text += row;
    ++shown;
  }
  fail(launch_failed, "%s a barrier or collective is not reached by all", text.c_str());
}

void run_block() {
  const Image *image = launch->image;
  *image->block = block_index;
  ++epoch;
  touched.clear();
  if (launch->dynamic_shared) poison(dynamic_base, launch->dynamic_shared);
  std::memset(dynamic_base + launch->dynamic_shared, shared_fence, shared_guard);
  arrived = positive = finished = idle = 0;
  ready.ring = permutation;
  ready.head = 0;
  ready.count = permutation.size();
  const int n = static_cast<int>(threads.size());
  for (int i = 0; i < n; ++i) {
    Thread &t = threads[i];
    t.state = State::ready;
    t.stack = -1;
    t.file = "";
    t.line = 0;
  }
  for (size_t w = 0; w < warps.size(); ++w) {
    const int lanes = n - static_cast<int>(w) * 32;
    warps[w].alive = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
    for (Group &g : warps[w].groups) g.arrived = 0;
  }
  while (finished < n) {
    if (ready.count == 0) {
      report_deadlock();
      return;
    }
    current = ready.pop();
    Thread &t = threads[current];
    if (t.stack < 0) t.stack = stacks.take();
    t.state = State::running;
    *image->thread = t.id;
    cs_emu_switch(&scheduler_pointer, stacks.pointer(t.stack));
    if (failure.status) return;
    if (t.state == State::spinning) {
      ready.push(current);
      if (++idle > 20000 + 100 * n) {
        fail(launch_failed, "%s waits for another block, which does not run before this one ends (%s order of blocks)",
             name(t).c_str(), order == Order::forward ? "forward" : "another than the forward");
        return;
      }
      continue;
    }
    idle = 0;
    if (t.state == State::done) finish(current);
    if (failure.status) return;
  }
}

bool intact(const unsigned char *p, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i)
    if (p[i] != shared_fence) return false;
  return true;
}

void check_shared() {
  size_t total = 0;
  for (const Touched &s : touched) {
    total += s.size;
    if (!intact(s.before, shared_guard) || !intact(s.before + shared_guard + s.size, shared_guard))
      fail(illegal_address, "wrote past a static shared variable of %zu bytes", s.size);
  }
  if (!intact(dynamic_base + launch->dynamic_shared, shared_guard))
    fail(illegal_address, "wrote past the dynamic shared memory of %zu bytes", launch->dynamic_shared);
  if (total > 48 * 1024) fail(launch_failed, "%zu bytes of static shared memory, at most 49152 are possible", total);
  if (total + launch->dynamic_shared > launch->shared_limit)
    fail(launch_failed, "%zu static and %zu dynamic bytes of shared memory, a block may have %zu", total,
         launch->dynamic_shared, launch->shared_limit);
}

void run_grid() {
  const uint64_t n = static_cast<uint64_t>(launch->grid.x) * launch->grid.y * launch->grid.z;
  const Permutation permuted(order, seed, n);
  for (uint64_t i = 0; i < n; ++i) {
    const uint64_t b = permuted(i);
    block_index = {static_cast<unsigned>(b % launch->grid.x),
                   static_cast<unsigned>(b / launch->grid.x % launch->grid.y),
                   static_cast<unsigned>(b / launch->grid.x / launch->grid.y)};
    run_block();
    if (failure.status) return;
    check_shared();
    if (failure.status) return;
  }
}

}  // namespace

void set_order(Order new_order, uint64_t new_seed) {
  order = new_order;
  seed = new_seed;
}

void get_order(Order *the_order, uint64_t *the_seed) {
  *the_order = order;
  *the_seed = seed;
}

const Runtime *runtime_table() {
  table = {&epoch, barrier, warp_collective, spin, touch_shared, dynamic_shared, trap};
  return &table;
}

Failure execute(const Launch &what) {
  launch = &what;
  failure = {0, ""};
  const int n = static_cast<int>(what.block.x * what.block.y * what.block.z);
  threads.resize(static_cast<size_t>(n));
  warps.resize(static_cast<size_t>((n + 31) / 32));
  permutation.resize(static_cast<size_t>(n));
  const Permutation permuted(order, seed, static_cast<uint64_t>(n));
  for (int i = 0; i < n; ++i)
    permutation[static_cast<size_t>(i)] = static_cast<int>(permuted(static_cast<uint64_t>(i)));
  for (unsigned i = 0; i < threads.size(); ++i)
    threads[i].id = {i % what.block.x, i / what.block.x % what.block.y, i / what.block.x / what.block.y};
  if (dynamic_memory.size() < what.dynamic_shared + shared_guard + 256)
    dynamic_memory.resize(what.dynamic_shared + shared_guard + 256);
  dynamic_base =
      reinterpret_cast<unsigned char *>((reinterpret_cast<uintptr_t>(dynamic_memory.data()) + 127) & ~uintptr_t(127));
  *what.image->block_dim = what.block;
  *what.image->grid_dim = what.grid;

  // A fault inside a kernel ends the launch, not the process.
  const Fault fault = run_guarded(run_grid);
  if (fault.signal == SIGFPE)
    fail(launch_failed, "%s divides an integer by zero", name(threads[static_cast<size_t>(current)]).c_str());
  else if (fault.signal)
    fail(illegal_address, "%s reads or writes address %p, which is %s",
         name(threads[static_cast<size_t>(current)]).c_str(), fault.address, describe_address(fault.address).c_str());
  if (failure.status) stacks.reset();
  launch = nullptr;
  return failure;
}

}  // namespace cs_emu
