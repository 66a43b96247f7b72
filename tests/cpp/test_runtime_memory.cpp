// Memory that runs out: in random worlds every allocation of every call fails once, alone or with all that
// come after it in the call. A call that throws then has changed nothing (contract in runtime.h), calls that
// give something back never throw, and the world goes on to the answers that it would have had.
#include <algorithm>
#include <deque>
#include <list>
#include <map>
#include <random>
#include <tuple>

#include "failing_memory.h"
#include "fake_model.h"

namespace {

// What a call that throws std::bad_alloc may have changed.
enum class Throws { kNever, kUnchanged, kUnplanned };

struct Fault {
  int64_t call = -1;  // -1: none
  int64_t allocation = 0;
  bool lasting = false;
};

struct Turn {
  uint64_t session;
  std::vector<int32_t> prompt;
  std::vector<int32_t> expected;
  std::vector<int32_t> generated;
};

struct Session {
  uint64_t id;
  std::vector<int32_t> tokens;
};

// What a caller can see.
struct View {
  std::vector<std::tuple<uint64_t, std::vector<int32_t>, uint64_t, int64_t>> sessions;
  std::vector<std::pair<uint64_t, std::vector<int32_t>>> known;  // of requests
  std::vector<int64_t> fed;
  skv::RuntimeStats stats;
  bool is_step_planned;
};

class World {
 public:
  World(uint32_t seed, const Fault& fault)
      : random_(seed), fault_(fault), options_(random_options()), runtime_(options_), device_(&runtime_) {}

  // Whether the fault came to pass.
  bool run(int num_operations) {
    for (int i = 0; i < num_operations; ++i) operate();
    while (step()) {
    }
    take_results(0);
    CHECK(turns_.empty());
    while (!sessions_.empty()) {
      const Session session = std::move(sessions_.front());
      sessions_.pop_front();
      CHECK(runtime_.length(session.id) == static_cast<int64_t>(session.tokens.size()));
      CHECK(std::equal(session.tokens.begin(), session.tokens.end(), runtime_.tokens(session.id)));
      call(Throws::kNever, [&] { runtime_.close(session.id); });
    }
    call(Throws::kNever, [&] { return runtime_.evict(options_.num_blocks); });
    const skv::RuntimeStats stats = runtime_.stats();
    CHECK(stats.free == options_.num_blocks && stats.nodes == 0 && stats.namespaces == 0);
    CHECK(stats.sessions == 0 && stats.running == 0 && stats.waiting == 0);
    runtime_.check();
    return failed_;
  }

  int64_t num_calls() const { return num_calls_; }

 private:
  int64_t pick(int64_t low, int64_t high) { return fake::pick(&random_, low, high); }

  skv::RuntimeOptions random_options() {
    skv::RuntimeOptions options;
    options.num_blocks = static_cast<int32_t>(pick(0, 2) ? pick(3, 16) : pick(17, 60));
    options.block_size = pick(1, 6);
    options.max_seqs = pick(1, 4);
    options.max_batch_tokens = options.max_seqs + pick(0, 30);
    options.num_drafts = static_cast<int>(pick(0, 5));
    options.num_relatives = static_cast<int>(pick(0, 1) * pick(0, 3));
    options.num_branches = static_cast<int>(pick(0, 1) * pick(0, 3));
    options.latest = pick(0, 1);
    options.prefix_cache = pick(0, 4) > 0;
    options.policy = pick(0, 1) ? "lru" : "turns";
    return options;
  }

  View view() {
    View v;
    for (const Session& session : sessions_) {
      const int64_t length = runtime_.length(session.id);
      const int32_t* tokens = runtime_.tokens(session.id);
      v.sessions.emplace_back(session.id, std::vector<int32_t>(tokens, tokens + length),
                              runtime_.request_of(session.id), runtime_.resident(session.id));
    }
    for (auto& entry : turns_) {
      if (runtime_.request_of(entry.second.session) != entry.first) continue;
      v.known.emplace_back(entry.first, runtime_.known_tokens(entry.first));
      v.fed.push_back(runtime_.take_stats(entry.first).fed_tokens);
    }
    v.stats = runtime_.stats();
    v.is_step_planned = runtime_.is_step_planned();
    return v;
  }

