// The table of step buffers; contract in step_buffers.h.
#include "step_buffers.h"

#include <algorithm>
#include <type_traits>

namespace skv {
namespace {

template <class T>
BufferSpec spec(const char* name, T** slot, std::vector<int64_t> shape) {
  using Type = BufferSpec::Type;
  const Type type = std::is_same_v<T, float> ? Type::kFloat32 : sizeof(T) == 8 ? Type::kInt64 : Type::kInt32;
  return {name, type, std::move(shape), [slot] { return static_cast<void*>(*slot); },
          [slot](void* data) { *slot = static_cast<T*>(data); }};
}

}  // namespace

int64_t BufferSpec::num_bytes() const {
  int64_t n = type == Type::kInt64 ? 8 : 4;
  for (int64_t extent : shape) n *= extent;
  return n;
}

std::vector<BufferSpec> StepBuffers::specs(const StepSizes& s) {
  return {
      spec("token_ids", &token_ids, {s.max_batch_tokens}),
      spec("positions", &positions, {s.max_batch_tokens}),
      spec("slot_mapping", &slot_mapping, {s.max_batch_tokens}),
      spec("cu_seqlens_q", &cu_seqlens_q, {s.max_seqs + 1}),
      spec("seqused_k", &seqused_k, {s.max_seqs}),
      spec("block_table", &block_table, {s.max_seqs, s.max_blocks_per_seq}),
      spec("table_begin", &table_begin, {s.max_seqs}),
      spec("table_end", &table_end, {s.max_seqs}),
      spec("copy_src", &copy_src, {s.max_seqs}),
      spec("copy_dst", &copy_dst, {s.max_seqs}),
      spec("copy_num_tokens", &copy_num_tokens, {s.max_seqs}),
      spec("logit_rows", &logit_rows, {s.max_logit_rows}),
      spec("draft_tokens", &draft_tokens, {s.max_logit_rows}),
      spec("cu_rows", &cu_rows, {s.max_seqs + 1}),
      spec("temperature", &temperature, {s.max_seqs}),
      spec("top_p", &top_p, {s.max_seqs}),
      spec("min_p", &min_p, {s.max_seqs}),
      spec("top_k", &top_k, {s.max_seqs}),
      spec("seeds", &seeds, {s.max_seqs}),
      spec("sample_positions", &sample_positions, {s.max_seqs}),
      spec("out_tokens", &out_tokens, {s.max_seqs, s.max_rows_per_seq}),
      spec("out_num_tokens", &out_num_tokens, {s.max_seqs}),
      spec("tree_mask", &tree_mask, {s.max_batch_tokens, kTreeWords}),
      spec("parents", &parents, {s.max_logit_rows}),
      spec("out_rows", &out_rows, {s.max_seqs, s.max_rows_per_seq}),
      spec("move_src", &move_src, {s.max_logit_rows}),
      spec("move_dst", &move_dst, {s.max_logit_rows}),
      spec("cu_moves", &cu_moves, {s.max_seqs + 1}),
      spec("ahead_request", &ahead_request, {s.max_seqs}),
      spec("ahead_joins", &ahead_joins, {s.max_seqs}),
      spec("ahead_history", &ahead_history, {s.max_seqs}),
      spec("ahead_length", &ahead_length, {s.max_seqs}),
      spec("ahead_computed", &ahead_computed, {s.max_seqs}),
      spec("ahead_max_length", &ahead_max_length, {s.max_seqs}),
      spec("ahead_slots", &ahead_slots, {s.max_seqs}),
      spec("ahead_drafts", &ahead_drafts, {s.max_seqs}),
  };
}

void StepBuffers::clear(const StepSizes& s, const std::vector<BufferSpec>& specs) {
  for (const BufferSpec& buffer : specs) {
    char* data = static_cast<char*>(buffer.get());
    std::fill_n(data, buffer.num_bytes(), 0);
  }
  std::fill_n(slot_mapping, s.max_batch_tokens, -1);
  std::fill_n(block_table, s.max_seqs * s.max_blocks_per_seq, -1);
  std::fill_n(copy_src, s.max_seqs, -1);
  std::fill_n(copy_dst, s.max_seqs, -1);
  std::fill_n(top_p, s.max_seqs, 1.0f);
}

}  // namespace skv
