// Draft index; contract in draft_index.h.
#include "draft_index.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace skv {
namespace {

constexpr int64_t kNone = -1;
constexpr int kGroup = 32;  // positions whose cache misses are overlapped by prefetching

// Hash of the n-gram that ends at a token, built from its last token backwards so that every n shares the
// work.
inline uint64_t hash_step(uint64_t hash, int32_t token) {
  return (hash ^ static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15ull + 0xD1B54A32D192ED03ull;
}

inline uint64_t hash_finish(uint64_t hash) {
  hash ^= hash >> 32;
  hash *= 0xD6E8FEB86659FD93ull;
  return hash ^ (hash >> 29);
}

inline uint64_t hash_ngram(const int32_t* history, int64_t position, int n) {
  uint64_t hash = 0;
  for (int i = 0; i < n; ++i) hash = hash_step(hash, history[position - i]);
  return hash_finish(hash);
}

inline bool same_ngram(const int32_t* history, int64_t a, int64_t b, int n) {
  for (int i = 0; i < n; ++i) {
    if (history[a - i] != history[b - i]) return false;
  }
  return true;
}

}  // namespace

// n-grams of one length that end inside one layer.
struct DraftIndex::Table {
  struct Slot {
    uint32_t tag;   // saves comparing tokens with most n-grams that merely share a slot
    int32_t first;  // position where the n-gram first ended in this layer; kNone: empty
  };
  std::vector<Slot> slots;
  size_t count = 0;
  // link[p - begin]: an earlier occurrence's position (< p), or, where p is the first one, the latest (>= p).
  std::vector<int32_t> link;

  // The slot that holds the n-gram ending at `position`, or the empty one where it belongs. What first
  // occurred at `limit` or later is another copy's text, which `history` does not hold.
  Slot* find(const int32_t* history, int64_t position, int n, uint64_t hash, int64_t limit = INT32_MAX) {
    const size_t mask = slots.size() - 1;
    size_t i = (hash >> 32) & mask;
    for (;; i = (i + 1) & mask) {
      Slot& slot = slots[i];
      if (slot.first < 0) return &slot;
      if (slot.tag == static_cast<uint32_t>(hash) && slot.first < limit &&
          same_ngram(history, slot.first, position, n)) {
        return &slot;
      }
    }
  }

