// Draft index; contract in draft_index.h.
#include "draft_index.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

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

// n-grams of one length that end inside one layer. What a hash does not tell apart shares a slot and its
// chain of links. A bucket is a cache line, searched without a branch; one that is full goes on in the next.
struct DraftIndex::Table {
  static constexpr int kSlots = 8;
  struct alignas(64) Bucket {
    uint32_t tag[kSlots] = {};  // 0: empty; the others follow
    int32_t latest[kSlots] = {kNone, kNone, kNone, kNone, kNone, kNone, kNone, kNone};  // where it last ended
  };
  struct Slot {
    Bucket* bucket;
    int i;
    int32_t& latest() const { return bucket->latest[i]; }
  };
  std::vector<Bucket> buckets = std::vector<Bucket>(4);
  int64_t count = 0;
  std::vector<int32_t> link;  // link[p - begin]: the position before p in its chain, or kNone

  static uint32_t tag_of(uint64_t hash) { return static_cast<uint32_t>(hash) | 1; }
  Bucket* home(uint64_t hash) { return &buckets[(hash >> 32) & (buckets.size() - 1)]; }

  // The n-gram's slot, or the empty one where it belongs.
  Slot find(uint64_t hash) {
    for (Bucket* bucket = home(hash);;) {
      const unsigned slots = slots_with(*bucket, tag_of(hash));
      if (slots) return {bucket, __builtin_ctz(slots)};
      if (++bucket == buckets.data() + buckets.size()) bucket = buckets.data();
    }
  }

  // Slots with this tag, else the empty ones: lowest bits first, as many as there are.
  static unsigned slots_with(const Bucket& bucket, uint32_t tag) {
    unsigned same = 0, empty = 0;
#ifdef __SSE2__
    const auto* tags = reinterpret_cast<const __m128i*>(bucket.tag);
    auto equal = [&](uint32_t value) {
      const __m128i wanted = _mm_set1_epi32(static_cast<int>(value));
      const __m128i low = _mm_cmpeq_epi32(tags[0], wanted), high = _mm_cmpeq_epi32(tags[1], wanted);
      return static_cast<unsigned>(_mm_movemask_epi8(_mm_packs_epi16(_mm_packs_epi32(low, high), low))) &
             0xFF;
    };
    same = equal(tag), empty = equal(0);
#else
    for (int i = 0; i < kSlots; ++i) {
      same |= static_cast<unsigned>(bucket.tag[i] == tag) << i;
      empty |= static_cast<unsigned>(bucket.tag[i] == 0) << i;
    }
#endif
    return same ? same : empty;
  }

  void insert(uint64_t hash, int64_t begin, int32_t position) {
    const Slot slot = find(hash);
    const int32_t before = slot.latest();
    link[position - begin] = before;
    count += before < 0;
    slot.bucket->tag[slot.i] = tag_of(hash);
    slot.latest() = position;
  }

  // Undoes the latest insert of all: nothing came in since, so emptying a slot breaks no probe sequence.
  void remove(uint64_t hash, int64_t begin, int32_t position) {
    const Slot slot = find(hash);
    const int32_t before = link[position - begin];
    slot.latest() = before;
    if (before >= 0) return;
    slot.bucket->tag[slot.i] = 0;
    --count;
  }
};

struct DraftIndex::Layer {
  int64_t begin = 0;
  int64_t end = 0;
  std::vector<Table> tables;  // one per n, min_ngram first
};

namespace {

// Hashes of the n-grams that end at `size` positions from `begin` on.
struct Hashes {
  uint64_t of[DraftIndex::kMaxNgram]
             [kGroup];  // [n - 1][position - begin]; where history is too short, arbitrary

  Hashes(const int32_t* history, int64_t begin, int size, int max_ngram) {
    uint64_t hash[kGroup] = {};
    for (int n = 1; n <= max_ngram; ++n) {
      const int skip = static_cast<int>(std::clamp<int64_t>(n - 1 - begin, 0, size));
      for (int i = skip; i < size; ++i) {
        hash[i] = hash_step(hash[i], history[begin + i - n + 1]);
        of[n - 1][i] = hash_finish(hash[i]);
      }
    }
  }
};

}  // namespace

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
  add(*layer, history, begin, length_);
  views_.push_back({std::move(layer), length_});
  return *views_.back().layer;
}

