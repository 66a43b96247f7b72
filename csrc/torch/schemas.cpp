// The ops of torch.ops.stateful_kv: the table of contents of the library.
//
// Outputs come first, are mutated and () is returned, so callers own every buffer and CUDA graphs capture
// every op. Meaning, shapes and dtypes: the docstrings of stateful_kv/ops.py. One file per op beside this one
// checks the arguments.
#include <torch/csrc/stable/library.h>

#include "entries.h"

#ifndef SKV_TORCH_NAMESPACE
#define SKV_TORCH_NAMESPACE stateful_kv
#endif

STABLE_TORCH_LIBRARY(SKV_TORCH_NAMESPACE, m) {
  m.def(
      "append_kv(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor key, Tensor value, Tensor slot_mapping, "
      "Tensor? k_scale=None, Tensor? v_scale=None) -> ()");
  m.def(
      "rope_append_kv(Tensor(a!) query_out, Tensor(b!) k_cache, Tensor(c!) v_cache, Tensor query, Tensor "
      "key, "
      "Tensor value, Tensor positions, Tensor cos_sin_cache, Tensor slot_mapping, bool interleaved=False, "
      "Tensor? q_norm_weight=None, Tensor? k_norm_weight=None, float norm_eps=1e-6, Tensor? k_scale=None, "
      "Tensor? v_scale=None) -> ()");
  m.def(
      "delta_prefill(Tensor(a!) out, Tensor(b!)? lse, Tensor query, Tensor k_cache, Tensor v_cache, "
      "Tensor cu_seqlens_q, Tensor seqused_k, Tensor block_table, int max_seqlen_q, float softmax_scale, "
      "bool causal=True, int window_left=-1, float softcap=0.0, Tensor? tree_mask=None, Tensor? sinks=None, "
      "Tensor? k_scale=None, Tensor? v_scale=None, int num_splits=0, Tensor? schedule=None) -> ()");
  m.def(
      "schedule_delta_prefill(Tensor(a!) schedule, Tensor cu_seqlens_q, Tensor seqused_k, int num_heads, "
      "int num_kv_heads, int head_dim, int max_seqlen_q, int num_splits=0, bool causal=True, "
      "int window_left=-1) -> ()");
  m.def(
      "merge_states(Tensor(a!) out, Tensor(b!) lse, Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b) "
      "-> ()");
  m.def(
      "copy_blocks(Tensor(a!)[] k_caches, Tensor(b!)[] v_caches, Tensor src_blocks, Tensor dst_blocks, "
      "Tensor? num_tokens=None) -> ()");
  m.def(
      "compact_kv(Tensor(a!)[] k_caches, Tensor(b!)[] v_caches, Tensor src_slots, Tensor dst_slots, "
      "Tensor cu_moves) -> ()");
  m.def(
      "verify_drafts(Tensor(a!) tokens, Tensor(b!) num_tokens, Tensor(c!)? rows, Tensor logits, "
      "Tensor draft_tokens, Tensor cu_rows, Tensor? parents=None, Tensor? temperature=None, Tensor? "
      "top_k=None, "
      "Tensor? top_p=None, Tensor? min_p=None, Tensor? seeds=None, Tensor? positions=None, "
      "Tensor? token_bitmask=None, Tensor(d!)? logprobs=None) -> ()");
  m.def(
      "propose_drafts(Tensor(a!) drafts, Tensor(b!) num_drafts, Tensor history, Tensor history_lens, "
      "int max_ngram, int min_ngram=1, bool latest=True) -> ()");
  m.def(
      "plan_step(Tensor(a!) token_ids, Tensor(b!) positions, Tensor(c!) slot_mapping, Tensor(d!) "
      "cu_seqlens_q, "
      "Tensor(e!) seqused_k, Tensor(f!) logit_rows, Tensor(g!) draft_tokens, Tensor(h!) cu_rows, "
      "Tensor(i!) sample_positions, Tensor history, Tensor lengths, Tensor computed, Tensor finished, "
      "Tensor drafts, Tensor num_drafts, Tensor draft_limits, Tensor max_lengths, Tensor num_slots, "
      "Tensor block_table, int block_size, int max_rows) -> ()");
  m.def(
      "commit_step(Tensor(a!) history, Tensor(b!) lengths, Tensor(c!) computed, Tensor(d!) finished, "
      "Tensor(e!) results, Tensor(f!) step, Tensor tokens, Tensor num_tokens, Tensor cu_seqlens_q, "
      "Tensor cu_rows, Tensor max_lengths, Tensor stop_tokens) -> ()");
  m.def("rms_norm(Tensor(a!) out, Tensor input, Tensor weight, float epsilon) -> ()");
  m.def("fused_add_rms_norm(Tensor(a!) input, Tensor(b!) residual, Tensor weight, float epsilon) -> ()");
  m.def("silu_and_mul(Tensor(a!) out, Tensor input) -> ()");
  m.def("row_linear(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias=None) -> ()");
  m.def(
      "fused_row_linear(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias=None, Tensor? "
      "norm_weight=None, "
      "float epsilon=1e-6, bool silu_and_mul=False, bool add=False) -> ()");
  m.def("pack_linear_weight(Tensor(a!) packed, Tensor weight) -> ()");
  m.def("overlap_launches(bool enabled) -> bool");
}

#define SKV_REGISTER(op) m.impl(#op, TORCH_BOX(&skv::entry::op));

STABLE_TORCH_LIBRARY_IMPL(SKV_TORCH_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("overlap_launches", TORCH_BOX(&skv::entry::overlap_launches));
}
STABLE_TORCH_LIBRARY_IMPL(SKV_TORCH_NAMESPACE, CPU, m){SKV_FOR_EACH_ENTRY(SKV_REGISTER)}
#ifndef SKV_SIMT
STABLE_TORCH_LIBRARY_IMPL(SKV_TORCH_NAMESPACE, CUDA, m) {
  SKV_FOR_EACH_ENTRY(SKV_REGISTER)
}
#endif
