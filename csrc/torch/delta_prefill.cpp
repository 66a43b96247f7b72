// delta_prefill and schedule_delta_prefill: checks and fills their params.
#include <cmath>

#include "../core/backend.h"
#include "backend_call.h"
#include "check.h"
#include "entries.h"

namespace skv::entry {

namespace {

constexpr int64_t kMaxInt32 = INT32_MAX;

// cu_seqlens_q [batch + 1], seqused_k [batch]; returns batch.
int64_t check_lengths(const Check& check, const Tensor& cu_seqlens_q, const Tensor& seqused_k) {
  for (auto [t, arg] : {std::pair{&cu_seqlens_q, "cu_seqlens_q"}, {&seqused_k, "seqused_k"}}) {
    check.dtype(*t, arg, {ScalarType::Int});
  }
  check.shape(seqused_k, "seqused_k", {-1}, "[batch]");
  check.shape(cu_seqlens_q, "cu_seqlens_q", {seqused_k.size(0) + 1}, "[batch + 1]");
  check.contiguous(cu_seqlens_q, "cu_seqlens_q");
  check.contiguous(seqused_k, "seqused_k");
  return seqused_k.size(0);
}

void check_heads(const Check& check, int64_t num_heads, int64_t num_kv_heads) {
  if (num_heads >= 1 && num_heads % num_kv_heads == 0) return;
  check.value_error("num_heads (of query) is " + std::to_string(num_heads) +
                    ", expected a multiple of num_kv_heads = " + std::to_string(num_kv_heads));
}

void check_rows(const Check& check, const Tensor& out, const Tensor& query, const CacheShape& cache) {
  check.heads_dtype(query, "query", cache);
  if (query.dim() == 3 && query.size(2) != cache.head_dim && query.size(2) == cache.head_dim + 64) {
    check.not_implemented("query has head_dim " + std::to_string(query.size(2)) + ", k_cache " +
                          std::to_string(cache.head_dim) +
                          "; multi-head latent attention (MLA) is not supported");
  }
  check.shape(query, "query", {-1, -1, cache.head_dim}, "[total_q, num_heads, head_dim]");
  check_heads(check, query.size(1), cache.num_kv_heads);
  check.same_dtype(out, "out", query, "query");
  check.shape(out, "out", {query.size(0), query.size(1), query.size(2)}, "[total_q, num_heads, head_dim]");
  check.last_dim_contiguous(query, "query");
  check.last_dim_contiguous(out, "out");
  check.no_self_overlap(out, "out");
}

void fill_mask(const Check& check, const OptTensor& tree_mask, const Tensor& query,
               DeltaPrefillParams& params) {
  if (!tree_mask) return;
  const int64_t words = (int64_t{params.max_seqlen_q} + 31) / 32;
  check.dtype(*tree_mask, "tree_mask", {ScalarType::Int});
  check.shape(*tree_mask, "tree_mask", {query.size(0), words}, "[total_q, ceil(max_seqlen_q / 32)]");
  check.last_dim_contiguous(*tree_mask, "tree_mask");
  check.same_device(*tree_mask, "tree_mask", query, "query");
  params.tree_mask = static_cast<const int32_t*>(tree_mask->data_ptr());
  params.tree_mask_stride = tree_mask->stride(0);
  params.mask_words = static_cast<int32_t>(words);
}

void fill_optional(const Check& check, const OptTensor& lse, const OptTensor& sinks,
                   const OptTensor& schedule, const Tensor& query, DeltaPrefillParams& params) {
  if (lse) {
    check.dtype(*lse, "lse", {ScalarType::Float});
    check.shape(*lse, "lse", {query.size(1), query.size(0)}, "[num_heads, total_q]");
    check.last_dim_contiguous(*lse, "lse");
    check.no_self_overlap(*lse, "lse");
    check.same_device(*lse, "lse", query, "query");
    params.lse = static_cast<float*>(lse->data_ptr());
    params.lse_head_stride = lse->stride(0);
  }
  if (sinks) {
    check.dtype(*sinks, "sinks", {ScalarType::Float});
    check.shape(*sinks, "sinks", {query.size(1)}, "[num_heads]");
    check.contiguous(*sinks, "sinks");
    check.same_device(*sinks, "sinks", query, "query");
    params.sinks = static_cast<const float*>(sinks->data_ptr());
  }
  if (schedule) {
    check.dtype(*schedule, "schedule", {ScalarType::Int});
    check.shape(*schedule, "schedule", {-1}, "[schedule_size]");
    check.contiguous(*schedule, "schedule");
    check.same_device(*schedule, "schedule", query, "query");
    params.schedule = static_cast<const int32_t*>(schedule->data_ptr());
    params.schedule_size = schedule->size(0);
  }
}

int64_t schedule_entries(const Tensor& on, int64_t batch) {
  return runs_cuda_kernels(on) ? schedule_size(batch) : kScheduleHeader + kScheduleEntry * batch;
}

void check_schedule_size(const Check& check, const Tensor& schedule, int64_t needed) {
  if (schedule.size(0) >= needed) return;
  check.value_error("schedule has " + std::to_string(schedule.size(0)) + " entries, expected at least " +
                    std::to_string(needed) + ", the schedule_size of this batch");
}

}  // namespace

void delta_prefill(Tensor out, OptTensor lse, Tensor query, Tensor k_cache, Tensor v_cache,
                   Tensor cu_seqlens_q, Tensor seqused_k, Tensor block_table, int64_t max_seqlen_q,
                   double softmax_scale, bool causal, int64_t window_left, double softcap,
                   OptTensor tree_mask, OptTensor sinks, OptTensor k_scale, OptTensor v_scale,
                   int64_t num_splits, OptTensor schedule) {
  const Check check("delta_prefill");
  const CacheShape cache = check.caches(k_cache, v_cache);
  check_rows(check, out, query, cache);
  const int64_t batch = check_lengths(check, cu_seqlens_q, seqused_k);
  check.dtype(block_table, "block_table", {ScalarType::Int});
  check.shape(block_table, "block_table", {batch, -1}, "[batch, max_blocks]");
  check.last_dim_contiguous(block_table, "block_table");
  check.range(max_seqlen_q, "max_seqlen_q", 0, kMaxInt32);
  check.range(window_left, "window_left", -1, kMaxInt32);
  check.range(num_splits, "num_splits", -1, kMaxInt32);
  const float scale = static_cast<float>(softmax_scale),
              cap = static_cast<float>(softcap);  // as kernels have them
  check.that(std::isfinite(scale), "softmax_scale is not finite, expected a finite number");
  check.that(std::isfinite(cap) && (softcap == 0 || cap > 0),
             "softcap is " + std::to_string(softcap) + ", expected 0 (off) or a positive number");
  for (auto [t, arg] : {std::pair{&out, "out"},
                        {&k_cache, "k_cache"},
                        {&cu_seqlens_q, "cu_seqlens_q"},
                        {&seqused_k, "seqused_k"},
                        {&block_table, "block_table"}}) {
    check.same_device(*t, arg, query, "query");
  }
  check.apart(out, "out", query, "query");  // other splits of a row may still need it

  DeltaPrefillParams params{};
  params.out = heads_view(out);
  params.query = heads_view(query);
  params.dtype = to_dtype(query.scalar_type());
  params.k_cache = cache_view(k_cache);
  params.v_cache = cache_view(v_cache);
  params.cache = cache;
  params.num_heads = static_cast<int32_t>(query.size(1));
  params.total_q = query.size(0);
  params.batch = batch;
  params.cu_seqlens_q = static_cast<const int32_t*>(cu_seqlens_q.data_ptr());
  params.seqused_k = static_cast<const int32_t*>(seqused_k.data_ptr());
  params.block_table = static_cast<const int32_t*>(block_table.data_ptr());
  params.block_table_stride = block_table.stride(0);
  params.max_blocks = block_table.size(1);
  params.max_seqlen_q = static_cast<int32_t>(max_seqlen_q);
  params.softmax_scale = static_cast<float>(softmax_scale);
  params.causal = causal;
  params.window_left = static_cast<int32_t>(window_left);
  params.softcap = static_cast<float>(softcap);
  params.num_splits = static_cast<int32_t>(num_splits);
  params.k_scale = check.scale(k_scale, "k_scale", cache, k_cache, batch);
  params.v_scale = check.scale(v_scale, "v_scale", cache, k_cache, batch);
  fill_mask(check, tree_mask, query, params);
  fill_optional(check, lse, sinks, schedule, query, params);
  if (schedule) check_schedule_size(check, *schedule, schedule_entries(query, batch));
  if (runs_cuda_kernels(query) && (params.total_q == 0 || batch == 0)) return;
  Tensor workspace = query;  // of CUDA: from torch's caching allocator, which orders its reuse by the stream
  if (runs_cuda_kernels(query) && &cuda::delta_prefill_workspace) {
    params.workspace_size = workspace_size_on(query, [&] { return cuda::delta_prefill_workspace(params); });
    workspace = torch::stable::new_empty(query, {params.workspace_size}, ScalarType::Byte);
    params.workspace = workspace.data_ptr();
  }
  SKV_CALL(delta_prefill, query, params);
}

void schedule_delta_prefill(Tensor schedule, Tensor cu_seqlens_q, Tensor seqused_k, int64_t num_heads,
                            int64_t num_kv_heads, int64_t head_dim, int64_t max_seqlen_q, int64_t num_splits,
                            bool causal, int64_t window_left) {
  const Check check("schedule_delta_prefill");
  check.dtype(schedule, "schedule", {ScalarType::Int});
  check.shape(schedule, "schedule", {-1}, "[schedule_size]");
  check.contiguous(schedule, "schedule");
  const int64_t batch = check_lengths(check, cu_seqlens_q, seqused_k);
  check.range(num_kv_heads, "num_kv_heads", 1, kMaxInt32);
  check.range(num_heads, "num_heads", 1, kMaxInt32);
  check_heads(check, num_heads, num_kv_heads);
  if (head_dim < 8 || head_dim % 8 != 0 || head_dim > kMaxHeadDim) {
    check.not_implemented("head_dim is " + std::to_string(head_dim) + ", expected a multiple of 8 up to " +
                          std::to_string(kMaxHeadDim));
  }
  check.range(max_seqlen_q, "max_seqlen_q", 0, kMaxInt32);
  check.range(num_splits, "num_splits", -1, kMaxInt32);
  check.range(window_left, "window_left", -1, kMaxInt32);
  check.same_device(cu_seqlens_q, "cu_seqlens_q", schedule, "schedule");
  check.same_device(seqused_k, "seqused_k", schedule, "schedule");
  check_schedule_size(check, schedule, schedule_entries(schedule, batch));

  ScheduleDeltaPrefillParams params{};
  params.schedule = static_cast<int32_t*>(schedule.data_ptr());
  params.schedule_size = schedule.size(0);
  params.cu_seqlens_q = static_cast<const int32_t*>(cu_seqlens_q.data_ptr());
  params.seqused_k = static_cast<const int32_t*>(seqused_k.data_ptr());
  params.batch = batch;
  params.num_heads = static_cast<int32_t>(num_heads);
  params.num_kv_heads = static_cast<int32_t>(num_kv_heads);
  params.head_dim = static_cast<int32_t>(head_dim);
  params.max_seqlen_q = static_cast<int32_t>(max_seqlen_q);
  params.num_splits = static_cast<int32_t>(num_splits);
  params.causal = causal;
  params.window_left = static_cast<int32_t>(window_left);
  SKV_CALL(schedule_delta_prefill, schedule, params);
}

}  // namespace skv::entry