  // Nodes may have been split. Of a step that could not be planned, some may have been taken in or preempted
  // and some of the cache evicted.
  static void require_same(View before, View after, Throws throws) {
    skv::RuntimeStats &a = before.stats, &b = after.stats;
    CHECK(before.known == after.known && before.fed == after.fed);
    CHECK(before.is_step_planned == after.is_step_planned);
    CHECK(a.sessions == b.sessions && a.running + a.waiting == b.running + b.waiting && a.steps == b.steps);
    CHECK(a.free + a.evictable + a.protected_blocks + a.session_held ==
          b.free + b.evictable + b.protected_blocks + b.session_held);
    if (throws == Throws::kUnplanned) {
      for (View* v : {&before, &after}) {
        for (auto& session : v->sessions) std::get<3>(session) = 0;
      }
    } else {
      CHECK(a.free == b.free && a.evictable == b.evictable && a.protected_blocks == b.protected_blocks);
      CHECK(a.running == b.running && a.evicted_blocks == b.evicted_blocks && a.preemptions == b.preemptions);
      CHECK(a.nodes <= b.nodes && a.namespaces == b.namespaces);
    }
    CHECK(before.sessions == after.sessions);
  }

  template <class Fn>
  auto call(Throws throws, Fn fn) -> decltype(fn()) {
    if (num_calls_++ != fault_.call) return fn();
    const View before = view();
    try {
      memory::OutAt out(fault_.allocation, fault_.lasting, &failed_);
      return fn();
    } catch (const std::bad_alloc&) {
    }
    CHECK(throws != Throws::kNever);
    runtime_.check();
    require_same(before, view(), throws);
    return fn();
  }

  // What the call returned need not be looked at: a fault that it bore shows in what follows.
  void after_call() {
    if (failed_) runtime_.check();
  }

  void operate() {
    random_operation();
    after_call();
    for (const Session& session : sessions_) {
      CHECK(runtime_.length(session.id) == static_cast<int64_t>(session.tokens.size()));
    }
  }

  void random_operation() {
    const int64_t kind = pick(0, 99);
    if (kind < 40 || sessions_.empty()) {
      kind < 40 ? void(step()) : open();
    } else if (kind < 62) {
      submit();
    } else if (kind < 67) {
      open();
    } else if (kind < 73) {
      fork();
    } else if (kind < 78) {
      rollback();
    } else if (kind < 81) {
      close();
    } else if (kind < 84) {
      append();
    } else if (kind < 86) {
      set_spans();
    } else if (kind < 89) {
      const int64_t num_blocks = pick(1, 8);
      call(Throws::kNever, [&] { return runtime_.evict(num_blocks); });
    } else if (kind < 90) {
      bind();
    } else if (kind < 91) {
      call(Throws::kUnchanged, [&] { runtime_.index_drafts(); });
    } else if (kind < 93) {
      cancel();
    } else if (kind < 94) {
      in_flight_.clear();
      call(Throws::kNever, [&] { runtime_.forget_ahead(); });
    } else {
      end_turn();
    }
  }

  Session* pick_idle() {
    std::vector<Session*> idle;
    for (Session& session : sessions_) {
      if (!runtime_.is_running(session.id)) idle.push_back(&session);
    }
    return idle.empty() ? nullptr : idle[pick(0, idle.size() - 1)];
  }

  std::vector<int32_t> random_delta() { return fake::random_delta(&random_, 3, 12); }

  void open() {
    static const std::string kSalts[] = {"", "other", "a namespace of more letters than fit into a string"};
    const std::string& salt = kSalts[pick(0, 2)];
    if (sessions_.size() >= 8) return;
    const uint64_t id = call(Throws::kUnchanged, [&] { return runtime_.open(salt); });
    sessions_.push_back({id, {}});
  }

