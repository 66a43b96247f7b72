// verify_drafts: one launch.  CTA (row, split) reads its part of the row's logits once and leaves the best
// token of it; the last CTA of a row finishes the row's draw, the last row of a sequence walks the sequence.
//
// Handing over: partial results are written by thread 0, which then takes a ticket with acquire and release;
// the thread that took the last one reads what the others wrote.  A ticket counter is zero before the launch.
#pragma once

#include "sample_row.cuh"

namespace skv {
namespace cuda {

struct VerifyPartial {
  unsigned long long best;  // ballot of the part's winner
  float largest, sum;       // of the unprocessed logits: the largest, and the sum of exp(x - largest)
};

struct VerifyLaunch {
  VerifyDraftsParams p;
  int splits, tokens_per_split;  // a multiple of 32
  uint32_t *row_tickets, *sequence_tickets;
  VerifyPartial* partials;  // [total_rows][splits]
  int32_t* drawn;           // [total_rows]
  float* drawn_logprob;     // [total_rows]
};

struct LargestAndSum {
  float largest = -INFINITY, sum = 0.f;

  SKV_DEVICE void add(float x) {
    if (x <= largest) {
      sum += x == -INFINITY ? 0.f : expf(x - largest);
    } else {
      sum = (largest == -INFINITY ? 0.f : sum * expf(largest - x)) + 1.f;
      largest = x;
    }
  }
  SKV_DEVICE void add(const LargestAndSum& o) {
    const float top = fmaxf(largest, o.largest);
    if (top == -INFINITY) return;
    sum = sum * expf(largest - top) + o.sum * expf(o.largest - top);
    largest = top;
  }
};

// The sequence that owns `row`, or -1 for padding rows.  Whole CTA.
SKV_DEVICE int find_sequence(const VerifyDraftsParams& p, int64_t row) {
  SKV_SHARED(found, int);
  if (threadIdx.x == 0) found = -1;
  __syncthreads();
  for (int b = int(threadIdx.x); b < p.batch; b += int(blockDim.x)) {
    if (p.cu_rows[b] <= row && row < p.cu_rows[b + 1]) found = b;  // at most one thread
  }
  __syncthreads();
  return found;
}

SKV_DEVICE void write_unused(const VerifyDraftsParams& p, int64_t b, int64_t count, int lane, int lanes) {
  for (int64_t i = count + lane; i < p.max_rows; i += lanes) {
    p.tokens[b * p.tokens_stride + i] = -1;
    if (p.rows) p.rows[b * p.rows_stride + i] = -1;
    if (p.logprobs) p.logprobs[b * p.logprobs_stride + i] = NAN;
  }
  if (lane == 0) p.num_tokens[b] = int32_t(count);
}

// The lowest child of `row` that carries `token`, or -1.  Whole warp.
SKV_DEVICE int64_t matching_child(const VerifyDraftsParams& p, int64_t start, int64_t rows, int64_t row,
                                  int token) {
  if (p.parents == nullptr) return row + 1 < rows && p.draft_tokens[start + row + 1] == token ? row + 1 : -1;
  for (int64_t first = row + 1; first < rows; first += kWarpSize) {
    const int64_t r = first + threadIdx.x % kWarpSize;
    const bool match = r < rows && p.parents[start + r] == row && p.draft_tokens[start + r] == token;
    const unsigned matches = __ballot_sync(kFullMask, match);
    if (matches) return first + __ffs(int(matches)) - 1;
  }
  return -1;
}

// From row 0 along the children that carry the drawn tokens.  Whole warp.
SKV_DEVICE void walk(const VerifyLaunch& launch, int64_t b, int64_t start, int64_t rows) {
  const VerifyDraftsParams& p = launch.p;
  const int lane = int(threadIdx.x) % kWarpSize;
  int64_t count = 0;
  for (int64_t row = 0; row >= 0 && count < p.max_rows;) {
    const int token = launch.drawn[start + row];
    if (token < 0) break;  // no token is allowed
    if (lane == 0) {
      p.tokens[b * p.tokens_stride + count] = token;
      if (p.rows) p.rows[b * p.rows_stride + count] = int32_t(row);
      if (p.logprobs) p.logprobs[b * p.logprobs_stride + count] = launch.drawn_logprob[start + row];
    }
    ++count;
    row = matching_child(p, start, rows, row, token);
  }
  write_unused(p, b, count, lane, kWarpSize);
}

template <class T, int kCount>
__global__ void __launch_bounds__(kSampleThreads, 1)
    verify_drafts_kernel(const __grid_constant__ VerifyLaunch launch) {
  const VerifyDraftsParams& p = launch.p;
  SKV_SHARED(scratch, unsigned long long[kSampleWarps]);
  SKV_SHARED(warp_stats, LargestAndSum[kSampleWarps]);
  SKV_SHARED(whole_row, VerifyPartial);
  SKV_SHARED(is_last, bool);
  const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;

  // The last `batch` CTAs look after sequences without rows.
  const int64_t row_ctas = p.total_rows * launch.splits;
  if (blockIdx.x >= row_ctas) {
    const int64_t b = blockIdx.x - row_ctas;
    if (p.cu_rows[b + 1] <= p.cu_rows[b]) write_unused(p, b, 0, int(threadIdx.x), int(blockDim.x));
    return;
  }
  const int64_t row = blockIdx.x / launch.splits;
  const int split = int(blockIdx.x % launch.splits);
  const int b = find_sequence(p, row);
  if (b < 0) return;
  const int64_t start = max(p.cu_rows[b], 0), rows = min(int64_t(p.cu_rows[b + 1]), p.total_rows) - start;

  // How the row is drawn.
  SampleSettings s{};
  s.temperature = p.temperature ? p.temperature[b] : 0.f;
  s.top_k = p.top_k ? p.top_k[b] : 0;
  s.top_p = p.top_p ? p.top_p[b] : 1.f;
  s.min_p = p.min_p ? p.min_p[b] : 0.f;
  const bool sampled = s.temperature > 0.f && p.seeds && p.positions;
  const bool cut = sampled && ((s.top_k > 0 && s.top_k < p.vocab) || s.top_p < 1.f || s.min_p > 0.f);
  if (sampled) {
    int64_t depth = row - start;  // of a chain; in a tree, the number of ancestors
    if (p.parents) {
      depth = 0;
      for (int64_t r = p.parents[row]; r >= 0 && r < rows && depth < rows; r = p.parents[start + r]) ++depth;
    }
    s.seed = uint64_t(p.seeds[b]);
    s.position = uint64_t(p.positions[b] + depth);
  }

  // One pass over this part: the best token by the score it is drawn with, or by its logit where more passes
  // follow.
  LogitsRow<T, kCount> logits{static_cast<const T*>(p.logits) + row * p.logits_stride, nullptr, int(p.vocab)};
  if (p.token_bitmask) logits.bitmask = p.token_bitmask + row * p.bitmask_stride;
  const int begin = split * launch.tokens_per_split;
  const int end = min(begin + launch.tokens_per_split, int(p.vocab));
  const bool noisy = sampled && !cut;
  const float inverse = noisy ? inverse_temperature(s.temperature) : 1.f;
  unsigned long long best = 0;
  float best_score = -INFINITY;
  LargestAndSum stats;
  Noise noise{s.seed, s.position};
  logits.for_each(begin, end, [&](int id, const float (&x)[kCount], uint32_t allowed) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if (p.logprobs && id + e < end) stats.add(x[e]);
      if (!(allowed >> e & 1)) continue;
      float score = x[e] * inverse;
      if (noisy) {
        if (score + kMaxGumbel < best_score) continue;
        if (score > -INFINITY) score += noise.of(uint32_t(id + e));
      }
      best_score = fmaxf(best_score, score);
      best = max(best, ballot_of(score, uint32_t(id + e)));
    }
  });
  best = cta_reduce(best, scratch, TakeMax());
  if (p.logprobs) {  // in a fixed order
    for (int o = kWarpSize / 2; o; o >>= 1) {
      const LargestAndSum other{__shfl_xor_sync(kFullMask, stats.largest, o),
                                __shfl_xor_sync(kFullMask, stats.sum, o)};
      stats.add(other);
    }
    if (lane == 0) warp_stats[warp] = stats;
    __syncthreads();
  }

