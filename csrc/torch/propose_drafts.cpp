// propose_drafts: checks and fills ProposeDraftsParams.
#include "backend_call.h"
#include "check.h"
#include "entries.h"

namespace skv::entry {

void propose_drafts(Tensor drafts, Tensor num_drafts, Tensor history, Tensor history_lens, int64_t max_ngram,
                    int64_t min_ngram, bool latest) {
  const Check check("propose_drafts");
  check.dtype(history, "history", {ScalarType::Int});
  check.shape(history, "history", {-1, -1}, "[batch, max_history]");
  check.last_dim_contiguous(history, "history");
  const int64_t batch = history.size(0);
  check.dtype(drafts, "drafts", {ScalarType::Int});
  check.shape(drafts, "drafts", {batch, -1}, "[batch, max_drafts]");
  check.last_dim_contiguous(drafts, "drafts");
  check.no_self_overlap(drafts, "drafts");
  for (auto [t, arg] : {std::pair{&num_drafts, "num_drafts"}, {&history_lens, "history_lens"}}) {
    check.dtype(*t, arg, {ScalarType::Int});
    check.shape(*t, arg, {batch}, "[batch]");
    check.contiguous(*t, arg);
    check.same_device(*t, arg, history, "history");
  }
  check.same_device(drafts, "drafts", history, "history");
  check.range(max_ngram, "max_ngram", 1, INT32_MAX);
  check.range(min_ngram, "min_ngram", 1, max_ngram);
  if (batch == 0) return;

  ProposeDraftsParams params{};
  params.drafts = static_cast<int32_t*>(drafts.data_ptr());
  params.drafts_stride = drafts.stride(0);
  params.num_drafts = static_cast<int32_t*>(num_drafts.data_ptr());
  params.history = static_cast<const int32_t*>(history.data_ptr());
  params.history_stride = history.stride(0);
  params.history_lens = static_cast<const int32_t*>(history_lens.data_ptr());
  params.batch = batch;
  params.max_drafts = drafts.size(1);
  params.max_history = history.size(1);
  params.max_ngram = static_cast<int32_t>(max_ngram);
  params.min_ngram = static_cast<int32_t>(min_ngram);
  params.latest = latest;
  SKV_CALL(propose_drafts, history, params);
}

}  // namespace skv::entry
