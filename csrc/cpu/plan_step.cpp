// plan_step on the CPU: sequences one after the other; core/step.h says what each of them does.
#include "../core/step.h"
#include "index_check.h"
#include "isa.h"

namespace skv::cpu::SKV_ISA {

namespace {

// Rows begin .. begin + rows of the step, and logits of the last ones.
void fill_sequence(const PlanStepParams& p, int64_t b, const StepWish& wish, int64_t begin, int64_t rows,
                   int64_t logit_begin) {
  const int64_t length = p.lengths[b], computed = p.computed[b], logits = step_logit_rows(wish, rows);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t position = wish.start + i;
    p.token_ids[begin + i] = step_token(p, b, length, position);
    p.positions[begin + i] = position;
    p.slot_mapping[begin + i] = step_slot(p, b, computed, position);
  }
  for (int64_t i = 0; i < logits; ++i) {
    const int64_t row = begin + rows - logits + i;
    p.logit_rows[logit_begin + i] = row;
    p.draft_tokens[logit_begin + i] = p.token_ids[row];
  }
}

}  // namespace

void plan_step(const PlanStepParams& p, const Parallel&) {
  check_indices(p);
  int64_t active = 0;
  for (int64_t b = 0; b < p.batch; ++b) active += step_wish(p, b, p.lengths[b], p.computed[b]).rows > 0;
  const int64_t granted = step_least(active, step_least(p.max_tokens, p.max_logit_rows));
  const int64_t spare_rows = p.max_tokens - granted, spare_logits = p.max_logit_rows - granted;

  int64_t seen = 0, drafts_before = 0, more_before = 0, total = 0, total_logits = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    p.cu_seqlens_q[b] = static_cast<int32_t>(total);
    p.cu_rows[b] = static_cast<int32_t>(total_logits);
    p.seqused_k[b] = 0;
    p.sample_positions[b] = 0;
    const StepWish wish = step_wish(p, b, p.lengths[b], p.computed[b]);
    if (wish.rows == 0 || seen++ >= granted) continue;
    const int64_t drafts = step_share(spare_logits, drafts_before, wish.drafts);
    const int64_t more = wish.rows - 1 - wish.drafts + drafts;
    const int64_t rows = 1 + step_share(spare_rows, more_before, more);
    drafts_before += wish.drafts;
    more_before += more;
    fill_sequence(p, b, wish, total, rows, total_logits);
    const int64_t logits = step_logit_rows(wish, rows);
    p.seqused_k[b] = static_cast<int32_t>(wish.start + rows);
    p.sample_positions[b] = logits > 0 ? p.lengths[b] : 0;
    total += rows;
    total_logits += logits;
  }
  p.cu_seqlens_q[p.batch] = static_cast<int32_t>(total);
  p.cu_rows[p.batch] = static_cast<int32_t>(total_logits);
  for (int64_t i = total; i < p.max_tokens; ++i) {
    p.token_ids[i] = 0;
    p.positions[i] = 0;
    p.slot_mapping[i] = -1;
  }
  for (int64_t i = total_logits; i < p.max_logit_rows; ++i) {
    p.logit_rows[i] = 0;
    p.draft_tokens[i] = 0;
  }
}

}  // namespace skv::cpu::SKV_ISA
