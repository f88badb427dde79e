// Instructions in which lanes of a warp or threads of a block meet (PTX ISA, parallel synchronization), branches.
#include <algorithm>

#include "block.h"
#include "lanes.h"

namespace cs_emu::ptx {
namespace {

constexpr uint32_t nothing = 0xffcdffcdu;  // what a lane that is not there gives: undefined on a GPU

enum Direction { index_of, up, down, butterfly };
template <Direction D, bool Told>
void shuffle(Machine &m, const Instruction &i) {
  constexpr int first = Told ? 2 : 1;
  uint64_t *d = m.out(i.op[0]), *p = Told ? m.out(i.op[1]) : nullptr;
  const uint64_t *b = m.in(i.op[first + 1]), *c = m.in(i.op[first + 2]);
  uint64_t a[32];
  std::copy_n(m.in(i.op[first]), 32, a);
  uint64_t results[32];
  bool inside[32];
  CS_LANES(m, l) {
    const int lane = static_cast<int>(l), by = static_cast<int>(b[l] & 31u), clamp = static_cast<int>(c[l] & 31u),
              segments = static_cast<int>(c[l] >> 8 & 31u);
    const int last = (lane & segments) | (clamp & ~segments & 31), start = lane & segments;
    int source;
    switch (D) {
      case up:
        source = lane - by;
        inside[l] = source >= last;
        break;
      case down:
        source = lane + by;
        inside[l] = source <= last;
        break;
      case butterfly:
        source = lane ^ by;
        inside[l] = source <= last;
        break;
      default: source = start | (by & ~segments & 31); inside[l] = source <= last;
    }
    if (!inside[l]) source = lane;
    results[l] = m.active >> source & 1u ? a[source] & 0xffffffffu : nothing;
  }
  CS_LANES(m, l) {
    d[l] = results[l];
    if (Told) p[l] = inside[l];
  }
}

enum Vote { any, every, uniform, ballot };
template <Vote V>
void vote(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint32_t yes = m.true_lanes(i.op[1]) & m.active;
  const uint64_t r = V == any ? yes != 0 : V == every ? yes == m.active : V == uniform ? !yes || yes == m.active : yes;
  CS_EACH(r)
}

template <class T>
void match_any(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]), results[32];
  const uint64_t *a = m.in(i.op[1]);
  CS_LANES(m, l) {
    results[l] = 0;
    CS_LANES(m, k) if (static_cast<T>(a[k]) == static_cast<T>(a[l])) results[l] |= 1u << k;
  }
  CS_LANES(m, l) d[l] = results[l];
}
template <class T, bool Told>
void match_all(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]), *p = Told ? m.out(i.op[1]) : nullptr;
  const uint64_t *a = m.in(i.op[Told ? 2 : 1]);
  const unsigned first = static_cast<unsigned>(__builtin_ctz(m.active));
  bool same = true;
  CS_LANES(m, l) same &= static_cast<T>(a[l]) == static_cast<T>(a[first]);
  CS_LANES(m, l) {
    d[l] = same ? m.active : 0;
    if (Told) p[l] = same;
  }
}

enum Reduction { r_add, r_min, r_max, r_and, r_or, r_xor };
template <class T, Reduction R>
void reduce(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t *a = m.in(i.op[1]);
  bool begun = false;
  T sum = 0;
  CS_LANES(m, l) {
    const T v = Bits<T>::get(a[l]);
    sum = !begun       ? v
          : R == r_add ? static_cast<T>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(v))
          : R == r_min ? std::min(sum, v)
          : R == r_max ? std::max(sum, v)
          : R == r_and ? sum & v
          : R == r_or  ? sum | v
                       : sum ^ v;
    begun = true;
  }
  const uint64_t r = Bits<T>::put(sum);
  CS_EACH(r)
}

void active_mask(Machine &m, const Instruction &i) {
  uint64_t *d = m.out(i.op[0]);
  const uint64_t r = m.active;
  CS_EACH(r)
}
void none(Machine &, const Instruction &) {}
void trap(Machine &m, const Instruction &) {
  m.block->wrong(719, static_cast<uint32_t>(__builtin_ctz(m.active)), "executes trap");
}

void add_sync(Table &t, const std::string &name, Handler run, int outs, int ins, Handler both = nullptr) {
  Operation o;
  o.flow = Flow::sync;
  o.run = run;
  o.outs = static_cast<uint8_t>(outs);
  o.ins = static_cast<uint8_t>(ins);
  for (uint8_t &bits : o.bits) bits = 32;
  o.both = both;
  t.emplace(name, o);
}
void add_plain(Table &t, const std::string &name, Handler run, int outs = 0, int ins = 0, Flow flow = Flow::next) {
  Operation o;
  o.run = run;
  o.flow = flow;
  o.outs = static_cast<uint8_t>(outs);
  o.ins = static_cast<uint8_t>(ins);
  t.emplace(name, o);
}
void add_form(Table &t, const std::string &name, Form form, Flow flow, int64_t mode = 0) {
  Operation o;
  o.form = form;
  o.flow = flow;
  o.mode = mode;
  t.emplace(name, o);
}
// mode: 0 sync, 1 popc, 2 and, 3 or
void add_barrier(Table &t, const std::string &name, int64_t mode) {
  Operation o;
  o.flow = Flow::barrier;
  o.run = none;
  o.outs = mode ? 1 : 0;
  o.ins = mode ? 3 : 2;
  o.fewer = 1;
  o.mode = mode;
  t.emplace(name, o);
}

}  // namespace

