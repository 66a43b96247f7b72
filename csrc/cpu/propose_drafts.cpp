// propose_drafts on the CPU: threads over sequences, one scan of the history for the longest match of its
// end.
//
// The scan looks for the last token; where it occurs, the match is extended backwards. Backwards from the end
// for the latest occurrence, forwards for the earliest: the first match of the greatest length is the answer,
// and one of max_ngram tokens ends the scan.
#include "index_check.h"
#include "isa.h"

namespace skv::cpu::SKV_ISA {

namespace {

// How many tokens before `end` (at most `limit`) equal those before `length`.
int64_t match_length(const int32_t* history, int64_t end, int64_t length, int64_t limit) {
  int64_t n = 0;
  while (n < limit && n < end && history[end - 1 - n] == history[length - 1 - n]) ++n;
  return n;
}

bool any_equal(const int32_t* x, int32_t token) {  // of 64 tokens: one vectorised pass
  int32_t found = 0;
  for (int i = 0; i < 64; ++i) found |= x[i] == token;
  return found != 0;
}

// Where the longest earlier occurrence of the history's end itself ends, or -1.
int64_t find_match(const int32_t* history, int64_t length, const ProposeDraftsParams& p) {
  int64_t best = p.min_ngram - 1, best_end = -1;
  if (length < 2) return -1;
  const int32_t last = history[length - 1];
  auto visit = [&](int64_t end) {  // true: no better one can follow
    if (history[end - 1] != last) return false;
    const int64_t n = match_length(history, end, length, p.max_ngram);
    if (n > best) {
      best = n;
      best_end = end;
    }
    return best == p.max_ngram;
  };
  if (p.latest) {
    for (int64_t end = length - 1; end >= 1; --end) {
      while (end >= 64 && !any_equal(history + end - 64, last)) end -= 64;
      if (end >= 1 && visit(end)) break;
    }
  } else {
    for (int64_t end = 1; end < length; ++end) {
      while (end + 63 < length && !any_equal(history + end - 1, last)) end += 64;
      if (end < length && visit(end)) break;
    }
  }
  return best_end;
}

}  // namespace

void propose_drafts(const ProposeDraftsParams& p, const Parallel& pool) {
  check_indices(p);
  pool.for_each(p.batch, 1 + 65536 / (1 + p.max_history), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int32_t* history = p.history + b * p.history_stride;
      int32_t* drafts = p.drafts + b * p.drafts_stride;
      const int64_t length = p.history_lens[b], match = find_match(history, length, p);
      int64_t count = 0;
      if (match >= 0) count = length - match < p.max_drafts ? length - match : p.max_drafts;
      for (int64_t i = 0; i < count; ++i) drafts[i] = history[match + i];
      for (int64_t i = count; i < p.max_drafts; ++i) drafts[i] = -1;
      p.num_drafts[b] = static_cast<int32_t>(count);
    }
  });
}

}  // namespace skv::cpu::SKV_ISA
