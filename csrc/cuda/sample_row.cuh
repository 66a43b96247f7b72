// Draws from one row of logits by a whole CTA: what verify_drafts does where top_k, top_p or min_p cut the
// row and the short list of its largest tokens (short_list.cuh) does not settle the draw.
//
// Nothing is sorted, no histogram is kept and no probability is written.  Kept tokens are a prefix of the
// order (logit descending, id ascending), so a token is tested by one pass that adds up what comes before it;
// a candidate that fails bars itself and all that follow it, and the same pass has already found the best one
// before it. Sums are integers, so the answer does not depend on the order of the additions.
#pragma once

#include "../core/philox.h"
#include "common.cuh"

namespace skv {
namespace cuda {

constexpr int kSampleThreads = 512;  // at most; short rows take fewer
constexpr int kSampleWarps = kSampleThreads / kWarpSize;

struct SampleSettings {
  float temperature, top_p, min_p;  // temperature above 0; top_p >= 1 and min_p <= 0 are off
  int top_k;                        // <= 0 = off
  uint64_t seed, position;
};

// Unsigned order of the result = order of x; -0 is 0.
SKV_DEVICE uint32_t order_of(float x) {
  const uint32_t u = __float_as_uint(x + 0.f);
  return u >> 31 ? ~u : u | 0x80000000u;
}
constexpr uint32_t kOrderOfMinusInfinity = 0x007fffffu;
SKV_DEVICE float value_of(uint32_t order) {
  return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

// The larger score wins, of equal ones the lower id; 0 is below every token.
SKV_DEVICE unsigned long long ballot_of(float score, uint32_t id) {
  return static_cast<unsigned long long>(order_of(score)) << 32 | ~id;
}
SKV_DEVICE int token_of(unsigned long long ballot) { return ballot == 0 ? -1 : int(~uint32_t(ballot)); }

// The row as the draw sees it: NaN counts as -infinity, a cleared bit forbids.  kCount tokens are read at a
// time.
template <class T, int kCount>
struct LogitsRow {
  const T* logits;
  const int32_t* bitmask;  // nullptr: all tokens are allowed
  int vocab;

  SKV_DEVICE float at(int id) const {
    const float x = to_float(logits[id]);
    return x == x ? x : -INFINITY;
  }

  // f(first id, x[kCount], bits of the allowed) for this thread's share of the tokens begin .. end - 1; begin
  // is a multiple of 32.  A thread has kAhead vectors in flight: one would leave the memory idle.
  template <class F>
  SKV_DEVICE void for_each(unsigned begin, unsigned end, F f) const {
    constexpr unsigned kAhead = 4;
    const unsigned step = blockDim.x * kCount;
    unsigned id = begin + threadIdx.x * kCount;
    for (; id < end && end - id >= (kAhead - 1) * step + kCount; id += kAhead * step) {
      Vector<T, kCount> v[kAhead];
      uint32_t allowed[kAhead];
#pragma unroll
      for (unsigned i = 0; i < kAhead; ++i) v[i] = load_vector<T, kCount>(logits + id + i * step);
#pragma unroll
      for (unsigned i = 0; i < kAhead; ++i) allowed[i] = allowed_from(id + i * step);
#pragma unroll
      for (unsigned i = 0; i < kAhead; ++i) give(f, id + i * step, v[i], allowed[i]);
    }
    for (; id < end; id += step) {
      const unsigned left = end - id;
      Vector<T, kCount> v{};
      uint32_t allowed = allowed_from(id);
      if (left >= kCount) {
        v = load_vector<T, kCount>(logits + id);
      } else {
#pragma unroll
        for (unsigned e = 0; e < kCount; ++e) v.at[e] = e < left ? logits[id + e] : from_float<T>(-INFINITY);
        allowed &= (1u << left) - 1;
      }
      give(f, id, v, allowed);
    }
  }

 private:
  SKV_DEVICE uint32_t allowed_from(unsigned id) const {
    constexpr uint32_t kAll = (1u << kCount) - 1;
    return bitmask ? uint32_t(bitmask[id / 32]) >> (id % 32) & kAll : kAll;
  }
  template <class F>
  SKV_DEVICE static void give(F& f, unsigned id, const Vector<T, kCount>& v, uint32_t allowed) {
    float x[kCount];
#pragma unroll
    for (int e = 0; e < kCount; ++e) x[e] = fmaxf(to_float(v.at[e]), -INFINITY);  // of NaN: the other
    f(int(id), x, allowed);
  }
};

// The noise of one token.
SKV_DEVICE float noise_of(const SampleSettings& s, uint32_t id) {
  const PhiloxWords words = philox(s.seed, id / 4, s.position);
  const uint32_t lane = id % 4;
  return gumbel_of_word(lane == 0 ? words.x : lane == 1 ? words.y : lane == 2 ? words.z : words.w);
}

SKV_DEVICE float inverse_temperature(float temperature) {
  return 1.f / fminf(fmaxf(temperature, 1e-30f), 1e30f);
}

// ---- reductions over the CTA; every thread gets the result ----

template <class T, class Op>
SKV_DEVICE T cta_reduce(T value, T (&scratch)[kSampleWarps], Op op) {
  for (int o = kWarpSize / 2; o; o >>= 1) value = op(value, __shfl_xor_sync(kFullMask, value, o));
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  value = scratch[0];
  for (int w = 1; w < int(blockDim.x) / kWarpSize; ++w) value = op(value, scratch[w]);
  __syncthreads();  // scratch may be used again
  return value;
}
struct TakeMax {
  SKV_DEVICE unsigned long long operator()(unsigned long long a, unsigned long long b) const {
    return a > b ? a : b;
  }
};
struct TakeSum {
  SKV_DEVICE unsigned long long operator()(unsigned long long a, unsigned long long b) const { return a + b; }
};

// What a token weighs beside the largest, in units of 2^-40 of it.
struct Weights {
  float largest, inverse;

  SKV_DEVICE Weights(const SampleSettings& s, float largest_)
      : largest(largest_), inverse(inverse_temperature(s.temperature)) {}
  SKV_DEVICE unsigned long long of(float x) const {
    constexpr float kUnit = 1099511627776.f;
    return static_cast<unsigned long long>(expf((x - largest) * inverse) * kUnit);
  }
};

// The order of the least logit that min_p leaves.
SKV_DEVICE uint32_t least_order(const SampleSettings& s, float largest) {
  return s.min_p > 0.f ? order_of(largest + fminf(s.temperature, 1e30f) * logf(fminf(s.min_p, 1.f))) : 0;
}

// The order of the k-th largest logit above -infinity; 0 if there are fewer than k.  Three bits a pass: the
// largest number that at least k logits reach.
template <class T, int kCount>
SKV_DEVICE uint32_t kth_order(const LogitsRow<T, kCount>& row, int k) {
  SKV_SHARED(reached, unsigned[8]);
  // Below these bits the orders of a 16-bit type's values do not differ.
  constexpr int kLastShift = sizeof(T) == 4 ? 0 : std::is_same<T, __half>::value ? 12 : 15;
  uint32_t found = 0;
  for (int shift = 30; shift >= kLastShift; shift -= 3) {
    const int choices = shift == 30 ? 4 : 8;
    if (threadIdx.x < 8) reached[threadIdx.x] = 0;
    __syncthreads();
    unsigned count[8] = {};
    row.for_each(0, unsigned(row.vocab), [&](int, const float (&x)[kCount], uint32_t allowed) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const uint32_t order = order_of(x[e]);
        const bool counts = (allowed >> e & 1) && order > kOrderOfMinusInfinity;
#pragma unroll
        for (int j = 1; j < 8; ++j)
          count[j] += counts && j < choices && order >= (found | uint32_t(j) << shift);
      }
    });
#pragma unroll
    for (int j = 1; j < 8; ++j) {
      const unsigned all = __reduce_add_sync(kFullMask, count[j]);
      if (threadIdx.x % kWarpSize == 0) atomicAdd(&reached[j], all);
    }
    __syncthreads();
    int choice = 0;
    for (int j = 1; j < choices; ++j) choice = reached[j] >= unsigned(k) ? j : choice;
    __syncthreads();
    found |= uint32_t(choice) << shift;
  }
  return found;
}

// What the tokens from `floor` up weigh.
template <class T, int kCount>
SKV_DEVICE unsigned long long total_weight(const LogitsRow<T, kCount>& row, const Weights& weights,
                                           uint32_t floor) {
  SKV_SHARED(scratch, unsigned long long[kSampleWarps]);
  unsigned long long total = 0;
  row.for_each(0, unsigned(row.vocab), [&](int, const float (&x)[kCount], uint32_t allowed) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if ((allowed >> e & 1) && order_of(x[e]) >= floor) total += weights.of(x[e]);
    }
  });
  return cta_reduce(total, scratch, TakeSum());
}

