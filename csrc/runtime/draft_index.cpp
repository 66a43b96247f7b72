// Draft index; contract in draft_index.h.
#include "draft_index.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>

#include "huge_pages.h"

namespace skv {
namespace {

constexpr int64_t kNone = -1;
constexpr int kGroup = 64;  // positions whose cache misses are overlapped by prefetching

// Hash of the n-gram that ends at a token, built from its last token backwards so that every n shares the
// work. Slots are picked by its upper bits.
constexpr uint64_t kEmptyHash = 0xD1B54A32D192ED03ull;
inline uint64_t hash_step(uint64_t hash, int32_t token) {
  hash = (hash ^ static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15ull;
  return hash ^ (hash >> 32);
}

// Of the n tokens before each end, last ones first: those are in the cache.
inline bool same_ngram(const int32_t* a_end, const int32_t* b_end, int n) {
  for (int i = 1; i <= n; ++i) {
    if (a_end[-i] != b_end[-i]) return false;
  }
  return true;
}

}  // namespace

// n-grams that end at positions [begin, end). Per n a table of slots, as many as positions or more: the hash
// picks the slot that holds the latest position of such a hash, and links lead from each position to the one
// before it. What shares a slot shares the chain: n-grams are told apart by their tokens, and a walk meets on
// average one position of others, or less.
struct DraftIndex::Layer {
  using Slots = std::vector<int32_t, HugePageAllocator<int32_t>>;

  int64_t begin = 0;
  int64_t end = 0;
  int num_orders;  // values of n
  int log2_slots;
  Slots slots;                 // [num_orders][1 << log2_slots] positions, or kNone
  std::vector<int32_t> links;  // [end - begin][num_orders] positions, or kNone

