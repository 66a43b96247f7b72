// The stateful runtime: sessions over one block pool, and the planner that turns their requests into ragged
// steps.
//
//   submit() ... -> plan() -> [forward pass over buffers()] -> commit() -> events, until plan() has nothing
//   to do.
//
// A session keeps its tokens until close(). Its KV is shared, published to the radix tree when a turn ends,
// and evictable while the session is idle; a turn recomputes what is missing and answers the same. Only
// tokens whose KV a committed step has written are ever published; drafts never are.
//
// A call that throws changes nothing; after a commit() that throws the step is still planned. This holds
// where memory runs out (std::bad_alloc) too, but for plan() and plan_ahead(): they have planned nothing
// then, and may have evicted and let requests in or out of the batch. Calls that give something back
// (rollback, close, finish, abort, cancel_step, forget_ahead, evict, take_stats) need no memory. KV that the
// tree has no memory to take in is let go, as if it had been evicted.
//
// Not thread-safe: one owner thread (or the caller's lock).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "block_pool.h"
#include "errors.h"
#include "radix_tree.h"
#include "sequence.h"
#include "step_buffers.h"

namespace skv {

struct RuntimeOptions {
  int32_t num_blocks = 0;
  int64_t block_size = 16;
  int64_t max_batch_tokens = 2048;
  int64_t max_seqs = 64;
  int64_t max_blocks_per_seq = 0;  // 0: num_blocks
  int max_ngram = 4;
  int min_ngram = 1;
  int num_drafts = 8;     // most draft tokens per request and step; 0: no speculation
  bool latest = true;     // propose after the latest earlier occurrence, or after the earliest
  int num_relatives = 0;  // most other sessions that a session drafts from (draft_sources.cpp)
  // Most other continuations that make a tree of the drafts; 0: chains only. With trees, no sliding window of
  // the model may show fewer than num_drafts tokens before a row's own, which only the caller can know.
  int num_branches = 0;
  bool prefix_cache = true;
  std::string policy = "lru";
};

struct RequestParams {
  int64_t max_tokens = 1;
  float temperature = 0.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  int64_t seed = 0;
  std::vector<int32_t> stop_token_ids;
  int num_drafts = -1;  // -1: the runtime's
  int priority = 0;     // higher runs first and is preempted last
};

struct RequestStats {
  int64_t prompt_tokens = 0;      // session plus delta at submission
  int64_t delta_tokens = 0;       // tokens the turn brought
  int64_t reused_tokens = 0;      // of the prompt, KV found in the cache when the turn began
  int64_t recomputed_tokens = 0;  // fed again because their KV had been evicted
  int64_t fed_tokens = 0;         // rows of committed steps, drafts included
  int64_t drafted = 0;
  int64_t accepted = 0;
  int64_t drafted_from[kNumDraftSources] = {};  // by DraftSource; together drafted
  int64_t accepted_from[kNumDraftSources] = {};
  int64_t preemptions = 0;
};

enum class FinishReason { kNone, kStop, kLength };

struct Event {
  uint64_t request_id;
  std::vector<int32_t> tokens;
  FinishReason finish_reason;
};

struct StepInfo {
  int64_t num_tokens = 0;
  int64_t num_seqs = 0;  // highest used batch row + 1; rows in between may be empty
  int64_t num_copies = 0;
  int64_t num_logit_rows = 0;
  int64_t max_seqlen_q = 0;
  int64_t max_seqlen_k = 0;
  int64_t max_rows_per_seq = 0;
  int64_t num_blocks_used_in_table = 0;
  bool any_sampled = false;
  bool has_trees =
      false;  // some sequence's drafts are not a chain: tree_mask, parents, out_rows, plan_moves()
};

// The most that a step of the device may have, and what it needs first.
struct AheadInfo {
  int64_t num_rows = 0;  // 0: nothing will run before results are taken
  int64_t num_logit_rows = 0;
  int64_t max_rows = 0;  // of one sequence
  int64_t num_copies = 0;
  bool any_sampled = false;
};

struct RuntimeStats {
  int64_t num_blocks, free, evictable, protected_blocks, session_held;
  int64_t nodes, namespaces, sessions, running, waiting;
  int64_t evicted_blocks, preemptions, steps;
};

class Runtime {
 public:
  explicit Runtime(const RuntimeOptions& options);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // ---- sessions: fork, rollback and close refuse a session whose turn is in progress
  uint64_t open(const std::string& salt = "");
  uint64_t fork(uint64_t session);
  void rollback(uint64_t session, int64_t length);
  void close(uint64_t session);
  int64_t length(uint64_t session) const { return get(session).committed; }
  int64_t resident(uint64_t session) const;
  const int32_t* tokens(uint64_t session) const { return get(session).tokens.data(); }
  bool is_running(uint64_t session) const { return get(session).request_id != 0; }
  // Texts to draft from in this session's answers and in its forks' from now on, where they know a longer
  // tail than the conversation itself: what a tool's schema fixes of a call, say.
  void set_spans(uint64_t session, const std::vector<std::vector<int32_t>>& spans);
  // The request whose turn is in progress; 0: none.
  uint64_t request_of(uint64_t session) const { return get(session).request_id; }

