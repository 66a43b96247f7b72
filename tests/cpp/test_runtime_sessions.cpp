// Random sessions, turns, forks, rollbacks, failures and evictions over a fake KV memory: every answer is the
// one that a fresh session would give, and every invariant holds after every operation.
#include <list>
#include <map>
#include <random>

#include "fake_model.h"

namespace {

struct Turn {
  uint64_t session;
  std::vector<int32_t> prompt;
  std::vector<int32_t> expected;
  std::vector<int32_t> generated;
};

class Fuzz {
 public:
  explicit Fuzz(uint32_t seed)
      : random_(seed), options_(random_options()), runtime_(options_), device_(&runtime_) {}

  void run(int num_operations) {
    for (int i = 0; i < num_operations; ++i) {
      operate();
      runtime_.check();
      for (auto& [session, tokens] : sessions_) CHECK(runtime_.length(session) == int64_t(tokens.size()));
    }
    while (step()) {
    }
    CHECK(turns_.empty());
    for (auto& entry : sessions_) {
      const int32_t* tokens = runtime_.tokens(entry.first);
      CHECK(std::equal(entry.second.begin(), entry.second.end(), tokens));
      runtime_.close(entry.first);
    }
    runtime_.check();
    runtime_.evict(options_.num_blocks);
    CHECK(runtime_.stats().free == options_.num_blocks);
    CHECK(runtime_.stats().nodes == 0 && runtime_.stats().namespaces == 0);
  }

 private:
  int64_t pick(int64_t low, int64_t high) { return fake::pick(&random_, low, high); }

  skv::RuntimeOptions random_options() {
    skv::RuntimeOptions options;
    options.num_blocks = static_cast<int32_t>(pick(2, 60));
    options.block_size = pick(1, 9);
    options.max_seqs = pick(1, 5);
    options.max_batch_tokens = options.max_seqs + pick(0, 40);
    options.num_drafts = static_cast<int>(pick(0, 6));
    options.latest = pick(0, 1);
    options.prefix_cache = pick(0, 3) > 0;
    options.policy = pick(0, 1) ? "lru" : "turns";
    return options;
  }

  std::vector<int32_t> random_delta() { return fake::random_delta(&random_, 2, 20); }

  // An idle session, or 0.
  uint64_t pick_idle() {
    std::vector<uint64_t> idle;
    for (auto& entry : sessions_) {
      if (!runtime_.is_running(entry.first)) idle.push_back(entry.first);
    }
    return idle.empty() ? 0 : idle[pick(0, idle.size() - 1)];
  }

  void operate() {
    const int64_t kind = pick(0, 99);
    if (kind < 45) {
      step();
    } else if (kind < 65) {
      submit();
    } else if (kind < 70) {
      if (sessions_.size() < 10) sessions_[runtime_.open(pick(0, 3) ? "" : "other")] = {};
    } else if (kind < 75) {
      const uint64_t parent = pick_idle();
      if (parent && sessions_.size() < 10) sessions_[runtime_.fork(parent)] = sessions_[parent];
    } else if (kind < 80) {
      const uint64_t session = pick_idle();
      if (!session) return;
      const int64_t length = pick(0, sessions_[session].size());
      runtime_.rollback(session, length);
      sessions_[session].resize(length);
    } else if (kind < 83) {
      const uint64_t session = pick_idle();
      if (!session) return;
      runtime_.close(session);
      sessions_.erase(session);
      CHECK_THROWS(runtime_.length(session), skv::StaleHandle);
    } else if (kind < 88) {
      runtime_.evict(pick(1, 8));
    } else if (kind < 89) {
      bind();
    } else if (kind < 92) {
      const auto info = runtime_.plan();
      CHECK(info.has_value() == !turns_.empty());
      if (!info) return;
      runtime_.check();
      if (pick(0, 1)) device_.run(*info);
      runtime_.cancel_step();
    } else if (!turns_.empty()) {
      auto turn = std::next(turns_.begin(), pick(0, turns_.size() - 1));
      if (pick(0, 1)) {
        runtime_.abort(turn->first);
      } else {
        Turn& t = turn->second;
        t.generated.resize(pick(0, t.generated.size()));
        runtime_.finish(turn->first, t.generated.size());
        conclude(t);
      }
      turns_.erase(turn);
    }
  }

  // Some buffers move, at any time between two steps.
  void bind() {
    std::vector<std::pair<std::string, void*>> arrays;
    for (const skv::BufferSpec& spec : runtime_.buffer_specs()) {
      if (pick(0, 1)) continue;
      bound_.emplace_back(spec.num_bytes(), 77);
      arrays.emplace_back(spec.name, bound_.back().data());
    }
    runtime_.bind(arrays);
  }

  void submit() {
    const uint64_t session = pick_idle();
    if (!session) return;
    const std::vector<int32_t> delta = random_delta();
    std::vector<int32_t> prompt = sessions_[session];
    prompt.insert(prompt.end(), delta.begin(), delta.end());
    skv::RequestParams params;
    params.max_tokens = pick(1, 30);
    params.priority = static_cast<int>(pick(0, 2));
    const int32_t stop = pick(0, 2) ? -1 : 4;
    params.stop_token_ids = {stop};
    if (prompt.empty()) {
      CHECK_THROWS(runtime_.submit(session, delta.data(), delta.size(), params), std::invalid_argument);
    } else if (int64_t(prompt.size()) + params.max_tokens - 1 > options_.num_blocks * options_.block_size) {
      CHECK_THROWS(runtime_.submit(session, delta.data(), delta.size(), params), skv::OutOfBlocks);
    } else {
      const uint64_t id = runtime_.submit(session, delta.data(), delta.size(), params);
      turns_[id] = {session, prompt, fake::answer(prompt, params.max_tokens, stop), {}};
    }
  }

  bool step() {
    std::vector<skv::Event> events;
    const bool ran = device_.step(&events);
    CHECK(ran == !turns_.empty());
    for (skv::Event& event : events) {
      Turn& turn = turns_.at(event.request_id);
      turn.generated.insert(turn.generated.end(), event.tokens.begin(), event.tokens.end());
      CHECK(turn.generated.size() <= turn.expected.size());
      CHECK(std::equal(turn.generated.begin(), turn.generated.end(), turn.expected.begin()));
      if (event.finish_reason == skv::FinishReason::kNone) continue;
      CHECK(turn.generated == turn.expected);
      conclude(turn);
      turns_.erase(event.request_id);
    }
    return ran;
  }

  void conclude(const Turn& turn) {
    std::vector<int32_t>& tokens = sessions_[turn.session];
    tokens = turn.prompt;
    tokens.insert(tokens.end(), turn.generated.begin(), turn.generated.end());
  }

  std::mt19937 random_;
  skv::RuntimeOptions options_;
  skv::Runtime runtime_;
  fake::Device device_;
  std::map<uint64_t, std::vector<int32_t>> sessions_;
  std::map<uint64_t, Turn> turns_;
  std::list<std::vector<char>> bound_;
};

}  // namespace

int main(int argc, char** argv) {
  const int num_runs = argc > 1 ? std::atoi(argv[1]) : 120;
  for (int seed = 0; seed < num_runs; ++seed) Fuzz(seed).run(400);
  std::printf("%d runs\n", num_runs);
  return 0;
}