// The token drawn, of those from the order `floor` up, which weigh `total` if top_p asks.  candidate: the
// best of them to draw; -1: to be found.
template <class T, int kCount>
SKV_DEVICE int draw_above(const LogitsRow<T, kCount>& row, const SampleSettings& s, const Weights& weights,
                          uint32_t floor, unsigned long long total, int candidate) {
  SKV_SHARED(scratch, unsigned long long[kSampleWarps]);
  const float inverse = weights.inverse;
  const uint32_t least = max(floor, least_order(s, weights.largest));
  const double target = double(s.top_p) * double(total);

  // Before a candidate: its predecessors' weight, and the best of them to draw.
  while (candidate < 0 || s.top_p < 1.f) {
    const uint32_t candidate_order = candidate < 0 ? ~0u : order_of(row.at(candidate));
    unsigned long long before = 0, best = 0;
    float best_score = -INFINITY;
    row.for_each(0, unsigned(row.vocab), [&](int id, const float (&x)[kCount], uint32_t allowed) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const uint32_t order = order_of(x[e]);
        const bool precedes = order > candidate_order || (order == candidate_order && id + e < candidate);
        if (!(allowed >> e & 1) || order < floor || (candidate >= 0 && !precedes)) continue;
        if (s.top_p < 1.f) before += weights.of(x[e]);
        const float score = x[e] * inverse;
        if (order < least || score + kMaxGumbel < best_score) continue;
        const float noisy = score + noise_of(s, uint32_t(id + e));
        best_score = fmaxf(best_score, noisy);
        best = max(best, ballot_of(noisy, uint32_t(id + e)));
      }
    });
    before = cta_reduce(before, scratch, TakeSum());
    best = cta_reduce(best, scratch, TakeMax());
    const bool kept = candidate >= 0 && (before == 0 || double(before) < target);
    if (kept || best == 0) break;
    candidate = token_of(best);
  }
  return candidate;
}

}  // namespace cuda
}  // namespace skv
