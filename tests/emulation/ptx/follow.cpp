// Follows values that come from shared memory that nobody wrote, as a thread without work may read them: a mistake only
// when one decides a branch, is an address, or goes to global memory.
#include <algorithm>

#include "warps.h"

namespace cs_emu::ptx {

void Warps::begin_following(Warp &w, const Instruction &i) {
  bool others = false;
  for (const Warp &other : warps_) others |= other.follows;
  if (!others) {
    unwritten_.assign(warps_.size() * static_cast<size_t>(program_.registers), 0);
    unwritten_text_ = "shared memory at " + std::to_string(block_.unwritten_at) +
                      " that nobody wrote since the block began, read by line " + std::to_string(i.line) +
                      " of the PTX";
  } else {
    const size_t n = static_cast<size_t>(program_.registers), first = static_cast<size_t>(block_.warp) * n;
    std::fill_n(unwritten_.begin() + static_cast<std::ptrdiff_t>(first), n, 0u);
  }
  w.follows = true;
}

void Warps::unwritten_used(uint32_t lanes, const char *how) {
  block_.wrong(719, static_cast<uint32_t>(__builtin_ctz(lanes)), how + (" a value from " + unwritten_text_));
}

void Warps::follow_guard(const Instruction &i, uint32_t lanes) {
  const uint32_t found = unwritten_input(i.guard) & lanes;
  if (found) unwritten_used(found, "decides by");
}

void Warps::follow(const Instruction &i, uint32_t lanes) {
  const uint32_t read = block_.unwritten & lanes;
  block_.unwritten = 0;
  if (i.target >= 0) {  // warp.h: any lane may reach all
    const Wide &wide = program_.wide[static_cast<size_t>(i.target)];
    uint32_t any = 0;
    for (Place p : wide.in) any |= unwritten_input(p) & lanes;
    for (Place p : wide.out) unwritten(p) = (unwritten(p) & ~lanes) | (any ? lanes : 0);
    return;
  }
  const Place *in = i.op + i.outputs;
  uint32_t result = 0;
  for (int k = 0; k < i.inputs; ++k) result |= unwritten_input(in[k]);
  switch (i.role) {
    case Role::select: {
      const uint32_t first = machine_.true_lanes(in[2]);
      result = unwritten_input(in[2]) | (unwritten_input(in[0]) & first) | (unwritten_input(in[1]) & ~first);
      break;
    }
    case Role::and_pred:
    case Role::or_pred: {  // one operand may decide alone
      const uint32_t a = unwritten_input(in[0]), b = unwritten_input(in[1]);
      uint32_t x = machine_.true_lanes(in[0]), y = machine_.true_lanes(in[1]);
      if (i.role == Role::and_pred) {
        x = ~x;
        y = ~y;
      }
      result = (a | b) & ~(~a & x) & ~(~b & y);
      break;
    }
    case Role::load:
    case Role::atomic:
      if (result & lanes)
        unwritten_used(result & lanes, i.role == Role::load ? "takes as an address" : "takes into an atomic");
      result = read;
      break;
    case Role::store: {
      const uint32_t address = unwritten_input(in[0]) & lanes;
      if (address) unwritten_used(address, "takes as an address");
      result &= lanes;
      if (!result) return;
      if (i.space == Space::shared) {
        const uint64_t *at = machine_.in(in[0]);
        const uint32_t bytes = i.bytes;
        for (uint32_t left = result; left; left &= left - 1)
          block_.shadow.forget(static_cast<uint32_t>(at[__builtin_ctz(left)] + static_cast<uint64_t>(i.offset)), bytes);
      } else if (i.space != Space::param && i.space != Space::local) unwritten_used(result, "stores");
      return;
    }
    case Role::other: break;
  }
  // What lanes exchange may come from any of them.
  if (i.flow == Flow::sync && (result & lanes)) result = lanes;
  for (int k = 0; k < i.outputs; ++k)
    if (i.op[k] >= 0) unwritten(i.op[k]) = (unwritten(i.op[k]) & ~lanes) | (result & lanes);
}

}  // namespace cs_emu::ptx