  void fork() {
    const Session* parent = pick_idle();
    if (!parent || sessions_.size() >= 8) return;
    const uint64_t id = call(Throws::kUnchanged, [&] { return runtime_.fork(parent->id); });
    sessions_.push_back({id, parent->tokens});
  }

  void rollback() {
    Session* session = pick_idle();
    if (!session) return;
    const int64_t length = pick(0, session->tokens.size());
    call(Throws::kNever, [&] { runtime_.rollback(session->id, length); });
    session->tokens.resize(length);
  }

  void close() {
    Session* session = pick_idle();
    if (!session) return;
    const uint64_t id = session->id;
    call(Throws::kNever, [&] { runtime_.close(id); });
    sessions_.remove_if([&](const Session& s) { return s.id == id; });
    CHECK_THROWS(runtime_.length(id), skv::StaleHandle);
  }

  void append() {
    Session* session = pick_idle();
    if (!session) return;
    const std::vector<int32_t> delta = random_delta();
    call(Throws::kUnchanged, [&] { return runtime_.append(session->id, delta.data(), delta.size()); });
    session->tokens.insert(session->tokens.end(), delta.begin(), delta.end());
  }

  void set_spans() {
    Session* session = pick_idle();
    if (!session) return;
    std::vector<std::vector<int32_t>> spans;
    for (int64_t n = pick(0, 2); n > 0; --n) spans.push_back(random_delta());
    call(Throws::kUnchanged, [&] { runtime_.set_spans(session->id, spans); });
  }

  // Some buffers move, at any time between two steps.
  void bind() {
    std::vector<std::pair<std::string, void*>> arrays;
    for (const skv::BufferSpec& spec : runtime_.buffer_specs()) {
      if (pick(0, 1)) continue;
      bound_.emplace_back(spec.num_bytes(), 77);
      arrays.emplace_back(spec.name, bound_.back().data());
    }
    call(Throws::kUnchanged, [&] { runtime_.bind(arrays); });
  }

  void submit() {
    Session* session = pick_idle();
    if (!session) return;
    const std::vector<int32_t> delta = random_delta();
    std::vector<int32_t> prompt = session->tokens;
    prompt.insert(prompt.end(), delta.begin(), delta.end());
    skv::RequestParams params;
    params.max_tokens = pick(1, 20);
    params.priority = static_cast<int>(pick(0, 2));
    const int32_t stop = pick(0, 2) ? -1 : 4;
    params.stop_token_ids = {stop};
    if (prompt.empty() || static_cast<int64_t>(prompt.size()) + params.max_tokens - 1 >
                              options_.num_blocks * options_.block_size) {
      return;
    }
    const uint64_t id = call(
        Throws::kUnchanged, [&] { return runtime_.submit(session->id, delta.data(), delta.size(), params); });
    turns_[id] = {session->id, prompt, fake::answer(prompt, params.max_tokens, stop), {}};
  }

  void cancel() {
    take_results(0);
    const auto info = call(Throws::kUnplanned, [&] { return runtime_.plan(); });
    CHECK(info.has_value() == !turns_.empty());
    if (!info) return;
    after_call();
    if (pick(0, 1)) device_.run(*info);
    call(Throws::kNever, [&] { runtime_.cancel_step(); });
  }

  void end_turn() {
    if (turns_.empty()) return;
    const auto turn = std::next(turns_.begin(), pick(0, turns_.size() - 1));
    const uint64_t id = turn->first;
    if (pick(0, 1)) {
      call(Throws::kNever, [&] { runtime_.abort(id); });
    } else {
      Turn& t = turn->second;
      t.generated.resize(pick(0, t.generated.size()));
      call(Throws::kNever, [&] { runtime_.finish(id, t.generated.size()); });
      conclude(id, t);
    }
    turns_.erase(turn);
  }

