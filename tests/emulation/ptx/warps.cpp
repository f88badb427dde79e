// Runs a warp: the lanes with the lowest program counter together, until some wait or all have left.
#include "warps.h"

#include <climits>
#include <cstdio>

namespace cs_emu::ptx {
namespace {

std::vector<Register> &register_files() {
  static std::vector<Register> the;
  return the;
}

}  // namespace

Warps::Warps(const Program &program, Block &block)
    : program_(program), block_(block), code_(program.code.data()), registers_(register_files()) {}

void Warps::begin_launch(unsigned threads) {
  const unsigned n = (threads + 31) / 32;
  warps_.resize(n);
  const size_t wanted = static_cast<size_t>(n) * static_cast<size_t>(program_.registers) + 1;
  if (registers_.size() < wanted) registers_.resize(wanted);
  specials_.resize(static_cast<size_t>(n) * special_count);
  for (unsigned w = 0; w < n; ++w) {
    const unsigned lanes = threads - w * 32;
    warps_[w].all = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
    Register *s = &specials_[static_cast<size_t>(w) * special_count];
    const unsigned x = block_.block_dim[0], y = block_.block_dim[1];
    for (unsigned l = 0; l < 32; ++l) {
      const unsigned t = w * 32 + l;
      s[tid_x][l] = t % x;
      s[tid_y][l] = t / x % y;
      s[tid_z][l] = t / x / y;
      s[laneid][l] = l;
      s[warpid][l] = w;
      s[lanemask_eq][l] = 1u << l;
      s[lanemask_lt][l] = (1u << l) - 1;
      s[lanemask_le][l] = s[lanemask_lt][l] | 1u << l;
      s[lanemask_gt][l] = 0xffffffffu & ~s[lanemask_le][l];
      s[lanemask_ge][l] = 0xffffffffu & ~s[lanemask_lt][l];
    }
  }
  for (int k = 0; k < 3; ++k) set_special(static_cast<Special>(ntid_x + k), block_.block_dim[k]);
  set_special(nwarpid, n);
  set_special(zero, 0);
}

void Warps::set_special(Special which, uint64_t value) {
  for (size_t w = 0; w < warps_.size(); ++w) specials_[w * special_count + which].fill(value);
}

void Warps::begin_block(const unsigned block_index[3]) {
  for (int k = 0; k < 3; ++k) set_special(static_cast<Special>(ctaid_x + k), block_index[k]);
  for (Warp &w : warps_) {
    w.alive = w.all;
    w.waiting = w.parked = 0;
    w.follows = false;
    w.at = program_.entry;
    for (int l = 0; l < 32; ++l) {
      w.pc[l] = program_.entry;
      w.calls[l] = 0;
    }
  }
}

const uint64_t *Warps::input(int warp, Place p) const {
  const size_t at = static_cast<size_t>(p >> 2), w = static_cast<size_t>(warp);
  switch (p & 3) {
    case constants: return program_.constants[at].data();
    case registers: return registers_[w * static_cast<size_t>(program_.registers) + at].data();
    default: return specials_[w * special_count + at].data();
  }
}

uint32_t Warps::left(int warp) const {
  const Warp &w = warps_[static_cast<size_t>(warp)];
  return w.all & ~w.alive;
}

void Warps::release(int warp, uint64_t result) {
  Warp &w = warps_[static_cast<size_t>(warp)];
  const Instruction &i = code_[w.at];
  if (i.offset) {  // bar.red
    uint64_t *d = const_cast<uint64_t *>(input(warp, i.op[0]));
    for (uint32_t lanes = w.alive; lanes; lanes &= lanes - 1) d[__builtin_ctz(lanes)] = result;
  }
  set(w, w.alive, w.at + 1);
}

uint32_t Warps::complete(Warp &w, int pc, uint32_t lane) {
  const Instruction &i = code_[pc];
  uint32_t here = 0;
  for (uint32_t left = w.waiting; left; left &= left - 1) {
    const int l = __builtin_ctz(left);
    if (w.pc[l] == pc) here |= 1u << l;
  }
  if (i.flow != Flow::sync) return here == w.alive ? here : 0;
  Place mask = -1;
  for (Place p : i.op)
    if (p >= 0) mask = p;  // the last operand
  const uint64_t *members = machine_.in(mask);
  const uint32_t wanted = static_cast<uint32_t>(members[lane]);
  for (uint32_t left = here; left; left &= left - 1) {
    const uint32_t l = static_cast<uint32_t>(__builtin_ctz(left));
    if (!(members[l] >> l & 1u)) block_.wrong(719, l, "is not in the mask of lanes that it gives");
    if (static_cast<uint32_t>(members[l]) != wanted) here &= ~(1u << l);
  }
  return (here & wanted) == (wanted & w.alive) ? wanted & w.alive : 0;
}

Warps::Next Warps::pick(Warp &w, uint32_t *lanes, int *pc, bool *met) {
  for (;;) {
    uint32_t ready = w.alive & ~w.waiting & ~w.parked;
    *met = false;
    if (ready) {
      int lowest = INT_MAX;
      *lanes = 0;
      for (; ready; ready &= ready - 1) {
        const int l = __builtin_ctz(ready);
        if (w.pc[l] < lowest) {
          lowest = w.pc[l];
          *lanes = 0;
        }
        if (w.pc[l] == lowest) *lanes |= 1u << l;
      }
      *pc = lowest;
      return Next::run;
    }
    if (!w.alive) return Next::done;
    for (uint32_t left = w.waiting; left; left &= left - 1) {
      const uint32_t l = static_cast<uint32_t>(__builtin_ctz(left));
      const uint32_t set = complete(w, w.pc[l], l);
      if (!set) continue;
      w.waiting &= ~set;
      *lanes = set;
      *pc = w.pc[l];
      *met = true;
      return Next::run;
    }
    if (!w.parked) stuck(w);
    w.parked = 0;
    return Next::yield;
  }
}

void Warps::stuck(Warp &w) {
  std::string text = "warp " + std::to_string(block_.warp) + " cannot go on:";
  char part[200];
  uint32_t rest = w.waiting;
  for (int shown = 0; rest && shown < 4; ++shown) {
    const int pc = w.pc[__builtin_ctz(rest)];
    uint32_t here = 0;
    for (uint32_t left = rest; left; left &= left - 1)
      if (w.pc[__builtin_ctz(left)] == pc) here |= 1u << __builtin_ctz(left);
    rest &= ~here;
    at_ = &code_[pc];
    std::snprintf(part, sizeof part, " lanes %08x wait at line %d of the PTX for other lanes%s;", here, code_[pc].line,
                  code_[pc].flow == Flow::sync
                      ? ""
                      : " (the whole warp must execute it together: divergent at an aligned instruction)");
    text += part;
  }
  std::snprintf(part, sizeof part, " lanes %08x have left the kernel", w.all & ~w.alive);
  wrong(text + part);
}

bool Warps::leave(Warp &w, uint32_t lanes, const Instruction &i, int *pc) {
  bool same = true;
  int to = -1;
  for (uint32_t left = lanes; left; left &= left - 1) {
    const int l = __builtin_ctz(left);
    if (i.offset || !w.calls[l]) {
      w.alive &= ~(1u << l);
      same = false;
      continue;
    }
    w.pc[l] = w.stack[l][--w.calls[l]];
    same &= to < 0 || to == w.pc[l];
    to = w.pc[l];
  }
  *pc = to;
  return same;
}

// bar.warp.sync alone: what the lanes did before it is ordered before what they do after it. Shuffles, votes and
// products of matrices are no barriers of memory.
void Warps::synchronised(const Instruction &i, uint32_t lanes, const Warp &w) {
  const bool barrier = i.flow == Flow::sync && !i.outputs;
  if (block_.checks && barrier) block_.shadow.sync_warp(block_.warp, lanes, lanes == w.alive);
}

Warps::Outcome Warps::run(int warp) {
  Warp &w = warps_[static_cast<size_t>(warp)];
  Machine &m = machine_;
  block_.warp = m.warp = warp;
  m.block = &block_;
  m.files[constants] = program_.constants.empty() ? nullptr : program_.constants[0].data();
  m.files[registers] = registers_[static_cast<size_t>(warp) * static_cast<size_t>(program_.registers)].data();
  m.files[specials] = specials_[static_cast<size_t>(warp) * special_count].data();
  for (;;) {
    uint32_t lanes;
    int pc;
    bool met;
    const Next next = pick(w, &lanes, &pc, &met);
    if (next == Next::done) return Outcome::done;
    if (next == Next::yield) return Outcome::yield;
    int limit = INT_MAX;  // where the nearest of the others are
    for (uint32_t others = w.alive & ~w.waiting & ~w.parked & ~lanes; others; others &= others - 1)
      limit = std::min(limit, w.pc[__builtin_ctz(others)]);
    m.choose(lanes);
    bool together = true;
    while (together && pc < limit) {
      const Instruction &i = code_[pc];
      at_ = &i;
      if (executed_) ++executed_[pc];
      uint32_t chosen = lanes;
      if (i.guard >= 0) {
        if (w.follows) follow_guard(i, lanes);
        const uint32_t yes = m.true_lanes(i.guard);
        chosen &= i.negated ? ~yes : yes;
        if (!chosen) {
          ++pc;
          continue;
        }
      }
      if (i.flow == Flow::next) {
        if (w.follows && !after(i)) follow(i, chosen);
        if (chosen == lanes) i.run(m, i);
        else {
          m.choose(chosen);
          i.run(m, i);
          m.choose(lanes);
        }
        if (block_.unwritten && !w.follows) begin_following(w, i);
        if (w.follows && after(i)) follow(i, chosen);
        ++pc;
        continue;
      }
      if (i.flow == Flow::branch && chosen == lanes) {
        pc = i.target;
        continue;
      }
      if (chosen != lanes) set(w, lanes & ~chosen, pc + 1);
      together = chosen == lanes;
      switch (i.flow) {
        case Flow::branch: set(w, chosen, i.target); break;
        case Flow::call:
          for (uint32_t left = chosen; left; left &= left - 1) {
            const int l = __builtin_ctz(left);
            if (w.calls[l] == depth) block_.wrong(719, static_cast<uint32_t>(l), "calls functions too deeply");
            w.stack[l][w.calls[l]++] = pc + 1;
            w.pc[l] = i.target;
          }
          pc = i.target;
          break;
        case Flow::leave: together &= leave(w, chosen, i, &pc); break;
        case Flow::yield:
          m.choose(chosen);
          i.run(m, i);
          if (block_.unwritten && !w.follows) begin_following(w, i);
          if (w.follows) follow(i, chosen);
          set(w, chosen, pc + 1);
          if (w.alive & ~w.waiting & ~w.parked & ~chosen) {
            w.parked |= chosen;
            together = false;
            break;
          }
          return Outcome::yield;
        default: {  // sync, aligned, barrier
          set(w, chosen, pc);
          if (!met) {
            w.waiting |= chosen;
            const uint32_t meeting = complete(w, pc, static_cast<uint32_t>(__builtin_ctz(chosen)));
            if (!meeting) {
              together = false;
              break;
            }
            w.waiting &= ~meeting;
            chosen = meeting;
          }
          met = false;
          if (i.flow == Flow::aligned && chosen != 0xffffffffu)
            wrong("warp " + std::to_string(warp) +
                  " executes an instruction for 32 lanes, but some have left the kernel or "
                  "are none: divergent at an aligned instruction");
          if (i.flow == Flow::barrier) {
            w.at = pc;
            return Outcome::barrier;
          }
          m.choose(chosen);
          i.run(m, i);
          if (w.follows) follow(i, chosen);
          synchronised(i, chosen, w);
          set(w, chosen, pc + 1);
          together &= chosen == lanes;
          ++pc;
          break;
        }
      }
    }
    if (together) set(w, lanes, pc);
  }
}

}  // namespace cs_emu::ptx
