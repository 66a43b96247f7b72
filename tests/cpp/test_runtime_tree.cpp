// Block pool and radix tree against a list of what was inserted: matches are the longest common prefix,
// blocks hold exactly the tokens they stand for, locked prefixes survive any eviction, and eviction frees
// everything else.
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "runtime/radix_tree.h"

namespace {

using Tokens = std::vector<int32_t>;

// A holder of a published prefix, as a running turn is one.
struct Lock {
  skv::Node* node;
  Tokens tokens;
};

class Fuzz {
 public:
  explicit Fuzz(uint32_t seed)
      : random_(seed),
        block_size_(pick(1, 6)),
        vocab_(static_cast<int32_t>(pick(0, 3) ? 3 : 60)),
        pool_(static_cast<int32_t>(pick(10, 150))),
        tree_(&pool_, block_size_, skv::make_eviction_policy(pick(0, 1) ? "lru" : "turns")),
        content_(pool_.num_blocks() * block_size_) {}

  void run() {
    root_ = tree_.open_root("");
    for (int i = 0; i < 200; ++i) {
      const int64_t kind = pick(0, 9);
      if (kind < 5) {
        insert();
      } else if (kind < 8) {
        match();
      } else if (kind == 8) {
        evict(pick(1, 12));
      } else if (!locks_.empty()) {
        const auto lock = locks_.begin() + pick(0, locks_.size() - 1);
        tree_.unlock(lock->node);
        locks_.erase(lock);
      }
      check();
    }
    for (Lock& lock : locks_) tree_.unlock(lock.node);
    tree_.evict(pool_.num_blocks());
    CHECK(pool_.num_free() == pool_.num_blocks() && tree_.num_nodes() == 0);
    tree_.close_root(root_);
    CHECK(tree_.num_namespaces() == 0);
  }

 private:
  int64_t pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

  Tokens random_tokens() {
    Tokens tokens;
    if (!stored_.empty() && pick(0, 2)) {
      tokens = stored_[pick(0, stored_.size() - 1)];
      tokens.resize(pick(0, tokens.size()));
    }
    for (int64_t n = pick(1, 14); n > 0; --n) tokens.push_back(static_cast<int32_t>(pick(0, vocab_ - 1)));
    return tokens;
  }

  // What the table says must be what the prefix is: content is kept per slot.
  void check_content(const Tokens& tokens, int64_t length, const std::vector<int32_t>& table) {
    CHECK(static_cast<int64_t>(table.size()) == (length + block_size_ - 1) / block_size_);
    for (int64_t i = 0; i < length; ++i) {
      const Tokens& cached = content_[table[i / block_size_] * block_size_ + i % block_size_];
      CHECK(cached == Tokens(tokens.begin(), tokens.begin() + i + 1));
    }
  }

  void insert() {
    const Tokens tokens = random_tokens();
    const int64_t size = static_cast<int64_t>(tokens.size());
    std::vector<int32_t> table;
    skv::Node* held = tree_.descend(root_, tokens.data(), size, &table);
    tree_.lock(held);
    const int64_t matched = held->end;
    check_content(tokens, matched, table);
    int64_t own_begin = matched / block_size_;
    const int64_t needed = matched < size ? (size + block_size_ - 1) / block_size_ - own_begin : 0;
    if (needed > pool_.num_free() + tree_.num_evictable_blocks()) {
      tree_.unlock(held);
      return;
    }
    if (needed > pool_.num_free()) evict(needed - pool_.num_free());
    table.resize(std::max<size_t>(table.size(), own_begin + needed));
    CHECK(pool_.alloc(needed, table.data() + own_begin));
    for (int64_t i = own_begin * block_size_; i < size && needed > 0; ++i) {
      content_[table[i / block_size_] * block_size_ + i % block_size_] =
          Tokens(tokens.begin(), tokens.begin() + i + 1);
    }
    int64_t first_changed = own_begin;
    held = tree_.insert(held, tokens.data(), size, table.data(), &own_begin, &first_changed);
    CHECK(held->end == size);
    stored_.push_back(tokens);
    if (pick(0, 4) == 0 && locks_.size() < 3) {
      locks_.push_back({held, tokens});
    } else {
      tree_.unlock(held);
    }
  }

