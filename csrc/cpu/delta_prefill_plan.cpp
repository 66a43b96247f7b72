#include "delta_prefill_plan.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace skv::cpu {

[[noreturn]] void throw_index_error(const char* arg, int64_t index, int64_t value, const char* expected,
                                    int64_t limit);

struct AttentionPlan::Storage {
  std::vector<AttentionItem> items;
  std::vector<AttentionMerge> merges;
};

namespace {

// A schedule: kind, batch, num_heads, num_kv_heads, num_splits, 3 unused entries; then per sequence the
// number of row chunks and the tiles per split. Any such numbers give right answers; they decide who computes
// what.
constexpr int64_t kHeaderSize = kScheduleHeader;
static_assert(kScheduleEntry == 2);
constexpr int32_t kKind = 1;

constexpr int64_t kFewRows = 32;      // up to here one item takes several KV heads: memory is read as it lies
constexpr int64_t kMinItemTiles = 8;  // of one KV head: less is not worth an item
constexpr int64_t kFewRowsItems = 8;  // of a thread: those that are slowed down take fewer
constexpr int64_t kMinFewRowsTiles = 4;  // where that makes items shorter
constexpr int64_t kMaxChunkRows = 384;   // the accumulators of an item stay in the L2 cache
constexpr int64_t kMinChunkRows = 96;    // fewer rows do not pay for packing the KV once more
constexpr int64_t kSmallWork = 1 << 18;  // multiply-adds below which one thread is faster

int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a schedule is made from.
struct Lengths {
  const int32_t* cu_seqlens_q;
  const int32_t* seqused_k;
  int64_t batch, num_heads, num_kv_heads, num_splits, window_left;