  // ---- turns
  // Throws OutOfBlocks if the turn could not finish even with the whole pool to itself.
  uint64_t submit(uint64_t session, const int32_t* tokens, int64_t num_tokens, const RequestParams& params);
  // A turn whose answer is known: both become tokens of the session, whose KV is computed when a later turn
  // needs it. Returns a request id of its own, which is finished.
  uint64_t append(uint64_t session, const int32_t* tokens, int64_t num_tokens);
  // Makes the next step and fills buffers(); nothing when no request is left. Ends with commit() or
  // cancel_step().
  std::optional<StepInfo> plan();
  // Of a step with trees, once out_tokens, out_num_tokens and out_rows are there: fills move_src, move_dst
  // and cu_moves with the accepted rows whose KV is not yet where their position is, as compact_kv takes
  // them, and returns how many. To be made before the next step and before commit(), which may let others
  // have the blocks.
  int64_t plan_moves();
  // Takes out_tokens and out_num_tokens of the planned step. seconds: how long the step took, from which
  // draft lengths are chosen (draft_length.h); 0: not measured, drafts are as long as they come.
  std::vector<Event> commit(double seconds = 0.0);
  // The planned step did not run: its blocks go back, the requests stay. Does nothing where no step is
  // planned, so that whoever was interrupted need not know how far it came.
  void cancel_step();
  bool is_step_planned() const { return step_planned_; }

  // ---- steps that the device takes by itself (ahead.cpp): plan_ahead() -> [launch] -> plan_ahead() ->
  // [launch] -> commit_ahead() of the first, and so on; several may be under way.
  // Reserves what one more step may need, takes newcomers in, fills the buffers ahead_*, block_table,
  // table_begin, table_end, copy_* and those of sampling. Nothing: this step takes plan(), and results of all
  // steps under way first; then nothing was planned. max_rows: tokens that the device feeds of a sequence in
  // one step; max_stops: stop tokens that it knows.
  std::optional<AheadInfo> plan_ahead(int64_t max_rows, int64_t max_stops);
  // Takes a step's results, [max_seqs, 4 + max_rows_per_seq] as commit_step writes them; request_ids: what
  // ahead_request was when it was launched. Rows of requests that have left since are ignored.
  std::vector<Event> commit_ahead(const int64_t* request_ids, const int32_t* results, double seconds = 0.0);
  // Results of steps under way will not come, and the device has forgotten everything.
  void forget_ahead();
  // What is known of a running request's conversation, its delta and answer so far included.
  const std::vector<int32_t>& known_tokens(uint64_t request_id) const {
    return get_request(request_id).seq->tokens;
  }
  const std::vector<int32_t>& stop_tokens(uint64_t request_id) const {
    return get_request(request_id).params.stop_token_ids;
  }

  // Ends a turn early with its delta and the first num_keep generated tokens committed. Not while a step is
  // planned.
  void finish(uint64_t request_id, int64_t num_keep);
  // Forgets the turn: the session is as before submit(). Not of a running one while a step is planned.
  void abort(uint64_t request_id);
  // Brings the draft indices of running requests up to date. plan() does it where needed; a caller that has
  // launched a step and waits for the device can hide the work here.
  void index_drafts();
  // Of a request in progress, or of a finished one: then once. Those of an aborted request are gone, and only
  // the latest few thousand wait to be taken.
  RequestStats take_stats(uint64_t request_id);