  // Firsts are put back in the order they came in: removal in reverse order relies on it.
  void resize(const int32_t* history, int64_t begin, int n, size_t capacity) {
    slots.assign(capacity, Slot{0, kNone});
    for (size_t i = 0; i < link.size(); ++i) {
      const int64_t p = begin + static_cast<int64_t>(i);
      if (link[i] < p || p < n - 1) continue;
      const uint64_t hash = hash_ngram(history, p, n);
      *find(history, p, n, hash) = Slot{static_cast<uint32_t>(hash), static_cast<int32_t>(p)};
    }
  }
};

struct DraftIndex::Layer {
  int64_t begin = 0;
  int64_t end = 0;
  std::vector<Table> tables;  // one per n, min_ngram first
};

DraftIndex::DraftIndex(int max_ngram, int min_ngram) : max_ngram_(max_ngram), min_ngram_(min_ngram) {
  if (min_ngram < 1 || max_ngram < min_ngram || max_ngram > kMaxNgram) {
    throw std::invalid_argument("DraftIndex: min_ngram " + std::to_string(min_ngram) + " and max_ngram " +
                                std::to_string(max_ngram) +
                                ", expected 1 <= min_ngram <= max_ngram <= " + std::to_string(kMaxNgram));
  }
}

void DraftIndex::extend(const int32_t* history, int64_t length) {
  if (length <= length_) return;
  if (length > INT32_MAX) throw std::invalid_argument("DraftIndex: more than 2^31 - 1 tokens");
  Layer& layer = writable_layer(history);
  add(layer, history, length_, length);
  views_.back().limit = length_ = length;
}

// The last layer where it is ours alone, else a new one; small layers below are folded in, so that each is at
// least twice the size of the one above.
DraftIndex::Layer& DraftIndex::writable_layer(const int32_t* history) {
  if (!views_.empty() && views_.back().layer.use_count() == 1 && views_.back().layer->end == length_) {
    return *views_.back().layer;
  }
  int64_t begin = length_;
  auto size_of = [](const View& view) { return view.limit - view.layer->begin; };
  while (views_.size() > 1 &&
         size_of(views_[views_.size() - 2]) < 2 * (length_ - views_.back().layer->begin)) {
    begin = views_.back().layer->begin;
    views_.pop_back();
  }
  if (begin < length_) {
    begin = views_.back().layer->begin;
    views_.pop_back();
  }
  auto layer = std::make_shared<Layer>();
  layer->begin = layer->end = begin;
  layer->tables.resize(max_ngram_ - min_ngram_ + 1);
  for (Table& table : layer->tables) table.slots.assign(64, Table::Slot{0, kNone});
  add(*layer, history, begin, length_);
  views_.push_back({std::move(layer), length_});
  return *views_.back().layer;
}

void DraftIndex::add(Layer& layer, const int32_t* history, int64_t begin, int64_t end) const {
  for (int n = min_ngram_; n <= max_ngram_; ++n) {  // once for all that comes, instead of doubling on the way
    Table& table = layer.tables[n - min_ngram_];
    size_t capacity = table.slots.size();
    while ((table.count + (end - begin)) * 3 > capacity * 2) capacity *= 2;
    if (capacity > table.slots.size()) table.resize(history, layer.begin, n, capacity);
  }
  uint64_t hashes[kGroup][kMaxNgram];
  for (int64_t group = begin; group < end; group += kGroup) {
    const int size = static_cast<int>(std::min<int64_t>(kGroup, end - group));
    for (int i = 0; i < size; ++i) {
      uint64_t hash = 0;
      for (int n = 1; n <= max_ngram_ && n <= group + i + 1; ++n) {
        hash = hash_step(hash, history[group + i - n + 1]);
        if (n < min_ngram_) continue;
        hashes[i][n - 1] = hash_finish(hash);
        auto& slots = layer.tables[n - min_ngram_].slots;
        __builtin_prefetch(&slots[(hashes[i][n - 1] >> 32) & (slots.size() - 1)]);
      }
    }
    for (int n = min_ngram_; n <= max_ngram_; ++n) {
      Table& table = layer.tables[n - min_ngram_];
      const size_t mask = table.slots.size() - 1;
      for (int i = 0; i < size; ++i) {  // guesses right almost always; a wrong one only costs time
        if (group + i < n - 1) continue;
        const Table::Slot& slot = table.slots[(hashes[i][n - 1] >> 32) & mask];
        if (slot.first < 0 || slot.tag != static_cast<uint32_t>(hashes[i][n - 1])) continue;
        __builtin_prefetch(&history[slot.first]);
        __builtin_prefetch(&table.link[slot.first - layer.begin]);
      }
      for (int i = 0; i < size; ++i) {
        const int32_t p = static_cast<int32_t>(group + i);
        table.link.push_back(p);
        if (p < n - 1) continue;
        Table::Slot* slot = table.find(history, p, n, hashes[i][n - 1]);
        if (slot->first >= 0) {
          int32_t& latest = table.link[slot->first - layer.begin];
          table.link.back() = latest;
          latest = p;
          continue;
        }
        *slot = Table::Slot{static_cast<uint32_t>(hashes[i][n - 1]), p};
        ++table.count;
      }
    }
  }
  layer.end = end;
}

// Undoes add() from the end: the last n-gram that came in is the last one to leave, so emptying its slot
// breaks no probe sequence.
void DraftIndex::cut(Layer& layer, const int32_t* history, int64_t limit) const {
  for (int64_t p = layer.end - 1; p >= limit; --p) {
    for (int n = min_ngram_; n <= max_ngram_; ++n) {
      Table& table = layer.tables[n - min_ngram_];
      const int32_t link = table.link.back();
      table.link.pop_back();
      if (p < n - 1) continue;
      Table::Slot* slot = table.find(history, p, n, hash_ngram(history, p, n));
      if (link >= p) {
        slot->first = kNone;
        --table.count;
      } else {
        table.link[slot->first - layer.begin] = link;
      }
    }
  }
  layer.end = std::min(layer.end, limit);
}

void DraftIndex::truncate(const int32_t* history, int64_t length) {
  if (length < 0) throw std::invalid_argument("DraftIndex: truncate to a negative length");
  if (length >= length_) return;
  length_ = length;
  while (!views_.empty() && views_.back().layer->begin >= length) views_.pop_back();
  if (views_.empty()) return;
  View& view = views_.back();
  const int64_t begin = view.layer->begin;
  // One of our own is cut now, while history still holds its tokens.
  if (view.layer.use_count() == 1 && view.layer->end == view.limit) {
    cut(*view.layer, history, length);
  } else if (2 * (length - begin) < view.layer->end - begin) {
    // Links start at the latest occurrence: proposals would walk all that lies behind the limit. What is left
    // is less than what went, and gets a layer of its own.
    views_.pop_back();
    length_ = begin;
    extend(history, length);
    return;
  }
  // A shared layer stays whole and is only looked at up to the limit, and so does one with tokens of a copy
  // that is gone.
  view.limit = length;
}

// Position where an earlier occurrence of the last n tokens ended.
int64_t DraftIndex::previous(const int32_t* history, int n, bool latest) const {
  const int64_t last = length_ - 1;
  if (last < n - 1) return kNone;
  const int t = n - min_ngram_;
  const View& top = views_.back();
  const int32_t link = top.layer->tables[t].link[last - top.layer->begin];
  if (latest && link < last) return link;
  const uint64_t hash = hash_ngram(history, last, n);
  const int num_views = static_cast<int>(views_.size());
  for (int i = 0; i < num_views; ++i) {
    const View& view = views_[latest ? num_views - 1 - i : i];
    Table& table = view.layer->tables[t];
    const int64_t first = table.find(history, last, n, hash, view.limit)->first;
    if (first < 0 || first >= last) continue;
    if (!latest) return first;
    if (&view == &top) continue;
    int64_t p = table.link[first - view.layer->begin];
    while (p >= view.limit) p = table.link[p - view.layer->begin];
    return p;
  }
  return kNone;
}

int DraftIndex::propose(const int32_t* history, int k, bool latest, int32_t* drafts) const {
  if (k <= 0 || length_ < 2) return 0;
  for (int n = max_ngram_; n >= min_ngram_; --n) {
    const int64_t p = previous(history, n, latest);
    if (p < 0) continue;
    const int num = static_cast<int>(std::min<int64_t>(k, length_ - 1 - p));
    std::copy_n(history + p + 1, num, drafts);
    return num;
  }
  return 0;
}

}  // namespace skv
