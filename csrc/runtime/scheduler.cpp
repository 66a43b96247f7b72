// Who runs: sequences take hold of their prefix, publish what they computed, wait, are preempted. Part of
// Runtime.
#include <algorithm>
#include <new>

#include "runtime.h"

namespace skv {

// An idle sequence finds the longest prefix of its tokens in the tree, going on from where it stands, and
// locks it.
void Runtime::hold(Sequence& seq, bool match) {
  Node* node = seq.node;
  if (match) {
    Node* deepest =
        tree_.descend(node, seq.tokens.data(), static_cast<int64_t>(seq.tokens.size()), &seq.table);
    if (deepest != node) seq.forget_entries(node->end / options_.block_size);
    node = deepest;
  }
  tree_.detach(&seq);
  tree_.lock(node);
  seq.node = node;
  seq.resident = node->end;
  seq.own_begin = static_cast<int64_t>(seq.table.size());
}

// The reverse: everything computed is published, blocks that were only reserved go back, the prefix is
// evictable again. What the tree has no memory for goes back as well.
void Runtime::release(Sequence& seq) {
  if (!publish(seq, seq.resident)) seq.resident = seq.node->end;
  fit_table(seq);
  Node* node = seq.node;
  tree_.unlock(node);
  tree_.attach(&seq, node);
}

// False: the tree has no memory for it, and nothing was published.
bool Runtime::publish(Sequence& seq, int64_t end) {
  if (end <= seq.node->end) return true;
  int64_t first_changed = static_cast<int64_t>(seq.table.size());
  try {
    seq.node =
        tree_.insert(seq.node, seq.tokens.data(), end, seq.table.data(), &seq.own_begin, &first_changed);
  } catch (const std::bad_alloc&) {
    return false;
  }
  seq.forget_entries(first_changed);
  return true;
}

// With everything resident published, a block that still belongs to the sequence alone is a reservation or an
// unused copy.
void Runtime::fit_table(Sequence& seq) {
  for (int64_t i = seq.own_begin; i < static_cast<int64_t>(seq.table.size()); ++i) pool_.unref(seq.table[i]);
  const int64_t own_begin = seq.own_begin;
  seq.forget_entries(own_begin);
  const int64_t size = (seq.resident + options_.block_size - 1) / options_.block_size;
  seq.table.resize(size);
  if (own_begin < size) seq.table[size - 1] = seq.node->block(size - 1);
  seq.own_begin = size;
}

// Prefers the row that still holds the sequence's table, then one that holds nobody's, then the longest
// unused one.
int32_t Runtime::pick_row(const Sequence& seq) const {
  if (seq.row >= 0 && !rows_[seq.row].request && rows_[seq.row].owner == seq.handle) return seq.row;
  int32_t best = -1;
  for (int32_t i = 0; i < static_cast<int32_t>(rows_.size()); ++i) {
    if (rows_[i].request) continue;
    if (rows_[i].owner == 0) return i;
    if (best < 0 || rows_[i].last_used < rows_[best].last_used) best = i;
  }
  return best;
}

void Runtime::begin_running(Request& request) {
  Sequence& seq = *request.seq;
  request.waiting_place = waiting_.extract(&request);
  request.row = pick_row(seq);
  Row& row = rows_[request.row];
  if (row.owner != seq.handle || seq.row != request.row) seq.row_synced = seq.row_sent = seq.row_history = 0;
  row.owner = seq.handle;
  row.request = &request;
  row.last_used = next_admission_;
  seq.row = request.row;
  if (request.stats.preemptions == 0) {
    request.stats.reused_tokens = std::min(seq.resident, request.prompt_length);
  }
  request.stats.recomputed_tokens += std::max<int64_t>(0, seq.computed - seq.resident);
  seq.computed = std::max(seq.computed, seq.resident);
  if (request.params.num_drafts > 0 && options_.num_relatives > 0) find_relatives(seq);
  request.admitted = next_admission_++;
  auto before = [](const Request* a, const Request* b) { return a->params.priority > b->params.priority; };
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &request, before), &request);
}

// Leaves the batch; the session is idle afterwards.
void Runtime::stop_running(Request& request) {
  running_.erase(std::find(running_.begin(), running_.end(), &request));
  rows_[request.row].request = nullptr;
  request.row = -1;
  request.admitted = 0;
  request.in_flight = 0;
  request.on_device = false;
  release(*request.seq);
}

// Back to the queue with everything computed published. Returns the token rows it gives back to this step.
int64_t Runtime::preempt(Request& request) {
  const int64_t rows = request.step.num_tokens;
  unplan(request);
  stop_running(request);
  waiting_.insert(std::move(request.waiting_place));
  ++request.stats.preemptions;
  ++num_preemptions_;
  preempted_ = true;
  return rows;
}

// The only running request is short of blocks because its own path holds blocks that deeper nodes override
// (one per fork inside a block). It lets go, the cache is emptied as far as the turn needs, and it goes on
// from what is left.
void Runtime::restart_alone(Request& request) {
  Sequence& seq = *request.seq;
  release(seq);
  const int64_t total = request.prompt_length + request.params.max_tokens - 1;
  const int64_t needed = (total + options_.block_size - 1) / options_.block_size;
  evict(needed - pool_.num_free());
  hold(seq, false);
  request.stats.recomputed_tokens += std::max<int64_t>(0, seq.computed - seq.resident);
}

// Another request is just computing at least half of what this one would compute: it stands at the same node
// and goes on with the same tokens. It publishes them chunk by chunk, so the wait ends at the latest where
// the two part.
bool Runtime::better_wait(const Request& request) const {
  const Sequence& seq = *request.seq;
  const int64_t from = seq.resident;
  for (const Request* other : running_) {
    if (other->seq->node != seq.node || other->decoding()) continue;
    const int64_t gain = std::max(options_.block_size, (request.known() - from) / 2);
    if (from + gain > std::min(request.known(), other->known())) continue;
    const int32_t* a = seq.tokens.data() + from;
    if (std::equal(a, a + gain, other->seq->tokens.data() + from)) return true;
  }
  return false;
}

}  // namespace skv
