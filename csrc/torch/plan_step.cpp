// plan_step: checks and fills PlanStepParams.
#include "backend_call.h"
#include "entries.h"
#include "step_state.h"

namespace skv::entry {

void plan_step(Tensor token_ids, Tensor positions, Tensor slot_mapping, Tensor cu_seqlens_q, Tensor seqused_k,
               Tensor logit_rows, Tensor draft_tokens, Tensor cu_rows, Tensor sample_positions,
               Tensor history, Tensor lengths, Tensor computed, Tensor finished, Tensor drafts,
               Tensor num_drafts, Tensor draft_limits, Tensor max_lengths, Tensor num_slots,
               Tensor block_table, int64_t block_size, int64_t max_rows) {
  const StepCheck s("plan_step", history, "history");
  PlanStepParams params{};
  params.history = s.rows(history, "history", -1, "[batch, max_history]");
  const int64_t batch = history.size(0);
  const char* names = "[batch]";
  s.check.shape(token_ids, "token_ids", {-1}, "[max_tokens]");
  s.check.shape(logit_rows, "logit_rows", {-1}, "[max_logit_rows]");
  const int64_t max_tokens = token_ids.size(0), max_logit_rows = logit_rows.size(0);
  params.token_ids = s.flat<int32_t>(token_ids, "token_ids", max_tokens, "[max_tokens]");
  params.positions = s.flat<int64_t>(positions, "positions", max_tokens, "[max_tokens]");
  params.slot_mapping = s.flat<int64_t>(slot_mapping, "slot_mapping", max_tokens, "[max_tokens]");
  params.cu_seqlens_q = s.flat<int32_t>(cu_seqlens_q, "cu_seqlens_q", batch + 1, "[batch + 1]");
  params.seqused_k = s.flat<int32_t>(seqused_k, "seqused_k", batch, names);
  params.logit_rows = s.flat<int64_t>(logit_rows, "logit_rows", max_logit_rows, "[max_logit_rows]");
  params.draft_tokens = s.flat<int32_t>(draft_tokens, "draft_tokens", max_logit_rows, "[max_logit_rows]");
  params.cu_rows = s.flat<int32_t>(cu_rows, "cu_rows", batch + 1, "[batch + 1]");
  params.sample_positions = s.flat<int64_t>(sample_positions, "sample_positions", batch, names);
  params.lengths = s.flat<int32_t>(lengths, "lengths", batch, names);
  params.computed = s.flat<int32_t>(computed, "computed", batch, names);
  params.finished = s.flat<int32_t>(finished, "finished", batch, names);
  params.drafts = s.rows(drafts, "drafts", batch, "[batch, max_drafts]");
  params.num_drafts = s.flat<int32_t>(num_drafts, "num_drafts", batch, names);
  params.draft_limits = s.flat<int32_t>(draft_limits, "draft_limits", batch, names);
  params.max_lengths = s.flat<int32_t>(max_lengths, "max_lengths", batch, names);
  params.num_slots = s.flat<int32_t>(num_slots, "num_slots", batch, names);
  params.block_table = s.rows(block_table, "block_table", batch, "[batch, max_blocks]");
  s.check.range(block_size, "block_size", 1, INT32_MAX);
  s.check.range(max_rows, "max_rows", 1, INT32_MAX);

  params.history_stride = history.stride(0);
  params.drafts_stride = drafts.stride(0);
  params.block_table_stride = block_table.stride(0);
  params.batch = batch;
  params.max_tokens = max_tokens;
  params.max_logit_rows = max_logit_rows;
  params.max_history = history.size(1);
  params.max_drafts = drafts.size(1);
  params.max_blocks = block_table.size(1);
  params.block_size = block_size;
  params.max_rows = max_rows;
  SKV_CALL(plan_step, history, params);
}

}  // namespace skv::entry
