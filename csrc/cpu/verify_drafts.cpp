// verify_drafts on the CPU: threads over sequences; each walks from its row 0 and draws only in the rows it
// reaches (what is never reached is never read).
#include "index_check.h"
#include "sample_row.h"

namespace skv::cpu::SKV_ISA {

namespace {

// The lowest child of row `row` whose draft is `token`, or -1.
int64_t matching_child(const VerifyDraftsParams& p, int64_t start, int64_t rows, int64_t row, int64_t token) {
  if (p.parents == nullptr) {
    return row + 1 < rows && p.draft_tokens[start + row + 1] == token ? row + 1 : -1;
  }
  for (int64_t r = row + 1; r < rows; ++r) {
    if (p.parents[start + r] == row && p.draft_tokens[start + r] == token) return r;
  }
  return -1;
}

template <class T>
int64_t draw(const VerifyDraftsParams& p, const LogitsRow<T>& row, int64_t b, int64_t depth,
             SampleScratch& scratch) {
  const float temperature = p.temperature ? p.temperature[b] : 0.0f;
  if (!(temperature > 0.0f)) {
    float largest;
    return row.argmax(&largest);
  }
  SampleSettings settings{};
  settings.temperature = temperature;
  settings.top_k = p.top_k ? p.top_k[b] : 0;
  settings.top_p = p.top_p ? p.top_p[b] : 1.0f;
  settings.min_p = p.min_p ? p.min_p[b] : 0.0f;
  settings.seed = static_cast<uint64_t>(p.seeds[b]);
  settings.position = static_cast<uint64_t>(p.positions[b] + depth);
  return RowSampler<T>(row, settings, scratch).draw();
}

template <class T>
float logprob(const LogitsRow<T>& row, int64_t token) {  // under the unprocessed logits
  const LogitsRow<T> all{row.logits, nullptr, row.vocab};
  float largest;
  all.argmax(&largest);
  const double log_sum = __builtin_log(all.sum_exp(largest, 1.0f));
  return static_cast<float>(static_cast<double>(all.at(token)) - static_cast<double>(largest) - log_sum);
}

template <class T>
void walk(const VerifyDraftsParams& p, int64_t b, SampleScratch& scratch) {
  const int64_t start = p.cu_rows[b], rows = p.cu_rows[b + 1] - start;
  int32_t* tokens = p.tokens + b * p.tokens_stride;
  int32_t* walked = p.rows ? p.rows + b * p.rows_stride : nullptr;
  float* logprobs = p.logprobs ? p.logprobs + b * p.logprobs_stride : nullptr;
  int64_t count = 0;
  for (int64_t row = rows > 0 ? 0 : -1; row >= 0;) {
    LogitsRow<T> logits{static_cast<const T*>(p.logits) + (start + row) * p.logits_stride, nullptr, p.vocab};
    if (p.token_bitmask) logits.bitmask = p.token_bitmask + (start + row) * p.bitmask_stride;
    const int64_t token = draw(p, logits, b, count, scratch);
    if (token < 0) break;  // no token is allowed
    tokens[count] = static_cast<int32_t>(token);
    if (walked) walked[count] = static_cast<int32_t>(row);
    if (logprobs) logprobs[count] = logprob(logits, token);
    ++count;
    row = matching_child(p, start, rows, row, token);
  }
  p.num_tokens[b] = static_cast<int32_t>(count);
  for (int64_t i = count; i < p.max_rows; ++i) {
    tokens[i] = -1;
    if (walked) walked[i] = -1;
    if (logprobs) logprobs[i] = __builtin_nanf("");
  }
}

}  // namespace

void verify_drafts(const VerifyDraftsParams& p, const Parallel& pool) {
  check_indices(p);
  with_float_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    pool.for_each(p.batch, 1, [&](int64_t begin, int64_t end) {
      SampleScratch scratch;
      for (int64_t b = begin; b < end; ++b) walk<T>(p, b, scratch);
    });
  });
}

}  // namespace skv::cpu::SKV_ISA