  void match() {
    const Tokens tokens = random_tokens();
    const int64_t size = static_cast<int64_t>(tokens.size());
    const int64_t length = tree_.match_length(root_, tokens.data(), size);
    int64_t longest = 0;
    for (const Tokens& other : stored_) {
      const int64_t n = std::min(tokens.size(), other.size());
      longest = std::max<int64_t>(
          longest, std::mismatch(tokens.begin(), tokens.begin() + n, other.begin()).first - tokens.begin());
    }
    CHECK(evicted_ ? length <= longest : length == longest);
    std::vector<int32_t> table;
    CHECK(tree_.descend(root_, tokens.data(), size, &table)->end == length);
    check_content(tokens, length, table);
  }

  void evict(int64_t num_blocks) {
    const int64_t evictable = tree_.num_evictable_blocks();
    CHECK(tree_.evict(num_blocks) == std::min(num_blocks, evictable));
    evicted_ = true;
  }

  void check() {
    std::vector<int32_t> refs(pool_.num_blocks(), 0);
    tree_.check(&refs);
    for (int32_t b = 0; b < pool_.num_blocks(); ++b) CHECK(refs[b] == pool_.ref_count(b));
    CHECK(pool_.num_free() + tree_.num_evictable_blocks() + tree_.num_protected_blocks() ==
          pool_.num_blocks());
    for (const Lock& lock : locks_) {
      const int64_t size = static_cast<int64_t>(lock.tokens.size());
      CHECK(tree_.match_length(root_, lock.tokens.data(), size) == size);
    }
  }

  std::mt19937 random_;
  int64_t block_size_;
  int32_t vocab_;
  skv::BlockPool pool_;
  skv::RadixTree tree_;
  std::vector<Tokens> content_;  // per slot: the prefix whose last token's KV it holds
  skv::Root* root_ = nullptr;
  std::vector<Tokens> stored_;
  std::vector<Lock> locks_;
  bool evicted_ = false;
};

void pool_is_all_or_nothing() {
  skv::BlockPool pool(3);
  int32_t blocks[4];
  CHECK(!pool.alloc(4, blocks) && pool.num_free() == 3);
  CHECK(pool.alloc(2, blocks) && blocks[0] != blocks[1] && pool.num_free() == 1);
  pool.ref(blocks[0]);
  CHECK(!pool.unref(blocks[0]) && pool.ref_count(blocks[0]) == 1);
  CHECK(pool.unref(blocks[0]) && pool.num_free() == 2);
  CHECK_THROWS(pool.unref(blocks[0]), std::logic_error);
  CHECK_THROWS(pool.ref(3), std::invalid_argument);
  CHECK_THROWS(skv::BlockPool(0), std::invalid_argument);
}

struct Sleeper : skv::Attachment {
  void on_shrunk() override {
    ++told;
    end = node->end;
  }
  int told = 0;
  int64_t end = 0;
};

// Thousands of forks rest on one node: each is told of all that a call takes from it at once.
void eviction_tells_each_once() {
  constexpr int64_t kBlock = 4, kBlocks = 600;
  for (const char* policy : {"lru", "turns"}) {
    skv::BlockPool pool(kBlocks);
    skv::RadixTree tree(&pool, kBlock, skv::make_eviction_policy(policy));
    skv::Root* root = tree.open_root("");
    const Tokens tokens(kBlocks * kBlock - 1, 5);
    std::vector<int32_t> table(kBlocks);
    CHECK(pool.alloc(kBlocks, table.data()));
    int64_t own_begin = 0, first_changed = 0;
    tree.lock(root);
    skv::Node* leaf =
        tree.insert(root, tokens.data(), tokens.size(), table.data(), &own_begin, &first_changed);
    tree.unlock(leaf);
    std::vector<Sleeper> sleepers(50);
    for (Sleeper& sleeper : sleepers) tree.attach(&sleeper, leaf);
    CHECK(tree.evict(400) == 400);
    for (Sleeper& sleeper : sleepers) CHECK(sleeper.told == 1 && sleeper.end == 200 * kBlock);
    CHECK(tree.evict(INT64_MAX) == 200);
    for (Sleeper& sleeper : sleepers) CHECK(sleeper.told == 2 && sleeper.node == root);
    for (Sleeper& sleeper : sleepers) tree.detach(&sleeper);
    tree.close_root(root);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int num_runs = argc > 1 ? std::atoi(argv[1]) : 150;
  pool_is_all_or_nothing();
  eviction_tells_each_once();
  for (int seed = 0; seed < num_runs; ++seed) Fuzz(seed).run();
  CHECK_THROWS(skv::make_eviction_policy("none"), std::invalid_argument);
  std::printf("%d runs\n", num_runs);
  return 0;
}
