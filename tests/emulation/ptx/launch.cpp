// Runs a launch: blocks one after the other, the warps of a block in turns from barrier to barrier.
#include "launch.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>

#include "../fault.h"
#include "../guards.h"
#include "profile.h"
#include "warps.h"

namespace cs_emu::ptx {
namespace {

constexpr int launch_failed = 719, illegal_address = 700;

struct Run {
  const Launch &launch;
  const Program &program;
  Block &block;
  Warps &warps;
  Order order;
  uint64_t seed;
  unsigned index[3] = {0, 0, 0};
  Failure failure{0, ""};

  std::string here() const {
    char where[100];
    std::snprintf(where, sizeof where, ", block (%u,%u,%u): ", index[0], index[1], index[2]);
    return "kernel " + launch.function->name + where;
  }
  void fail(int status, const std::string &text) {
    if (failure.status) return;
    failure.status = status;
    failure.text = here() + text;
    if (warps.line())
      failure.text +=
          " (line " + std::to_string(warps.line()) + " of the PTX: " + launch.module->source(warps.line()) + ")";
  }
  void grid();
  void one_block();
  void barriers(std::vector<int> *waiting, std::deque<int> *ready, int threads);
};
Run *current;

bool checks_wanted() {
  const char *text = std::getenv("CRISPSEG_EMULATION_CHECKS");
  return !text || *text != '0';
}

// Warps that wait at barriers go on where enough threads have come.
void Run::barriers(std::vector<int> *waiting, std::deque<int> *ready, int threads) {
  for (size_t k = 0; k < waiting->size(); ++k) {
    const Instruction &i = warps.barrier((*waiting)[k]);
    const int first = i.offset ? 1 : 0, told = i.inputs - (i.offset ? 1 : 0);
    auto number = [&](int warp, int operand) {
      const Instruction &its = warps.barrier(warp);
      return warps.input(warp, its.op[(its.offset ? 1 : 0) + operand])[__builtin_ctz(warps.alive(warp))];
    };
    const uint64_t id = number((*waiting)[k], 0);
    const int wanted = told > 1 ? static_cast<int>(warps.input((*waiting)[k], i.op[first + 1])[0]) : threads;
    int come = 0, yes = 0;
    for (int w : *waiting) {
      if (number(w, 0) != id) continue;
      const uint32_t alive = warps.alive(w);
      come += told > 1 ? 32 : __builtin_popcount(alive);
      const Instruction &its = warps.barrier(w);
      if (!its.offset) continue;
      const uint64_t *p = warps.input(w, its.op[its.inputs]);
      for (uint32_t left = alive; left; left &= left - 1) yes += p[__builtin_ctz(left)] & 1u;
    }
    if (come < wanted) continue;
    std::vector<int> rest;
    for (int w : *waiting) {
      if (number(w, 0) != id) {
        rest.push_back(w);
        continue;
      }
      const int64_t mode = warps.barrier(w).offset;
      warps.release(w, static_cast<uint64_t>(mode == 1 ? yes : mode == 2 ? yes == come : yes != 0));
      ready->push_back(w);
    }
    *waiting = rest;
    if (block.checks) block.shadow.sync_block();
    return;
  }
}

void Run::one_block() {
  poison(block.shared_data, block.shared_size);
  const int threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  if (block.checks) block.shadow.begin_block(block.shared_size, warps.count());
  Async async(threads, block);
  block.async = &async;
  async.watch_stores(program.products);
  warps.begin_block(index);
  std::deque<int> ready;
  std::vector<int> waiting;
  const Permutation permuted(order, seed, static_cast<uint64_t>(warps.count()));
  for (int w = 0; w < warps.count(); ++w) ready.push_back(static_cast<int>(permuted(static_cast<uint64_t>(w))));
  int idle = 0, gone = 0;
  while (!ready.empty()) {
    const int w = ready.front();
    ready.pop_front();
    const Warps::Outcome outcome = warps.run(w);
    if (outcome == Warps::Outcome::yield) {
      ready.push_back(w);
      if (++idle > 20000 + 100 * threads)
        throw Wrong{launch_failed,
                    block.name(w * 32) + " waits for another block, which does not run before this one ends (" +
                        (order == Order::forward ? "forward" : "another than the forward") + " order of blocks)"};
      continue;
    }
    idle = 0;
    if (outcome == Warps::Outcome::barrier) waiting.push_back(w);
    gone += outcome == Warps::Outcome::done ? __builtin_popcount(warps.left(w)) : 0;
    for (int x : waiting) {
      if (!gone && !warps.left(x)) continue;
      throw Wrong{launch_failed,
                  block.name(x * 32 + __builtin_ctz(warps.alive(x))) + " waits at the barrier of line " +
                      std::to_string(warps.barrier(x).line) +
                      " of the PTX, other threads have left the kernel: every thread of the block must reach it"};
    }
    if (!waiting.empty()) barriers(&waiting, &ready, threads);
  }
  if (!waiting.empty())
    throw Wrong{launch_failed, block.name(waiting[0] * 32) + " waits at the barrier of line " +
                                   std::to_string(warps.barrier(waiting[0]).line) + " of the PTX: not all come to it"};
  async.finish();
}

void Run::grid() {
  const uint64_t n = static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
  const Permutation permuted(order, seed, n);
  try {
    for (uint64_t k = 0; k < n; ++k) {
      const uint64_t b = permuted(k);
      index[0] = static_cast<unsigned>(b % launch.grid.x);
      index[1] = static_cast<unsigned>(b / launch.grid.x % launch.grid.y);
      index[2] = static_cast<unsigned>(b / launch.grid.x / launch.grid.y);
      one_block();
    }
  } catch (const Wrong &wrong) {
    fail(wrong.status, wrong.text);
  }
}

// Which addresses are memory of the device: allocations, and the variables of the module.
void set_ranges(Block &block, const Module &module) {
  static uint64_t version = ~0ull;
  static std::vector<Range> known;
  static const Module *of;
  if (version != allocations_version() || of != &module) {
    version = allocations_version();
    of = &module;
    known.clear();
    each_allocation([](uintptr_t begin, size_t bytes) { known.push_back({begin, begin + bytes}); });
    for (const auto &r : module.ranges) known.push_back({r.first, r.first + r.second});
    known.push_back({0, 0});
    std::sort(known.begin(), known.end(), [](const Range &a, const Range &b) { return a.begin < b.begin; });
    block.ranges = known;
  }
}

}  // namespace

const Program &program(Module &module, const Function &function) {
  std::shared_ptr<Program> &kept = module.programs[function.name];
  if (!kept) kept = decode(module, function);
  return *kept;
}

Sizes sizes(Module &module, const Function &function) {
  const Program &p = program(module, function);
  return {static_cast<int>(p.static_shared), static_cast<int>(p.local_bytes)};
}

Failure execute(const Launch &launch) {
  static Block block;
  static std::vector<uint8_t> shared;
  const Program *program = nullptr;
  try {
    program = &ptx::program(*launch.module, *launch.function);
  } catch (const Refused &refused) {
    return {launch_failed, "kernel " + launch.function->name + ": " + refused.text};
  }
  block.program = program;
  const unsigned dim[3] = {launch.block.x, launch.block.y, launch.block.z};
  std::copy(dim, dim + 3, block.block_dim);
  const size_t threads = static_cast<size_t>(dim[0]) * dim[1] * dim[2], whole = (threads + 31) / 32 * 32;
  const size_t bytes =
      (launch.dynamic_shared ? program->dynamic_shared : program->static_shared) + launch.dynamic_shared;
  if (bytes > launch.shared_limit)
    return {launch_failed, "kernel " + launch.function->name + ": " + std::to_string(bytes) +
                               " bytes of shared memory, a block may have " + std::to_string(launch.shared_limit)};
  shared.resize(bytes + 2048);
  block.shared_data =
      reinterpret_cast<uint8_t *>((reinterpret_cast<uintptr_t>(shared.data()) + 1023) & ~uintptr_t(1023));
  block.shared_size = static_cast<uint32_t>(bytes);
  block.local_bytes = program->local_bytes;
  block.call_bytes = program->call_bytes;
  block.local.resize(whole * block.local_bytes + 1);
  block.calls.resize(whole * block.call_bytes + 1);
  block.checks = checks_wanted();
  block.parameters.assign(program->parameter_bytes, 0);
  for (size_t k = 0; k < launch.function->parameters.size(); ++k) {
    const Variable &v = launch.function->parameters[k];
    std::memcpy(block.parameters.data() + v.address, launch.arguments[k], v.bytes);
  }
  set_ranges(block, *launch.module);
  count_launch(*program);
  Warps warps(*program, block);
  warps.begin_launch(static_cast<unsigned>(threads));
  const unsigned grid[3] = {launch.grid.x, launch.grid.y, launch.grid.z};
  for (int k = 0; k < 3; ++k) warps.set_special(static_cast<Special>(nctaid_x + k), grid[k]);
  warps.set_special(dynamic_smem_size, launch.dynamic_shared);
  warps.set_special(total_smem_size, bytes);
  Run run{launch, *program, block, warps, Order::forward, 0};
  get_order(&run.order, &run.seed);
  current = &run;
  const Fault fault = run_guarded([] { current->grid(); });
  if (fault.signal) {
    char text[100];
    std::snprintf(text, sizeof text, "signal %d at address %p, which is ", fault.signal, fault.address);
    run.fail(illegal_address, text + describe_address(fault.address));
  }
  current = nullptr;
  return run.failure;
}

}  // namespace cs_emu::ptx
