// The parameters of every op: trivially copyable structs that an entry fills once and a kernel reads.
//
// Both backends take the same struct, so it is also the contract between csrc/torch (or a C++ server) and the
// kernels. Neither torch nor CUDA appears here. Strides are in elements. Last dimensions are contiguous.
// Names as in the ops.
#pragma once
#include <cstdint>

namespace skv {

enum class DType : int8_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat8E4M3 = 3 };

constexpr int64_t element_size(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kFloat8E4M3 ? 1 : 2;
}

// k_cache or v_cache of one layer: [num_blocks, block_size, num_kv_heads, head_dim].
struct CacheView {
  void* data;
  int64_t block_stride;
  int64_t token_stride;
  int64_t head_stride;
};

// What all caches of one call have in common.
struct CacheShape {
  int64_t num_blocks;
  int32_t block_size;
  int32_t num_kv_heads;
  int32_t head_dim;
  DType dtype;
};

// Rows of heads: [num_tokens, num_heads, head_dim], typically a slice of a fused QKV buffer.
struct HeadsView {
  void* data;
  int64_t token_stride;
  int64_t head_stride;
};

// An fp8 scale of shape [] (both strides 0), [num_kv_heads] or [batch, num_kv_heads]; data == nullptr
// means 1.
struct ScaleView {
  const float* data;
  int64_t batch_stride;
  int64_t head_stride;
};

struct AppendKvParams {
  CacheView k_cache, v_cache;
  CacheShape cache;
  HeadsView key, value;         // [>= num_tokens, num_kv_heads, head_dim] of dtype
  DType dtype;                  // of key and value; the cache has the same or fp8
  const int64_t* slot_mapping;  // [num_tokens], negative = skip
  int64_t num_tokens;
  ScaleView k_scale, v_scale;
};

struct RopeAppendKvParams {
  AppendKvParams append;
  HeadsView query_out, query;  // [>= num_tokens, num_heads, head_dim] of append.dtype; may be the same memory
  int32_t num_heads;
  const void* positions;  // [num_tokens], int64 or int32
  bool positions_are_int64;
  const void* cos_sin_cache;  // [max_position, rotary_dim], cos first, then sin
  DType cos_sin_dtype;
  int64_t cos_sin_stride;  // between positions
  int64_t max_position;
  int32_t rotary_dim;
  bool interleaved;
  const void* q_norm_weight;  // [head_dim] of append.dtype, or nullptr
  const void* k_norm_weight;
  float norm_eps;
};

struct DeltaPrefillParams {
  HeadsView out, query;  // [total_q, num_heads, head_dim] of dtype
  DType dtype;           // of query and out; the cache has the same or fp8
  float* lse;            // [num_heads, total_q] or nullptr
  int64_t lse_head_stride;
  CacheView k_cache, v_cache;
  CacheShape cache;
  int32_t num_heads;
  int64_t total_q;
  int64_t batch;
  const int32_t* cu_seqlens_q;  // [batch + 1]
  const int32_t* seqused_k;     // [batch]
  const int32_t* block_table;   // [batch, max_blocks]
  int64_t block_table_stride;
  int64_t max_blocks;
  int32_t max_seqlen_q;
  float softmax_scale;
  bool causal;
  int32_t window_left;       // -1 = no window
  float softcap;             // 0 = off
  const int32_t* tree_mask;  // [total_q, mask_words] or nullptr
  int64_t tree_mask_stride;
  int32_t mask_words;
  const float* sinks;  // [num_heads] or nullptr
  ScaleView k_scale, v_scale;
  int32_t num_splits;       // 0 = decided by the library, n >= 1 = exactly n, -1 = batch-invariant
  const int32_t* schedule;  // from schedule_delta_prefill, or nullptr
  int64_t schedule_size;
  void* workspace;  // device scratch of workspace_size bytes, CUDA only
  int64_t workspace_size;
};

