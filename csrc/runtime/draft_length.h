// How many drafts pay: the draft length of each row from the measured cost of rows and the row's own
// acceptance.
//
// A further row costs a step what the slope of its time over its rows says; it brings a token with the
// probability that it and every draft before it are accepted. A draft is worth feeding while its tokens per
// second are above those of the whole batch: then, and only then, it raises them. With few sequences rows
// cost next to nothing and drafts stay long; with many, or where drafts fail, they shrink to none. Now and
// then a step goes without, which tells what rows cost, and a sequence without drafts gets one, which tells
// whether its text has changed.
//
// Nothing here changes what is generated: drafts are verified. Without measured times drafts stay as long as
// they come.
#pragma once

#include <cstdint>

#include "draft_index.h"

namespace skv {

// Where drafts come from: the conversation itself, spans that its caller expects, conversations related to
// it; and those of any of these that a tree has beside its first continuation (draft_tree.h).
enum class DraftSource { kHistory, kSpans, kRelatives, kBranches };
constexpr int kNumDraftSources = 4;

// Drafts that fare alike: those of the history by the length of the n-gram that found them (1 to kMaxNgram),
// and one for each other source.
constexpr int kNumDraftKinds = DraftIndex::kMaxNgram + kNumDraftSources;
inline int draft_kind(DraftSource source, int ngram) {
  return source == DraftSource::kHistory ? ngram : DraftIndex::kMaxNgram + static_cast<int>(source);
}

// How a conversation's drafts fared, by kind; recent ones count most.
struct DraftRecord {
  float accepted[kNumDraftKinds] = {};
  float judged[kNumDraftKinds] = {};
  int steps_without = 0;  // in a row, although drafts were offered
};

class DraftLength {
 public:
  // Before the choices of each step, which decodes num_seqs sequences.
  void begin_step(int64_t num_seqs);
  // How many of `offered` drafts of one kind to feed.
  int choose(DraftRecord* record, int kind, int offered);
  // `accepted` of `fed` drafts were; those behind the first wrong one were not judged.
  void judge(DraftRecord* record, int kind, int64_t fed, int64_t accepted);
  // A step that only decoded took `seconds` for `rows` rows of `num_seqs` sequences and gave `num_tokens`.
  void measure(double seconds, int64_t rows, int64_t num_seqs, int64_t num_tokens);

  // Tokens that a row of this step must bring to raise the batch's tokens per second; 0 without measured
  // times, more than any row can where the step is one to learn from.
  double worth() const;

  // Seconds of a step without rows, and of each row; 0 while unknown.
  double step_seconds() const { return base_; }
  double row_seconds() const { return slope_; }

 private:
  static constexpr int kContrast = 64;  // steps with drafts to one without

  double acceptance(const DraftRecord& record, int kind) const;

  DraftRecord all_;
  // Weighted sums over recent steps: 1, rows, seconds, rows^2, rows * seconds, tokens.
  double weight_ = 0, rows_ = 0, seconds_ = 0, rows2_ = 0, rows_seconds_ = 0;
  double tokens_ = 0;
  double rows_per_seq_ = 1;
  double base_ = 0, slope_ = 0;
  int num_measured_ = 0;
  int since_contrast_ = 0, probe_interval_ = 0;  // steps
  int64_t num_probes_ = 0;                       // sequences of the step that still get one draft
  enum class Mode { kBest, kNone, kOne } mode_ = Mode::kBest;
};

}  // namespace skv
