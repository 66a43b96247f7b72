// One row of logits as the draw sees it: float32 vectors in which NaN, forbidden tokens and what lies past
// the vocabulary are -infinity. Read in place, in its own dtype.
#pragma once
#include "sampling_math.h"

namespace skv::cpu::SKV_ISA {

template <class T>
struct LogitsRow {
  static constexpr int64_t kBlock = 4 * kLanes;  // divides or is a multiple of a bitmask word's 32 tokens

  const T* logits;
  const int32_t* bitmask;  // nullptr: all tokens are allowed
  int64_t vocab;

  bool allows(int64_t token) const {
    return bitmask == nullptr || (static_cast<uint32_t>(bitmask[token / 32]) >> (token % 32) & 1) != 0;
  }
  float at(int64_t token) const {
    const float x = to_float(logits[token]);
    return x == x && allows(token) ? x : -kInfinity;
  }

  // Tokens i .. i + kLanes - 1, i a multiple of kLanes.
  Vec vec(int64_t i) const {
    if (__builtin_expect(i + kLanes > vocab, 0)) {
      alignas(64) float lane[kLanes];
      for (int64_t j = 0; j < kLanes; ++j) lane[j] = i + j < vocab ? at(i + j) : -kInfinity;
      return load(lane);
    }
    const Vec lowest = splat(-kInfinity);
    const Vec x = max(load(logits + i), lowest);  // of a NaN, max returns its second operand
    if (bitmask == nullptr) return x;
    return select(x, lowest, static_cast<uint32_t>(bitmask[i / 32]) >> (i % 32));
  }

  // f(i, x[4]) for each block of tokens i .. i + kBlock - 1 that is not wholly forbidden.
  template <class F>
  void for_each_block(F&& f) const {
    for (int64_t i = 0; i < vocab; i += kBlock) {
      if (bitmask) {
        uint32_t any = 0;
        for (int64_t j = i; j < i + kBlock && j < vocab; j += 32)
          any |= static_cast<uint32_t>(bitmask[j / 32]);
        if (any == 0) continue;
      }
      const Vec x[4] = {vec(i), vec(i + kLanes), vec(i + 2 * kLanes), vec(i + 3 * kLanes)};
      f(i, x);
    }
  }

  // The first token of the largest logit and that logit; -1 if no token is allowed.
  int64_t argmax(float* largest) const {
    float best = -kInfinity;
    int64_t block = -1;
    for_each_block([&](int64_t i, const Vec* x) {
      const Vec m = max(max(x[0], x[1]), max(x[2], x[3]));
      if (__builtin_expect(gt_bits(m, splat(best)) == 0, 1)) return;
      best = max_of(m);
      block = i;
    });
    *largest = best;
    if (block < 0) {  // nothing above -infinity: the first allowed token
      for (int64_t i = 0; i < vocab; ++i) {
        if (allows(i)) return i;
      }
      return -1;
    }
    while (at(block) != best) ++block;
    return block;
  }

  // sum over the row of exp((x - largest) / temperature); lanes are emptied into a double now and then.
  double sum_exp(float largest, float temperature) const {
    double total = 0;
    Vec lanes = zero();
    int64_t pending = 0;
    const Vec top = splat(largest), divisor = splat(temperature);
    for_each_block([&](int64_t, const Vec* x) {
      Vec e[4];
      for (int j = 0; j < 4; ++j) {
        const Vec distance = sub(x[j], top);
        e[j] = exp_of(temperature == 1.0f ? distance : div(distance, divisor));
      }
      lanes = add(lanes, add(add(e[0], e[1]), add(e[2], e[3])));
      if (++pending < 64) return;
      total += sum(lanes);
      lanes = zero();
      pending = 0;
    });
    return total + sum(lanes);
  }
};

}  // namespace skv::cpu::SKV_ISA
