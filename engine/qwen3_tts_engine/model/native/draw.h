// Drawing one code for a row: `model/sampling.py` tells the order, which is upstream's.

#pragma once

#include <algorithm>

#include "layers.h"

extern "C" {

// How R rows draw.
struct Rules {
  const uint8_t* sampled;    // bool [R]; false: the likeliest code
  const float* temperature;  // [R]
  const int64_t* kth;        // [R]: index of the last code that top-k keeps, the likeliest first
  const float* tail;         // [R]: the probability that top-p may cut off
};
}

namespace {

constexpr int64_t kGroupSize = 16;  // codes of which only the likeliest is looked at first

inline int64_t likeliest(const float* scores, int64_t count) {
  return std::max_element(scores, scores + count) - scores;
}

inline float kth_largest(float* scores, int64_t count, int64_t kth) {
  std::nth_element(scores, scores + kth, scores + count, [](float a, float b) { return a > b; });
  return scores[kth];
}

// The codes that a row may still draw.
class Candidates {
 public:
  Candidates(int64_t vocab, Scratch& scratch)
      : scores_(scratch.take<float>(vocab + kLanes)),
        sorted_(scratch.take<float>(vocab + kLanes)),
        codes_(scratch.take<int32_t>(vocab)) {}

  int64_t draw(float* logits, int64_t vocab, const Rules& rules, int64_t row, const float* noise) {
    if (!rules.sampled[row]) return likeliest(logits, vocab);
    bool are_numbers = true;
    for (int64_t i = 0; i < vocab; ++i) {
      logits[i] /= rules.temperature[row];
      are_numbers &= logits[i] == logits[i];
    }
    if (!are_numbers) return likeliest(logits, vocab);  // nothing below could be ordered by them
    keep_top(logits, vocab, rules.kth[row]);
    if (rules.tail[row] > 0) cut_tail(rules.tail[row]);
    return win(noise);
  }

 private:
  float* scores_;
  float* sorted_;
  int32_t* codes_;
  int64_t count_ = 0;

  void keep_top(const float* scores, int64_t vocab, int64_t kth) {
    const float least = kth + 1 < vocab ? least_kept(scores, vocab, kth) : -__builtin_inff();
    count_ = 0;
    for (int64_t i = 0; i < vocab; ++i)
      if (scores[i] >= least && scores[i] > -__builtin_inff())
        scores_[count_] = scores[i], codes_[count_++] = i;
  }

  // The k-th largest score is no smaller than the k-th largest of the groups' largest: few are left to order.
  float least_kept(const float* scores, int64_t vocab, int64_t kth) {
    const int64_t groups = vocab / kGroupSize;
    if (kth >= groups || vocab % kGroupSize) {
      std::copy(scores, scores + vocab, sorted_);
      return kth_largest(sorted_, vocab, kth);
    }
    for (int64_t group = 0; group < groups; ++group) {
      Floats most = load(scores + group * kGroupSize);
      for (int64_t i = kLanes; i < kGroupSize; i += kLanes)
        most = larger(most, load(scores + group * kGroupSize + i));
      sorted_[group] = largest(most);
    }
    const float bound = kth_largest(sorted_, groups, kth);
    int64_t count = 0;
    for (int64_t i = 0; i < vocab; ++i)
      if (scores[i] >= bound) sorted_[count++] = scores[i];
    return kth_largest(sorted_, count, kth);
  }

  // Drops the least likely up to that mass, never the likeliest.
  void cut_tail(float mass) {
    std::copy(scores_, scores_ + count_, sorted_);
    std::sort(sorted_, sorted_ + count_);
    const float top = sorted_[count_ - 1];
    double total = 0, cut = 0;
    for (int64_t i = 0; i < count_; ++i) total += __builtin_expf(sorted_[i] - top);
    int64_t first = 0;
    for (; first < count_ - 1; ++first)
      if ((cut += __builtin_expf(sorted_[first] - top) / total) > mass) break;
    const float least = sorted_[first];
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; ++i)
      if (scores_[i] >= least) scores_[kept] = scores_[i], codes_[kept++] = codes_[i];
    count_ = kept;
  }

  // Who has most probability for its unit exponential noise: a draw, see `model/sampling.py`.
  int64_t win(const float* noise) {
    const Floats top = spread(*std::max_element(scores_, scores_ + count_));
    for (int64_t i = 0; i < count_; i += kLanes) store(scores_ + i, exponential(load(scores_ + i) - top));
    for (int64_t i = 0; i < count_; ++i) scores_[i] /= noise[codes_[i]];
    return codes_[likeliest(scores_, count_)];
  }
};

}  // namespace
