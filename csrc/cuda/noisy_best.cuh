// The token with the largest noisy score, of a thread's share of a row.
#pragma once

#include "sample_row.cuh"

namespace skv {
namespace cuda {

// The first of the largest scores, of tokens in ascending order; none is NaN.
struct BestToken {
  float score = NAN;
  int id = -1;

  SKV_DEVICE void add(float x, int token) {
    if (x <= score) return;
    score = x;
    id = token;
  }
  SKV_DEVICE unsigned long long ballot() const { return id < 0 ? 0 : ballot_of(score, uint32_t(id)); }
};

// Tokens id .. id + kCount - 1, drawn with noise; up to four share a Philox call.  Most need no logarithms:
// with u of a token's word, its noise -log(-log(u)) is at most -log(1 - u), so beside the best so far it
// takes 1 - u <= exp(score - best).
template <int kCount>
SKV_DEVICE void add_noisy(BestToken& best, const SampleSettings& s, float inverse, int id,
                          const float (&x)[kCount], uint32_t allowed) {
  constexpr int kTogether = kCount < 4 ? kCount : 4;
  constexpr float kLog2e = 1.4426950408889634f, kWords = 4294967296.f * 1.0001f;  // rounded up
#pragma unroll
  for (int first = 0; first < kCount; first += kTogether) {
    float score[kTogether], top = -INFINITY;
#pragma unroll
    for (int e = 0; e < kTogether; ++e) {
      score[e] = allowed >> (first + e) & 1 ? x[first + e] * inverse : -INFINITY;
      top = fmaxf(top, score[e]);
    }
    if (top + kMaxGumbel < best.score) continue;
    if (top == -INFINITY) {  // a token all the same, if there is no other
      for (int e = 0; e < kTogether && best.id < 0; ++e) {
        if (allowed >> (first + e) & 1) best.add(-INFINITY, id + first + e);
      }
      continue;
    }
    const PhiloxWords p = philox(s.seed, uint32_t(id + first) / 4, s.position);
    uint32_t words[4] = {p.x, p.y, p.z, p.w};
    if (kTogether == 1) words[0] = id % 4 == 0 ? p.x : id % 4 == 1 ? p.y : id % 4 == 2 ? p.z : p.w;
    uint32_t most = words[0];
#pragma unroll
    for (int e = 1; e < kTogether; ++e) most = max(most, words[e]);
    if (float(~most) > prim::exp2_approx((top - best.score) * kLog2e) * kWords) continue;
#pragma unroll
    for (int e = 0; e < kTogether; ++e) {
      if (score[e] > -INFINITY) best.add(score[e] + gumbel_of_word(words[e]), id + first + e);
    }
  }
}

}  // namespace cuda
}  // namespace skv
