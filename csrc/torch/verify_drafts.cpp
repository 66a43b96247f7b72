// verify_drafts: checks and fills VerifyDraftsParams.
#include "backend_call.h"
#include "check.h"
#include "entries.h"

namespace skv::entry {

namespace {

// A per-sequence or per-row input [n], or null.
template <class T>
const T* optional_row(const Check& check, const OptTensor& t, const char* arg, ScalarType type, int64_t n,
                      const char* names, const Tensor& logits) {
  if (!t) return nullptr;
  check.dtype(*t, arg, {type});
  check.shape(*t, arg, {n}, names);
  check.contiguous(*t, arg);
  check.same_device(*t, arg, logits, "logits");
  return static_cast<const T*>(t->data_ptr());
}

// An output [batch, max_rows] whose rows may lie apart.
void check_output(const Check& check, const Tensor& t, const char* arg, ScalarType type, int64_t batch,
                  int64_t max_rows, const Tensor& logits) {
  check.dtype(t, arg, {type});
  check.shape(t, arg, {batch, max_rows}, "[batch, max_rows]");
  check.last_dim_contiguous(t, arg);
  check.same_device(t, arg, logits, "logits");
  check.no_self_overlap(t, arg);
}

void check_sampling(const Check& check, const VerifyDraftsParams& p, bool on_cpu) {
  if (p.temperature == nullptr || (p.seeds && p.positions)) return;
  const char* missing = p.seeds ? "positions" : "seeds";
  // On a device the temperatures cannot be looked at.
  bool sampled = !on_cpu;
  for (int64_t b = 0; on_cpu && b < p.batch; ++b) sampled = sampled || p.temperature[b] > 0;
  if (sampled) {
    check.value_error(std::string(missing) + " is None, expected int64 [batch]: " +
                      (on_cpu ? "" : "what temperatures a device holds is not looked at, and ") +
                      "a temperature above 0 draws with noise");
  }
}

}  // namespace

void verify_drafts(Tensor tokens, Tensor num_tokens, OptTensor rows, Tensor logits, Tensor draft_tokens,
                   Tensor cu_rows, OptTensor parents, OptTensor temperature, OptTensor top_k, OptTensor top_p,
                   OptTensor min_p, OptTensor seeds, OptTensor positions, OptTensor token_bitmask,
                   OptTensor logprobs) {
  const Check check("verify_drafts");
  check.dtype(logits, "logits", {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  check.shape(logits, "logits", {-1, -1}, "[total_rows, vocab]");
  check.last_dim_contiguous(logits, "logits");
  const int64_t total_rows = logits.size(0), vocab = logits.size(1);
  check.range(vocab, "vocab", 1, INT32_MAX - 256);  // ids are int32; the last vectors reach past them
  optional_row<int32_t>(check, cu_rows, "cu_rows", ScalarType::Int, -1, "[batch + 1]", logits);
  if (cu_rows.size(0) < 1) check.value_error("cu_rows has shape [0], expected [batch + 1]");
  const int64_t batch = cu_rows.size(0) - 1;
  check.shape(tokens, "tokens", {batch, -1}, "[batch, max_rows]");
  const int64_t max_rows = tokens.size(1);
  check_output(check, tokens, "tokens", ScalarType::Int, batch, max_rows, logits);
  if (rows) check_output(check, *rows, "rows", ScalarType::Int, batch, max_rows, logits);
  if (logprobs) check_output(check, *logprobs, "logprobs", ScalarType::Float, batch, max_rows, logits);

  VerifyDraftsParams params{};
  const OptTensor counts = num_tokens, drafts = draft_tokens;
  optional_row<int32_t>(check, counts, "num_tokens", ScalarType::Int, batch, "[batch]", logits);
  params.draft_tokens = optional_row<int32_t>(check, drafts, "draft_tokens", ScalarType::Int, total_rows,
                                              "[total_rows]", logits);
  params.parents =
      optional_row<int32_t>(check, parents, "parents", ScalarType::Int, total_rows, "[total_rows]", logits);
  const char* names = "[batch]";
  params.temperature =
      optional_row<float>(check, temperature, "temperature", ScalarType::Float, batch, names, logits);
  params.top_k = optional_row<int32_t>(check, top_k, "top_k", ScalarType::Int, batch, names, logits);
  params.top_p = optional_row<float>(check, top_p, "top_p", ScalarType::Float, batch, names, logits);
  params.min_p = optional_row<float>(check, min_p, "min_p", ScalarType::Float, batch, names, logits);
  params.seeds = optional_row<int64_t>(check, seeds, "seeds", ScalarType::Long, batch, names, logits);
  params.positions =
      optional_row<int64_t>(check, positions, "positions", ScalarType::Long, batch, names, logits);
  params.batch = batch;
  check_sampling(check, params, logits.is_cpu());
  if (token_bitmask) {
    check.dtype(*token_bitmask, "token_bitmask", {ScalarType::Int});
    check.shape(*token_bitmask, "token_bitmask", {total_rows, (vocab + 31) / 32},
                "[total_rows, ceil(vocab / 32)]");
    check.last_dim_contiguous(*token_bitmask, "token_bitmask");
    check.same_device(*token_bitmask, "token_bitmask", logits, "logits");
    params.token_bitmask = static_cast<const int32_t*>(token_bitmask->data_ptr());
    params.bitmask_stride = token_bitmask->stride(0);
  }
  if (batch == 0 && runs_cuda_kernels(logits)) return;

  params.tokens = static_cast<int32_t*>(tokens.data_ptr());
  params.num_tokens = static_cast<int32_t*>(num_tokens.data_ptr());
  params.rows = optional_data<int32_t>(rows);
  params.logprobs = optional_data<float>(logprobs);
  params.tokens_stride = tokens.stride(0);
  params.rows_stride = rows ? rows->stride(0) : 0;
  params.logprobs_stride = logprobs ? logprobs->stride(0) : 0;
  params.max_rows = max_rows;
  params.logits = logits.data_ptr();
  params.logits_stride = logits.stride(0);
  params.dtype = to_dtype(logits.scalar_type());
  params.total_rows = total_rows;
  params.vocab = vocab;
  params.cu_rows = static_cast<const int32_t*>(cu_rows.data_ptr());
  Tensor workspace = logits;  // of CUDA: from torch's caching allocator, which orders its reuse by the stream
  if (runs_cuda_kernels(logits) && &cuda::verify_drafts_workspace) {
    params.workspace_size = cuda::verify_drafts_workspace(total_rows, batch);
    workspace = torch::stable::new_empty(logits, {params.workspace_size}, ScalarType::Byte);
    params.workspace = workspace.data_ptr();
  }
  SKV_CALL(verify_drafts, logits, params);
}

}  // namespace skv::entry
