// What a step's tokens mean for requests and sessions. Part of Runtime.
#include <algorithm>
#include <stdexcept>

#include "runtime.h"

namespace skv {

std::vector<Event> Runtime::commit(double seconds) {
  if (!step_planned_) throw std::invalid_argument("commit: no step is planned");
  check_results();
  step_planned_ = false;
  ++num_steps_;
  std::vector<Event> events;
  events.reserve(running_.size());
  int64_t num_rows = 0, num_seqs = 0, num_tokens = 0;
  bool only_decodes = true;
  for (size_t i = 0; i < running_.size();) {
    const Step step = running_[i]->step;
    if (step.num_tokens == 0) {
      ++i;
      continue;
    }
    only_decodes = only_decodes && step.num_logits == step.num_tokens;
    num_rows += step.num_tokens;
    ++num_seqs;
    Event event = commit_request(*running_[i]);
    num_tokens += static_cast<int64_t>(event.tokens.size());
    if (event.finish_reason == FinishReason::kNone) ++i;  // a finished request has left
    if (step.num_logits > 0) events.push_back(std::move(event));
  }
  if (only_decodes) draft_length_.measure(seconds, num_rows, num_seqs, num_tokens);
  return events;
}

// Before anything is taken over: a wrong count or a token that contradicts the KV written would corrupt
// sessions.
void Runtime::check_results() const {
  for (const Request* request : running_) {
    const Step& step = request->step;
    if (step.num_logits == 0) continue;
    const int32_t num = buffers_.out_num_tokens[request->row];
    if (num < 1 || num > step.num_logits) {
      throw std::invalid_argument("commit: out_num_tokens[" + std::to_string(request->row) + "] is " +
                                  std::to_string(num) + ", expected 1 to " + std::to_string(step.num_logits));
    }
    const int32_t* out = buffers_.out_tokens + request->row * sizes_.max_rows_per_seq;
    if (!std::equal(out, out + num - 1, request->drafts.data())) {
      throw std::invalid_argument("commit: out_tokens[" + std::to_string(request->row) +
                                  "] accepts a token that was not the draft fed");
    }
  }
}

Event Runtime::commit_request(Request& request) {
  Sequence& seq = *request.seq;
  const Step step = request.step;
  request.step = Step{};
  Event event{request.id, {}, FinishReason::kNone};
  request.stats.fed_tokens += step.num_tokens;
  request.stats.drafted += step.num_drafts;
  request.stats.drafted_from[static_cast<int>(step.source)] += step.num_drafts;
  int64_t written = step.start + step.num_tokens - step.num_drafts;
  if (step.num_logits > 0) {
    const int32_t* out = buffers_.out_tokens + request.row * sizes_.max_rows_per_seq;
    const int32_t num = buffers_.out_num_tokens[request.row];
    const auto& stops = request.params.stop_token_ids;
    event.tokens.reserve(num);
    for (int32_t i = 0; i < num && event.finish_reason == FinishReason::kNone; ++i) {
      event.tokens.push_back(out[i]);
      seq.tokens.push_back(out[i]);
      if (std::find(stops.begin(), stops.end(), out[i]) != stops.end()) {
        event.finish_reason = FinishReason::kStop;
      } else if (request.num_remaining() == 0) {
        event.finish_reason = FinishReason::kLength;
      }
    }
    if (step.num_drafts > 0) {
      draft_length_.judge(&seq.draft_record, draft_kind(step.source, step.ngram), step.num_drafts, num - 1);
    }
    const int64_t accepted = std::min<int64_t>(num - 1, static_cast<int64_t>(event.tokens.size()));
    request.stats.accepted += accepted;
    request.stats.accepted_from[static_cast<int>(step.source)] += accepted;
    written = std::min(written + num - 1, request.known());
  }
  const bool prefilled = step.num_tokens - step.num_drafts > 1;
  seq.resident = std::max(seq.resident, written);
  seq.computed = std::max(seq.computed, seq.resident);
  if (event.finish_reason != FinishReason::kNone) {
    finish_turn(request, request.known(), true);
  } else if (prefilled) {
    // Full blocks of the prompt can serve others from now on; the tail stays writable.
    publish(seq, seq.resident / options_.block_size * options_.block_size);
  }
  return event;
}

void Runtime::finish_turn(Request& request, int64_t length, bool keep_stats) {
  if (request.admitted > 0) {
    stop_running(request);
  } else {
    waiting_.erase(&request);
  }
  cut_back(*request.seq, length);
  forget(request, keep_stats);
}

}  // namespace skv
