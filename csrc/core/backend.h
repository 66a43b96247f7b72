// The two backends: the same ops on the same params.
//
// cpu:: runs on the caller's thread pool and checks data-dependent indices (block ids, slots, cu_seqlens)
// before anything is written; a bad one throws IndexError. cuda:: enqueues on `stream` (a cudaStream_t) and
// skips what is out of range.
#pragma once
#include <stdexcept>

#include "parallel.h"
#include "params.h"

namespace skv {

class IndexError : public std::out_of_range {
 public:
  using std::out_of_range::out_of_range;
};

#define SKV_FOR_EACH_OP(X)                      \
  X(append_kv, AppendKvParams)                  \
  X(rope_append_kv, RopeAppendKvParams)         \
  X(merge_states, MergeStatesParams)            \
  X(copy_blocks, CopyBlocksParams)              \
  X(compact_kv, CompactKvParams)                \
  X(verify_drafts, VerifyDraftsParams)          \
  X(propose_drafts, ProposeDraftsParams)        \
  X(plan_step, PlanStepParams)                  \
  X(commit_step, CommitStepParams)              \
  X(rms_norm, RmsNormParams)                    \
  X(fused_add_rms_norm, FusedAddRmsNormParams)  \
  X(silu_and_mul, SiluAndMulParams)             \
  X(row_linear, RowLinearParams)                \
  X(fused_row_linear, FusedRowLinearParams)     \
  X(pack_linear_weight, PackLinearWeightParams) \
  X(delta_prefill, DeltaPrefillParams)          \
  X(schedule_delta_prefill, ScheduleDeltaPrefillParams)

namespace cpu {
#define SKV_DECLARE(op, Params) void op(const Params& params, const Parallel& pool);
SKV_FOR_EACH_OP(SKV_DECLARE)
#undef SKV_DECLARE
// The instruction set in use: "portable", "avx2", "avx512", "avx512_bf16" or "amx".
const char* isa_name();
}  // namespace cpu

namespace cuda {
#define SKV_DECLARE(op, Params) void op(const Params& params, void* stream);
SKV_FOR_EACH_OP(SKV_DECLARE)
#undef SKV_DECLARE
// Bytes of DeltaPrefillParams::workspace, VerifyDraftsParams::workspace and FusedRowLinearParams::workspace.
int64_t delta_prefill_workspace(const DeltaPrefillParams& params);
int64_t verify_drafts_workspace(int64_t total_rows, int64_t batch);
int64_t fused_row_linear_workspace(const FusedRowLinearParams& params);
// Whether this thread's launches may overlap (stateful_kv/ops.py: overlapping_launches); returns what it was.
bool overlap_launches(bool enabled);
}  // namespace cuda

}  // namespace skv