  // ---- cache
  int64_t evict(int64_t num_blocks);
  int64_t match(const std::string& salt, const int32_t* tokens, int64_t num_tokens) const;
  RuntimeStats stats() const;
  // Recomputes every invariant; throws std::logic_error.
  void check() const;

  const StepBuffers& buffers() const { return buffers_; }
  const StepSizes& sizes() const { return sizes_; }
  // Replaces arrays by the caller's, which must outlive the runtime or the next bind. All buffers are
  // cleared; the next step writes the block tables of running requests from their first entry on.
  void bind(const std::vector<std::pair<std::string, void*>>& arrays);
  std::vector<BufferSpec> buffer_specs() { return buffers_.specs(sizes_); }
  // Whether `data` lies in an array that the runtime made itself.
  bool owns(const void* data) const;
  const RuntimeOptions& options() const { return options_; }
  const DraftLength& draft_length() const { return draft_length_; }

 private:
  // An entry of a block table that was replaced by a block of its own, into which `from` is to be copied.
  struct TailCopy {
    int64_t idx = -1;  // -1: none
    int32_t from = -1;
  };

  // What a request does in the step being planned.
  struct Step {
    int64_t start = 0;       // position of the first token fed
    int64_t num_tokens = 0;  // rows, drafts included; 0: not part of the step
    int64_t num_logits = 0;
    int64_t num_drafts = 0;
    DraftSource source = DraftSource::kHistory;  // of the drafts
    int ngram = 0;                               // that found them
    bool has_candidates = false;                 // request.tree is what was known when it was planned
    bool is_tree = false;                        // the drafts are no path: request.parents
    int64_t trunk = 0;                           // leading drafts that are the first continuation's
    int64_t table_size = 0;                      // table entries before the step reserved more
    TailCopy copy;
  };

  struct Request;
  struct WaitingOrder {
    bool operator()(const Request* a, const Request* b) const {
      return a->params.priority != b->params.priority ? a->params.priority > b->params.priority
                                                      : a->id < b->id;
    }
  };
  using Waiting = std::set<Request*, WaitingOrder>;
  using FinishedStats = std::map<uint64_t, RequestStats>;

  struct Request {
    uint64_t id = 0;
    Sequence* seq = nullptr;
    RequestParams params;
    RequestStats stats;
    int64_t prompt_length = 0;
    uint64_t admitted = 0;  // order of admission; 0: waiting
    int32_t row = -1;
    Step step;
    std::vector<int32_t> drafts;
    std::vector<int32_t> parents;  // of the drafts of a tree: 0 = the last known token, i = draft i - 1
    DraftTree tree;                // what may follow
    int64_t in_flight = 0;         // steps of the device whose results have not been taken
    bool on_device = false;        // the device's state of it is that of the results taken, or ahead of it
    int32_t draft_limit = 0;       // in the device's next step
    TailCopy ahead_copy;           // that the device was told to make, until that step's results are taken
    int64_t copy_wait = 0;         // steps until they are
    // Its places where it will be, so that going there needs no memory.
    Waiting::node_type waiting_place;
    FinishedStats::node_type stats_place;

    int64_t known() const { return static_cast<int64_t>(seq->tokens.size()); }
    int64_t num_generated() const { return known() - prompt_length; }
    int64_t num_remaining() const { return params.max_tokens - num_generated(); }
    // Only the last token is left to feed.
    bool decoding() const { return seq->resident >= known() - 1; }
  };

  struct Row {
    uint64_t owner = 0;  // session whose table the row holds
    Request* request = nullptr;
    uint64_t last_used = 0;
  };

  // sessions (runtime.cpp)
  Sequence& get(uint64_t session) const;
  Sequence& get_idle(uint64_t session, const char* what) const;
  std::unique_ptr<Sequence> new_sequence();
  uint64_t enter(std::unique_ptr<Sequence> owner, Node* node);
  Request& get_request(uint64_t request_id) const;
  void require_no_step(const char* what) const;
  void cut_back(Sequence& seq, int64_t length);
  void forget(Request& request, bool keep_stats);

