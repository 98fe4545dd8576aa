// The threads that work on one call together, and where they wait for each other.

#pragma once

#include <immintrin.h>
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

namespace {

constexpr int kSpins = 1000;  // some 20 microseconds

// Shares are equal and waits take microseconds, in which sleeping would cost more than it saves. Who waits
// longer shares a core with somebody else, and lets them go first.
class Barrier {
 public:
  void wait(int64_t threads) {
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
      spins < kSpins ? _mm_pause() : static_cast<void>(sched_yield());
  }

 private:
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

// One thread of them.
struct Worker {
  int64_t index, threads;
  Barrier& barrier;

  void meet() const { barrier.wait(threads); }

  // My part of so many equal pieces of work, next to each other.
  struct Share {
    int64_t begin, end;
  };
  Share of(int64_t pieces) const { return {pieces * index / threads, pieces * (index + 1) / threads}; }

  // My part of a few pieces of work.
  template <class Do>
  void each_of(int64_t pieces, Do act) const {
    for (int64_t piece = index; piece < pieces; piece += threads) act(piece);
  }
};

template <class Do>
void together(int64_t threads, Do act) {
  Barrier barrier;
#pragma omp parallel num_threads(static_cast<int>(threads))
  act(Worker{omp_get_thread_num(), omp_get_num_threads(), barrier});
}

}  // namespace
