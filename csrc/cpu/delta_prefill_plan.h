// How delta_prefill cuts a call into work: checked indices, work items, KV splits. Compiled once, for all
// instruction sets.
//
// The rows of a sequence and KV head are its tokens times the query heads of that KV head, tokens outermost:
// row = token * group + head. An item is a range of rows, of one KV head or (few rows) of several, over all
// of the KV they may see or over one split of it; the parts of split rows are merged afterwards, in key
// order.
#pragma once
#include "../core/backend.h"

namespace skv::cpu {

// Keys are visited in tiles at fixed absolute positions: nothing depends on where a call starts.
constexpr int kTileKeys = 128;
// num_splits = -1: a split per 1024 absolute positions, whatever the batch and the number of threads.
constexpr int64_t kInvariantSplitTiles = 8;

struct KeyRange {
  int64_t begin, end;
};

struct AttentionItem {
  int64_t sequence, head_begin, head_end, row_begin, row_end;  // KV heads
  KeyRange tiles;                                              // in units of kTileKeys
  int64_t fold_tiles;  // fold the running state at multiples of this many tiles (batch-invariant); 0 = never
  int64_t part;  // index of its first partial state (head by head, row by row); -1 = it writes the output
};

// The split items of the same rows, in key order: items[first_item], ...
struct AttentionMerge {
  int64_t first_item, num_items;
};

class AttentionPlan {
 public:
  // Throws IndexError for a bad index, before anything is written.
  AttentionPlan(const DeltaPrefillParams& p, int num_threads);
  ~AttentionPlan();
  AttentionPlan(const AttentionPlan&) = delete;
  AttentionPlan& operator=(const AttentionPlan&) = delete;

  const AttentionItem* items;
  int64_t num_items;
  const AttentionMerge* merges;
  int64_t num_merges;
  int64_t num_parts;  // rows of partial state
  bool small;         // not worth a second thread

 private:
  struct Storage;
  Storage* storage_;
};

// The keys that new token `token` (counted within its sequence) may see; with a tree mask the smallest range
// that holds them.
KeyRange visible_keys(const DeltaPrefillParams& p, int64_t sequence, int64_t token);

// schedule_delta_prefill.
void fill_schedule(const ScheduleDeltaPrefillParams& p, int num_threads);

// 64-byte aligned memory of the calling thread, kept for the next call. Slots are independent buffers.
enum ScratchSlot { kItemScratch, kPartScratch, kNumScratchSlots };
void* thread_scratch(ScratchSlot slot, int64_t bytes);

}  // namespace skv::cpu
