// What a step's tokens mean for requests and sessions. Part of Runtime.
#include <algorithm>
#include <stdexcept>

#include "reserve.h"
#include "runtime.h"

namespace skv {

std::vector<Event> Runtime::commit(double seconds) {
  if (!step_planned_) throw std::invalid_argument("commit: no step is planned");
  if (moves_due_) throw std::invalid_argument("commit: KV of accepted rows is to be moved: plan_moves()");
  check_results();
  std::vector<Event> events;
  events.reserve(running_.size());
  for (const Request* request : running_) {
    if (request->step.num_logits > 0) add_event(*request, buffers_.out_num_tokens[request->row], &events);
  }
  step_planned_ = false;
  ++num_steps_;
  auto next_event = events.begin();
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
    Event nothing{};  // a part of a delta
    Event& event = step.num_logits > 0 ? *next_event++ : nothing;
    commit_request(*running_[i], &event);
    num_tokens += static_cast<int64_t>(event.tokens.size());
    if (event.finish_reason == FinishReason::kNone) ++i;  // a finished request has left
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
    if (step.is_tree) {
      check_walk(*request);
    } else if (!std::equal(out, out + num - 1, request->drafts.data())) {
      throw std::invalid_argument("commit: out_tokens[" + std::to_string(request->row) +
                                  "] accepts a token that was not the draft fed");
    }
  }
}

// Of a tree: each row walked is a child of the one before and was fed the token that is taken over.
void Runtime::check_walk(const Request& request) const {
  const int64_t offset = request.row * sizes_.max_rows_per_seq;
  const int32_t *out = buffers_.out_tokens + offset, *walked = buffers_.out_rows + offset;
  bool ok = walked[0] == 0;
  for (int32_t i = 1; i < buffers_.out_num_tokens[request.row] && ok; ++i) {
    const int32_t draft = walked[i] - 1;
    ok = draft >= 0 && draft < request.step.num_drafts && request.parents[draft] == walked[i - 1] &&
         request.drafts[draft] == out[i - 1];
  }
  if (!ok) {
    throw std::invalid_argument("commit: out_rows[" + std::to_string(request.row) +
                                "] is no path of the tree that carries out_tokens");
  }
}

int64_t Runtime::plan_moves() {
  if (!step_planned_) throw std::invalid_argument("plan_moves: no step is planned");
  check_results();
  StepBuffers& b = buffers_;
  int64_t num_moves = 0;
  for (int64_t row = 0; row < options_.max_seqs; ++row) {
    b.cu_moves[row] = static_cast<int32_t>(num_moves);
    const Request* request = rows_[row].request;
    if (!request || !request->step.is_tree) continue;
    auto slot_of = [&](int64_t i) {
      const int64_t position = request->step.start + i, n = options_.block_size;
      return request->seq->table[position / n] * n + position % n;
    };
    const int32_t* walked = b.out_rows + row * sizes_.max_rows_per_seq;
    for (int32_t i = 1; i < b.out_num_tokens[row]; ++i) {
      if (walked[i] == i) continue;
      b.move_src[num_moves] = slot_of(walked[i]);
      b.move_dst[num_moves++] = slot_of(i);
    }
  }
  b.cu_moves[options_.max_seqs] = static_cast<int32_t>(num_moves);
  moves_due_ = false;
  return num_moves;
}

// Room for a request's tokens, in its session and in what its caller is told: taking them over needs no
// memory.
void Runtime::add_event(const Request& request, int64_t num_tokens, std::vector<Event>* events) const {
  reserve_more(&request.seq->tokens, num_tokens);
  Event& event = events->emplace_back();
  event.request_id = request.id;
  event.finish_reason = FinishReason::kNone;
  event.tokens.reserve(num_tokens);
}

// event: of add_event, where the step has logits.
void Runtime::commit_request(Request& request, Event* event) {
  Sequence& seq = *request.seq;
  const Step step = request.step;
  request.step = Step{};
  request.stats.fed_tokens += step.num_tokens;
  request.stats.drafted += step.num_drafts;
  const int source = static_cast<int>(step.source), branches = static_cast<int>(DraftSource::kBranches);
  request.stats.drafted_from[source] += step.trunk;
  request.stats.drafted_from[branches] += step.num_drafts - step.trunk;
  int64_t written = step.start + step.num_tokens - step.num_drafts;
  if (step.num_logits > 0) {
    const int32_t* out = buffers_.out_tokens + request.row * sizes_.max_rows_per_seq;
    const int32_t num = buffers_.out_num_tokens[request.row];
    const auto& stops = request.params.stop_token_ids;
    for (int32_t i = 0; i < num && event->finish_reason == FinishReason::kNone; ++i) {
      event->tokens.push_back(out[i]);
      seq.tokens.push_back(out[i]);
      if (std::find(stops.begin(), stops.end(), out[i]) != stops.end()) {
        event->finish_reason = FinishReason::kStop;
      } else if (request.num_remaining() == 0) {
        event->finish_reason = FinishReason::kLength;
      }
    }
    // Rows of the trunk are those of a chain; a walk that leaves it does not come back.
    const int32_t* walked = buffers_.out_rows + request.row * sizes_.max_rows_per_seq;
    int64_t in_trunk = step.is_tree ? num - 1 : std::min<int64_t>(num - 1, step.trunk);
    while (step.is_tree && in_trunk > 0 && walked[in_trunk] > step.trunk) --in_trunk;
    const int kind = draft_kind(step.source, step.ngram);
    if (step.num_drafts > 0) draft_length_.judge(&seq.draft_record, kind, step.trunk, in_trunk);
    if (step.has_candidates) branch_model_.judge(&seq.branch_record, kind, request.tree, out, num);
    const int64_t accepted = std::min<int64_t>(num - 1, static_cast<int64_t>(event->tokens.size()));
    request.stats.accepted += accepted;
    request.stats.accepted_from[source] += std::min(accepted, in_trunk);
    request.stats.accepted_from[branches] += accepted - std::min(accepted, in_trunk);
    written = std::min(written + num - 1, request.known());
  }
  const bool prefilled = step.num_tokens - step.num_drafts > 1;
  seq.resident = std::max(seq.resident, written);
  seq.computed = std::max(seq.computed, seq.resident);
  if (event->finish_reason != FinishReason::kNone) {
    finish_turn(request, request.known(), true);
  } else if (prefilled) {
    // Full blocks of the prompt can serve others from now on; the tail stays writable.
    publish(seq, seq.resident / options_.block_size * options_.block_size);
  }
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
