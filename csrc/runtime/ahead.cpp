// Steps that the device takes by itself, and what the host does between them. Part of Runtime.
//
// The device keeps lengths, histories and what is computed; the host learns of a step while the next one
// runs. What it decides meanwhile holds whatever that next step does: blocks are reserved for the most tokens
// that steps under way and the one to come can bring, and memory that changes hands is written by later steps
// only.
#include <algorithm>
#include <stdexcept>

#include "../core/step.h"
#include "reserve.h"
#include "runtime.h"

namespace skv {

// Whether the device knows all that the request's steps need, and its rows of one step take in all it has to
// feed.
bool Runtime::can_run_ahead(const Request& request, int64_t max_rows, int64_t max_stops) const {
  const bool drafts_of_others = options_.num_relatives > 0 || request.seq->spans != nullptr;
  return static_cast<int64_t>(request.params.stop_token_ids.size()) <= max_stops &&
         !(drafts_of_others && request.params.num_drafts > 0) &&
         request.known() - request.seq->resident <= max_rows;
}

// Positions that a request may write before the host looks again, steps under way included.
int64_t Runtime::end_ahead(const Request& request) const {
  const int64_t most = request.known() + (request.in_flight + 1) * (1 + request.params.num_drafts) - 1;
  return std::min(most, request.prompt_length + request.params.max_tokens - 1);
}

int64_t Runtime::num_new_blocks_ahead() const {
  int64_t blocks = 0;
  for (const Request* r : running_) blocks += r->seq->num_new_blocks(end_ahead(*r), options_.block_size);
  return blocks;
}

// False: something is to be decided with all results at hand. Newcomers who fit are taken in.
bool Runtime::admit_ahead(int64_t max_rows, int64_t max_stops) {
  for (const Request* r : running_) {
    if (!can_run_ahead(*r, max_rows, max_stops)) return false;
  }
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    if (static_cast<int64_t>(running_.size()) == options_.max_seqs) break;
    Request& request = **it++;
    hold(*request.seq, options_.prefix_cache);
    const int64_t needed = request.seq->num_new_blocks(end_ahead(request), options_.block_size);
    if (!can_run_ahead(request, max_rows, max_stops) || (!running_.empty() && better_wait(request)) ||
        num_new_blocks_ahead() + needed > num_available()) {
      release(*request.seq);
      return false;
    }
    begin_running(request);
  }
  return num_new_blocks_ahead() <= num_available();
}

std::optional<AheadInfo> Runtime::plan_ahead(int64_t max_rows, int64_t max_stops) {
  require_no_step("plan_ahead");
  if (requests_.empty() || !admit_ahead(max_rows, max_stops)) return std::nullopt;
  for (Request* r : running_) {  // nothing fails from here on
    reserve_more(&r->seq->table, r->seq->num_new_blocks(end_ahead(*r), options_.block_size));
  }
  // Rows that the step may have, of tokens and of logits; those who finish for certain have none.
  draft_length_.begin_step(static_cast<int64_t>(running_.size()));
  AheadInfo info;
  for (Request* r : running_) {
    const bool more = r->num_remaining() > r->in_flight;
    const int64_t pending = r->in_flight > 0 ? 1 : r->known() - std::min(r->seq->resident, r->known() - 1);
    const int64_t most = pending > 1 || !more ? 0 : std::min<int64_t>(r->params.num_drafts, max_rows - 1);
    r->draft_limit = most > 0
                         ? draft_length_.choose(&r->seq->draft_record, draft_kind(DraftSource::kHistory, 0),
                                                static_cast<int>(most))
                         : 0;
    if (!more) continue;
    info.num_rows += pending + r->draft_limit;
    info.num_logit_rows += 1 + r->draft_limit;
    info.max_rows = std::max(info.max_rows, pending + r->draft_limit);
    info.any_sampled = info.any_sampled || r->params.temperature > 0.0f;
  }
  if (info.num_rows > options_.max_batch_tokens) return std::nullopt;
  if (info.num_rows == 0) return info;

  const int64_t blocks = num_new_blocks_ahead();
  if (pool_.num_free() < blocks) evict(blocks - pool_.num_free());
  std::fill_n(buffers_.ahead_request, options_.max_seqs, 0);
  std::fill_n(buffers_.ahead_joins, options_.max_seqs, 0);
  for (Request* r : running_) {
    reserve_ahead(*r, &info);
    fill_ahead(*r);
    ++r->in_flight;
  }
  return info;
}

void Runtime::reserve_ahead(Request& request, AheadInfo* info) {
  Sequence& seq = *request.seq;
  if (tree_.can_claim_tail(seq.node) && seq.tail_is_shared(options_.block_size) &&
      end_ahead(request) > seq.resident) {
    seq.node = tree_.claim_tail(seq.node);
    --seq.own_begin;
  }
  reserve(request, seq.resident, std::max<int64_t>(0, end_ahead(request) - seq.resident), 0);
  const TailCopy copy = request.step.copy;
  request.step = Step{};
  if (copy.idx < 0) return;
  request.ahead_copy = copy;
  request.copy_wait = request.in_flight + 1;
  buffers_.copy_src[info->num_copies] = copy.from;
  buffers_.copy_dst[info->num_copies] = seq.table[copy.idx];
  buffers_.copy_num_tokens[info->num_copies++] = static_cast<int32_t>(seq.resident % options_.block_size);
  last_num_copies_ = std::max(last_num_copies_, info->num_copies);
}

