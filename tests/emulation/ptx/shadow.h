// What is known of every word of shared memory: who wrote and who read it last, and what lies between.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace cs_emu::ptx {

// Two accesses of one byte, at least one of which changes it, by two threads: a barrier must lie between. Of the block;
// inside a warp also one of lanes among which both are.
class Shadow {
 public:
  enum class Mistake { none, unwritten, read_after_write, write_after_write, write_after_read };
  struct Finding {
    Mistake mistake = Mistake::none;
    int other = 0;  // thread
  };

  void begin_block(uint32_t bytes, int warps) {
    if (time_ > 0xf0000000u) {
      time_ = 1;
      cells_.clear();
    }
    if (cells_.size() < bytes / 4 + 1) cells_.resize(bytes / 4 + 1);
    warps_.assign(static_cast<size_t>(warps), Warp());
    if (!split_.empty()) {
      for (Cell &c : cells_) c.split = 0;
      split_.clear();
    }
    start_ = block_ = ++time_;
  }
  void sync_block() { block_ = ++time_; }
  void sync_warp(int warp, uint32_t lanes, bool all) {
    Warp &w = warps_[static_cast<size_t>(warp)];
    ++time_;
    if (all) {
      w.all = time_;
      return;
    }
    if (w.known.empty()) w.known.resize(32);
    // What each lane knows of the others: after they met, what any of them knew.
    std::array<uint32_t, 32> together{};
    for (unsigned l = 0; l < 32; ++l)
      if (lanes >> l & 1u)
        for (unsigned k = 0; k < 32; ++k) together[k] = std::max(together[k], w.known[l][k]);
    for (unsigned k = 0; k < 32; ++k)
      if (lanes >> k & 1u) together[k] = time_;
    for (unsigned l = 0; l < 32; ++l)
      if (lanes >> l & 1u) w.known[l] = together;
  }

  Finding read(int thread, uint32_t address, uint32_t bytes) {
    return visit(address, bytes, [&](Cell &c, uint32_t, uint32_t) { return read(c, thread); });
  }
  // before, after: the bytes. atomic: does not race with others of its kind.
  Finding write(int thread, uint32_t address, uint32_t bytes, const uint8_t *before, const uint8_t *after,
                bool atomic) {
    return visit(address, bytes, [&](Cell &c, uint32_t at, uint32_t n) {
      bool changes = false;
      for (uint32_t b = 0; b < n; ++b) changes |= before[at + b] != after[at + b];
      return write(c, thread, changes, atomic);
    });
  }
  // As before anything was written.
  void forget(uint32_t address, uint32_t bytes) {
    visit(address, bytes, [](Cell &c, uint32_t, uint32_t) {
      c.write_time = 0;
      return Finding{};
    });
  }
  bool written(uint32_t address, uint32_t bytes) {
    return visit(address, bytes, [&](Cell &c, uint32_t, uint32_t) {
             return Finding{c.write_time < start_ ? Mistake::unwritten : Mistake::none, 0};
           }).mistake == Mistake::none;
  }

 private:
  struct Cell {
    uint32_t write_time = 0;
    uint16_t writer = 0;
    bool atomic = false;
    uint8_t read_warp = 0, other_warp = 0;
    uint32_t read_time = 0, read_lanes = 0;
    uint32_t other_time = 0;  // the last read by another warp
    uint16_t other_reader = 0;
    uint32_t split = 0;  // the bytes of this word have cells of their own: number from 1
  };
  struct Warp {
    uint32_t all = 0;  // when all lanes met last
    std::vector<std::array<uint32_t, 32>> known;
  };

  // Is what `other` did at `when` before what `thread` does now?
  bool ordered(int other, int thread, uint32_t when) const {
    if (other == thread || when < block_) return true;
    if (other / 32 != thread / 32) return false;
    const Warp &w = warps_[static_cast<size_t>(thread / 32)];
    return when < w.all ||
           (!w.known.empty() && when < w.known[static_cast<size_t>(thread % 32)][static_cast<size_t>(other % 32)]);
  }

  template <class F>
  Finding visit(uint32_t address, uint32_t bytes, F &&touch) {
    for (uint32_t at = 0; at < bytes;) {
      Cell &c = cells_[(address + at) / 4];
      const bool whole = (address + at) % 4 == 0 && bytes - at >= 4;
      Finding found;
      if (whole && !c.split) {
        found = touch(c, at, 4u);
        at += 4;
      } else {
        if (!c.split) {
          split_.push_back({c, c, c, c});
          c.split = static_cast<uint32_t>(split_.size());
        }
        found = touch(split_[c.split - 1][(address + at) % 4], at, 1u);
        ++at;
      }
      if (found.mistake != Mistake::none) return found;
    }
    return {};
  }

  Finding read(Cell &c, int thread) {
    if (c.write_time < start_) return {Mistake::unwritten, 0};
    if (!ordered(c.writer, thread, c.write_time)) return {Mistake::read_after_write, c.writer};
    const uint8_t warp = static_cast<uint8_t>(thread / 32);
    const uint32_t lane = 1u << (thread % 32);
    if (c.read_lanes && c.read_time >= block_ && c.read_warp == warp && c.read_time >= warps_[warp].all) {
      c.read_lanes |= lane;
      return {};
    }
    if (c.read_lanes && c.read_time >= block_ && c.read_warp != warp) {
      c.other_time = c.read_time;
      c.other_warp = c.read_warp;
      c.other_reader = static_cast<uint16_t>(c.read_warp * 32 + __builtin_ctz(c.read_lanes));
    }
    c.read_warp = warp;
    c.read_lanes = lane;
    c.read_time = time_;
    return {};
  }

  Finding write(Cell &c, int thread, bool changes, bool atomic) {
    const bool fresh = c.write_time < start_;
    if (!fresh) {
      if (!changes) return {};
      if (!(atomic && c.atomic) && !ordered(c.writer, thread, c.write_time))
        return {Mistake::write_after_write, c.writer};
      if (c.read_lanes && c.read_time >= start_) {
        uint32_t lanes = c.read_lanes;
        if (c.read_warp == thread / 32) lanes &= ~(1u << (thread % 32));
        for (; lanes; lanes &= lanes - 1) {
          const int reader = c.read_warp * 32 + __builtin_ctz(lanes);
          if (!ordered(reader, thread, c.read_time)) return {Mistake::write_after_read, reader};
        }
      }
      if (c.other_time >= start_ && c.other_warp != thread / 32 && !ordered(c.other_reader, thread, c.other_time))
        return {Mistake::write_after_read, c.other_reader};
    }
    c.write_time = time_;
    c.writer = static_cast<uint16_t>(thread);
    c.atomic = atomic;
    c.read_lanes = 0;
    c.read_time = c.other_time = 0;
    return {};
  }

  uint32_t time_ = 1, start_ = 1, block_ = 1;
  std::vector<Cell> cells_;
  std::vector<std::array<Cell, 4>> split_;
  std::vector<Warp> warps_;
};

}  // namespace cs_emu::ptx
