// propose_drafts: histories short, long and misaligned, latest and earliest match.
#include "propose_drafts.cu"

#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

void propose(bool latest) {
  constexpr int kBatch = 7, kHistory = 301, kStride = 303, kDrafts = 5, kMaxNgram = 3, kMinNgram = 2;
  const int lengths[kBatch] = {301, 150, 2, 41, 900, 12, 0};  // one more than there is room for
  Buffer<int32_t> history(kBatch * kStride - (kStride - kHistory)), lens(8), drafts(kBatch * 6), count(8);
  for (size_t i = 0; i < history.size(); ++i) history[i] = int32_t(small::hash(uint32_t(i)) % 3);
  for (int i = 0; i < 12; ++i) history[5 * kStride + i] = i < 10 ? 20 + i : 11 + i;  // a match of two tokens
  for (int i = 0; i < 41; ++i) history[3 * kStride + i] = i < 3 ? i : i >= 38 ? i - 38 : 10 + i % 5;
  for (int b = 0; b < kBatch; ++b) lens[b] = lengths[b];

  ProposeDraftsParams p{};
  p.drafts = drafts.data();
  p.drafts_stride = 6;
  p.num_drafts = count.data();
  p.history = history.data();
  p.history_stride = kStride;
  p.history_lens = lens.data();
  p.batch = kBatch;
  p.max_drafts = kDrafts;
  p.max_history = kHistory;
  p.max_ngram = kMaxNgram;
  p.min_ngram = kMinNgram;
  p.latest = latest;
  cuda::propose_drafts(p, nullptr);
  for (int b = 0; b < kBatch; ++b) {
    const int32_t* h = &history[b * kStride];
    const int length = std::min(lengths[b], kHistory);
    int best = 0, after = length;
    for (int end = 1; end < length; ++end) {  // the match is h[.. end)
      int n = 0;
      while (n < std::min(end, kMaxNgram) && h[end - 1 - n] == h[length - 1 - n]) ++n;
      if (n < kMinNgram || n < best || (n == best && !latest)) continue;
      best = n;
      after = end;
    }
    const int want = std::min(kDrafts, length - after);
    const std::string where = "sequence " + std::to_string(b);
    small::expect(count[b] == want, where + ": the number of drafts");
    for (int i = 0; i < kDrafts; ++i) {
      small::expect(drafts[b * 6 + i] == (i < want ? h[after + i] : -1),
                    where + ": draft " + std::to_string(i));
    }
  }
}

void latest_match() { propose(true); }
void earliest_match() { propose(false); }

}  // namespace

int main() { return small::run({latest_match, earliest_match}); }
