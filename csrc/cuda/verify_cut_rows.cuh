// verify_drafts' second kernel, for rows that top_k, top_p or min_p cut.  CTA (row, split) reads its part
// once more, now that the row's largest logit is known: it adds its tokens to the row's short list, sums what
// they weigh and finds the best of them by noisy score.  The last CTA of a row draws from the list, or where
// that does not settle it, tests the best token and its successors by reading the row alone.
#pragma once

#include "noisy_best.cuh"
#include "verify_row.cuh"

namespace skv {
namespace cuda {

// Bits of those of kCount tokens that reach an order.
template <int kCount>
SKV_DEVICE uint32_t reaching(const float (&x)[kCount], uint32_t allowed, uint32_t order) {
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    if (order_of(x[e]) < order) allowed &= ~(1u << e);
  }
  return allowed;
}

template <class T, int kCount>
__global__ void __launch_bounds__(kSampleThreads, kCount == 1 ? 1 : 2)
    verify_drafts_cut_kernel(const __grid_constant__ VerifyLaunch launch) {
  const VerifyDraftsParams& p = launch.p;
  SKV_SHARED(scratch, unsigned long long[kSampleWarps]);
  SKV_SHARED(whole, CutPartial);
  SKV_SHARED(whole_logits, LargestAndSum);
  SKV_SHARED(short_list, ShortList);
  const RowPart part(launch);
  const VerifiedRow at(p, part.row);
  if (at.b < 0 || !at.cut || launch.largest[at.row] == 0) return;

  const SampleSettings& s = at.s;
  const auto logits = logits_of<T, kCount>(p, at.row);
  const Weights weights(s, value_of(uint32_t(launch.largest[at.row] >> 32)));
  const int num_maxima = maxima_of(launch.splits);
  const ListRule rule(s, int(p.vocab), num_maxima);
  constexpr uint32_t kFiniteOrder = kOrderOfMinusInfinity + 1;
  uint32_t threshold = kFiniteOrder;
  if (rule.exists && !rule.whole) {
    threshold = nth_maximum(short_list, launch.maxima + at.row * kMaxima, num_maxima, rule.rank);
  }

  // What this part adds.  Where top_k comes first, only the list knows what is left to weigh and to draw.
  unsigned long long* list = launch.list + at.row * kListCapacity;
  const uint32_t least = max(kFiniteOrder, least_order(s, weights.largest));
  unsigned long long total = 0;
  BestToken best;
  if (rule.exists || !rule.has_k) {
    logits.for_each(part.begin, part.end, [&](int id, const float (&x)[kCount], uint32_t allowed) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        if (!(allowed >> e & 1)) continue;
        if (!rule.has_k && s.top_p < 1.f) total += weights.of(x[e]);
        if (!rule.exists || order_of(x[e]) < threshold) continue;
        const uint32_t place = atomicAdd(launch.listed + at.row, 1u);
        if (place < kListCapacity) list[place] = ballot_of(x[e], uint32_t(id + e));
      }
      if (!rule.has_k) add_noisy(best, s, weights.inverse, id, x, reaching(x, allowed, least));
    });
  }
  const CutPartial mine{cta_reduce(total, scratch, TakeSum()), cta_reduce(best.ballot(), scratch, TakeMax())};
  if (!hand_over(mine, launch.cut_partials + at.row * launch.splits, launch.cut_tickets + at.row, part.split,
                 launch.splits, whole))
    return;

  int token = -1;
  const uint32_t count = launch.listed[at.row];
  if (rule.exists && count <= kListCapacity) {
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) short_list.ballot[i] = list[i];
    token = draw_from_list(short_list, int(count), rule, s, weights, threshold, whole.total);
  }
  if (token < 0 && rule.has_k) {
    const uint32_t floor = max(kth_order(logits, s.top_k), kFiniteOrder);
    const unsigned long long kept = s.top_p < 1.f ? total_weight(logits, weights, floor) : 0;
    token = draw_above(logits, s, weights, floor, kept, -1);
  } else if (token < 0) {
    token = draw_above(logits, s, weights, kFiniteOrder, whole.total, token_of(whole.best));
  }

  if (p.logprobs && threadIdx.x < kWarpSize) {
    const VerifyPartial* partials = launch.partials + at.row * launch.splits;
    const LargestAndSum all =
        add_up(int(threadIdx.x) < launch.splits ? partials[threadIdx.x].logits : LargestAndSum{});
    if (threadIdx.x == 0) whole_logits = all;
  }
  finish_row(launch, at, logits, token, whole_logits);
}

}  // namespace cuda
}  // namespace skv
