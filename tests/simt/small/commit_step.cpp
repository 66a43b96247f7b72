// commit_step: stops, full lengths, chunks, nothing drawn, counts out of range; two steps into a ring of two.
#include "commit_step.cu"

#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

constexpr int kBatch = 270, kHistory = 24, kStride = 27, kRows = 4, kTokensStride = 6, kStops = 2,
              kStopsStride = 3;
constexpr int kWidth = int(kResultHeader) + kRows, kRing = 2;

struct Sequence {
  int length, computed, max_length, rows, logits, count;
};
Sequence sequence(int b) {
  Sequence s = {1 + b % 20, b % 20, 24, 1 + b % 4, 1 + b % 4, 1 + b % (1 + b % 4)};
  if (b % 6 == 1) s.max_length = s.length + 1 + b % 3;
  if (b % 6 == 2) s = {9, 3, 24, 1 + b % 5, 0, 0};
  if (b % 6 == 3) s.rows = s.logits = s.count = 0;
  if (b % 11 == 4) s.computed = s.length;
  if (b == 12) s.count = 0;
  if (b == 24) s.count = 9;
  return s;
}
int token(int b, int i) { return int(small::hash(uint32_t(b * 5 + i)) % 12); }
bool stops(int b, int t) { return b % 2 == 0 && (t == 3 || t == 4 + b % 3); }

void commit() {
  Buffer<int32_t> history(kBatch * kStride - (kStride - kHistory)), state(3 * kBatch), max_lengths(kBatch),
      results(kRing * kBatch * kWidth), tokens(kBatch * kTokensStride - (kTokensStride - kRows)),
      counts(kBatch), cu(kBatch + 1), cu_rows(kBatch + 1),
      stop(kBatch * kStopsStride - (kStopsStride - kStops));
  Buffer<int64_t> step(1);
  for (size_t i = 0; i < history.size(); ++i) history[i] = int32_t(100 + i);
  for (size_t i = 0; i < stop.size(); ++i) stop[i] = 3;  // what lies between the rows
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = 3;
  for (size_t i = 0; i < results.size(); ++i) results[i] = -7;
  cu[0] = cu_rows[0] = 5;
  for (int b = 0; b < kBatch; ++b) {
    const Sequence s = sequence(b);
    state[b] = b == 30 ? kHistory + 1 : s.length;
    state[kBatch + b] = s.computed;
    state[2 * kBatch + b] = s.rows == 0 ? b % 3 : 0;
    max_lengths[b] = s.max_length;
    for (int i = 0; i < kRows; ++i) tokens[b * kTokensStride + i] = token(b, i);
    for (int i = 0; i < kStops; ++i) stop[b * kStopsStride + i] = b % 2 ? -1 : i ? 3 : 4 + b % 3;
    counts[b] = s.count;
    cu[b + 1] = cu[b] + s.rows;
    cu_rows[b + 1] = cu_rows[b] + s.logits;
  }
  CommitStepParams p{};
  p.history = history.data();
  p.history_stride = kStride;
  p.lengths = state.data();
  p.computed = state.data() + kBatch;
  p.finished = state.data() + 2 * kBatch;
  p.results = results.data();
  p.step = step.data();
  p.tokens = tokens.data();
  p.tokens_stride = kTokensStride;
  p.num_tokens = counts.data();
  p.cu_seqlens_q = cu.data();
  p.cu_rows = cu_rows.data();
  p.max_lengths = max_lengths.data();
  p.stop_tokens = stop.data();
  p.stop_tokens_stride = kStopsStride;
  p.batch = kBatch;
  p.max_history = kHistory;
  p.ring = kRing;
  p.max_rows = kRows;
  p.max_stops = kStops;
  step[0] = 3;
  cuda::commit_step(p, nullptr);
  small::expect(step[0] == 4, "the step");
  for (int i = 0; i < kBatch * kWidth; ++i) small::expect(results[i] == -7, "the other entry of the ring");
  for (int b = 0; b < kBatch; ++b) {
    Sequence s = sequence(b);
    const std::string where = "sequence " + std::to_string(b);
    int length = s.length, computed = s.computed, finished = s.rows == 0 ? b % 3 : 0;
    if (b == 30) s.rows = s.logits = s.count = 0, length = kHistory + 1;
    s.count = std::min({s.count, s.logits, kRows});
    if (s.rows && !s.logits) computed = std::max(computed, std::min(computed, length - 1) + s.rows);
    if (s.logits) {
      if (!s.count) finished = 3;
      for (int i = 0; i < s.count && !finished && length < kHistory; ++i) {
        small::expect(history[b * kStride + length] == token(b, i), where + ": what is appended");
        ++length;
        finished = stops(b, token(b, i)) ? 1 : length >= s.max_length ? 2 : 0;
      }
      computed = std::max(computed, std::min(s.length + s.count - 1, length));
    }
    small::expect(state[b] == length, where + ": length");
    for (int i = length; i < kHistory; ++i) {
      small::expect(history[b * kStride + i] == 100 + b * kStride + i, where + ": behind the history");
    }
    small::expect(state[kBatch + b] == computed, where + ": computed");
    small::expect(state[2 * kBatch + b] == finished, where + ": finished");
    const int32_t* entry = &results[(kBatch + b) * kWidth];
    small::expect(entry[0] == s.rows && entry[1] == s.logits && entry[2] == s.count && entry[3] == finished,
                  where + ": its result");
    for (int i = 0; i < kRows; ++i) {
      small::expect(entry[4 + i] == (i < s.count ? token(b, i) : -1), where + ": its tokens");
    }
  }
}

}  // namespace

int main() { return small::run({commit}, 2); }
