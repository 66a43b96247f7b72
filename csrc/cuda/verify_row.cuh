// What the two kernels of verify_drafts share: whose a row is and how it is drawn, what its CTAs hand to one
// another, and how its sequence is walked once its last row is drawn.
//
// Handing over: results are written, then one thread takes a ticket with acquire and release; the CTA that
// took the last one reads what the others wrote.  A ticket counter is zero before the first launch.
#pragma once

#include "short_list.cuh"

namespace skv {
namespace cuda {

constexpr int kMaxSplits = kWarpSize;  // a warp reads what they left

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
  SKV_DEVICE LargestAndSum across(int lanes) const {
    return {__shfl_xor_sync(kFullMask, largest, lanes), __shfl_xor_sync(kFullMask, sum, lanes)};
  }
};

// What a CTA leaves of its part of a row; as they are made, nothing.
struct VerifyPartial {
  unsigned long long best = 0;  // ballot of the part's winner
  LargestAndSum logits;         // unprocessed: the largest, and the sum of exp(x - largest)

  SKV_DEVICE void add(const VerifyPartial& o) {
    best = max(best, o.best);
    logits.add(o.logits);
  }
  SKV_DEVICE VerifyPartial across(int lanes) const {
    return {__shfl_xor_sync(kFullMask, best, lanes), logits.across(lanes)};
  }
};

struct CutPartial {
  unsigned long long total = 0, best = 0;  // weight of the part's tokens; ballot of its winner by noisy score

  SKV_DEVICE void add(const CutPartial& o) {
    total += o.total;
    best = max(best, o.best);
  }
  SKV_DEVICE CutPartial across(int lanes) const {
    return {__shfl_xor_sync(kFullMask, total, lanes), __shfl_xor_sync(kFullMask, best, lanes)};
  }
};

struct VerifyLaunch {
  VerifyDraftsParams p;
  int splits, tokens_per_split;                                     // a multiple of 32
  uint32_t *row_tickets, *cut_tickets, *sequence_tickets, *listed;  // [total_rows], of sequences [batch]
  VerifyPartial* partials;                                          // [total_rows][splits]
  int32_t* drawn;                                                   // [total_rows]
  float* drawn_logprob;                                             // [total_rows]
  // Of rows that are cut:
  unsigned long long* largest;  // [total_rows], ballot of the largest logit; 0: drawn already
  CutPartial* cut_partials;     // [total_rows][splits]
  uint32_t* maxima;             // [total_rows][kMaxima]
  unsigned long long* list;     // [total_rows][kListCapacity]; `listed` wanted in
};

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

// From row 0 along the lowest child of each that carries the drawn token.  Whole warp, a lane for each of 32
// rows.
SKV_DEVICE void walk(const VerifyLaunch& launch, int64_t b, int64_t start, int64_t rows) {
  const VerifyDraftsParams& p = launch.p;
  const int lane = int(threadIdx.x) % kWarpSize;
  int64_t first = 0;  // row of lane 0
  int drawn = -1, draft = -1, parent = -1;
  float logprob = NAN;
  const auto look_at = [&](int64_t at) {
    const int64_t r = at + lane;
    first = at;
    if (r >= rows) return;
    drawn = launch.drawn[start + r];
    draft = p.draft_tokens[start + r];
    parent = p.parents ? p.parents[start + r] : int(r) - 1;
    if (p.logprobs) logprob = launch.drawn_logprob[start + r];
  };
  int64_t count = 0;
  if (rows > 0) look_at(0);
  for (int64_t row = 0; row >= 0 && count < p.max_rows;) {
    const int token = __shfl_sync(kFullMask, drawn, int(row - first));
    if (token < 0) break;  // no token is allowed
    if (first + lane == row) {
      p.tokens[b * p.tokens_stride + count] = token;
      if (p.rows) p.rows[b * p.rows_stride + count] = int32_t(row);
      if (p.logprobs) p.logprobs[b * p.logprobs_stride + count] = logprob;
    }
    ++count;
    const int64_t last_child = p.parents ? rows - 1 : min(row + 1, rows - 1);
    for (int64_t parent_row = row;;) {
      const int64_t r = first + lane;
      const unsigned matches =
          __ballot_sync(kFullMask, r > parent_row && r < rows && parent == parent_row && draft == token);
      row = matches ? first + __ffs(int(matches)) - 1 : -1;
      if (matches || first + kWarpSize > last_child) break;
      look_at(first + kWarpSize);
    }
  }
  write_unused(p, b, count, lane, kWarpSize);
}

// A row and how it is drawn.
struct VerifiedRow {
  int64_t row, start, rows;  // the first one of its sequence, and how many that has
  int b;                     // the sequence; -1: padding
  bool sampled, cut;
  SampleSettings s;