  Layer(int64_t begin, int num_orders) : begin(begin), end(begin), num_orders(num_orders) { empty_slots(6); }
  void empty_slots(int log2) {
    Slots(static_cast<size_t>(num_orders) << log2, kNone).swap(slots);
    log2_slots = log2;
  }
  int32_t* slot(int order, uint64_t hash) {
    return &slots[(static_cast<size_t>(order) << log2_slots) + (hash >> (64 - log2_slots))];
  }
  int32_t* links_of(int64_t position) { return &links[(position - begin) * num_orders]; }
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
  if (!views_.empty() && views_.back().layer.use_count() == 1 && views_.back().layer->end == length_) {
    add(*views_.back().layer, history, length_, length);
  } else {
    push_layer(history, length);
  }
  views_.back().limit = length_ = length;
}

// A layer of our own on top; small ones below are folded in, so that each is at least twice the size of the
// one above.
void DraftIndex::push_layer(const int32_t* history, int64_t end) {
  int64_t begin = length_;
  size_t num_kept = views_.size();
  auto size_of = [](const View& view) { return view.limit - view.layer->begin; };
  while (num_kept > 1 && size_of(views_[num_kept - 2]) < 2 * (length_ - views_[num_kept - 1].layer->begin)) {
    begin = views_[--num_kept].layer->begin;
  }
  if (begin < length_) begin = views_[--num_kept].layer->begin;
  auto layer = std::make_shared<Layer>(begin, max_ngram_ - min_ngram_ + 1);
  add(*layer, history, begin, end);
  views_.erase(views_.begin() + num_kept, views_.end());
  views_.push_back({std::move(layer), end});
}

// Calls fn(order, first, size, slots) for each n: slots[i] belongs to the n-gram that ends at begin + i, for
// first <= i < size, where history is long enough. All are on their way to the cache.
template <class Fn>
void DraftIndex::with_slots(Layer& layer, const int32_t* history, int64_t begin, int64_t end, Fn fn) const {
  const int size = static_cast<int>(end - begin);
  int32_t* slots[kMaxNgram][kGroup];
  uint64_t hashes[kGroup];
  std::fill_n(hashes, size, kEmptyHash);
  for (int n = 1; n <= max_ngram_; ++n) {
    for (int i = static_cast<int>(std::clamp<int64_t>(n - 1 - begin, 0, size)); i < size; ++i) {
      hashes[i] = hash_step(hashes[i], history[begin + i - n + 1]);
      if (n < min_ngram_) continue;
      slots[n - min_ngram_][i] = layer.slot(n - min_ngram_, hashes[i]);
      __builtin_prefetch(slots[n - min_ngram_][i], 1);
    }
  }
  for (int n = min_ngram_; n <= max_ngram_; ++n) {
    const int first = static_cast<int>(std::clamp<int64_t>(n - 1 - begin, 0, size));
    fn(n - min_ngram_, first, size, slots[n - min_ngram_]);
  }
}

void DraftIndex::add(Layer& layer, const int32_t* history, int64_t begin, int64_t end) const {
  layer.links.resize((end - layer.begin) * layer.num_orders, kNone);
  int log2_slots = layer.log2_slots;
  while (end - layer.begin > int64_t{1} << log2_slots) ++log2_slots;
  if (log2_slots > layer.log2_slots) {
    layer.empty_slots(log2_slots);
    begin = layer.begin;  // everything moves
  }
  for (int64_t group = begin; group < end; group += kGroup) {
    with_slots(layer, history, group, std::min(end, group + kGroup),
               [&](int order, int first, int size, int32_t* const* slots) {
                 int32_t* links = layer.links_of(group) + order;
                 for (int i = first; i < size; ++i) {
                   links[i * layer.num_orders] = *slots[i];
                   *slots[i] = static_cast<int32_t>(group + i);
                 }
               });
  }
  layer.end = end;
}

// Undoes the latest additions, last one first.
void DraftIndex::cut(Layer& layer, const int32_t* history, int64_t limit) const {
  while (layer.end > limit) {
    const int64_t group = std::max(limit, layer.end - kGroup);
    with_slots(layer, history, group, layer.end, [&](int order, int first, int size, int32_t* const* slots) {
      const int32_t* links = layer.links_of(group) + order;
      for (int i = size - 1; i >= first; --i) *slots[i] = links[i * layer.num_orders];
    });
    layer.end = group;
  }
  layer.links.resize((limit - layer.begin) * layer.num_orders);
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
    // is less than what went, and gets a layer of its own, if there is memory for it.
    View shared = std::move(view);
    views_.pop_back();
    length_ = begin;
    try {
      extend(history, length);
      return;
    } catch (const std::bad_alloc&) {
      views_.push_back(std::move(shared));
      length_ = length;
    }
  }
  // A shared layer stays whole and is only looked at up to the limit, and so does one with tokens of a copy
  // that is gone.
  views_.back().limit = length;
}

// Position where an occurrence of the n tokens before tail_end, of that hash, ended; a token follows it.
int64_t DraftIndex::find(const int32_t* history, const int32_t* tail_end, int n, uint64_t hash,
                         bool latest) const {
  const int64_t last = length_ - 1;
  const int order = n - min_ngram_;
  const int num_views = static_cast<int>(views_.size());
  for (int i = 0; i < num_views; ++i) {
    const View& view = views_[latest ? num_views - 1 - i : i];
    Layer& layer = *view.layer;
    const int64_t limit = std::min(view.limit, last);
    // The top layer holds the last position itself, where the chain of our own tail can be entered without a
    // lookup.
    const bool is_own_top = &view == &views_.back() && tail_end == history + length_;
    int64_t found = kNone;
    for (int64_t p = is_own_top ? layer.links_of(last)[order] : *layer.slot(order, hash); p >= 0;
         p = layer.links_of(p)[order]) {
      if (p >= limit || history[p + 1] < 0 || !same_ngram(history + p + 1, tail_end, n)) continue;
      found = p;
      if (latest) break;
    }
    if (found >= 0) return found;
  }
  return kNone;
}

int DraftIndex::propose_for(const int32_t* history, const int32_t* tail_end, int64_t tail_length,
                            int shortest, int k, bool latest, int32_t* drafts, int* ngram) const {
  if (k <= 0 || length_ < 2) return 0;
  uint64_t hashes[kMaxNgram + 1] = {kEmptyHash};
  const int longest = static_cast<int>(std::min<int64_t>(max_ngram_, tail_length));
  shortest = std::max(shortest, min_ngram_);
  for (int n = 1; n <= longest; ++n) hashes[n] = hash_step(hashes[n - 1], tail_end[-n]);
  Layer& top = *views_.back().layer;
  for (int n = longest; n >= shortest; --n) {  // the misses of every n at a time
    const int order = n - min_ngram_;
    const bool is_own = tail_end == history + length_;
    const int64_t p = is_own ? top.links_of(length_ - 1)[order] : *top.slot(order, hashes[n]);
    if (p < 0) continue;
    __builtin_prefetch(&history[p]);
    __builtin_prefetch(top.links_of(p));
  }
  for (int n = longest; n >= shortest; --n) {
    const int64_t p = find(history, tail_end, n, hashes[n], latest);
    if (p < 0) continue;
    const int32_t* from = history + p + 1;
    const int32_t* end = std::find_if(from, from + std::min<int64_t>(k, length_ - 1 - p),
                                      [](int32_t token) { return token < 0; });
    std::copy(from, end, drafts);
    if (ngram) *ngram = n;
    return static_cast<int>(end - from);
  }
  return 0;
}

int DraftIndex::occurrences(const int32_t* history, const int32_t* tail_end, int64_t tail_length,
                            int shortest, int64_t* places) const {
  if (length_ < 2) return 0;
  uint64_t hashes[kMaxNgram + 1] = {kEmptyHash};
  const int longest = static_cast<int>(std::min<int64_t>(max_ngram_, tail_length));
  for (int n = 1; n <= longest; ++n) hashes[n] = hash_step(hashes[n - 1], tail_end[-n]);
  int found = 0, visits = 0;
  for (int n = longest; n >= std::max(shortest, min_ngram_); --n) {
    const int order = n - min_ngram_;
    for (auto view = views_.rbegin(); view != views_.rend(); ++view) {
      Layer& layer = *view->layer;
      const int64_t limit = std::min(view->limit, length_ - 1);
      const bool is_own_top = view == views_.rbegin() && tail_end == history + length_;
      int64_t p = is_own_top ? layer.links_of(length_ - 1)[order] : *layer.slot(order, hashes[n]);
      for (; p >= 0; p = layer.links_of(p)[order]) {
        if (++visits > kVisits) return found;
        if (p >= limit || history[p + 1] < 0 || !same_ngram(history + p + 1, tail_end, n)) continue;
        // One more token agrees: it was found among those.
        if (n < longest && p >= n && history[p - n] == tail_end[-n - 1]) continue;
        places[found++] = p + 1;
      }
    }
  }
  return found;
}

}  // namespace skv
