// Draws from the short list of a row's largest tokens, which a row cut by top_k or top_p nearly always
// settles with one more pass over logits that have just been read.
//
// While a row is read, `maxima` are noted: the largest logits of up to kMaxima disjoint parts of it.  At
// least r tokens reach the r-th largest of these, and few more than that do: they make the list, in no order.
// It holds what top_k keeps where r is top_k; what top_p keeps is in it if its weight reaches the target.
#pragma once

#include "sample_row.cuh"

namespace skv {
namespace cuda {

constexpr int kMaxima = kSampleThreads;
constexpr int kListCapacity = 512;
constexpr int kListRank = 128;  // where top_k does not say

struct ShortList {
  unsigned long long ballot[kListCapacity];  // by logit
  unsigned long long weight[kListCapacity], before[kListCapacity];
  unsigned count;
  uint32_t threshold;  // orders of logits
  uint32_t kth;
};

// Threads of a warp whose shares of the row are one part: all parts of a row's CTAs are at most kMaxima.
SKV_DEVICE int lanes_per_part(int splits) {
  int lanes = 1;
  while (lanes < splits) lanes *= 2;
  return lanes;
}

// The rank-th largest of `maxima`, at most a thread each; at least the lowest finite order.  Whole CTA.
SKV_DEVICE uint32_t nth_maximum(ShortList& list, const uint32_t* maxima, int num_maxima, int rank) {
  const int thread = int(threadIdx.x);
  const uint32_t mine = thread < num_maxima ? maxima[thread] : 0;
  if (thread < num_maxima) list.ballot[thread] = mine;
  __syncthreads();
  int ahead = 0;
  for (int i = 0; thread < num_maxima && i < num_maxima; ++i) {
    const uint32_t other = uint32_t(list.ballot[i]);
    ahead += other > mine || (other == mine && i < thread);
  }
  if (thread < num_maxima && ahead == rank - 1) list.threshold = mine;
  __syncthreads();
  return max(list.threshold, kOrderOfMinusInfinity + 1);
}

// Every token's weight before it, and how many are ahead of it: the one with k - 1 ahead is top_k's last.
SKV_DEVICE void rank_list(ShortList& list, int count, int k) {
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    const unsigned long long mine = list.ballot[i];
    unsigned long long before = 0;
    int ahead = 0;
    for (int j = 0; j < count; ++j) {
      if (list.ballot[j] > mine) {
        before += list.weight[j];
        ++ahead;
      }
    }
    list.before[i] = before;
    if (ahead == k - 1) list.kth = uint32_t(mine >> 32);
  }
}

// The token drawn, or -1 if the list does not settle it.  Whole CTA; the row's largest allowed logit is
// finite.
template <class T, int kCount>
SKV_DEVICE int draw_from_short_list(const LogitsRow<T, kCount>& row, const SampleSettings& s, float largest,
                                    const uint32_t* maxima, int num_maxima) {
  SKV_SHARED(list, ShortList);
  SKV_SHARED(scratch, unsigned long long[kSampleWarps]);
  const bool has_k = s.top_k > 0 && s.top_k < row.vocab;
  const int rank = has_k ? s.top_k : min(kListRank, num_maxima / 2);
  const bool whole = row.vocab <= kListCapacity;
  if (!has_k && s.top_p >= 1.f) return -1;         // min_p alone is one pass without a list, too
  if (!whole && rank > num_maxima / 2) return -1;  // the list would not hold what reaches that rank
  const Weights weights(s, largest);
  const uint32_t least = least_order(s, largest);
  uint32_t threshold = kOrderOfMinusInfinity + 1;
  if (!whole) threshold = nth_maximum(list, maxima, num_maxima, rank);

  // The list, and unless top_k comes first, the weight of all tokens.
  if (threadIdx.x == 0) list.count = list.kth = 0;
  __syncthreads();
  unsigned long long total = 0;
  row.for_each(0, unsigned(row.vocab), [&](int id, const float (&x)[kCount], uint32_t allowed) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if (!(allowed >> e & 1)) continue;
      if (!has_k) total += weights.of(x[e]);
      if (order_of(x[e]) < threshold) continue;
      const unsigned at = atomicAdd(&list.count, 1u);
      if (at < kListCapacity) list.ballot[at] = ballot_of(x[e], uint32_t(id + e));
    }
  });
  __syncthreads();
  if (list.count > kListCapacity) return -1;
  const int count = int(list.count);
  unsigned long long listed = 0;
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    list.weight[i] = weights.of(value_of(uint32_t(list.ballot[i] >> 32)));
    listed += list.weight[i];
  }
  __syncthreads();
  rank_list(list, count, has_k ? s.top_k : 0);
  __syncthreads();

  // What of it is kept; top_p is measured against what top_k leaves.
  const uint32_t floor = max(threshold, list.kth);
  if (has_k) {
    for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
      if (uint32_t(list.ballot[i] >> 32) >= floor) total += list.weight[i];
    }
  }
  const double target = double(s.top_p) * double(cta_reduce(total, scratch, TakeSum()));
  const bool settled =
      has_k || threshold <= least || double(cta_reduce(listed, scratch, TakeSum())) >= target;
  if (!settled) return -1;
  const float inverse = inverse_temperature(s.temperature);
  unsigned long long best = 0;
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    const uint32_t order = uint32_t(list.ballot[i] >> 32), id = ~uint32_t(list.ballot[i]);
    if (order < floor || order < least) continue;
    if (s.top_p < 1.f && list.before[i] > 0 && double(list.before[i]) >= target) continue;
    best = max(best, ballot_of(value_of(order) * inverse + noise_of(s, id), id));
  }
  return token_of(cta_reduce(best, scratch, TakeMax()));
}

}  // namespace cuda
}  // namespace skv