  // who runs (scheduler.cpp)
  void hold(Sequence& seq, bool match);
  void release(Sequence& seq);
  bool publish(Sequence& seq, int64_t end);
  void fit_table(Sequence& seq);
  void begin_running(Request& request);
  void stop_running(Request& request);
  int64_t preempt(Request& request);
  void restart_alone(Request& request);
  bool better_wait(const Request& request) const;
  int64_t num_available() const { return pool_.num_free() + tree_.num_evictable_blocks(); }
  int32_t pick_row(const Sequence& seq) const;

  // one step (planner.cpp)
  bool plan_requests();
  bool make_room(Request& request, int64_t num_blocks);
  void plan_decode(Request& request);
  void plan_prefill(Request& request);
  void admit_waiting();
  bool admit(Request& request);
  void reserve(Request& request, int64_t start, int64_t num_tokens, int64_t num_drafts);
  void unplan(Request& request);
  void take_back(Sequence& seq, TailCopy* copy);

  // what may follow (draft_sources.cpp)
  void reserve_relatives(Sequence& seq);
  void find_relatives(Sequence& seq);
  bool is_related(const Sequence& a, const Sequence& b) const;
  Sequence* find_open(uint64_t session) const;
  int64_t propose(Request& request, int64_t most, Step* found);
  int grow_tree(Request& request, int offered, int most, const Step& found);
  int64_t choose_branches(Request& request, int64_t length, int64_t most, Step* found);

  // what the step reads (planner.cpp)
  void cut_trees();
  StepInfo fill_buffers();
  void fill_trees(const StepInfo& info);
  void fill_row(int64_t row, Request& request, StepInfo* info);
  void fill_table(int64_t row, Sequence& seq);
  void fill_sampling(int64_t row, const Request& request);

  // steps of the device (ahead.cpp)
  bool can_run_ahead(const Request& request, int64_t max_rows, int64_t max_stops) const;
  int64_t end_ahead(const Request& request) const;
  int64_t num_new_blocks_ahead() const;
  bool admit_ahead(int64_t max_rows, int64_t max_stops);
  void reserve_ahead(Request& request, AheadInfo* info);
  void fill_ahead(Request& request);
  void commit_ahead_row(Request& request, const int32_t* entry, Event* event);

  // results (commit.cpp)
  void check_results() const;
  void check_walk(const Request& request) const;
  void add_event(const Request& request, int64_t num_tokens, std::vector<Event>* events) const;
  void commit_request(Request& request, Event* event);
  void finish_turn(Request& request, int64_t length, bool keep_stats);

  RuntimeOptions options_;
  StepSizes sizes_;
  BlockPool pool_;
  RadixTree tree_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<uint32_t> generations_;  // per slot of sequences_; the upper half of a handle
  std::vector<uint32_t> free_slots_;
  std::unordered_map<uint64_t, std::unique_ptr<Request>> requests_;
  std::vector<Request*>
      running_;  // highest priority first, then longest admitted: the last one is preempted first
  Waiting waiting_;
  FinishedStats finished_stats_;
  std::vector<uint64_t> finished_;  // a ring of those that finished last, their statistics taken or not
  size_t num_finished_ = 0;
  std::vector<Row> rows_;
  StepBuffers buffers_;
  std::vector<std::vector<int64_t>> storage_;  // of the buffers that are not bound to the caller's memory
  DraftLength draft_length_;
  BranchModel branch_model_;
  int64_t budget_ = 0;         // token rows left in the step being planned
  int64_t last_num_seqs_ = 0;  // what the step before filled, to be cleared by the next
  int64_t last_num_tokens_ = 0;
  int64_t last_num_copies_ = 0;
  int64_t last_num_logit_rows_ = 0;
  bool step_planned_ = false;
  bool moves_due_ = false;  // the planned step has trees and plan_moves() is still to come
  bool preempted_ = false;  // in the step being planned
  uint64_t next_request_id_ = 1;
  uint64_t next_admission_ = 1;
  int64_t num_evicted_ = 0;
  int64_t num_preemptions_ = 0;
  int64_t num_steps_ = 0;
};

}  // namespace skv
