// The draft index against a brute-force search, over random extensions, rollbacks and forks of forks.
#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "runtime/draft_index.h"

namespace {

// propose_drafts, word for word.
std::vector<int32_t> brute_force(const std::vector<int32_t>& history, int k, int max_ngram, int min_ngram,
                                 bool latest) {
  const int64_t length = static_cast<int64_t>(history.size());
  for (int n = std::min<int64_t>(max_ngram, length); n >= min_ngram; --n) {
    int64_t found = -1;
    for (int64_t begin = 0; begin + n < length; ++begin) {
      if (!std::equal(history.end() - n, history.end(), history.begin() + begin)) continue;
      found = begin;
      if (!latest) break;
    }
    if (found < 0) continue;
    const int64_t from = found + n;
    return {history.begin() + from, history.begin() + std::min<int64_t>(length, from + k)};
  }
  return {};
}

struct Text {
  skv::DraftIndex index;
  std::vector<int32_t> tokens;
};

void fuzz(uint32_t seed) {
  std::mt19937 random(seed);
  auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const int min_ngram = static_cast<int>(pick(1, 3));
  const int max_ngram = min_ngram + static_cast<int>(pick(0, 3));
  const int32_t vocab = static_cast<int32_t>(pick(1, 3) == 1 ? 1000 : pick(1, 6));
  std::vector<Text> texts;
  texts.push_back({skv::DraftIndex(max_ngram, min_ngram), {}});
  for (int i = 0; i < 120; ++i) {
    Text& text = texts[pick(0, texts.size() - 1)];
    const int64_t kind = pick(0, 9);
    if (kind < 5) {
      for (int64_t n = pick(0, pick(0, 4) ? 8 : 90); n > 0; --n) {
        text.tokens.push_back(static_cast<int32_t>(pick(0, vocab - 1)));
      }
      text.index.extend(text.tokens.data(), text.tokens.size());
    } else if (kind < 7) {
      const int64_t length =
          pick(0, 2) ? std::max<int64_t>(0, text.tokens.size() - pick(0, 9)) : pick(0, text.tokens.size());
      text.index.truncate(text.tokens.data(), length);
      text.tokens.resize(length);
    } else if (kind < 9) {
      if (texts.size() < 8) {
        const Text copy = text;
        texts.push_back(copy);
      }
    } else if (texts.size() > 1) {
      texts.erase(texts.begin() + pick(0, texts.size() - 1));
      continue;
    }
    for (const Text& t : texts) {
      CHECK(t.index.length() == static_cast<int64_t>(t.tokens.size()));
      for (bool latest : {true, false}) {
        int32_t drafts[6];
        const int k = static_cast<int>(pick(0, 6));
        const int num = t.index.propose(t.tokens.data(), k, latest, drafts);
        const auto expected = brute_force(t.tokens, k, max_ngram, min_ngram, latest);
        CHECK(std::vector<int32_t>(drafts, drafts + num) == expected);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int num_runs = argc > 1 ? std::atoi(argv[1]) : 300;
  for (int seed = 0; seed < num_runs; ++seed) fuzz(seed);
  CHECK_THROWS(skv::DraftIndex(2, 3), std::invalid_argument);
  CHECK_THROWS(skv::DraftIndex(4, 0), std::invalid_argument);
  std::printf("%d runs\n", num_runs);
  return 0;
}
