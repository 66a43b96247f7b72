// Checks of data-dependent indices, compiled once (kernel files keep the standard library out, see isa.h).
// Each throws IndexError before anything is written.
#pragma once
#include "../core/params.h"

namespace skv::cpu {

// Throws IndexError("slot_mapping[3] is 99, expected ... below 64").
[[noreturn]] void throw_index_error(const char* arg, int64_t index, int64_t value, const char* expected,
                                    int64_t limit);

void check_indices(const CopyBlocksParams& params);
void check_indices(const CompactKvParams& params);
void check_indices(const VerifyDraftsParams& params);
void check_indices(const ProposeDraftsParams& params);
void check_indices(const PlanStepParams& params);
void check_indices(const CommitStepParams& params);

}  // namespace skv::cpu
