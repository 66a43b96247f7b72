// commit_step on the CPU: sequences one after the other; core/step.h says what becomes of each of them.
#include "../core/step.h"
#include "index_check.h"
#include "isa.h"

namespace skv::cpu::SKV_ISA {

void commit_step(const CommitStepParams& p, const Parallel&) {
  check_indices(p);
  const int64_t width = kResultHeader + p.max_rows;
  int32_t* entries = p.results + p.step[0] % p.ring * p.batch * width;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t rows = p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b];
    const int64_t logits = p.cu_rows[b + 1] - p.cu_rows[b];
    step_commit(p, b, rows, logits, logits > 0 ? p.num_tokens[b] : 0, entries + b * width);
  }
  ++p.step[0];
}

}  // namespace skv::cpu::SKV_ISA