  // Hand over; the row's last CTA goes on.
  if (threadIdx.x == 0) {
    if (p.logprobs) {
      stats = warp_stats[0];
      for (int w = 1; w < int(blockDim.x) / kWarpSize; ++w) stats.add(warp_stats[w]);
    }
    VerifyPartial* partials = launch.partials + row * launch.splits;
    partials[split] = {best, stats.largest, stats.sum};
    is_last = prim::atomic_add_acq_rel(launch.row_tickets + row, 1) == uint32_t(launch.splits - 1);
    if (is_last) {
      VerifyPartial all = partials[0];
      LargestAndSum all_stats{all.largest, all.sum};
      for (int i = 1; i < launch.splits; ++i) {
        all.best = max(all.best, partials[i].best);
        all_stats.add(LargestAndSum{partials[i].largest, partials[i].sum});
      }
      whole_row = {all.best, all_stats.largest, all_stats.sum};
    }
  }
  __syncthreads();
  if (!is_last) return;
  int token = token_of(whole_row.best);
  if (cut && token >= 0) {
    const float largest = logits.at(token);
    if (largest > -INFINITY && largest < INFINITY) token = sample_row(logits, s, largest);
  }

  // The sequence's last row walks.
  __syncthreads();
  if (threadIdx.x == 0) {
    launch.drawn[row] = token;
    if (p.logprobs && token >= 0) {
      launch.drawn_logprob[row] = logits.at(token) - whole_row.largest - logf(whole_row.sum);
    }
    is_last = prim::atomic_add_acq_rel(launch.sequence_tickets + b, 1) == uint32_t(rows - 1);
  }
  __syncthreads();
  if (is_last && warp == 0) walk(launch, b, start, rows);
}

}  // namespace cuda
}  // namespace skv