  bool step() {
    constexpr int64_t kMaxRows = 8;
    if (pick(0, 2) == 0 || turns_.empty()) {
      take_results(0);
      return host_step();
    }
    const auto info = call(Throws::kUnplanned, [&] { return runtime_.plan_ahead(kMaxRows, 2); });
    if (!info || info->num_rows == 0) {
      const bool had_some = !in_flight_.empty();
      take_results(0);
      return info || had_some || host_step();
    }
    const int64_t* requests = runtime_.buffers().ahead_request;
    in_flight_.emplace_back(std::vector<int64_t>(requests, requests + options_.max_seqs),
                            device_.run_ahead(*info, kMaxRows));
    take_results(pick(0, 2));
    return true;
  }

  bool host_step() {
    const auto info = call(Throws::kUnplanned, [&] { return runtime_.plan(); });
    CHECK(info.has_value() == !turns_.empty());
    if (!info) return false;
    after_call();
    device_.run(*info);
    if (info->has_trees) {
      device_.move(call(Throws::kNever, [&] { return runtime_.plan_moves(); }));
    }
    take(call(Throws::kUnchanged, [&] { return runtime_.commit(); }));
    return true;
  }

  // Of steps that the device took by itself, until so many are left under way.
  void take_results(size_t left) {
    while (in_flight_.size() > left) {
      const auto& [requests, results] = in_flight_.front();
      take(call(Throws::kUnchanged,
                [&, r = requests.data(), e = results.data()] { return runtime_.commit_ahead(r, e); }));
      in_flight_.pop_front();
    }
  }

  void take(const std::vector<skv::Event>& events) {
    for (const skv::Event& event : events) {
      Turn& turn = turns_.at(event.request_id);
      turn.generated.insert(turn.generated.end(), event.tokens.begin(), event.tokens.end());
      CHECK(turn.generated.size() <= turn.expected.size());
      CHECK(std::equal(turn.generated.begin(), turn.generated.end(), turn.expected.begin()));
      if (event.finish_reason == skv::FinishReason::kNone) continue;
      CHECK(turn.generated == turn.expected);
      conclude(event.request_id, turn);
      turns_.erase(event.request_id);
    }
  }

  void conclude(uint64_t request, const Turn& turn) {
    auto session = std::find_if(sessions_.begin(), sessions_.end(),
                                [&](const Session& s) { return s.id == turn.session; });
    session->tokens = turn.prompt;
    session->tokens.insert(session->tokens.end(), turn.generated.begin(), turn.generated.end());
    const skv::RequestStats stats = call(Throws::kNever, [&] { return runtime_.take_stats(request); });
    CHECK(stats.prompt_tokens == static_cast<int64_t>(turn.prompt.size()));
    CHECK_THROWS(runtime_.take_stats(request), skv::StaleHandle);
  }

  std::mt19937 random_;
  Fault fault_;
  skv::RuntimeOptions options_;
  skv::Runtime runtime_;
  fake::Device device_;
  std::list<Session> sessions_;
  std::map<uint64_t, Turn> turns_;
  std::deque<std::pair<std::vector<int64_t>, std::vector<int32_t>>> in_flight_;
  std::list<std::vector<char>> bound_;
  int64_t num_calls_ = 0;
  bool failed_ = false;
};

// Returns how many faults there were.
int64_t try_all(uint32_t seed, int num_operations) {
  World world(seed, Fault{});
  world.run(num_operations);
  int64_t num_faults = 0;
  for (int64_t i = 0; i < world.num_calls(); ++i) {
    for (bool lasting : {false, true}) {
      Fault fault{i, 1, lasting};
      for (; World(seed, fault).run(num_operations); ++fault.allocation) ++num_faults;
    }
  }
  return num_faults;
}

}  // namespace

int main(int argc, char** argv) {
  const int num_runs = argc > 1 ? std::atoi(argv[1]) : 40;
  int64_t num_faults = 0;
  for (int seed = 0; seed < num_runs; ++seed) num_faults += try_all(seed, 40);
  std::printf("%d worlds, %lld faults\n", num_runs, static_cast<long long>(num_faults));
  return 0;
}
