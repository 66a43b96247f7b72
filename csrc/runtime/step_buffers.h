// The arrays of one step: what the forward pass reads and where verification leaves its tokens. Owned by
// default, or bound to the caller's memory (pinned memory of a GPU engine). Layout and meaning as in the ops
// that consume them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace skv {

// Trees are fed where no sequence of the step has more rows than this.
constexpr int64_t kTreeWords = 2, kTreeRows = 32 * kTreeWords;

struct StepSizes {
  int64_t max_batch_tokens;
  int64_t max_seqs;
  int64_t max_blocks_per_seq;
  int64_t max_logit_rows;
  int64_t max_rows_per_seq;  // 1 + most drafts
};

struct BufferSpec {
  enum class Type { kInt32, kInt64, kFloat32 };
  std::string name;
  Type type;
  std::vector<int64_t> shape;
  std::function<void*()> get;
  std::function<void(void*)> set;

  int64_t num_bytes() const;
};

// Entries past what a step uses are neutral: token, position, count and index 0, slot -1, copies from and to
// block -1, empty sequences, greedy rows. Two arrays keep what earlier steps left there: block_table beyond
// the blocks that seqused_k covers (rows of running requests are only added to), and out_tokens, the
// caller's.
struct StepBuffers {
  int32_t* token_ids;        // [max_batch_tokens]
  int64_t* positions;        // [max_batch_tokens]
  int64_t* slot_mapping;     // [max_batch_tokens] -1: this token's KV is in the cache already
  int32_t* cu_seqlens_q;     // [max_seqs + 1]
  int32_t* seqused_k;        // [max_seqs] tokens in the cache once this step has written
  int32_t* block_table;      // [max_seqs, max_blocks_per_seq] rows persist from step to step
  int32_t* table_begin;      // [max_seqs] entries table_begin .. table_end of a row were written in this step
  int32_t* table_end;        // [max_seqs] (after plan_ahead: are to be sent to the device)
  int32_t* copy_src;         // [max_seqs] copies to make before anything is appended
  int32_t* copy_dst;         // [max_seqs]
  int32_t* copy_num_tokens;  // [max_seqs]
  int64_t* logit_rows;       // [max_logit_rows] index into the step's tokens
  int32_t* draft_tokens;     // [max_logit_rows] the token fed in that row
  int32_t* cu_rows;          // [max_seqs + 1]
  float* temperature;        // [max_seqs]
  float* top_p;              // [max_seqs]
  float* min_p;              // [max_seqs]
  int32_t* top_k;            // [max_seqs]
  int64_t* seeds;            // [max_seqs]
  int64_t* sample_positions;  // [max_seqs] absolute position of the token that row 0 predicts
  int32_t* out_tokens;        // [max_seqs, max_rows_per_seq] written by the caller before commit()
  int32_t* out_num_tokens;    // [max_seqs]
  // Of steps with trees (StepInfo::has_trees), stale in others: which rows a row descends from, and after
  // verification which KV is to be moved (plan_moves).
  int32_t* tree_mask;  // [max_batch_tokens, kTreeWords] bit j: this row attends to the j-th of its sequence
  int32_t* parents;    // [max_logit_rows] index within the sequence, -1: the last known token
  int32_t* out_rows;   // [max_seqs, max_rows_per_seq] rows walked, written by the caller before plan_moves()
  int64_t* move_src;   // [max_logit_rows] slots
  int64_t* move_dst;   // [max_logit_rows]
  int32_t* cu_moves;   // [max_seqs + 1]
  // Of steps that the device takes by itself (plan_ahead): a running request's row.
  int64_t* ahead_request;     // [max_seqs] its id, 0: nobody's row
  int32_t* ahead_joins;       // [max_seqs] 1: the device's state of the row is to be set, from these five
  int32_t* ahead_history;     // [max_seqs] leading tokens that the device has already
  int32_t* ahead_length;      // [max_seqs] tokens known
  int32_t* ahead_computed;    // [max_seqs] of them in the cache
  int32_t* ahead_max_length;  // [max_seqs] where its answer ends
  int32_t* ahead_slots;       // [max_seqs] positions that it has blocks for
  int32_t* ahead_drafts;      // [max_seqs] most drafts to feed

  // Names, types, shapes and the slots above, in a fixed order.
  std::vector<BufferSpec> specs(const StepSizes& sizes);
  // Writes the neutral values everywhere; specs: those of these sizes.
  void clear(const StepSizes& sizes, const std::vector<BufferSpec>& specs);
};

}  // namespace skv