  // Whole CTA.
  SKV_DEVICE VerifiedRow(const VerifyDraftsParams& p, int64_t row_)
      : row(row_), b(find_sequence(p, row_)), sampled(false), cut(false), s{} {
    if (b < 0) return;
    start = rows_of(p, b).begin;
    rows = rows_of(p, b).count;
    if (p.parents &&
        (row == start ? p.parents[row] != -1 : uint32_t(p.parents[row]) >= uint32_t(row - start)))
      out_of_range();
    s.temperature = p.temperature ? p.temperature[b] : 0.f;
    s.top_k = p.top_k ? p.top_k[b] : 0;
    s.top_p = p.top_p ? p.top_p[b] : 1.f;
    s.min_p = p.min_p ? p.min_p[b] : 0.f;
    sampled = s.temperature > 0.f && p.seeds && p.positions;
    cut = sampled && ((s.top_k > 0 && s.top_k < p.vocab) || s.top_p < 1.f || s.min_p > 0.f);
    if (!sampled) return;
    int64_t depth = row - start;  // of a chain; in a tree, the number of ancestors
    if (p.parents) {
      depth = 0;
      for (int64_t r = p.parents[row]; r >= 0 && r < rows && depth < rows; r = p.parents[start + r]) ++depth;
    }
    s.seed = uint64_t(p.seeds[b]);
    s.position = uint64_t(p.positions[b]) + uint64_t(depth);
  }
};

// Tokens of the row that this CTA reads.
struct RowPart {
  int64_t row;
  int split;
  unsigned begin, end;

  SKV_DEVICE explicit RowPart(const VerifyLaunch& launch)
      : row(blockIdx.x / launch.splits), split(int(blockIdx.x % launch.splits)) {
    begin = min(unsigned(split) * unsigned(launch.tokens_per_split), unsigned(launch.p.vocab));
    end = min(begin + unsigned(launch.tokens_per_split), unsigned(launch.p.vocab));
  }
};

template <class T, int kCount>
SKV_DEVICE LogitsRow<T, kCount> logits_of(const VerifyDraftsParams& p, int64_t row) {
  LogitsRow<T, kCount> logits{static_cast<const T*>(p.logits) + row * p.logits_stride, nullptr, int(p.vocab)};
  if (p.token_bitmask) logits.bitmask = p.token_bitmask + row * p.bitmask_stride;
  return logits;
}

// The sum of all lanes' values.  Whole warp.
template <class Partial>
SKV_DEVICE Partial add_up(Partial value) {
  for (int o = kWarpSize / 2; o; o >>= 1) value.add(value.across(o));
  return value;
}

// Leaves what thread 0 has of a row; whether all of the row's CTAs have left theirs.  If so, `whole`, in
// shared memory, is what comes of them.  Whole CTA.
template <class Partial>
SKV_DEVICE bool hand_over(const Partial& mine, Partial* partials, uint32_t* ticket, int split, int splits,
                          Partial& whole) {
  SKV_SHARED(is_last, bool);
  if (threadIdx.x < kWarpSize) {
    const int lane = int(threadIdx.x);
    bool last = false;
    if (lane == 0) {
      partials[split] = mine;
      last = prim::atomic_add_acq_rel(ticket, 1) == uint32_t(splits - 1);
    }
    __syncwarp();
    if (__shfl_sync(kFullMask, int(last), 0)) {
      const Partial all = add_up(lane < splits ? partials[lane] : Partial{});
      if (lane == 0) whole = all;
    }
    if (lane == 0) is_last = last;
  }
  __syncthreads();
  return is_last;
}

// The row's draw; the last one of a sequence walks it.  Whole CTA.
template <class T, int kCount>
SKV_DEVICE void finish_row(const VerifyLaunch& launch, const VerifiedRow& at,
                           const LogitsRow<T, kCount>& logits, int token, const LargestAndSum& whole) {
  SKV_SHARED(is_last_row, bool);
  if (threadIdx.x == 0) {
    launch.drawn[at.row] = token;
    if (launch.p.logprobs && token >= 0) {
      launch.drawn_logprob[at.row] = logits.at(token) - whole.largest - logf(whole.sum);
    }
    is_last_row = prim::atomic_add_acq_rel(launch.sequence_tickets + at.b, 1) == uint32_t(at.rows - 1);
  }
  __syncthreads();
  if (is_last_row && threadIdx.x < kWarpSize) walk(launch, at.b, at.start, at.rows);
}

}  // namespace cuda
}  // namespace skv