void run_wide(Machine &m, const Instruction &i) {
  const Wide &w = m.block->program->wide[static_cast<size_t>(i.target)];
  constexpr size_t most = 160;
  Register *out[most];
  const Register *in[most];
  static Register sums[4];
  size_t used = 0;
  if (w.out.size() > most || w.in.size() > most) m.block->wrong(719, 0, "has too many operands");
  for (size_t k = 0; k < w.out.size(); ++k) out[k] = reinterpret_cast<Register *>(m.out(w.out[k]));
  for (size_t k = 0; k < w.in.size(); ++k) {
    in[k] = reinterpret_cast<const Register *>(m.in(w.in[k]));
    if (!w.offset[k]) continue;
    if (used == 4) m.block->wrong(719, 0, "has too many addresses with offsets");
    Register &sum = sums[used++];
    for (size_t l = 0; l < 32; ++l) sum[l] = (*in[k])[l] + static_cast<uint64_t>(w.offset[k]);
    in[k] = &sum;
  }
  Call call{m.warp,   m.active,       out, static_cast<int>(w.out.size()), in, static_cast<int>(w.in.size()),
            *m.block, *m.block->async};
  w.what->run(call);
}

void add_collective(Table &t) {
  add_sync(t, "shfl.sync.idx.b32", shuffle<index_of, false>, 1, 4, shuffle<index_of, true>);
  add_sync(t, "shfl.sync.up.b32", shuffle<up, false>, 1, 4, shuffle<up, true>);
  add_sync(t, "shfl.sync.down.b32", shuffle<down, false>, 1, 4, shuffle<down, true>);
  add_sync(t, "shfl.sync.bfly.b32", shuffle<butterfly, false>, 1, 4, shuffle<butterfly, true>);
  add_sync(t, "vote.sync.any.pred", vote<any>, 1, 2);
  add_sync(t, "vote.sync.all.pred", vote<every>, 1, 2);
  add_sync(t, "vote.sync.uni.pred", vote<uniform>, 1, 2);
  add_sync(t, "vote.sync.ballot.b32", vote<ballot>, 1, 2);
  add_sync(t, "match.any.sync.b32", match_any<uint32_t>, 1, 2);
  add_sync(t, "match.any.sync.b64", match_any<uint64_t>, 1, 2);
  add_sync(t, "match.all.sync.b32", match_all<uint32_t, false>, 1, 2, match_all<uint32_t, true>);
  add_sync(t, "match.all.sync.b64", match_all<uint64_t, false>, 1, 2, match_all<uint64_t, true>);
  add_sync(t, "redux.sync.add.s32", reduce<int32_t, r_add>, 1, 2);
  add_sync(t, "redux.sync.add.u32", reduce<uint32_t, r_add>, 1, 2);
  add_sync(t, "redux.sync.min.s32", reduce<int32_t, r_min>, 1, 2);
  add_sync(t, "redux.sync.min.u32", reduce<uint32_t, r_min>, 1, 2);
  add_sync(t, "redux.sync.max.s32", reduce<int32_t, r_max>, 1, 2);
  add_sync(t, "redux.sync.max.u32", reduce<uint32_t, r_max>, 1, 2);
  add_sync(t, "redux.sync.and.b32", reduce<uint32_t, r_and>, 1, 2);
  add_sync(t, "redux.sync.or.b32", reduce<uint32_t, r_or>, 1, 2);
  add_sync(t, "redux.sync.xor.b32", reduce<uint32_t, r_xor>, 1, 2);
  add_sync(t, "bar.warp.sync", none, 0, 1);
  for (const char *name : {"bar.sync", "bar.cta.sync", "barrier.sync", "barrier.sync.aligned", "barrier.cta.sync",
                           "barrier.cta.sync.aligned"})
    add_barrier(t, name, 0);
  for (const char *base : {"bar.red", "bar.cta.red", "barrier.cta.red"}) {
    add_barrier(t, std::string(base) + ".popc.u32", 1);
    add_barrier(t, std::string(base) + ".and.pred", 2);
    add_barrier(t, std::string(base) + ".or.pred", 3);
  }
  for (const char *name : {"membar.cta", "membar.gl", "membar.sys", "fence.acq_rel.cta", "fence.acq_rel.gpu",
                           "fence.acq_rel.sys", "fence.sc.cta", "fence.sc.gpu", "fence.sc.sys"})
    add_plain(t, name, none);
  add_plain(t, "activemask.b32", active_mask, 1);
  add_plain(t, "nanosleep.u32", none, 0, 1, Flow::yield);
  add_plain(t, "trap", trap);
  add_form(t, "bra", Form::branch, Flow::branch);
  add_form(t, "bra.uni", Form::branch, Flow::branch);
  add_form(t, "call", Form::call, Flow::call);
  add_form(t, "call.uni", Form::call, Flow::call);
  add_form(t, "ret", Form::leave, Flow::leave);
  add_form(t, "ret.uni", Form::leave, Flow::leave);
  add_form(t, "exit", Form::leave, Flow::leave, 1);
}

}  // namespace cs_emu::ptx