// Entries of a schedule: a header, then some per sequence (csrc/cpu/delta_prefill_plan.cpp,
// csrc/cuda/delta_schedule.cuh); CUDA has such a list for each kernel, and tickets after them, zero but while
// a call is under way.  A schedule of schedule_size serves both backends.
constexpr int64_t kScheduleHeader = 8, kScheduleEntry = 2, kCudaScheduleEntry = 4, kScheduleTickets = 512;
constexpr int64_t kScheduleLists = 3;
constexpr int64_t schedule_list_size(int64_t batch) { return kScheduleHeader + kCudaScheduleEntry * batch; }
constexpr int64_t schedule_size(int64_t batch) {
  return kScheduleLists * schedule_list_size(batch) + kScheduleTickets;
}

struct ScheduleDeltaPrefillParams {
  int32_t* schedule;
  int64_t schedule_size;
  const int32_t* cu_seqlens_q;  // [batch + 1]
  const int32_t* seqused_k;     // [batch]
  int64_t batch;
  int32_t num_heads, num_kv_heads, head_dim;
  int32_t max_seqlen_q;
  int32_t num_splits;
  bool causal;
  int32_t window_left;
};

struct MergeStatesParams {
  HeadsView out, out_a, out_b;  // [total_q, num_heads, head_dim] of dtype; out may be out_a
  DType dtype;
  float* lse;  // [num_heads, total_q]; may be lse_a
  const float* lse_a;
  const float* lse_b;
  int64_t lse_stride, lse_a_stride, lse_b_stride;  // between heads
  int64_t total_q;
  int32_t num_heads, head_dim;
};

struct CopyBlocksParams {
  // HOST arrays [num_layers] of device pointers: a CUDA launcher passes them on as kernel parameters.
  void* const* k_caches;
  void* const* v_caches;
  int64_t num_layers;
  CacheView k_layout, v_layout;  // strides of every layer; data is not used
  CacheShape cache;
  const int32_t* src_blocks;  // [num_copies]
  const int32_t* dst_blocks;
  const int32_t* num_tokens;  // [num_copies] or nullptr = whole blocks
  int64_t num_copies;
};

struct CompactKvParams {
  void* const* k_caches;  // as in CopyBlocksParams
  void* const* v_caches;
  int64_t num_layers;
  CacheView k_layout, v_layout;
  CacheShape cache;
  const int64_t* src_slots;  // [num_moves]
  const int64_t* dst_slots;
  const int32_t* cu_moves;  // [batch + 1]
  int64_t num_moves;
  int64_t batch;
};

struct VerifyDraftsParams {
  int32_t* tokens;      // [batch, max_rows], stride tokens_stride
  int32_t* num_tokens;  // [batch]
  int32_t* rows;        // [batch, max_rows] or nullptr
  float* logprobs;      // [batch, max_rows] or nullptr
  int64_t tokens_stride, rows_stride, logprobs_stride;
  int64_t max_rows;
  const void* logits;  // [total_rows, vocab] of dtype
  int64_t logits_stride;
  DType dtype;
  int64_t total_rows, vocab, batch;
  const int32_t* draft_tokens;  // [total_rows]
  const int32_t* cu_rows;       // [batch + 1]
  const int32_t* parents;       // [total_rows] or nullptr = a chain
  const float* temperature;     // [batch], nullptr = greedy
  const int32_t* top_k;         // [batch] or nullptr
  const float* top_p;
  const float* min_p;
  const int64_t* seeds;  // [batch], required with a temperature
  const int64_t* positions;
  const int32_t* token_bitmask;  // [total_rows, ceil(vocab / 32)] or nullptr
  int64_t bitmask_stride;
  void* workspace;  // device scratch of workspace_size bytes, CUDA only
  int64_t workspace_size;
};

struct ProposeDraftsParams {
  int32_t* drafts;  // [batch, max_drafts]
  int64_t drafts_stride;
  int32_t* num_drafts;     // [batch]
  const int32_t* history;  // [batch, max_history]
  int64_t history_stride;
  const int32_t* history_lens;  // [batch]
  int64_t batch, max_drafts, max_history;
  int32_t max_ngram, min_ngram;
  bool latest;
};

