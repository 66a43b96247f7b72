// One step: verifying rows first, then prefill chunks, then newcomers. Part of Runtime.
//
// Blocks are reserved request by request, highest priority and longest admitted first. When they run short:
// idle cache is evicted, then drafts are dropped, then the last request in that order is preempted; the last
// one itself skips the step. The first one can therefore always go on, and a request that fits the pool alone
// always finishes. Buffers are filled only once everything is decided.
#include <algorithm>
#include <stdexcept>

#include "reserve.h"
#include "runtime.h"

namespace skv {

std::optional<StepInfo> Runtime::plan() {
  require_no_step("plan");
  try {
    if (!plan_requests()) return std::nullopt;
  } catch (...) {
    cancel_step();  // what was reserved so far
    throw;
  }
  step_planned_ = true;
  cut_trees();
  return fill_buffers();
}

// False: nothing is left to run.
bool Runtime::plan_requests() {
  budget_ = options_.max_batch_tokens;
  preempted_ = false;
  draft_length_.begin_step(
      std::count_if(running_.begin(), running_.end(), [](auto* r) { return r->decoding(); }));
  // Preemption only ever removes from the end of running_.
  for (size_t i = 0; i < running_.size(); ++i) {
    if (running_[i]->decoding()) plan_decode(*running_[i]);
  }
  for (size_t i = 0; i < running_.size(); ++i) {
    if (running_[i]->step.num_tokens == 0 && budget_ > 0) {
      running_[i]->decoding() ? plan_decode(*running_[i]) : plan_prefill(*running_[i]);
    }
  }
  admit_waiting();
  const bool any =
      std::any_of(running_.begin(), running_.end(), [](auto* r) { return r->step.num_tokens > 0; });
  if (!any && !requests_.empty()) throw std::logic_error("plan: requests are left but none can run");
  return any;
}

// Frees blocks by eviction, then by preempting whoever comes after the request. False: the request is the
// last one.
bool Runtime::make_room(Request& request, int64_t num_blocks) {
  while (num_available() < num_blocks) {
    Request* victim = running_.back();
    if (victim == &request) return false;
    budget_ += preempt(*victim);
  }
  if (pool_.num_free() < num_blocks) evict(num_blocks - pool_.num_free());
  return true;
}

// The last known token and drafts behind it.
void Runtime::plan_decode(Request& request) {
  Sequence& seq = *request.seq;
  const int64_t known = request.known();
  // Requests that are still to come keep a row each, and prefill keeps moving while others speculate.
  const int64_t spare = std::max<int64_t>(0, budget_ - static_cast<int64_t>(running_.size()));
  const int64_t most = std::min<int64_t>({request.params.num_drafts, request.num_remaining() - 1, spare});
  Step found;
  int64_t num_drafts = most > 0 ? propose(request, most, &found) : 0;
  if (tree_.can_claim_tail(seq.node) && seq.tail_is_shared(options_.block_size) &&
      known + num_drafts > seq.resident) {
    seq.node = tree_.claim_tail(seq.node);
    --seq.own_begin;
  }
  if (seq.num_new_blocks(known + num_drafts, options_.block_size) > num_available()) num_drafts = 0;
  if (!make_room(request, seq.num_new_blocks(known + num_drafts, options_.block_size))) {
    if (running_.size() > 1) return;
    restart_alone(request);
    if (!request.decoding()) return;
    num_drafts = 0;
  }
  reserve(request, known - 1, 1 + num_drafts, num_drafts);
  request.step.source = found.source;
  request.step.ngram = found.ngram;
  request.step.has_candidates = found.has_candidates;
  request.step.is_tree = found.is_tree && num_drafts > 0;
  request.step.trunk = std::min(found.trunk, num_drafts);
}

// As much of what is known but not cached as the step's rows and the blocks at hand allow.
void Runtime::plan_prefill(Request& request) {
  Sequence& seq = *request.seq;
  const int64_t block_size = options_.block_size;
  if (tree_.can_claim_tail(seq.node) && seq.tail_is_shared(block_size)) {
    seq.node = tree_.claim_tail(seq.node);
    --seq.own_begin;
  }
  if (!make_room(request, seq.num_new_blocks(seq.resident + 1, block_size))) {
    if (running_.size() > 1) return;
    restart_alone(request);
  }
  const int64_t room = num_available() - (seq.tail_is_shared(block_size) ? 1 : 0);
  const int64_t reachable = (static_cast<int64_t>(seq.table.size()) + room) * block_size;
  const int64_t end = std::min({request.known(), seq.resident + budget_, reachable});
  make_room(request, seq.num_new_blocks(end, block_size));
  reserve(request, seq.resident, end - seq.resident, 0);
}

void Runtime::admit_waiting() {
  for (auto it = waiting_.begin(); it != waiting_.end() && budget_ > 0;) {
    // A request that was just preempted would only be preempted again.
    if (preempted_ && !running_.empty()) return;
    if (static_cast<int64_t>(running_.size()) == options_.max_seqs) return;
    Request& request = **it++;
    hold(*request.seq, options_.prefix_cache);
    if (!running_.empty() && better_wait(request)) {
      release(*request.seq);
      continue;
    }
    if (!admit(request)) return;
  }
}

// False: not enough blocks for all that the request knows, beside one more for each running one.
bool Runtime::admit(Request& request) {
  Sequence& seq = *request.seq;
  if (!running_.empty()) {
    const int64_t needed = seq.num_new_blocks(request.known(), options_.block_size);
    if (needed + static_cast<int64_t>(running_.size()) > num_available()) {
      release(seq);
      return false;
    }
  }
  begin_running(request);
  if (request.decoding()) plan_decode(request);
  if (request.step.num_tokens == 0 && !request.decoding()) plan_prefill(request);
  return true;
}

// Blocks for `num_tokens` rows from position start on; room was made before. A tail block that others rely on
// is replaced by a copy.
void Runtime::reserve(Request& request, int64_t start, int64_t num_tokens, int64_t num_drafts) {
  Sequence& seq = *request.seq;
  const int64_t block_size = options_.block_size;
  const int64_t end = start + num_tokens;
  const int64_t table_size = static_cast<int64_t>(seq.table.size());
  const int64_t size = std::max(table_size, (end + block_size - 1) / block_size);
  reserve_more(&seq.table, size - table_size);
  Step& step = request.step;
  step.start = start;
  step.num_tokens = num_tokens;
  step.num_drafts = num_drafts;
  step.num_logits = end - num_drafts == request.known() ? 1 + num_drafts : 0;
  step.table_size = table_size;
  budget_ -= num_tokens;
  if (end <= seq.resident) return;  // only the last token again: it is in the cache and nothing is written
  bool ok = true;
  if (seq.tail_is_shared(block_size)) {
    step.copy = {seq.resident / block_size, seq.table[seq.resident / block_size]};
    int32_t copy = 0;
    ok = pool_.alloc(1, &copy);
    seq.set_block(step.copy.idx, copy);
    seq.own_begin = step.copy.idx;
  }
  seq.table.resize(size);
  ok = ok && pool_.alloc(size - table_size, seq.table.data() + table_size);
  if (!ok) throw std::logic_error("plan: blocks that were counted as available are not");
}

// The step will not run for this request: its reservations go back.
void Runtime::unplan(Request& request) {
  Sequence& seq = *request.seq;
  Step step = request.step;
  request.step = Step{};
  if (step.num_tokens == 0) return;
  for (int64_t i = step.table_size; i < static_cast<int64_t>(seq.table.size()); ++i)
    pool_.unref(seq.table[i]);
  seq.resize_table(step.table_size);
  take_back(seq, &step.copy);
}

// The copy may not have been made: the table names its source again.
void Runtime::take_back(Sequence& seq, TailCopy* copy) {
  if (copy->idx < 0) return;
  pool_.unref(seq.table[copy->idx]);
  seq.set_block(copy->idx, copy->from);
  seq.own_begin = copy->idx + 1;
  *copy = TailCopy{};
}

void Runtime::cancel_step() {
  for (Request* request : running_) unplan(*request);
  step_planned_ = moves_due_ = false;
}

// ---- buffers

// A mask as wide as a long delta would cost it more than branches bring: then only the trunks stay, whose
// rows come first. The other blocks remain reserved.
void Runtime::cut_trees() {
  auto too_long = [](const Request* r) { return r->step.num_tokens > kTreeRows; };
  if (std::none_of(running_.begin(), running_.end(), too_long)) return;
  for (Request* request : running_) {
    Step& step = request->step;
    if (!step.is_tree) continue;
    step.num_drafts = step.trunk;
    step.num_tokens = step.num_logits = 1 + step.trunk;
    step.is_tree = false;
  }
}

StepInfo Runtime::fill_buffers() {
  StepInfo info;
  StepBuffers& b = buffers_;
  int64_t end = options_.max_seqs;  // behind the last row in use, now or in the step before
  while (end > last_num_seqs_ && !rows_[end - 1].request) --end;
  for (int64_t row = 0; row < end; ++row) {
    b.cu_seqlens_q[row] = static_cast<int32_t>(info.num_tokens);
    b.cu_rows[row] = static_cast<int32_t>(info.num_logit_rows);
    b.seqused_k[row] = 0;
    b.table_begin[row] = b.table_end[row] = 0;
    b.temperature[row] = b.min_p[row] = 0.0f;
    b.top_p[row] = 1.0f;
    b.top_k[row] = 0;
    b.seeds[row] = b.sample_positions[row] = 0;
    b.out_num_tokens[row] = 0;
    Request* request = rows_[row].request;
    if (!request) continue;
    info.num_seqs = row + 1;
    if (request->step.num_tokens > 0) fill_row(row, *request, &info);
  }
  std::fill(b.cu_seqlens_q + end, b.cu_seqlens_q + options_.max_seqs + 1,
            static_cast<int32_t>(info.num_tokens));
  std::fill(b.cu_rows + end, b.cu_rows + options_.max_seqs + 1, static_cast<int32_t>(info.num_logit_rows));
  for (int64_t i = info.num_tokens; i < last_num_tokens_; ++i) {
    b.token_ids[i] = 0;
    b.positions[i] = 0;
    b.slot_mapping[i] = -1;
  }
  for (int64_t i = info.num_copies; i < last_num_copies_; ++i) {
    b.copy_src[i] = b.copy_dst[i] = -1;
    b.copy_num_tokens[i] = 0;
  }
  for (int64_t i = info.num_logit_rows; i < last_num_logit_rows_; ++i) {
    b.logit_rows[i] = 0;
    b.draft_tokens[i] = 0;
  }
  if (info.has_trees) fill_trees(info);
  moves_due_ = info.has_trees;
  last_num_seqs_ = info.num_seqs;
  last_num_tokens_ = info.num_tokens;
  last_num_copies_ = info.num_copies;
  last_num_logit_rows_ = info.num_logit_rows;
  return info;
}

void Runtime::fill_row(int64_t row, Request& request, StepInfo* info) {
  StepBuffers& b = buffers_;
  Sequence& seq = *request.seq;
  const Step& step = request.step;
  const int64_t block_size = options_.block_size;
  const int64_t known_end = step.start + step.num_tokens - step.num_drafts;
  std::copy(seq.tokens.data() + step.start, seq.tokens.data() + known_end, b.token_ids + info->num_tokens);
  std::copy_n(request.drafts.data(), step.num_drafts,
              b.token_ids + info->num_tokens + (known_end - step.start));
  int64_t* positions = b.positions + info->num_tokens;
  int64_t* slots = b.slot_mapping + info->num_tokens;
  for (int64_t i = 0; i < step.num_tokens; ++i) positions[i] = step.start + i;
  if (step.is_tree) {  // by depth; slots are by row
    for (int64_t i = 1; i < step.num_tokens; ++i) positions[i] = positions[request.parents[i - 1]] + 1;
    info->has_trees = true;
  }
  const int64_t num_cached = std::clamp<int64_t>(seq.resident - step.start, 0, step.num_tokens);
  std::fill_n(slots, num_cached, -1);
  for (int64_t i = num_cached; i < step.num_tokens;) {  // block by block
    const int64_t idx = (step.start + i) / block_size;
    const int64_t end = std::min((idx + 1) * block_size - step.start, step.num_tokens);
    const int64_t slot_of_start = (seq.table[idx] - idx) * block_size + step.start;
    for (; i < end; ++i) slots[i] = slot_of_start + i;
  }
  b.seqused_k[row] = static_cast<int32_t>(step.start + step.num_tokens);

  fill_table(row, seq);
  request.on_device = false;
  if (step.copy.idx >= 0) {
    b.copy_src[info->num_copies] = step.copy.from;
    b.copy_dst[info->num_copies] = seq.table[step.copy.idx];
    b.copy_num_tokens[info->num_copies++] = static_cast<int32_t>(seq.resident % block_size);
  }
  for (int64_t i = 0; i < step.num_logits; ++i) {
    const int64_t token_row = info->num_tokens + step.num_tokens - step.num_logits + i;
    b.logit_rows[info->num_logit_rows] = token_row;
    b.draft_tokens[info->num_logit_rows++] = b.token_ids[token_row];
  }
  if (step.num_logits > 0) {
    fill_sampling(row, request);
    b.sample_positions[row] = request.known();
    info->any_sampled = info->any_sampled || request.params.temperature > 0.0f;
  }
  info->num_tokens += step.num_tokens;
  info->max_seqlen_q = std::max(info->max_seqlen_q, step.num_tokens);
  info->max_seqlen_k = std::max(info->max_seqlen_k, step.start + step.num_tokens);
  info->max_rows_per_seq = std::max(info->max_rows_per_seq, step.num_logits);
  info->num_blocks_used_in_table =
      std::max(info->num_blocks_used_in_table, static_cast<int64_t>(seq.table.size()));
}

// In a step with a tree every row has a mask, which stands for causal: its ancestors and itself.
void Runtime::fill_trees(const StepInfo& info) {
  StepBuffers& b = buffers_;
  for (int64_t row = 0; row < info.num_seqs; ++row) {
    const Request* request = rows_[row].request;
    if (!request) continue;
    const Step& step = request->step;
    auto parent_of = [&](int64_t i) { return step.is_tree ? int64_t{request->parents[i - 1]} : i - 1; };
    int32_t* masks = b.tree_mask + b.cu_seqlens_q[row] * kTreeWords;
    for (int64_t i = 0; i < step.num_tokens; ++i) {
      int32_t* mask = masks + i * kTreeWords;
      if (i == 0) {
        std::fill_n(mask, kTreeWords, 0);
      } else {
        std::copy_n(masks + parent_of(i) * kTreeWords, kTreeWords, mask);
      }
      mask[i / 32] = static_cast<int32_t>(static_cast<uint32_t>(mask[i / 32]) | uint32_t{1} << (i % 32));
    }
    int32_t* parents = b.parents + b.cu_rows[row];
    for (int64_t i = 0; i < step.num_logits; ++i)
      parents[i] = i == 0 ? -1 : static_cast<int32_t>(parent_of(i));
  }
}

void Runtime::fill_table(int64_t row, Sequence& seq) {
  const int64_t table_size = static_cast<int64_t>(seq.table.size());
  buffers_.table_begin[row] = static_cast<int32_t>(seq.row_synced);
  buffers_.table_end[row] = static_cast<int32_t>(table_size);
  std::copy(seq.table.begin() + seq.row_synced, seq.table.end(),
            buffers_.block_table + row * options_.max_blocks_per_seq + seq.row_synced);
  seq.row_synced = table_size;
}

void Runtime::fill_sampling(int64_t row, const Request& request) {
  buffers_.temperature[row] = request.params.temperature;
  buffers_.top_p[row] = request.params.top_p;
  buffers_.min_p[row] = request.params.min_p;
  buffers_.top_k[row] = request.params.top_k;
  buffers_.seeds[row] = request.params.seed;
}

}  // namespace skv
