// One speculative step as plan_step lays it out and commit_step ends it: what a sequence does, for the CPU
// and for CUDA. Plain inline functions; static, so that each instruction set of the CPU keeps its own
// (isa.h).
//
// A sequence with more than its last token to feed ingests them, `max_rows` at most a step, and has logits
// once none is left. One with its last token alone feeds it and drafts behind it, as many as were proposed,
// as it may have, as still fit its answer and as it has slots for. One without a slot waits.
//
// Rows are granted in the order of sequences: one to each while rows and logit rows last, then drafts while
// logit rows last, then what each wants beyond its first row while rows last.
#pragma once
#include "params.h"

#ifdef __CUDACC__
#define SKV_STEP_INLINE __host__ __device__ static inline
#define SKV_STEP_ROLLED _Pragma("unroll 1")  // short loops, whose copies would cost registers
#else
#define SKV_STEP_INLINE static inline
#define SKV_STEP_ROLLED
#endif

namespace skv {

enum StepFinished : int32_t { kRunning = 0, kStopped = 1, kFullLength = 2, kNothingDrawn = 3 };

// Of a sequence's entry of CommitStepParams::results: rows fed, of them logit rows, tokens verified, finished
// afterwards; then the tokens.
constexpr int64_t kResultHeader = 4;

struct StepWish {
  int64_t rows;     // 0: nothing to do
  int64_t drafts;   // of them
  int64_t start;    // position of the first row
  int64_t pending;  // tokens to feed before anything is decided
};

SKV_STEP_INLINE int64_t step_least(int64_t a, int64_t b) { return a < b ? a : b; }
SKV_STEP_INLINE int64_t step_clamp(int64_t x, int64_t high) { return x < 0 ? 0 : step_least(x, high); }

// length, computed: in range.
SKV_STEP_INLINE StepWish step_wish(const PlanStepParams& p, int64_t b, int64_t length, int64_t computed) {
  StepWish wish = {0, 0, 0, 1};
  if (length == 0 || p.finished[b] != kRunning) return wish;
  wish.start = step_least(computed, length - 1);
  wish.pending = length - wish.start;
  const int64_t slots = step_least(p.num_slots[b], p.max_blocks * p.block_size);
  wish.rows = step_clamp(step_least(wish.pending, slots - wish.start), p.max_rows);
  if (wish.pending > 1 || wish.rows == 0) return wish;
  int64_t drafts = step_least(p.num_drafts[b], p.draft_limits[b]);
  drafts = step_least(drafts, p.max_lengths[b] - length - 1);
  drafts = step_least(drafts, slots - length);
  wish.drafts = step_clamp(drafts, step_least(p.max_drafts, p.max_rows - 1));
  wish.rows += wish.drafts;
  return wish;
}

// What is left of `most` after `before` was asked for, at most `wanted`.
SKV_STEP_INLINE int64_t step_share(int64_t most, int64_t before, int64_t wanted) {
  return step_clamp(most - before, wanted);
}

// Logit rows of a sequence that was granted so many rows.
SKV_STEP_INLINE int64_t step_logit_rows(const StepWish& wish, int64_t granted) {
  return granted < wish.pending ? 0 : granted - wish.pending + 1;
}

// The row of position `position` of a sequence: a known token, or a draft.
SKV_STEP_INLINE int32_t step_token(const PlanStepParams& p, int64_t b, int64_t length, int64_t position) {
  return position < length ? p.history[b * p.history_stride + position]
                           : p.drafts[b * p.drafts_stride + position - length];
}
SKV_STEP_INLINE int64_t step_slot(const PlanStepParams& p, int64_t b, int64_t computed, int64_t position) {
  if (position < computed) return -1;
  const int64_t block = p.block_table[b * p.block_table_stride + position / p.block_size];
  return block < 0 ? -1 : block * p.block_size + position % p.block_size;
}

// Takes over what sequence b fed: `rows` of them, `logit_rows` with logits. Counts are in range, 0 where it
// fed nothing. entry: where its result goes.
SKV_STEP_INLINE void step_commit(const CommitStepParams& p, int64_t b, int64_t rows, int64_t logit_rows,
                                 int64_t count, int32_t* entry) {
  const int32_t* tokens = p.tokens + b * p.tokens_stride;
  int64_t length = p.lengths[b], computed = p.computed[b];
  const int64_t before = length, start = step_least(computed, length - 1);
  int32_t finished = p.finished[b];
  if (rows > 0 && logit_rows == 0) {
    computed = start + rows > computed ? start + rows : computed;
  } else if (rows > 0) {
    if (count == 0) finished = kNothingDrawn;
    SKV_STEP_ROLLED
    for (int64_t i = 0; i < count && finished == kRunning && length < p.max_history; ++i) {
      p.history[b * p.history_stride + length++] = tokens[i];
      SKV_STEP_ROLLED
      for (int64_t s = 0; s < p.max_stops; ++s) {
        const int32_t stop = p.stop_tokens[b * p.stop_tokens_stride + s];
        if (stop >= 0 && stop == tokens[i]) finished = kStopped;
      }
      if (finished == kRunning && length >= p.max_lengths[b]) finished = kFullLength;
    }
    const int64_t written = step_least(before + count - 1, length);
    computed = written > computed ? written : computed;
  }
  p.lengths[b] = static_cast<int32_t>(length);
  p.computed[b] = static_cast<int32_t>(computed);
  p.finished[b] = finished;
  entry[0] = static_cast<int32_t>(rows);
  entry[1] = static_cast<int32_t>(logit_rows);
  entry[2] = static_cast<int32_t>(count);
  entry[3] = finished;
  SKV_STEP_ROLLED
  for (int64_t i = 0; i < p.max_rows; ++i) entry[kResultHeader + i] = i < count ? tokens[i] : -1;
}

}  // namespace skv