  int64_t new_tokens(int64_t b) const { return cu_seqlens_q[b + 1] - cu_seqlens_q[b]; }
  int64_t rows(int64_t b) const { return new_tokens(b) * (num_heads / num_kv_heads); }
  int64_t tiles(int64_t b) const { return div_up(seqused_k[b], kTileKeys); }
  int64_t seen_tiles(int64_t b) const {
    const int64_t oldest = seqused_k[b] - new_tokens(b) - window_left;
    return tiles(b) - (window_left < 0 ? 0 : std::max<int64_t>(0, oldest) / kTileKeys);
  }
};

template <class Params>
Lengths lengths_of(const Params& p, int64_t num_kv_heads) {
  return {p.cu_seqlens_q, p.seqused_k, p.batch, p.num_heads, num_kv_heads, p.num_splits, p.window_left};
}

bool few_rows(int64_t rows) { return rows <= kFewRows; }

// Per sequence {row chunks, tiles per split}: every thread gets at least two items where the work allows it,
// of few rows up to kFewRowsItems. Many rows are cut by KV head, then by rows (which reads KV more than once,
// but out of a cache); few rows, whose cost is reading KV, and what is still too large, are split along KV.
void make_schedule(const Lengths& s, int64_t num_threads, int32_t* entries) {
  const int64_t wanted_items = num_threads == 1 ? 1 : 2 * num_threads;
  double work = 0;
  for (int64_t b = 0; b < s.batch; ++b)
    work += static_cast<double>(s.rows(b)) * s.seen_tiles(b) * s.num_kv_heads;
  int64_t tiles = 0;  // read by all items together, a tile of one KV head each
  for (int64_t b = 0; b < s.batch; ++b) {
    const int64_t rows = s.rows(b);
    int64_t chunks = div_up(rows, kMaxChunkRows);
    if (work > 0 && num_threads > 1) {
      const double wanted = static_cast<double>(rows) * s.seen_tiles(b) * wanted_items / work;
      chunks = std::max(chunks, std::min<int64_t>(static_cast<int64_t>(wanted), rows / kMinChunkRows));
    }
    entries[2 * b] = static_cast<int32_t>(std::max<int64_t>(1, chunks));
    if (rows > 0) tiles += entries[2 * b] * s.num_kv_heads * s.seen_tiles(b);
  }
  const int64_t share = std::max(kMinItemTiles, tiles / wanted_items);
  for (int64_t b = 0; b < s.batch; ++b) {
    const int64_t seen = s.seen_tiles(b), heads = few_rows(s.rows(b)) ? s.num_kv_heads : 1;
    int64_t split = std::max<int64_t>(1, s.tiles(b));
    if (s.num_splits < 0) {
      split = kInvariantSplitTiles;
    } else if (s.num_splits > 0) {
      split = std::max<int64_t>(1, div_up(s.tiles(b), s.num_splits));
    } else if (num_threads > 1 && share < seen * heads) {
      split = div_up(seen, std::min(seen, div_up(seen * heads, share)));
      const int64_t finer = tiles / (kFewRowsItems * num_threads * heads);
      if (few_rows(s.rows(b))) split = std::min(split, std::max(kMinFewRowsTiles, finer));
    }
    entries[2 * b + 1] = static_cast<int32_t>(split);
  }
}

void check_lengths(const Lengths& s, int64_t total_q, int64_t max_seqlen_q, int64_t max_tokens) {
  if (s.cu_seqlens_q[0] < 0) throw_index_error("cu_seqlens_q", 0, s.cu_seqlens_q[0], "at least", 0);
  for (int64_t b = 0; b < s.batch; ++b) {
    const int64_t start = s.cu_seqlens_q[b], end = s.cu_seqlens_q[b + 1], length = s.seqused_k[b];
    if (end < start)
      throw_index_error("cu_seqlens_q", b + 1, end, "no less than the entry before it,", start);
    if (end > total_q) throw_index_error("cu_seqlens_q", b + 1, end, "at most total_q =", total_q);
    if (end - start > max_seqlen_q) {
      throw_index_error("cu_seqlens_q", b + 1, end, "at most max_seqlen_q past the entry before it,",
                        start + max_seqlen_q);
    }
    if (length < 0) throw_index_error("seqused_k", b, length, "at least", 0);
    if (length > max_tokens) {
      throw_index_error("seqused_k", b, length, "at most max_blocks * block_size =", max_tokens);
    }
  }
}

void check_schedule(const DeltaPrefillParams& p) {
  const int32_t wanted[] = {kKind, static_cast<int32_t>(p.batch), p.num_heads, p.cache.num_kv_heads,
                            p.num_splits};
  const char* meaning[] = {"a schedule made on this device, kind", "the batch of this call,",
                           "the num_heads of this call,", "the num_kv_heads of this call,",
                           "the num_splits of this call,"};
  for (int i = 0; i < 5; ++i) {
    if (p.schedule[i] != wanted[i]) throw_index_error("schedule", i, p.schedule[i], meaning[i], wanted[i]);
  }
  for (int64_t i = kHeaderSize; i < kHeaderSize + 2 * p.batch; ++i) {
    if (p.schedule[i] < 1) throw_index_error("schedule", i, p.schedule[i], "at least", 1);
  }
}

// Keys that any of these tokens may see.
KeyRange visible_keys_of(const DeltaPrefillParams& p, int64_t b, int64_t first_token, int64_t last_token) {
  const KeyRange first = visible_keys(p, b, first_token), last = visible_keys(p, b, last_token);
  if (p.tree_mask == nullptr)
    return {first.begin, std::max(first.begin, last.end)};  // both grow with the token
  KeyRange all{INT64_MAX, 0};
  for (int64_t i = first_token; i <= last_token; ++i) {
    const KeyRange keys = visible_keys(p, b, i);
    if (keys.begin < keys.end) all = {std::min(all.begin, keys.begin), std::max(all.end, keys.end)};
  }
  return all.begin < all.end ? all : KeyRange{0, 0};
}

void check_blocks(const DeltaPrefillParams& p, int64_t b, KeyRange keys) {
  if (keys.begin >= keys.end) return;
  const int32_t* row = p.block_table + b * p.block_table_stride;
  for (int64_t i = keys.begin / p.cache.block_size; i < div_up(keys.end, p.cache.block_size); ++i) {
    if (row[i] < p.cache.num_blocks) continue;
    throw_index_error("block_table", b * p.max_blocks + i, row[i], "a negative id (skip) or one below",
                      p.cache.num_blocks);
  }
}

// Adds the item, or one item per split of its keys.
void add_splits(AttentionItem item, int64_t split_tiles, std::vector<AttentionItem>& items,
                std::vector<AttentionMerge>& merges, int64_t& num_parts) {
  const auto first = static_cast<int64_t>(items.size());
  const KeyRange all = item.tiles;
  const bool whole = all.begin >= all.end || all.begin / split_tiles == (all.end - 1) / split_tiles;
  for (int64_t tile = all.begin; tile < all.end && !whole;) {
    const int64_t end = std::min(all.end, (tile / split_tiles + 1) * split_tiles);
    item.tiles = {tile, end};
    item.part = num_parts;
    num_parts += (item.head_end - item.head_begin) * (item.row_end - item.row_begin);
    items.push_back(item);
    tile = end;
  }
  if (whole) {
    items.push_back(item);
  } else {
    merges.push_back({first, static_cast<int64_t>(items.size()) - first});
  }
}

}  // namespace

