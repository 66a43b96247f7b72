// Draft lengths; contract in draft_length.h.
#include "draft_length.h"

#include <algorithm>

namespace skv {
namespace {

constexpr double kKeepStep = 0.97;   // what a step's time still weighs after the next one
constexpr float kKeepRow = 0.98f;    // what a sequence's draft still weighs after its next one
constexpr float kKeepAll = 0.998f;   // the same over all sequences
constexpr float kFirstGuess = 0.6f;  // acceptance before anything was judged
constexpr int kFewSteps = 8;         // while what rows cost is learnt
constexpr double kTrust =
    0.02;  // relative spread of rows at which new steps weigh as much as the slope so far

void count(DraftRecord* record, int kind, float judged, float accepted, float keep) {
  record->judged[kind] = record->judged[kind] * keep + judged;
  record->accepted[kind] = record->accepted[kind] * keep + accepted;
}

}  // namespace

// Of one draft, given that those before it were accepted; where the sequence has seen little, what others
// saw.
double DraftLength::acceptance(const DraftRecord& record, int kind) const {
  const double others = (all_.accepted[kind] + kFirstGuess) / (all_.judged[kind] + 1.0);
  return (record.accepted[kind] + others) / (record.judged[kind] + 1.0);
}

void DraftLength::begin_step(int64_t num_seqs) {
  num_probes_ = (num_seqs + 3) / 4;
  mode_ = Mode::kBest;
  if (num_measured_ == 0) return;
  if (num_measured_ < kFewSteps) {
    mode_ = num_measured_ % 2 == 0 ? Mode::kNone : Mode::kOne;
    return;
  }
  if (rows_per_seq_ > 1.3 && ++since_contrast_ >= kContrast) {
    since_contrast_ = 0;
    mode_ = Mode::kNone;
  }
  // One more row for each sequence costs this much of a step; asking takes a hundredth of the time.
  const double cost = slope_ * static_cast<double>(num_seqs) * weight_ / seconds_;
  probe_interval_ = static_cast<int>(std::clamp(cost / 0.01, 8.0, 4096.0));
}

double DraftLength::worth() const {
  if (mode_ != Mode::kBest) return 2.0;
  return slope_ > 0 ? slope_ * tokens_ / seconds_ : 0.0;
}

int DraftLength::choose(DraftRecord* record, int kind, int offered) {
  if (mode_ == Mode::kNone) return 0;
  if (mode_ == Mode::kOne) return num_probes_-- > 0 ? std::min(offered, 1) : 0;
  if (slope_ <= 0) return offered;
  const double worth = this->worth();
  const double acceptance = this->acceptance(*record, kind);
  double brings = acceptance;
  int length = 0;
  for (; length < offered && brings > worth; ++length) brings *= acceptance;
  if (length == 0 && ++record->steps_without >= probe_interval_) length = 1;
  if (length > 0) record->steps_without = 0;
  return length;
}

void DraftLength::judge(DraftRecord* record, int kind, int64_t fed, int64_t accepted) {
  const float judged = static_cast<float>(std::min(fed, accepted + 1));
  count(record, kind, judged, static_cast<float>(accepted), kKeepRow);
  count(&all_, kind, judged, static_cast<float>(accepted), kKeepAll);
}

void DraftLength::measure(double seconds, int64_t rows, int64_t num_seqs, int64_t num_tokens) {
  if (!(seconds > 0) || rows <= 0 || num_seqs <= 0) return;
  const double x = static_cast<double>(rows);
  // Something else had the machine for a while: that is not the price of rows.
  if (slope_ > 0) seconds = std::min(seconds, 3 * (base_ + slope_ * x));
  ++num_measured_;
  for (double* sum : {&weight_, &rows_, &seconds_, &rows2_, &rows_seconds_, &tokens_}) *sum *= kKeepStep;
  weight_ += 1, rows_ += x, seconds_ += seconds, rows2_ += x * x, rows_seconds_ += x * seconds;
  tokens_ += static_cast<double>(num_tokens);
  rows_per_seq_ += 0.05 * (x / num_seqs - rows_per_seq_);
  const double mean_rows = rows_ / weight_, mean_seconds = seconds_ / weight_;
  const double variance = rows2_ / weight_ - mean_rows * mean_rows;
  const double covariance = rows_seconds_ / weight_ - mean_rows * mean_seconds;
  // Steps of about the same size say little of the slope: then it stays what it was.
  const double trust = slope_ > 0 ? kTrust * mean_rows * mean_rows : 0;
  if (num_measured_ >= kFewSteps / 2 && variance + trust > 1e-3 * mean_rows * mean_rows) {
    slope_ = std::max(1e-12, (covariance + trust * slope_) / (variance + trust));
  }
  base_ = std::max(0.0, mean_seconds - slope_ * mean_rows);
}

}  // namespace skv
