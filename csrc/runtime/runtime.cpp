// Sessions, requests and statistics of the runtime; contract in runtime.h.
#include "runtime.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "reserve.h"

namespace skv {
namespace {

constexpr size_t kKeptStats = 4096;  // statistics of finished requests that nobody has taken yet

void require(bool ok, const char* name, int64_t value, const std::string& expected) {
  if (ok) return;
  throw std::invalid_argument(std::string("Runtime: ") + name + " is " + std::to_string(value) +
                              ", expected " + expected);
}

void require_in(const char* name, int64_t value, int64_t least, int64_t most) {
  require(least <= value && value <= most, name, value,
          std::to_string(least) + " to " + std::to_string(most));
}

// Positions, rows and table entries are int32 in the step's buffers, whose sizes are int64.
RuntimeOptions checked(RuntimeOptions o) {
  constexpr int64_t kMost = INT32_MAX;
  require_in("num_blocks", o.num_blocks, 1, kMost);
  require_in("block_size", o.block_size, 1, kMost);
  require_in("max_batch_tokens", o.max_batch_tokens, 1, kMost);
  require(o.max_seqs >= 1 && o.max_seqs <= o.max_batch_tokens, "max_seqs", o.max_seqs,
          "1 to max_batch_tokens, " + std::to_string(o.max_batch_tokens));
  const int64_t blocks = kMost / o.block_size;
  require(o.max_blocks_per_seq >= 0 && o.max_blocks_per_seq <= blocks, "max_blocks_per_seq",
          o.max_blocks_per_seq,
          "0 to " + std::to_string(blocks) + " of block_size " + std::to_string(o.block_size));
  if (o.max_blocks_per_seq == 0) o.max_blocks_per_seq = std::min<int64_t>(o.num_blocks, blocks);
  require_in("num_drafts", o.num_drafts, 0, kMost - 1);
  const int64_t width = std::max<int64_t>(o.max_blocks_per_seq, int64_t{1} + o.num_drafts);
  require(o.max_seqs <= INT64_MAX / 8 / width, "max_seqs", o.max_seqs,
          "at most " + std::to_string(INT64_MAX / 8 / width) + " rows of " + std::to_string(width));
  require_in("num_relatives", o.num_relatives, 0, kMost);
  require_in("num_branches", o.num_branches, 0, kMaxBranches);
  require(o.num_branches == 0 || o.num_drafts < kTreeRows, "num_drafts", o.num_drafts,
          "at most " + std::to_string(kTreeRows - 1) + " with trees (num_branches)");
  return o;
}

StepSizes sizes_of(const RuntimeOptions& o) {
  const int64_t rows = int64_t{1} + o.num_drafts;
  return {o.max_batch_tokens, o.max_seqs, o.max_blocks_per_seq,
          std::min(o.max_batch_tokens, o.max_seqs * rows), rows};
}

}  // namespace

Runtime::Runtime(const RuntimeOptions& options)
    : options_(checked(options)),
      sizes_(sizes_of(options_)),
      pool_(options_.num_blocks),
      tree_(&pool_, options_.block_size, make_eviction_policy(options_.policy)),
      finished_(kKeptStats),
      rows_(options_.max_seqs) {
  DraftIndex(options_.max_ngram, options_.min_ngram);  // checks both
  running_.reserve(options_.max_seqs);
  const std::vector<BufferSpec> specs = buffer_specs();
  for (const BufferSpec& spec : specs) {
    storage_.emplace_back((spec.num_bytes() + 7) / 8);
    spec.set(storage_.back().data());
  }
  buffers_.clear(sizes_, specs);
}

Runtime::~Runtime() = default;

void Runtime::bind(const std::vector<std::pair<std::string, void*>>& arrays) {
  require_no_step("bind");
  std::vector<BufferSpec> specs = buffer_specs();
  auto find = [&](const std::string& name) {
    return std::find_if(specs.begin(), specs.end(), [&](auto& spec) { return spec.name == name; });
  };
  for (auto& [name, data] : arrays) {
    if (find(name) == specs.end()) throw std::invalid_argument("bind: there is no buffer '" + name + "'");
  }
  for (auto& [name, data] : arrays) find(name)->set(data);
  buffers_.clear(sizes_, specs);
  last_num_seqs_ = last_num_tokens_ = last_num_copies_ = last_num_logit_rows_ = 0;
  for (auto& seq : sequences_) {
    if (seq) seq->row_synced = seq->row_sent = 0;
  }
}

bool Runtime::owns(const void* data) const {
  const std::less<const void*> less;  // orders unrelated pointers too
  return std::any_of(storage_.begin(), storage_.end(), [&](auto& array) {
    return !less(data, array.data()) && less(data, array.data() + array.size());
  });
}

// ---- sessions

Sequence& Runtime::get(uint64_t session) const {
  const uint32_t slot = static_cast<uint32_t>(session);
  if (slot >= sequences_.size() || !sequences_[slot] || sequences_[slot]->handle != session) {
    throw StaleHandle("session " + std::to_string(session) + " is closed or was never opened");
  }
  return *sequences_[slot];
}

Sequence& Runtime::get_idle(uint64_t session, const char* what) const {
  Sequence& seq = get(session);
  if (seq.request_id != 0) {
    throw std::invalid_argument(std::string(what) + ": the session is busy with request " +
                                std::to_string(seq.request_id));
  }
  return seq;
}

// Not among the sessions yet: whoever makes it fills it first. A slot is free for it.
std::unique_ptr<Sequence> Runtime::new_sequence() {
  auto seq = std::make_unique<Sequence>(options_.max_ngram, options_.min_ngram);
  seq->tree = &tree_;
  if (free_slots_.empty()) {
    const size_t slot = sequences_.size();
    reserve_more(&sequences_, 1);
    reserve_more(&generations_, 1);
    reserve_more(&free_slots_, slot + 1);  // all may be closed
    free_slots_.push_back(static_cast<uint32_t>(slot));
    sequences_.emplace_back();
    generations_.push_back(0);
  }
  return seq;
}

uint64_t Runtime::enter(std::unique_ptr<Sequence> owner, Node* node) {
  const uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  Sequence& seq = *owner;
  sequences_[slot] = std::move(owner);
  seq.handle = static_cast<uint64_t>(++generations_[slot]) << 32 | slot;
  tree_.attach(&seq, node);
  return seq.handle;
}

uint64_t Runtime::open(const std::string& salt) {
  std::unique_ptr<Sequence> seq = new_sequence();
  Root* root = seq->root = options_.prefix_cache ? tree_.open_root(salt) : tree_.open_private_root();
  return enter(std::move(seq), root);
}

uint64_t Runtime::fork(uint64_t session) {
  Sequence& parent = get_idle(session, "fork");
  std::unique_ptr<Sequence> owner = new_sequence();
  Sequence& child = *owner;
  child.root = parent.root;
  // Copied with room to grow, so that the first turn does not copy them once more.
  child.tokens.reserve(parent.tokens.size() + parent.tokens.size() / 2);
  child.tokens = parent.tokens;
  child.table.reserve(parent.table.size() + parent.table.size() / 2);
  child.table = parent.table;
  child.committed = parent.committed;
  child.resident = parent.resident;
  child.computed = parent.computed;
  child.own_begin = parent.own_begin;
  child.index = parent.index;
  child.draft_record = parent.draft_record;
  child.branch_record = parent.branch_record;
  child.spans = parent.spans;
  child.parent = parent.handle;
  tree_.share_root(child.root);
  return enter(std::move(owner), parent.node);
}

void Runtime::rollback(uint64_t session, int64_t length) {
  Sequence& seq = get_idle(session, "rollback");
  if (length < 0 || length > seq.committed) {
    throw std::invalid_argument("rollback: length is " + std::to_string(length) + ", the session has " +
                                std::to_string(seq.committed) + " tokens");
  }
  cut_back(seq, length);
  seq.committed = length;
}

void Runtime::close(uint64_t session) {
  Sequence& seq = get_idle(session, "close");
  const uint32_t slot = static_cast<uint32_t>(session);
  tree_.detach(&seq);
  tree_.close_root(seq.root);
  sequences_[slot].reset();
  free_slots_.push_back(slot);
}

int64_t Runtime::resident(uint64_t session) const {
  const Sequence& seq = get(session);
  return std::min(seq.resident, seq.committed);
}

// Forgets the tokens of an idle sequence behind `length`.
void Runtime::cut_back(Sequence& seq, int64_t length) {
  seq.index.truncate(seq.tokens.data(), length);
  seq.tokens.resize(length);
  seq.computed = std::min(seq.computed, length);
  seq.row_history = std::min(seq.row_history, length);
  if (seq.resident <= length) return;
  Node* node = tree_.ancestor_at(seq.node, length);
  tree_.detach(&seq);
  tree_.attach(&seq, node);
  seq.on_shrunk();
}

// ---- requests

Runtime::Request& Runtime::get_request(uint64_t request_id) const {
  auto it = requests_.find(request_id);
  if (it == requests_.end()) {
    throw StaleHandle("request " + std::to_string(request_id) + " is finished or was never submitted");
  }
  return *it->second;
}

void Runtime::require_no_step(const char* what) const {
  if (step_planned_) {
    throw std::invalid_argument(std::string(what) +
                                ": a step is planned; commit() or cancel_step() it first");
  }
}

uint64_t Runtime::submit(uint64_t session, const int32_t* tokens, int64_t num_tokens,
                         const RequestParams& params) {
  Sequence& seq = get_idle(session, "submit");
  const int64_t prompt = seq.committed + num_tokens;
  if (prompt == 0) throw std::invalid_argument("submit: the session is empty and no tokens were given");
  if (params.max_tokens < 1) {
    throw std::invalid_argument("submit: max_tokens is " + std::to_string(params.max_tokens) +
                                ", expected at least 1");
  }
  if (params.num_drafts > options_.num_drafts) {
    throw std::invalid_argument("submit: num_drafts is " + std::to_string(params.num_drafts) +
                                ", the runtime was made for at most " + std::to_string(options_.num_drafts));
  }
  if (!(params.temperature >= 0.0f)) throw std::invalid_argument("submit: temperature must not be negative");
  // The last token sampled is never written to the cache.
  const int64_t capacity =
      options_.block_size * std::min<int64_t>(options_.num_blocks, options_.max_blocks_per_seq);
  if (params.max_tokens - 1 > capacity - prompt) {
    const std::string needed =
        std::to_string(prompt) + " tokens and " + std::to_string(params.max_tokens) + " more";
    if (options_.max_blocks_per_seq < options_.num_blocks) {
      throw std::invalid_argument("submit: " + needed + " do not fit into max_blocks_per_seq " +
                                  std::to_string(options_.max_blocks_per_seq) + " blocks of " +
                                  std::to_string(options_.block_size));
    }
    const int64_t more = std::min(params.max_tokens - 1, INT64_MAX - prompt - options_.block_size);
    throw OutOfBlocks((prompt + more + options_.block_size - 1) / options_.block_size, pool_.num_free(),
                      tree_.num_evictable_blocks(), pool_.num_blocks() - num_available());
  }
  auto request = std::make_unique<Request>();
  const uint64_t id = request->id = next_request_id_;
  request->seq = &seq;
  request->params = params;
  if (params.num_drafts < 0) request->params.num_drafts = options_.num_drafts;
  request->prompt_length = prompt;
  request->stats.prompt_tokens = prompt;
  request->stats.delta_tokens = num_tokens;
  request->drafts.resize(request->params.num_drafts);
  if (options_.num_branches > 0) request->parents.resize(request->params.num_drafts);
  Waiting waiting{request.get()};
  FinishedStats finished{{id, {}}};
  request->stats_place = finished.extract(id);
  reserve_more(&seq.tokens, num_tokens);
  if (request->params.num_drafts > 0 && options_.num_relatives > 0) reserve_relatives(seq);
  requests_.emplace(id, std::move(request));  // nothing fails from here on
  waiting_.merge(waiting);
  seq.tokens.insert(seq.tokens.end(), tokens, tokens + num_tokens);
  seq.request_id = id;
  ++next_request_id_;
  return id;
}

uint64_t Runtime::append(uint64_t session, const int32_t* tokens, int64_t num_tokens) {
  Sequence& seq = get_idle(session, "append");
  seq.tokens.insert(seq.tokens.end(), tokens, tokens + num_tokens);
  seq.committed = static_cast<int64_t>(seq.tokens.size());
  return next_request_id_++;
}

// The request's session is idle and its tokens are settled: only the record goes.
void Runtime::forget(Request& request, bool keep_stats) {
  request.seq->request_id = 0;
  request.seq->committed = request.known();
  if (keep_stats) {
    uint64_t& oldest = finished_[num_finished_++ % kKeptStats];
    finished_stats_.erase(oldest);
    oldest = request.id;
    request.stats_place.mapped() = request.stats;
    finished_stats_.insert(std::move(request.stats_place));
  }
  requests_.erase(request.id);
}

void Runtime::finish(uint64_t request_id, int64_t num_keep) {
  require_no_step("finish");
  Request& request = get_request(request_id);
  if (num_keep < 0 || num_keep > request.num_generated()) {
    throw std::invalid_argument("finish: num_keep is " + std::to_string(num_keep) +
                                ", the request has generated " + std::to_string(request.num_generated()) +
                                " tokens");
  }
  finish_turn(request, request.prompt_length + num_keep, true);
}

void Runtime::abort(uint64_t request_id) {
  Request& request = get_request(request_id);
  if (request.admitted > 0) require_no_step("abort");
  finish_turn(request, request.seq->committed, false);
}

void Runtime::index_drafts() {
  for (Request* request : running_) {
    if (request->params.num_drafts > 0)
      request->seq->index.extend(request->seq->tokens.data(), request->known());
  }
}

RequestStats Runtime::take_stats(uint64_t request_id) {
  auto active = requests_.find(request_id);
  if (active != requests_.end()) return active->second->stats;
  auto it = finished_stats_.find(request_id);
  if (it == finished_stats_.end()) {
    throw StaleHandle("no statistics of request " + std::to_string(request_id) +
                      ": unknown, or taken before");
  }
  const RequestStats stats = it->second;
  finished_stats_.erase(it);
  return stats;
}

// ---- cache

int64_t Runtime::evict(int64_t num_blocks) {
  const int64_t freed = tree_.evict(num_blocks);
  num_evicted_ += freed;
  return freed;
}

int64_t Runtime::match(const std::string& salt, const int32_t* tokens, int64_t num_tokens) const {
  const Root* root = tree_.find_root(salt);
  return root ? tree_.match_length(root, tokens, num_tokens) : 0;
}

RuntimeStats Runtime::stats() const {
  const int64_t held =
      pool_.num_blocks() - pool_.num_free() - tree_.num_evictable_blocks() - tree_.num_protected_blocks();
  return {pool_.num_blocks(),
          pool_.num_free(),
          tree_.num_evictable_blocks(),
          tree_.num_protected_blocks(),
          held,
          tree_.num_nodes(),
          tree_.num_namespaces(),
          static_cast<int64_t>(sequences_.size() - free_slots_.size()),
          static_cast<int64_t>(running_.size()),
          static_cast<int64_t>(waiting_.size()),
          num_evicted_,
          num_preemptions_,
          num_steps_};
}

}  // namespace skv
