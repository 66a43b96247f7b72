// propose_drafts: one CTA per sequence, one pass over its history.
//
// Every position that holds the history's last token ends a match with the history's end; a thread counts how
// long the match is, at most max_ngram, and keeps the best as one number: length above, then the position,
// inverted where the earliest match is wanted.  The greatest number of the CTA is the answer.
#pragma once

#include "common.cuh"

namespace skv {
namespace cuda {

constexpr int kProposeMaxThreads = 512;
constexpr int kProposeAhead = 4;  // vectors a thread has in flight

// Tokens that agree going back from `end` and from the end of the history, at most max_ngram; end < length.
SKV_DEVICE int64_t match_length(const int32_t* history, int64_t length, int64_t end, int64_t max_ngram) {
  const int64_t limit = min(end, max_ngram);
  int64_t n = 1;  // the caller has compared the last token
  while (n < limit && history[end - 1 - n] == history[length - 1 - n]) ++n;
  return n;
}

__global__ void __launch_bounds__(kProposeMaxThreads, 1)
    propose_drafts_kernel(const __grid_constant__ ProposeDraftsParams p) {
  SKV_SHARED(warp_best, unsigned long long[kProposeMaxThreads / kWarpSize]);
  const int64_t b = blockIdx.x;
  const int thread = int(threadIdx.x), num_threads = int(blockDim.x);
  const int32_t* history = p.history + b * p.history_stride;
  in_order(0, p.history_lens[b], p.max_history);  // a debug build stops, others take what there is
  const int64_t length = max(int64_t(0), min(int64_t(p.history_lens[b]), p.max_history));

  // Scan: end is the position after a match, so the last token of a match is at most history[length - 2].
  unsigned long long best = 0;
  const auto consider = [&](int32_t token, int32_t last, int64_t at) {
    if (token != last) return;
    const int64_t n = match_length(history, length, at + 1, p.max_ngram);
    if (n < p.min_ngram) return;
    const uint32_t place = p.latest ? uint32_t(at + 1) : ~uint32_t(at + 1);
    const unsigned long long key = static_cast<unsigned long long>(n) << 32 | place;
    best = max(best, key);
  };
  if (length >= 2) {
    const int32_t last = history[length - 1];
    const int64_t misaligned = int64_t(reinterpret_cast<uintptr_t>(history) / 4 % 4);
    const int64_t to_first_vector = min((4 - misaligned) % 4, length - 1);
    const int64_t num_vectors = (length - 1 - to_first_vector) / 4;
    const int4* vectors = reinterpret_cast<const int4*>(history + to_first_vector);
    for (int64_t first = thread; first < num_vectors; first += kProposeAhead * num_threads) {
      int4 tokens[kProposeAhead];
#pragma unroll
      for (int i = 0; i < kProposeAhead; ++i) {
        const int64_t v = first + i * num_threads;
        if (v < num_vectors) tokens[i] = vectors[v];
      }
#pragma unroll
      for (int i = 0; i < kProposeAhead; ++i) {
        const int64_t v = first + i * num_threads, at = to_first_vector + v * 4;
        if (v >= num_vectors) break;
        consider(tokens[i].x, last, at);
        consider(tokens[i].y, last, at + 1);
        consider(tokens[i].z, last, at + 2);
        consider(tokens[i].w, last, at + 3);
      }
    }
    const int64_t tail = to_first_vector + num_vectors * 4;  // at most three tokens on either side
    if (thread < to_first_vector) consider(history[thread], last, thread);
    if (tail + thread < length - 1) consider(history[tail + thread], last, tail + thread);
  }

  // The greatest of the CTA.
  for (int o = kWarpSize / 2; o; o >>= 1) best = max(best, __shfl_xor_sync(kFullMask, best, o));
  if (thread % kWarpSize == 0) warp_best[thread / kWarpSize] = best;
  __syncthreads();
  best = 0;
  for (int w = 0; w < num_threads / kWarpSize; ++w) best = max(best, warp_best[w]);

  // What follows the match.
  const uint32_t place = uint32_t(best);
  const int64_t after = best == 0 ? length : int64_t(p.latest ? place : ~place);
  const int64_t count = min(p.max_drafts, length - after);
  int32_t* drafts = p.drafts + b * p.drafts_stride;
  for (int64_t k = thread; k < p.max_drafts; k += num_threads)
    drafts[k] = k < count ? history[after + k] : -1;
  if (thread == 0) p.num_drafts[b] = int32_t(count);
}

}  // namespace cuda
}  // namespace skv