KeyRange visible_keys(const DeltaPrefillParams& p, int64_t b, int64_t token) {
  const int64_t length = p.seqused_k[b], n = p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b], prefix = length - n;
  int64_t position = prefix + token, end = length;
  if (p.tree_mask != nullptr) {
    const int32_t* mask = p.tree_mask + (p.cu_seqlens_q[b] + token) * p.tree_mask_stride;
    position = prefix - 1;
    end = prefix;
    for (int64_t j = 0; j < n; ++j) {
      if (!((mask[j / 32] >> (j % 32)) & 1)) continue;
      ++position;
      end = prefix + j + 1;
    }
  } else if (p.causal) {
    end = position + 1;
  }
  const int64_t begin = p.window_left < 0 ? 0 : std::max<int64_t>(0, position - p.window_left);
  return {begin, std::max(begin, std::min(end, length))};
}

AttentionPlan::AttentionPlan(const DeltaPrefillParams& p, int num_threads) : num_parts(0), storage_(nullptr) {
  const Lengths lengths = lengths_of(p, p.cache.num_kv_heads);
  check_lengths(lengths, p.total_q, p.max_seqlen_q, p.max_blocks * p.cache.block_size);
  std::vector<int32_t> own;
  if (p.schedule != nullptr) {
    check_schedule(p);
  } else {
    own.resize(static_cast<size_t>(kHeaderSize + 2 * p.batch));
    make_schedule(lengths, num_threads, own.data() + kHeaderSize);
  }
  const int32_t* entries = (p.schedule ? p.schedule : own.data()) + kHeaderSize;

  std::vector<AttentionItem> uncut;
  const int64_t group = p.num_heads / p.cache.num_kv_heads;
  double work = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t rows = lengths.rows(b);
    if (rows == 0) continue;
    check_blocks(p, b, visible_keys_of(p, b, 0, lengths.new_tokens(b) - 1));
    const int64_t chunk_rows = std::min(kMaxChunkRows, div_up(div_up(rows, entries[2 * b]), 6) * 6);
    // Last rows first: under a causal mask they are the longest items.
    for (int64_t end = rows; end > 0; end = (end - 1) / chunk_rows * chunk_rows) {
      const int64_t begin = (end - 1) / chunk_rows * chunk_rows;
      const KeyRange keys = visible_keys_of(p, b, begin / group, (end - 1) / group);
      KeyRange tiles{keys.begin / kTileKeys, div_up(keys.end, kTileKeys)};
      if (keys.begin >= keys.end) tiles = {0, 0};
      work += static_cast<double>(end - begin) * static_cast<double>(tiles.end - tiles.begin);
      uncut.push_back({b, 0, p.cache.num_kv_heads, begin, end, tiles, 0, -1});
    }
  }
  small = work * p.cache.num_kv_heads * kTileKeys * p.cache.head_dim < kSmallWork;

  auto made =
      std::make_unique<Storage>();  // the member is a plain pointer: its header is compiled for every set
  const bool invariant = p.num_splits < 0;
  const int64_t wanted_items = num_threads == 1 ? 1 : 2 * num_threads;
  const auto split_of = [&](const AttentionItem& item) {
    return invariant ? kInvariantSplitTiles : entries[2 * item.sequence + 1];
  };
  int64_t whole_items = 0, split_items = 0;  // with all heads of few rows in one item
  for (const AttentionItem& item : uncut) {
    const int64_t heads = few_rows(item.row_end - item.row_begin) ? 1 : p.cache.num_kv_heads;
    whole_items += heads;
    split_items += heads * std::max<int64_t>(1, div_up(item.tiles.end - item.tiles.begin, split_of(item)));
  }
  // Folding inside an item gives the same bits as merging split items and needs no scratch.
  const bool fold = invariant && whole_items >= wanted_items;
  const int64_t head_groups =
      std::min<int64_t>(p.cache.num_kv_heads, div_up(wanted_items, std::max<int64_t>(1, split_items)));
  for (AttentionItem item : uncut) {
    const int64_t groups = few_rows(item.row_end - item.row_begin) ? head_groups : p.cache.num_kv_heads;
    const int64_t heads = div_up(p.cache.num_kv_heads, groups);
    if (fold) item.fold_tiles = kInvariantSplitTiles;
    for (int64_t h = 0; h < p.cache.num_kv_heads; h += heads) {
      item.head_begin = h;
      item.head_end = std::min<int64_t>(h + heads, p.cache.num_kv_heads);
      if (fold) {
        made->items.push_back(item);
      } else {
        add_splits(item, split_of(item), made->items, made->merges, num_parts);
      }
    }
  }
  storage_ = made.release();
  items = storage_->items.data();
  num_items = static_cast<int64_t>(storage_->items.size());
  merges = storage_->merges.data();
  num_merges = static_cast<int64_t>(storage_->merges.size());
}

