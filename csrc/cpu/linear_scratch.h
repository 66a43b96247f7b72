// Memory of the calling thread for row_linear, 64-byte aligned, kept for the next call.
#pragma once
#include <cstdint>

namespace skv::cpu {

// The caller packs x into kLinearRows, which all threads then read; kLinearPrivate is each thread's own.
enum LinearScratch { kLinearRows, kLinearPrivate, kNumLinearScratch };

void* linear_scratch(LinearScratch slot, int64_t bytes);

}  // namespace skv::cpu
