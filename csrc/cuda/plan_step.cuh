// plan_step: one CTA.  Threads share out the sequences to grant rows, then the rows to fill them; core/step.h
// says what a sequence does.
#pragma once

#include "../core/step.h"
#include "cta_sum.cuh"

namespace skv {
namespace cuda {

constexpr int kPlanThreads = 512;

// The wish of a sequence; lengths out of range make none.
SKV_DEVICE StepWish wish_of(const PlanStepParams& p, int64_t b) {
  const int64_t length = p.lengths[b], computed = p.computed[b];
  if (!in_order(0, length, p.max_history) || !in_order(0, computed, length)) return {0, 0, 0, 1};
  return step_wish(p, b, length, computed);
}

// The sequence whose rows hold row i: the last one that begins at or before it and is not empty.
SKV_DEVICE int64_t owner_of(const int32_t* cu, int64_t batch, int64_t i) {
  int64_t low = 0, high = batch - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (cu[middle] <= i) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

SKV_DEVICE int32_t token_of_row(const PlanStepParams& p, int64_t b, int64_t row) {
  const int64_t position = p.seqused_k[b] - p.cu_seqlens_q[b + 1] + row;
  return step_token(p, b, p.lengths[b], position);
}

// Everything but the padding and the rows themselves.
SKV_DEVICE void grant_rows(const PlanStepParams& p, int64_t& total, int64_t& total_logits) {
  const int64_t per_thread = (p.batch + kPlanThreads - 1) / kPlanThreads;
  const int64_t begin = min(int64_t(threadIdx.x) * per_thread, p.batch);
  const int64_t end = min(begin + per_thread, p.batch);

  int64_t active = 0, all_active, ignored;
  for (int64_t b = begin; b < end; ++b) active += wish_of(p, b).rows > 0;
  const int64_t seen = exclusive_sum<kPlanThreads>(active, all_active);
  const int64_t granted = min(all_active, min(p.max_tokens, p.max_logit_rows));
  const int64_t spare_rows = p.max_tokens - granted, spare_logits = p.max_logit_rows - granted;
  const auto for_each_granted = [&](auto visit) {
    int64_t i = seen;
    for (int64_t b = begin; b < end; ++b) {
      const StepWish wish = wish_of(p, b);
      if (wish.rows > 0 && i++ < granted) visit(b, wish);
    }
  };

  int64_t drafts = 0;
  for_each_granted([&](int64_t, const StepWish& wish) { drafts += wish.drafts; });
  const int64_t first_draft = exclusive_sum<kPlanThreads>(drafts, ignored);
  const auto more_of = [&](const StepWish& wish) {  // rows beyond the first; moves drafts on
    const int64_t more = wish.rows - 1 - wish.drafts + step_share(spare_logits, drafts, wish.drafts);
    drafts += wish.drafts;
    return more;
  };
  int64_t wanted = 0;
  drafts = first_draft;
  for_each_granted([&](int64_t, const StepWish& wish) { wanted += more_of(wish); });
  const int64_t first_wanted = exclusive_sum<kPlanThreads>(wanted, ignored);
  const auto rows_of = [&](const StepWish& wish) {  // moves drafts and wanted on
    const int64_t more = more_of(wish), rows = 1 + step_share(spare_rows, wanted, more);
    wanted += more;
    return rows;
  };
  int64_t rows = 0, logits = 0;
  drafts = first_draft;
  wanted = first_wanted;
  for_each_granted([&](int64_t, const StepWish& wish) {
    const int64_t n = rows_of(wish);
    rows += n;
    logits += step_logit_rows(wish, n);
  });
  rows = exclusive_sum<kPlanThreads>(rows, total);
  logits = exclusive_sum<kPlanThreads>(logits, total_logits);

  int64_t i = seen;
  drafts = first_draft;
  wanted = first_wanted;
  for (int64_t b = begin; b < end; ++b) {
    const StepWish wish = wish_of(p, b);
    const int64_t n = wish.rows > 0 && i++ < granted ? rows_of(wish) : 0;
    const int64_t n_logits = step_logit_rows(wish, n);
    p.cu_seqlens_q[b] = int32_t(rows);
    p.cu_rows[b] = int32_t(logits);
    p.seqused_k[b] = n > 0 ? int32_t(wish.start + n) : 0;
    p.sample_positions[b] = n_logits > 0 ? p.lengths[b] : 0;
    rows += n;
    logits += n_logits;
  }
  if (threadIdx.x == 0) {
    p.cu_seqlens_q[p.batch] = int32_t(total);
    p.cu_rows[p.batch] = int32_t(total_logits);
  }
}

__global__ void __launch_bounds__(kPlanThreads) plan_step_kernel(const __grid_constant__ PlanStepParams p) {
  int64_t total, total_logits;
  grant_rows(p, total, total_logits);
  __syncthreads();  // what rows there are

  for (int64_t row = threadIdx.x; row < p.max_tokens; row += kPlanThreads) {
    const bool is_padding = row >= total;
    const int64_t b = owner_of(p.cu_seqlens_q, p.batch, row);
    const int64_t position = is_padding ? 0 : p.seqused_k[b] - p.cu_seqlens_q[b + 1] + row;
    p.token_ids[row] = is_padding ? 0 : token_of_row(p, b, row);
    p.positions[row] = position;
    p.slot_mapping[row] = is_padding ? -1 : step_slot(p, b, p.computed[b], position);
  }
  for (int64_t i = threadIdx.x; i < p.max_logit_rows; i += kPlanThreads) {
    const bool is_padding = i >= total_logits;
    const int64_t b = owner_of(p.cu_rows, p.batch, i);
    const int64_t row = is_padding ? 0 : p.cu_seqlens_q[b + 1] - p.cu_rows[b + 1] + i;
    p.logit_rows[i] = row;
    p.draft_tokens[i] = is_padding ? 0 : token_of_row(p, b, row);
  }
}

}  // namespace cuda
}  // namespace skv