AttentionPlan::~AttentionPlan() { delete storage_; }

void fill_schedule(const ScheduleDeltaPrefillParams& p, int num_threads) {
  const Lengths lengths = lengths_of(p, p.num_kv_heads);
  check_lengths(lengths, INT32_MAX, p.max_seqlen_q, INT32_MAX);
  const int32_t header[kHeaderSize] = {kKind, static_cast<int32_t>(p.batch), p.num_heads, p.num_kv_heads,
                                       p.num_splits};
  std::copy(header, header + kHeaderSize, p.schedule);
  make_schedule(lengths, num_threads, p.schedule + kHeaderSize);
}

void* thread_scratch(ScratchSlot slot, int64_t bytes) {
  struct Buffer {
    void* data = nullptr;
    int64_t bytes = 0;
    ~Buffer() { std::free(data); }
  };
  constexpr int64_t kKeptBytes = int64_t{64} << 20;  // larger buffers are not worth keeping for good
  thread_local Buffer buffers[kNumScratchSlots];
  Buffer& buffer = buffers[slot];
  if (buffer.bytes < bytes || buffer.bytes > std::max(kKeptBytes, bytes)) {
    std::free(buffer.data);
    buffer.bytes = 0;
    buffer.data = std::aligned_alloc(64, static_cast<size_t>(div_up(bytes, 4096) * 4096));
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.bytes = div_up(bytes, 4096) * 4096;
  }
  return buffer.data;
}

}  // namespace skv::cpu
