// commit_step: one CTA, a thread per sequence; core/step.h says what becomes of each of them.
#pragma once

#include "../core/step.h"
#include "common.cuh"

namespace skv {
namespace cuda {

constexpr int kCommitThreads = 256;

__global__ void __launch_bounds__(kCommitThreads)
    commit_step_kernel(const __grid_constant__ CommitStepParams p) {
  const int64_t width = kResultHeader + p.max_rows, step = p.step[0];
  int32_t* entries = p.results + (step % p.ring + p.ring) % p.ring * p.batch * width;
  for (int64_t b = threadIdx.x; b < p.batch; b += kCommitThreads) {
    const int64_t length = p.lengths[b], computed = p.computed[b];
    const int64_t q_begin = p.cu_seqlens_q[b], q_end = p.cu_seqlens_q[b + 1];
    const int64_t l_begin = p.cu_rows[b], l_end = p.cu_rows[b + 1];
    int64_t rows = 0, logits = 0;  // a sequence whose counts are out of range stays as it is
    if (in_order(0, length, p.max_history) && in_order(0, computed, length) &&
        in_order(q_begin, q_end, INT32_MAX) && in_order(l_begin, l_end, INT32_MAX) && length > 0 &&
        l_end - l_begin <= q_end - q_begin) {
      rows = min(q_end - q_begin, p.max_history);
      logits = l_end - l_begin;
    }
    const int64_t most = min(logits, p.max_rows);
    const int64_t count = max(int64_t(0), min(int64_t(p.num_tokens[b]), most));
    step_commit(p, b, rows, logits, count, entries + b * width);
  }
  __syncthreads();  // everyone has read the step
  // Whatever it was: no signed overflow.
  if (threadIdx.x == 0) p.step[0] = int64_t(uint64_t(step) + 1);
}

}  // namespace cuda
}  // namespace skv
