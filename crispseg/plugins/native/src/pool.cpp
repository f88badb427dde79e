// Worker threads. One word, `ticket`, holds the number of blocks not yet claimed; a thread claims one by counting it
// down. The job's fields are read only after a claim, and the caller does not return before every claimed block is
// finished, so a worker that wakes up late can never see a stale job, and nobody waits for a worker that sleeps.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#include "internal.h"

namespace crispseg {

namespace {

constexpr int kSpins = 1000;  // some tens of microseconds: the gap between two layers, not between two frames

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

class Pool {
 public:
  explicit Pool(int threads) : count_(threads) {}

  bool start() {
    workers_ = new (std::nothrow) std::thread[count_ > 1 ? count_ - 1 : 1];
    if (!workers_) return false;
    for (int i = 1; i < count_; ++i) {
      try {
        workers_[i - 1] = std::thread([this, i] { loop(i); });
      } catch (...) {
        return false;
      }
    }
    return true;
  }

  ~Pool() {
    stop_.store(true);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    for (int i = 1; workers_ && i < count_; ++i)
      if (workers_[i - 1].joinable()) workers_[i - 1].join();
    delete[] workers_;
  }

  void run(int64_t blocks, BlockBody body, void *state) {
    if (blocks <= 0) return;
    if (count_ == 1 || blocks == 1) {
      for (int64_t b = 0; b < blocks; ++b) body(state, b, 0);
      return;
    }
    body_ = body;
    state_ = state;
    blocks_ = blocks;
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(blocks);
    if (sleepers_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    work(0);
    for (int spin = 0; done_.load(std::memory_order_acquire) != blocks; ++spin) {
      if (spin < kSpins) relax();
      else std::this_thread::yield();
    }
  }

 private:
  void work(int worker) {
    int64_t left = ticket_.load(std::memory_order_acquire);
    while (left > 0) {
      if (!ticket_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel, std::memory_order_acquire))
        continue;
      body_(state_, blocks_ - left, worker);
      done_.fetch_add(1, std::memory_order_release);
      left = ticket_.load(std::memory_order_acquire);
    }
  }

  void loop(int worker) {
    while (!stop_.load()) {
      int spin = 0;
      while (spin < kSpins && ticket_.load(std::memory_order_relaxed) <= 0 && !stop_.load(std::memory_order_relaxed)) {
        relax();
        ++spin;
      }
      if (spin == kSpins) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [this] { return ticket_.load() > 0 || stop_.load(); });
        sleepers_.fetch_sub(1);
      }
      work(worker);
    }
  }

  const int count_;
  std::thread *workers_ = nullptr;
  BlockBody body_ = nullptr;
  void *state_ = nullptr;
  int64_t blocks_ = 0;
  alignas(64) std::atomic<int64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

void pool_run(Pool *pool, int64_t blocks, BlockBody body, void *state) { pool->run(blocks, body, state); }

Pool *pool_create(int threads) {
  Pool *pool = new (std::nothrow) Pool(threads);
  if (pool && !pool->start()) {
    delete pool;
    pool = nullptr;
  }
  return pool;
}

void pool_destroy(Pool *pool) { delete pool; }

}  // namespace crispseg
