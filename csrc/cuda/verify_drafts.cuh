// verify_drafts: one launch.  CTA (row, split) reads its part of the row's logits once and leaves the best
// token of it; the last CTA of a row finishes the row's draw, the last row of a sequence walks the sequence.
// A row cut by top_k or top_p is read once more by its last CTA (short_list.cuh), while the cache still has
// it.
//
// Handing over: partial results are written by thread 0, which then takes a ticket with acquire and release;
// the thread that took the last one reads what the others wrote.  A ticket counter is zero before the launch.
#pragma once

#include "short_list.cuh"

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
  uint32_t* maxima;         // [total_rows][kMaxima], of rows that are cut
  int32_t* drawn;           // [total_rows]
  float* drawn_logprob;     // [total_rows]
};

struct LargestAndSum {
  float largest = -INFINITY, sum = 0.f;

  template <int kCount>
  SKV_DEVICE void add(const float (&x)[kCount]) {
    float top = x[0];
#pragma unroll
    for (int e = 1; e < kCount; ++e) top = fmaxf(top, x[e]);
    if (top > largest) {
      sum = largest == -INFINITY ? 0.f : sum * expf(largest - top);
      largest = top;
    }
    if (largest == -INFINITY) return;
#pragma unroll
    for (int e = 0; e < kCount; ++e) sum += expf(x[e] - largest);
  }
  SKV_DEVICE void add(const LargestAndSum& o) {
    const float top = fmaxf(largest, o.largest);
    if (top == -INFINITY) return;
    sum = sum * expf(largest - top) + o.sum * expf(o.largest - top);
    largest = top;
  }
};

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

// Rows of a sequence; none if they are not in order.
struct RowRange {
  int64_t begin, count;
};
SKV_DEVICE RowRange rows_of(const VerifyDraftsParams& p, int64_t b) {
  const int64_t begin = p.cu_rows[b], end = p.cu_rows[b + 1];
  return {begin, in_order(begin, end, p.total_rows) ? end - begin : 0};
}

// The sequence that owns `row`, or -1 for padding rows.  Whole CTA.
SKV_DEVICE int find_sequence(const VerifyDraftsParams& p, int64_t row) {
  SKV_SHARED(found, int);
  if (threadIdx.x == 0) found = -1;
  __syncthreads();
  for (int b = int(threadIdx.x); b < p.batch; b += int(blockDim.x)) {
    const RowRange own = rows_of(p, b);
    if (own.begin <= row && row < own.begin + own.count) atomicMax(&found, b);  // one, unless cu_rows falls
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
    if (rows_of(p, b).count == 0) write_unused(p, b, 0, int(threadIdx.x), int(blockDim.x));
    return;
  }
  const int64_t row = blockIdx.x / launch.splits;
  const int split = int(blockIdx.x % launch.splits);
  const int b = find_sequence(p, row);
  if (b < 0) return;
  const int64_t start = rows_of(p, b).begin, rows = rows_of(p, b).count;

  if (p.parents && (row == start ? p.parents[row] != -1 : uint32_t(p.parents[row]) >= uint32_t(row - start)))
    out_of_range();

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
    s.position = uint64_t(p.positions[b]) + uint64_t(depth);
  }

  // One pass over this part: the best token by the score it is drawn with, or by its logit where more passes
  // follow.
  LogitsRow<T, kCount> logits{static_cast<const T*>(p.logits) + row * p.logits_stride, nullptr, int(p.vocab)};
  if (p.token_bitmask) logits.bitmask = p.token_bitmask + row * p.bitmask_stride;
  const unsigned begin = min(unsigned(split) * unsigned(launch.tokens_per_split), unsigned(p.vocab));
  const unsigned end = min(begin + unsigned(launch.tokens_per_split), unsigned(p.vocab));
  const bool noisy = sampled && !cut;
  const float inverse = noisy ? inverse_temperature(s.temperature) : 1.f;
  BestToken mine;
  LargestAndSum stats;
  logits.for_each(begin, end, [&](int id, const float (&x)[kCount], uint32_t allowed) {
    if (p.logprobs) stats.add(x);
    if (noisy) {
      add_noisy(mine, s, inverse, id, x, allowed);
      return;
    }
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if (allowed >> e & 1) mine.add(x[e], id + e);
    }
  });
  const int lanes = lanes_per_part(launch.splits), parts = int(blockDim.x) / lanes;  // of this CTA
  uint32_t* maxima = launch.maxima + row * kMaxima;
  if (cut) {
    uint32_t largest = uint32_t(mine.ballot() >> 32);
    for (int o = lanes / 2; o; o >>= 1) largest = max(largest, __shfl_xor_sync(kFullMask, largest, o));
    if (lane % lanes == 0) maxima[split * parts + int(threadIdx.x) / lanes] = largest;
  }
  const unsigned long long best = cta_reduce(mine.ballot(), scratch, TakeMax());
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
    if (largest > -INFINITY && largest < INFINITY) {
      token = draw_from_short_list(logits, s, largest, maxima, launch.splits * parts);
      if (token < 0) token = sample_row(logits, s, largest);
    }
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