// Room for `more` positions, once for all that comes instead of doubling on the way.
void DraftIndex::reserve(Layer& layer, const int32_t* history, int64_t more) const {
  const int64_t size = layer.end - layer.begin;
  for (int n = min_ngram_; n <= max_ngram_; ++n) {
    Table& table = layer.tables[n - min_ngram_];
    table.link.resize(size + more, kNone);
    size_t num_buckets = table.buckets.size();
    while ((table.count + more) * 8 > static_cast<int64_t>(num_buckets) * Table::kSlots * 5) num_buckets *= 2;
    if (num_buckets == table.buckets.size()) continue;
    table.buckets.assign(num_buckets, Table::Bucket{});
    table.count = 0;
    for (int64_t group = std::max<int64_t>(layer.begin, n - 1); group < layer.end; group += kGroup) {
      const int64_t end = std::min(layer.end, group + kGroup);
      uint64_t hashes[kGroup];
      for (int64_t p = group; p < end; ++p) {
        hashes[p - group] = hash_ngram(history, p, n);
        __builtin_prefetch(table.home(hashes[p - group]), 1);
      }
      for (int64_t p = group; p < end; ++p) {
        table.insert(hashes[p - group], layer.begin, static_cast<int32_t>(p));
      }
    }
  }
}

// Calls fn(table, n, hashes of n) for a group of positions, with all of their slots on the way to the cache.
template <class Fn>
void DraftIndex::with_slots(Layer& layer, const int32_t* history, int64_t begin, int size, Fn fn) const {
  const Hashes hashes(history, begin, size, max_ngram_);
  for (int n = min_ngram_; n <= max_ngram_; ++n) {
    Table& table = layer.tables[n - min_ngram_];
    for (int i = 0; i < size; ++i) __builtin_prefetch(table.home(hashes.of[n - 1][i]), 1);
  }
  for (int n = min_ngram_; n <= max_ngram_; ++n) fn(layer.tables[n - min_ngram_], n, hashes.of[n - 1]);
}

void DraftIndex::add(Layer& layer, const int32_t* history, int64_t begin, int64_t end) const {
  reserve(layer, history, end - begin);
  for (int64_t group = begin; group < end; group += kGroup) {
    const int size = static_cast<int>(std::min<int64_t>(kGroup, end - group));
    with_slots(layer, history, group, size, [&](Table& table, int n, const uint64_t* hashes) {
      for (int i = static_cast<int>(std::max<int64_t>(0, n - 1 - group)); i < size; ++i) {
        table.insert(hashes[i], layer.begin, static_cast<int32_t>(group + i));
      }
    });
  }
  layer.end = end;
}

void DraftIndex::cut(Layer& layer, const int32_t* history, int64_t limit) const {
  while (layer.end > limit) {
    const int64_t group = std::max(limit, layer.end - kGroup);
    const int size = static_cast<int>(layer.end - group);
    with_slots(layer, history, group, size, [&](Table& table, int n, const uint64_t* hashes) {
      for (int i = size - 1; i >= 0 && group + i >= n - 1; --i) {
        table.remove(hashes[i], layer.begin, static_cast<int32_t>(group + i));
      }
      table.link.resize(group - layer.begin);
    });
    layer.end = group;
  }
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
  const uint64_t hash = hash_ngram(history, last, n);
  const int num_views = static_cast<int>(views_.size());
  for (int i = 0; i < num_views; ++i) {
    const View& view = views_[latest ? num_views - 1 - i : i];
    const int64_t limit = std::min(view.limit, last);
    Table& table = view.layer->tables[t];
    const int32_t* link = table.link.data() - view.layer->begin;
    // The top layer holds the last position itself, where its chain can be entered without a lookup.
    const bool is_top = &view == &views_.back();
    if (is_top && latest) {
      int64_t p = link[last];
      while (p >= 0 && !same_ngram(history, p, last, n)) p = link[p];
      if (p >= 0) return p;
      continue;
    }
    int64_t found = kNone;
    for (int64_t p = table.find(hash).latest(); p >= 0; p = link[p]) {
      if (p >= limit || !same_ngram(history, p, last, n)) continue;
      found = p;
      if (latest) break;
    }
    if (found >= 0) return found;
  }
  return kNone;
}

int DraftIndex::propose(const int32_t* history, int k, bool latest, int32_t* drafts, int* ngram) const {
  if (k <= 0 || length_ < 2) return 0;
  for (int n = max_ngram_; n >= min_ngram_; --n) {
    const int64_t p = previous(history, n, latest);
    if (p < 0) continue;
    const int num = static_cast<int>(std::min<int64_t>(k, length_ - 1 - p));
    std::copy_n(history + p + 1, num, drafts);
    if (ngram) *ngram = n;
    return num;
  }
  return 0;
}

}  // namespace skv
