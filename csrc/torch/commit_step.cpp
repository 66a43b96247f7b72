// commit_step: checks and fills CommitStepParams.
#include "../core/step.h"
#include "backend_call.h"
#include "entries.h"
#include "step_state.h"

namespace skv::entry {

void commit_step(Tensor history, Tensor lengths, Tensor computed, Tensor finished, Tensor results,
                 Tensor step, Tensor tokens, Tensor num_tokens, Tensor cu_seqlens_q, Tensor cu_rows,
                 Tensor max_lengths, Tensor stop_tokens) {
  const StepCheck s("commit_step", history, "history");
  CommitStepParams params{};
  params.history = s.rows(history, "history", -1, "[batch, max_history]");
  s.check.no_self_overlap(history, "history");
  const int64_t batch = history.size(0);
  const char* names = "[batch]";
  params.lengths = s.flat<int32_t>(lengths, "lengths", batch, names);
  params.computed = s.flat<int32_t>(computed, "computed", batch, names);
  params.finished = s.flat<int32_t>(finished, "finished", batch, names);
  params.tokens = s.rows(tokens, "tokens", batch, "[batch, max_rows]");
  const int64_t max_rows = tokens.size(1);
  s.check.dtype(results, "results", {ScalarType::Int});
  s.check.shape(results, "results", {-1, batch, kResultHeader + max_rows}, "[ring, batch, 4 + max_rows]");
  s.check.contiguous(results, "results");
  s.check.same_device(results, "results", history, "history");
  s.check.range(results.size(0), "ring", 1, INT32_MAX);
  params.results = static_cast<int32_t*>(results.data_ptr());
  params.step = s.flat<int64_t>(step, "step", 1, "[1]");
  params.num_tokens = s.flat<int32_t>(num_tokens, "num_tokens", batch, names);
  params.cu_seqlens_q = s.flat<int32_t>(cu_seqlens_q, "cu_seqlens_q", batch + 1, "[batch + 1]");
  params.cu_rows = s.flat<int32_t>(cu_rows, "cu_rows", batch + 1, "[batch + 1]");
  params.max_lengths = s.flat<int32_t>(max_lengths, "max_lengths", batch, names);
  params.stop_tokens = s.rows(stop_tokens, "stop_tokens", batch, "[batch, max_stops]");

  params.history_stride = history.stride(0);
  params.tokens_stride = tokens.stride(0);
  params.stop_tokens_stride = stop_tokens.stride(0);
  params.batch = batch;
  params.max_history = history.size(1);
  params.ring = results.size(0);
  params.max_rows = max_rows;
  params.max_stops = stop_tokens.size(1);
  SKV_CALL(commit_step, history, params);
}

}  // namespace skv::entry
