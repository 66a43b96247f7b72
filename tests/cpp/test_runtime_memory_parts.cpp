// Memory that runs out in the runtime's parts, where worlds are too small: wide nodes of the radix tree,
// layers of the draft index. A call that throws has changed nothing that can be asked for.
#include <algorithm>
#include <cstdlib>
#include <random>
#include <vector>

#include "failing_memory.h"
#include "fake_model.h"

namespace {

// Calls fn, whose first allocation fails, then its second, and so on, until it needs no more. unchanged: what
// is to hold after each one that throws.
template <class Fn, class Unchanged>
void insist(bool lasting, Fn fn, Unchanged unchanged) {
  for (int64_t allocation = 1;; ++allocation) {
    bool failed = false;
    try {
      memory::OutAt out(allocation, lasting, &failed);
      fn();
      return;
    } catch (const std::bad_alloc&) {
    }
    unchanged();
  }
}

// More children than a list holds.
void widen(const char* policy, bool lasting) {
  skv::BlockPool pool(200);
  skv::RadixTree tree(&pool, 2, skv::make_eviction_policy(policy));
  skv::Root* root = nullptr;
  insist(lasting, [&] { root = tree.open_private_root(); }, [&] { CHECK(tree.num_namespaces() == 0); });
  auto check = [&](int64_t num_children) {
    std::vector<int32_t> refs(pool.num_blocks(), 0);
    tree.check(&refs);
    for (int32_t b = 0; b < pool.num_blocks(); ++b) CHECK(refs[b] <= pool.ref_count(b));
    CHECK(static_cast<int64_t>(root->children.size()) == num_children);
  };
  for (int32_t i = 0; i < 40; ++i) {
    const std::vector<int32_t> tokens = {i, 1, 2};
    std::vector<int32_t> table(2);
    CHECK(pool.alloc(2, table.data()));
    int64_t own_begin = 0, first_changed = 2;
    tree.lock(root);
    skv::Node* held = root;
    insist(
        lasting,
        [&] { held = tree.insert(root, tokens.data(), 3, table.data(), &own_begin, &first_changed); },
        [&] { check(i); });
    tree.unlock(held);
    check(i + 1);
    CHECK(held->end == 3 && own_begin == 2 && first_changed == 2);
    // Another one parts from it inside a block.
    std::vector<int32_t> other = {i, 1, 3}, other_table;
    insist(lasting, [&] { held = tree.descend(root, other.data(), 3, &other_table); }, [&] { check(i + 1); });
    CHECK(held->end == 2 && other_table == std::vector<int32_t>{table[0]});
  }
  CHECK(tree.num_evictable_blocks() == 80);
  CHECK(tree.evict(30) == 30);
  tree.close_root(root);
  CHECK(pool.num_free() == 200 && tree.num_nodes() == 0 && tree.num_namespaces() == 0);
}

// Layers of the draft index: what it proposes is what one made anew proposes.
void index_texts(uint32_t seed, bool lasting) {
  struct Text {
    skv::DraftIndex index;
    std::vector<int32_t> tokens;
  };
  std::mt19937 random(seed);
  auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  std::vector<Text> texts;
  texts.push_back({skv::DraftIndex(4, 1), {}});
  texts.reserve(8);
  auto check = [&] {
    for (const Text& text : texts) {
      skv::DraftIndex anew(4, 1);
      anew.extend(text.tokens.data(), text.index.length());
      int32_t drafts[6], expected[6];
      const int num = text.index.propose(text.tokens.data(), 6, seed % 2, drafts);
      CHECK(num == anew.propose(text.tokens.data(), 6, seed % 2, expected));
      CHECK(std::equal(drafts, drafts + num, expected));
    }
  };
  for (int i = 0; i < 60; ++i) {
    Text& text = texts[pick(0, texts.size() - 1)];
    const int64_t kind = pick(0, 9), length = text.index.length();
    if (kind < 5) {
      for (int64_t n = pick(1, pick(0, 3) ? 12 : 90); n > 0; --n)
        text.tokens.push_back(static_cast<int32_t>(pick(0, 4)));
      insist(
          lasting, [&] { text.index.extend(text.tokens.data(), text.tokens.size()); },
          [&] {
            CHECK(text.index.length() == length);
            check();
          });
    } else if (kind < 8) {
      const int64_t rest = pick(0, 1) ? pick(0, length) : std::max<int64_t>(0, length - pick(0, 9));
      bool failed = false;
      {
        memory::OutAt out(pick(1, 3), lasting, &failed);
        text.index.truncate(text.tokens.data(), rest);
      }
      text.tokens.resize(rest);
    } else if (texts.size() < 8) {
      insist(lasting, [&] { texts.push_back(text); }, check);
    } else {
      texts.erase(texts.begin() + pick(0, texts.size() - 1));
    }
    check();
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int num_runs = argc > 1 ? std::atoi(argv[1]) : 40;
  for (bool lasting : {false, true}) {
    for (const char* policy : {"lru", "turns"}) widen(policy, lasting);
    for (int seed = 0; seed < num_runs; ++seed) index_texts(seed, lasting);
  }
  return 0;
}
