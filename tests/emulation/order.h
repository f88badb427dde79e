// In which order blocks, and the threads of a block, run.
#pragma once
#include <cstdint>
#include <numeric>

namespace cs_emu {

enum class Order { forward, reverse, shuffle };

// A permutation of 0 .. n-1 that needs no memory.
class Permutation {
 public:
  Permutation(Order order, uint64_t seed, uint64_t n) : order_(order), offset_(seed), n_(n), step_(1) {
    if (n < 3) return;
    step_ = (seed * 2654435761u + 12345) % n;
    while (step_ == 0 || std::gcd(step_, n) != 1) step_ = step_ + 1 >= n ? 1 : step_ + 1;
  }
  uint64_t operator()(uint64_t i) const {
    switch (order_) {
      case Order::reverse: return n_ - 1 - i;
      case Order::shuffle: return static_cast<uint64_t>((static_cast<unsigned __int128>(i) * step_ + offset_) % n_);
      default: return i;
    }
  }

 private:
  Order order_;
  uint64_t offset_, n_, step_;
};

}  // namespace cs_emu