// Batch state on the device, one entry a sequence: history[: length] is known, the KV of its first `computed`
// tokens is in the cache, blocks are there for num_slots positions.
struct PlanStepParams {
  int32_t* token_ids;         // [max_tokens]
  int64_t* positions;         // [max_tokens]
  int64_t* slot_mapping;      // [max_tokens]
  int32_t* cu_seqlens_q;      // [batch + 1]
  int32_t* seqused_k;         // [batch]
  int64_t* logit_rows;        // [max_logit_rows]
  int32_t* draft_tokens;      // [max_logit_rows]
  int32_t* cu_rows;           // [batch + 1]
  int64_t* sample_positions;  // [batch]
  const int32_t* history;     // [batch, max_history]
  int64_t history_stride;
  const int32_t* lengths;   // [batch], as all that follow
  const int32_t* computed;  // 0 to lengths
  const int32_t* finished;  // 0: running
  const int32_t* drafts;    // [batch, max_drafts]
  int64_t drafts_stride;
  const int32_t* num_drafts;
  const int32_t* draft_limits;
  const int32_t* max_lengths;
  const int32_t* num_slots;
  const int32_t* block_table;  // [batch, max_blocks]
  int64_t block_table_stride;
  int64_t batch, max_tokens, max_logit_rows, max_history, max_drafts, max_blocks, block_size, max_rows;
};

struct CommitStepParams {
  int32_t* history;  // [batch, max_history]
  int64_t history_stride;
  int32_t* lengths;  // [batch]
  int32_t* computed;
  int32_t* finished;
  int32_t* results;       // [ring, batch, kResultHeader + max_rows]
  int64_t* step;          // [1]
  const int32_t* tokens;  // [batch, max_rows]
  int64_t tokens_stride;
  const int32_t* num_tokens;    // [batch]
  const int32_t* cu_seqlens_q;  // [batch + 1]
  const int32_t* cu_rows;       // [batch + 1]
  const int32_t* max_lengths;   // [batch]
  const int32_t* stop_tokens;   // [batch, max_stops], negative: none
  int64_t stop_tokens_stride;
  int64_t batch, max_history, ring, max_rows, max_stops;
};

struct RowLinearParams {
  void* out;  // [rows, n] of out_dtype
  int64_t out_stride;
  DType out_dtype;  // dtype or float32
  const void* x;    // [rows, k] of dtype
  int64_t x_stride;
  DType dtype;         // of x, weight and bias
  const void* weight;  // [n, k], or what pack_linear_weight wrote
  int64_t weight_stride;
  bool packed;
  const void* bias;  // [n] or nullptr
  int64_t rows, n, k;
};

struct FusedRowLinearParams {
  RowLinearParams linear;   // out [rows, n], with silu_and_mul [rows, n / 2], of dtype
  const void* norm_weight;  // [k], by which x is normalised first, or nullptr
  float epsilon;            // of that
  bool silu_and_mul, add;   // of the columns' two halves; to what out holds
  void* workspace;          // scratch of workspace_size bytes: on the CPU FusedRowLinearMemory's size
  int64_t workspace_size;
};

struct PackLinearWeightParams {
  void* packed;        // n * ceil(k / pair) * pair elements of dtype, pair = linear_pair(dtype)
  const void* weight;  // [n, k]
  int64_t weight_stride;
  int64_t n, k;
  DType dtype;
};

// Elements along k that a packed weight keeps together: its shape is [n, ceil(k / pair), pair].
constexpr int64_t linear_pair(DType dtype) { return dtype == DType::kBFloat16 ? 2 : 1; }

struct RmsNormParams {
  void* out;  // [rows, hidden] of dtype; may be input
  int64_t out_stride;
  const void* input;  // [rows, hidden]
  int64_t input_stride;
  const void* weight;  // [hidden]
  int64_t rows, hidden;
  DType dtype;
  float epsilon;
};

struct FusedAddRmsNormParams {
  void* input;  // [rows, hidden] of dtype, becomes the norm
  int64_t input_stride;
  void* residual;  // [rows, hidden], becomes the sum
  int64_t residual_stride;
  const void* weight;  // [hidden]
  int64_t rows, hidden;
  DType dtype;
  float epsilon;
};

struct SiluAndMulParams {
  void* out;  // [rows, size] of dtype
  int64_t out_stride;
  const void* input;  // [rows, 2 * size]: gate, then up
  int64_t input_stride;
  int64_t rows, size;
  DType dtype;
};

}  // namespace skv
