// verify_drafts: CTA (row, split) reads its part of the row's logits once and leaves the best token of it;
// the last CTA of a row finishes the row's draw, the last row of a sequence walks the sequence.  Rows that
// top_k, top_p or min_p cut are read once more by a second kernel (verify_cut_rows.cuh), while the cache
// still has them.
#pragma once

#include "noisy_best.cuh"
#include "verify_row.cuh"

namespace skv {
namespace cuda {

template <class T, int kCount>
__global__ void __launch_bounds__(kSampleThreads, 2)
    verify_drafts_kernel(const __grid_constant__ VerifyLaunch launch) {
  const VerifyDraftsParams& p = launch.p;
  SKV_SHARED(scratch, unsigned long long[kSampleWarps]);
  SKV_SHARED(warp_logits, LargestAndSum[kSampleWarps]);
  SKV_SHARED(whole, VerifyPartial);
  const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;

  // The last `batch` CTAs look after sequences without rows.
  const int64_t row_ctas = p.total_rows * launch.splits;
  if (blockIdx.x >= row_ctas) {
    const int64_t b = blockIdx.x - row_ctas;
    if (rows_of(p, b).count == 0) write_unused(p, b, 0, int(threadIdx.x), int(blockDim.x));
    return;
  }
  const RowPart part(launch);
  const VerifiedRow at(p, part.row);
  if (at.b < 0) return;

  // One pass over this part: the best token by the score it is drawn with, or by its logit where more passes
  // follow.
  const auto logits = logits_of<T, kCount>(p, at.row);
  const bool noisy = at.sampled && !at.cut;
  const float inverse = noisy ? inverse_temperature(at.s.temperature) : 1.f;
  BestToken mine;
  LargestAndSum stats;
  logits.for_each(part.begin, part.end, [&](int id, const float (&x)[kCount], uint32_t allowed) {
    if (p.logprobs) stats.add(x);
    if (noisy) {
      add_noisy(mine, at.s, inverse, id, x, allowed);
      return;
    }
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if (allowed >> e & 1) mine.add(x[e], id + e);
    }
  });
  if (at.cut) note_maxima(launch.maxima + at.row * kMaxima, mine.ballot(), part.split, launch.splits);
  VerifyPartial of_part{cta_reduce(mine.ballot(), scratch, TakeMax()), {}};
  if (p.logprobs) {  // in a fixed order
    stats = add_up(stats);
    if (lane == 0) warp_logits[warp] = stats;
    __syncthreads();
    if (warp == 0) {
      of_part.logits = add_up(lane < int(blockDim.x) / kWarpSize ? warp_logits[lane] : LargestAndSum{});
    }
  }
  if (!hand_over(of_part, launch.partials + at.row * launch.splits, launch.row_tickets + at.row, part.split,
                 launch.splits, whole))
    return;

  const int token = token_of(whole.best);
  if (at.cut) {
    const bool more = token >= 0 && fabsf(value_of(uint32_t(whole.best >> 32))) < INFINITY;
    if (threadIdx.x == 0) launch.largest[at.row] = more ? whole.best : 0;
    if (more) return;
  }
  finish_row(launch, at, logits, token, whole.logits);
}

}  // namespace cuda
}  // namespace skv