void Runtime::fill_ahead(Request& request) {
  StepBuffers& b = buffers_;
  Sequence& seq = *request.seq;
  const int32_t row = request.row;
  b.ahead_request[row] = static_cast<int64_t>(request.id);
  b.ahead_joins[row] = !request.on_device;
  request.on_device = true;
  b.ahead_history[row] = static_cast<int32_t>(seq.row_history);
  b.ahead_length[row] = static_cast<int32_t>(request.known());
  b.ahead_computed[row] = static_cast<int32_t>(seq.resident);
  b.ahead_max_length[row] = static_cast<int32_t>(request.prompt_length + request.params.max_tokens);
  b.ahead_slots[row] = static_cast<int32_t>(seq.table.size() * options_.block_size);
  b.ahead_drafts[row] = request.draft_limit;
  seq.row_history = request.known();
  fill_table(row, seq);
  b.table_begin[row] = static_cast<int32_t>(seq.row_sent);
  seq.row_sent = b.table_end[row];
  fill_sampling(row, request);
  last_num_seqs_ = std::max<int64_t>(last_num_seqs_, row + 1);
}

std::vector<Event> Runtime::commit_ahead(const int64_t* request_ids, const int32_t* results, double seconds) {
  require_no_step("commit_ahead");
  const int64_t width = kResultHeader + sizes_.max_rows_per_seq;
  auto request_of_row = [&](int64_t row) -> Request* {
    Request* r = rows_[row].request;
    return request_ids[row] != 0 && r && static_cast<int64_t>(r->id) == request_ids[row] && r->in_flight > 0
               ? r
               : nullptr;
  };
  std::vector<Event> events;
  events.reserve(running_.size());
  for (int64_t row = 0; row < options_.max_seqs; ++row) {
    const int32_t* entry = results + row * width;
    const Request* request = request_of_row(row);
    if (!request) continue;
    if (entry[0] < 0 || entry[1] < 0 || entry[1] > std::min<int64_t>(entry[0], sizes_.max_rows_per_seq) ||
        entry[2] < (entry[1] > 0 ? 1 : 0) || entry[2] > entry[1]) {
      throw std::invalid_argument("commit_ahead: row " + std::to_string(row) + " reports " +
                                  std::to_string(entry[2]) + " tokens of " + std::to_string(entry[1]) +
                                  " logit rows, expected 1 to that number");
    }
    if (entry[1] > 0) add_event(*request, entry[2], &events);
  }
  ++num_steps_;
  auto next_event = events.begin();
  int64_t num_rows = 0, num_seqs = 0, num_tokens = 0;
  bool only_decodes = true;
  for (int64_t row = 0; row < options_.max_seqs; ++row) {
    Request* request = request_of_row(row);
    if (!request) continue;
    --request->in_flight;
    if (request->copy_wait > 0 && --request->copy_wait == 0) request->ahead_copy = TailCopy{};
    const int32_t* entry = results + row * width;
    if (entry[0] == 0) continue;
    only_decodes = only_decodes && entry[0] == entry[1];
    num_rows += entry[0];
    ++num_seqs;
    Event nothing{};  // a part of a delta
    Event& event = entry[1] > 0 ? *next_event++ : nothing;
    commit_ahead_row(*request, entry, &event);
    num_tokens += static_cast<int64_t>(event.tokens.size());
  }
  if (only_decodes) draft_length_.measure(seconds, num_rows, num_seqs, num_tokens);
  return events;
}

void Runtime::commit_ahead_row(Request& request, const int32_t* entry, Event* event) {
  Sequence& seq = *request.seq;
  request.step.start = std::min(seq.resident, request.known() - 1);
  request.step.num_tokens = entry[0];
  request.step.num_logits = entry[1];
  request.step.num_drafts = request.step.trunk = std::max(0, entry[1] - 1);
  std::copy_n(entry + kResultHeader, entry[2], buffers_.out_tokens + request.row * sizes_.max_rows_per_seq);
  buffers_.out_num_tokens[request.row] = entry[2];
  commit_request(request, event);
  seq.row_history = static_cast<int64_t>(seq.tokens.size());
}

void Runtime::forget_ahead() {
  for (Request* r : running_) {
    r->in_flight = 0;
    r->on_device = false;
    r->copy_wait = 0;
    take_back(*r->seq, &r->ahead_copy);
  }
  for (auto& seq : sequences_) {
    if (seq) seq->row_sent = seq->row_history = 0;
  }
}

}  // namespace skv
