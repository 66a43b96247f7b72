// Draws from the short list of a row's largest tokens, which nearly always settles a row cut by top_k or
// top_p with one more pass over logits that have just been read.
//
// While a row is read for the first time, `maxima` are noted: the largest logits of up to kMaxima disjoint
// parts of it.  At least r tokens reach the r-th largest of these, and few more than that do: they make the
// list, in no order.  It holds what top_k keeps where r is top_k; what top_p keeps is in it if its weight
// reaches the target.
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
  uint32_t threshold;  // orders of logits
  uint32_t kth;
};

// Which tokens make the list.
struct ListRule {
  bool has_k, exists, whole;  // whole: all tokens
  int rank;

  SKV_DEVICE ListRule(const SampleSettings& s, int vocab, int num_maxima)
      : has_k(s.top_k > 0 && s.top_k < vocab), exists(has_k || s.top_p < 1.f), whole(vocab <= kListCapacity) {
    rank = has_k ? s.top_k : min(kListRank, num_maxima / 2);
    exists = exists && (whole || rank <= num_maxima / 2);  // else it would not hold what reaches that rank
  }
};

// Threads of a warp whose shares of the row are one part: all parts of a row's CTAs are at most kMaxima.
SKV_DEVICE int lanes_per_part(int splits) {
  int lanes = 1;
  while (lanes < splits) lanes *= 2;
  return lanes;
}
SKV_DEVICE int maxima_of(int splits) { return int(blockDim.x) / lanes_per_part(splits) * splits; }

// The largest logits of this CTA's parts; ballot: of this thread's share.
SKV_DEVICE void note_maxima(uint32_t* maxima, unsigned long long ballot, int split, int splits) {
  const int lanes = lanes_per_part(splits), parts = int(blockDim.x) / lanes;
  uint32_t largest = uint32_t(ballot >> 32);
  for (int o = lanes / 2; o; o >>= 1) largest = max(largest, __shfl_xor_sync(kFullMask, largest, o));
  if (int(threadIdx.x) % lanes == 0) maxima[split * parts + int(threadIdx.x) / lanes] = largest;
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

// The token drawn, or -1 if the list does not settle it; thread t has written ballots t, t + blockDim.x, ...
// total: the weight of all tokens, unless top_k comes first.  Whole CTA.
SKV_DEVICE int draw_from_list(ShortList& list, int count, const ListRule& rule, const SampleSettings& s,
                              const Weights& weights, uint32_t threshold, unsigned long long total) {
  SKV_SHARED(scratch, unsigned long long[kSampleWarps]);
  const uint32_t least = least_order(s, weights.largest);
  if (threadIdx.x == 0) list.kth = 0;
  unsigned long long listed = 0;
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    list.weight[i] = weights.of(value_of(uint32_t(list.ballot[i] >> 32)));
    listed += list.weight[i];
  }
  __syncthreads();
  rank_list(list, count, rule.has_k ? s.top_k : 0);
  __syncthreads();

  // What of it is kept; top_p is measured against what top_k leaves.
  const uint32_t floor = max(threshold, list.kth);
  if (rule.has_k) {
    unsigned long long kept = 0;
    for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
      if (uint32_t(list.ballot[i] >> 32) >= floor) kept += list.weight[i];
    }
    total = cta_reduce(kept, scratch, TakeSum());
  }
  const double target = double(s.top_p) * double(total);
  const bool settled =
      rule.has_k || threshold <= least || double(cta_reduce(listed, scratch, TakeSum())) >= target;
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
