// plan_step: sequences of every kind, rows for all and for few, wild lengths, and matrices with strides of
// their own.
#include "plan_step.cu"

#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

constexpr int kBatch = 530, kHistory = 40, kHistoryStride = 43, kDrafts = 4, kDraftStride = 7, kBlocks = 6,
              kTableStride = 9, kBlockSize = 8, kMaxRows = 6;

struct Sequence {
  int length, computed, finished, drafts, limit, max_length, slots;
};

Sequence sequence(int b) {
  const int length = 1 + int(small::hash(uint32_t(b) * 7 + 1) % 30);
  const int pending = b % 3 == 0 ? 1 : b % 3 == 1 ? 1 : int(small::hash(uint32_t(b)) % 9);
  Sequence s = {length,
                std::max(0, length - pending),
                b % 8 == 5,
                b % 5,
                b % 4 + (b > 12),
                length + 1 + b % 6,
                b % 7 == 3 ? length + b % 3 : kBlocks * kBlockSize};
  s.slots = std::max(s.slots, s.computed);
  if (b == 4) s = {0, 0, 0, 3, 3, 9, 48};
  if (b == 9) s.computed = s.length;
  if (b == 16) s.slots = s.computed;
  if (b == 18) s.length = kHistory + 1;
  if (b == 19) s.computed = s.length + 1;
  return s;
}

struct Case {
  Buffer<int32_t> tokens, cu, seqused, draft_tokens, cu_rows, history, drafts, table, state;
  Buffer<int64_t> positions, slots, logit_rows, sample;
  PlanStepParams p{};

  Case(int rows, int logits)
      : tokens(rows),
        cu(kBatch + 1),
        seqused(kBatch),
        draft_tokens(logits),
        cu_rows(kBatch + 1),
        history(kBatch * kHistoryStride - (kHistoryStride - kHistory)),
        drafts(kBatch * kDraftStride - (kDraftStride - kDrafts)),
        table(kBatch * kTableStride - (kTableStride - kBlocks)),
        state(7 * kBatch),
        positions(rows),
        slots(rows),
        logit_rows(logits),
        sample(kBatch) {
    for (size_t i = 0; i < history.size(); ++i) history[i] = int32_t(1000 + i);
    for (size_t i = 0; i < drafts.size(); ++i) drafts[i] = int32_t(5000 + i);
    for (size_t i = 0; i < table.size(); ++i) table[i] = int32_t(small::hash(uint32_t(i)) % 100);
    for (int b = 0; b < kBatch; ++b) {
      const Sequence s = sequence(b);
      const int values[7] = {s.length, s.computed, s.finished, s.drafts, s.limit, s.max_length, s.slots};
      for (int i = 0; i < 7; ++i) state[i * kBatch + b] = values[i];
    }
    p.token_ids = tokens.data();
    p.positions = positions.data();
    p.slot_mapping = slots.data();
    p.cu_seqlens_q = cu.data();
    p.seqused_k = seqused.data();
    p.logit_rows = logit_rows.data();
    p.draft_tokens = draft_tokens.data();
    p.cu_rows = cu_rows.data();
    p.sample_positions = sample.data();
    p.history = history.data();
    p.history_stride = kHistoryStride;
    p.lengths = state.data();
    p.computed = state.data() + kBatch;
    p.finished = state.data() + 2 * kBatch;
    p.num_drafts = state.data() + 3 * kBatch;
    p.draft_limits = state.data() + 4 * kBatch;
    p.max_lengths = state.data() + 5 * kBatch;
    p.num_slots = state.data() + 6 * kBatch;
    p.drafts = drafts.data();
    p.drafts_stride = kDraftStride;
    p.block_table = table.data();
    p.block_table_stride = kTableStride;
    p.batch = kBatch;
    p.max_tokens = rows;
    p.max_logit_rows = logits;
    p.max_history = kHistory;
    p.max_drafts = kDrafts;
    p.max_blocks = kBlocks;
    p.block_size = kBlockSize;
    p.max_rows = kMaxRows;
  }
};

struct Wish {
  int start, known, drafts;
};
Wish wish(const Sequence& s) {
  if (s.finished || s.length < 1 || s.length > kHistory || s.computed > s.length) return {0, 0, 0};
  const int start = std::min(s.computed, s.length - 1), pending = s.length - start;
  const int known = std::max(0, std::min({pending, s.slots - start, kMaxRows}));
  int drafts = 0;
  if (pending == 1 && known == 1)
    drafts = std::max(0, std::min({s.drafts, s.limit, s.max_length - s.length - 1, s.slots - s.length}));
  return {start, known, drafts};
}

void plan(int rows, int logits) {
  Case c(rows, logits);
  cuda::plan_step(c.p, nullptr);
  int active = 0;
  for (int b = 0; b < kBatch; ++b) active += wish(sequence(b)).known > 0;
  int granted = std::min({active, rows, logits}), spare_rows = rows - granted,
      spare_logits = logits - granted;
  int row = 0, logit = 0;
  for (int b = 0; b < kBatch; ++b) {
    const Sequence s = sequence(b);
    Wish w = wish(s);
    const std::string where = "sequence " + std::to_string(b);
    small::expect(c.cu[b] == row && c.cu_rows[b] == logit, where + ": where it begins");
    int n = 0;
    if (w.known > 0 && granted > 0) {
      --granted;
      const int drafts = std::min(w.drafts, std::max(0, spare_logits));
      spare_logits -= w.drafts;
      n = 1 + std::min(w.known - 1 + drafts, std::max(0, spare_rows));
      spare_rows -= w.known - 1 + drafts;
    }
    const int decides = std::max(0, w.start + n - s.length + 1);
    small::expect(c.seqused[b] == (n ? w.start + n : 0), where + ": keys");
    small::expect(c.sample[b] == (n && decides ? s.length : 0), where + ": the position sampled");
    for (int i = 0; i < n; ++i, ++row) {
      const int at = w.start + i;
      const int token =
          at < s.length ? 1000 + b * kHistoryStride + at : 5000 + b * kDraftStride + at - s.length;
      const int slot = c.table[b * kTableStride + at / kBlockSize] * kBlockSize + at % kBlockSize;
      const std::string which = where + ", row " + std::to_string(i);
      small::expect(c.tokens[row] == token && c.positions[row] == at, which + ": the token");
      small::expect(c.slots[row] == (at < s.computed ? -1 : slot), which + ": the slot");
      if (i < n - decides) continue;
      small::expect(c.logit_rows[logit] == row && c.draft_tokens[logit] == token, which + ": its logits");
      ++logit;
    }
  }
  small::expect(c.cu[kBatch] == row && c.cu_rows[kBatch] == logit, "the ends");
  for (; row < rows; ++row) {
    small::expect(c.tokens[row] == 0 && c.positions[row] == 0 && c.slots[row] == -1, "padding of rows");
  }
  for (; logit < logits; ++logit) {
    small::expect(c.logit_rows[logit] == 0 && c.draft_tokens[logit] == 0, "padding of logit rows");
  }
}

void rows_for_all() { plan(2400, 1500); }
void few_logit_rows() { plan(2400, 540); }
void few_rows() { plan(700, 1500); }
void few_of_both() { plan(640, 520); }
void fewer_rows_than_sequences() { plan(200, 300); }

}  // namespace

int main() {
  return small::run({rows_for_all, few_logit_rows, few_rows, few_of_both, fewer_rows_than_sequences}, 2);
}
