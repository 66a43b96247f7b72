// One checked entry per op, for both devices: name sizes, check, return if empty, fill params, call the
// backend.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

namespace skv::entry {

using Tensor = torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;

void append_kv(Tensor k_cache, Tensor v_cache, Tensor key, Tensor value, Tensor slot_mapping,
               OptTensor k_scale, OptTensor v_scale);

void rope_append_kv(Tensor query_out, Tensor k_cache, Tensor v_cache, Tensor query, Tensor key, Tensor value,
                    Tensor positions, Tensor cos_sin_cache, Tensor slot_mapping, bool interleaved,
                    OptTensor q_norm_weight, OptTensor k_norm_weight, double norm_eps, OptTensor k_scale,
                    OptTensor v_scale);

void delta_prefill(Tensor out, OptTensor lse, Tensor query, Tensor k_cache, Tensor v_cache,
                   Tensor cu_seqlens_q, Tensor seqused_k, Tensor block_table, int64_t max_seqlen_q,
                   double softmax_scale, bool causal, int64_t window_left, double softcap,
                   OptTensor tree_mask, OptTensor sinks, OptTensor k_scale, OptTensor v_scale,
                   int64_t num_splits, OptTensor schedule);

void schedule_delta_prefill(Tensor schedule, Tensor cu_seqlens_q, Tensor seqused_k, int64_t num_heads,
                            int64_t num_kv_heads, int64_t head_dim, int64_t max_seqlen_q, int64_t num_splits,
                            bool causal, int64_t window_left);

void merge_states(Tensor out, Tensor lse, Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b);

void copy_blocks(std::vector<Tensor> k_caches, std::vector<Tensor> v_caches, Tensor src_blocks,
                 Tensor dst_blocks, OptTensor num_tokens);

void compact_kv(std::vector<Tensor> k_caches, std::vector<Tensor> v_caches, Tensor src_slots,
                Tensor dst_slots, Tensor cu_moves);

void verify_drafts(Tensor tokens, Tensor num_tokens, OptTensor rows, Tensor logits, Tensor draft_tokens,
                   Tensor cu_rows, OptTensor parents, OptTensor temperature, OptTensor top_k, OptTensor top_p,
                   OptTensor min_p, OptTensor seeds, OptTensor positions, OptTensor token_bitmask,
                   OptTensor logprobs);

void propose_drafts(Tensor drafts, Tensor num_drafts, Tensor history, Tensor history_lens, int64_t max_ngram,
                    int64_t min_ngram, bool latest);

void plan_step(Tensor token_ids, Tensor positions, Tensor slot_mapping, Tensor cu_seqlens_q, Tensor seqused_k,
               Tensor logit_rows, Tensor draft_tokens, Tensor cu_rows, Tensor sample_positions,
               Tensor history, Tensor lengths, Tensor computed, Tensor finished, Tensor drafts,
               Tensor num_drafts, Tensor draft_limits, Tensor max_lengths, Tensor num_slots,
               Tensor block_table, int64_t block_size, int64_t max_rows);

void commit_step(Tensor history, Tensor lengths, Tensor computed, Tensor finished, Tensor results,
                 Tensor step, Tensor tokens, Tensor num_tokens, Tensor cu_seqlens_q, Tensor cu_rows,
                 Tensor max_lengths, Tensor stop_tokens);

void rms_norm(Tensor out, Tensor input, Tensor weight, double epsilon);

void fused_add_rms_norm(Tensor input, Tensor residual, Tensor weight, double epsilon);

void silu_and_mul(Tensor out, Tensor input);

void row_linear(Tensor out, Tensor x, Tensor weight, OptTensor bias);

void fused_row_linear(Tensor out, Tensor x, Tensor weight, OptTensor bias, OptTensor norm_weight,
                      double epsilon, bool silu_and_mul, bool add);

void pack_linear_weight(Tensor packed, Tensor weight);

bool overlap_launches(bool enabled);

}  // namespace skv::entry

#define SKV_FOR_EACH_ENTRY(X) \
  X(append_kv)                \
  X(rope_append_kv)           \
  X(merge_states)             \
  X(copy_blocks)              \
  X(compact_kv)               \
  X(verify_drafts)            \
  X(propose_drafts)           \
  X(plan_step)                \
  X(commit_step)              \
  X(rms_norm)                 \
  X(fused_add_rms_norm)       \
  X(silu_and_mul)             \
  X(row_linear)               \
  X(fused_row_linear)         \
  X(pack_linear_weight)       \
  X(delta_prefill) X(schedule_delta_prefill)
