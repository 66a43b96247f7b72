// delta_prefill on mma.m16n8k16 (sm_80 and newer): attention of new tokens over their paged KV.
//
// A CTA of four warps takes items of the work list (delta_schedule.cuh) in turn.  How its warps share an item
// follows from the item's rows:
//   1 to 16    every warp has all rows: it scores a quarter of a tile's keys, the scores are exchanged
//   through
//              shared memory, and it sums a quarter of the columns of the values;
//   up to 64   a warp has 16 rows;
//   more       a warp has 32 rows, so that a key read from shared memory serves twice as many.
// Tiles of keys come through a ring of stages filled with cp.async; fp8 tiles are widened once per tile. Keys
// that no row of the item may see, and holes of the block table, are zeros in shared memory, so their NaN
// goes nowhere.  Tiles that every row sees whole take a path without masks.
//
// Rows split along KV leave partial results; the CTA that takes the last ticket of the rows folds them in
// order.  Rows of one CTA that have several partial results all the same (num_splits = -1) fold each with
// what the CTA keeps of the earlier ones.
//
// A row's bits do not depend on which rows share its tile, nor on how many: in all three ways a score is the
// same products summed in the same order, and so is a column of the values; a tile it may not see multiplies
// its state by exactly one and adds exactly zero; key tiles lie at absolute positions; and sums and products
// that a compiler could fuse differently from place to place are spelled out (__fmul_rn, __fmaf_rn).
#pragma once

#include "delta_schedule.cuh"

namespace skv {
namespace cuda {

constexpr int kAttentionThreads = 128, kAttentionWarps = kAttentionThreads / kWarpSize;
constexpr int kMaxStages = 4, kExistsRing = 8;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

struct AttentionLaunch {
  DeltaPrefillParams p;                         // p.schedule is set
  int group;                                    // query heads per KV head
  int block_shift;                              // log2(block_size)
  bool kv_aligned, query_aligned, out_aligned;  // rows start at multiples of 16, 16 and 4 bytes
  int tile_rows;
  int stages;          // 2 to kMaxStages
  float* parts;        // [part_rows][head_dim]
  float2* part_stats;  // [part_rows]: largest score (base 2) and sum of the exponentials below it
  int64_t part_rows;
  uint32_t* tickets;  // [num_tickets], of the first item of the rows
  int64_t num_tickets;
  float4* kept;  // [CTAs][kept_stride], what a CTA keeps of earlier parts
  int64_t kept_stride;
};

// What the CTA works on; in shared memory, registers are for the accumulators.
struct AttentionItem {
  SequenceWork work;
  int64_t b;
  int kv_head, row_begin, num_rows, splits;
  int key_begin, key_end;    // keys that some row of the item may see
  int tile_begin, tile_end;  // tiles of these, within the item's split
  int first_item;            // of the rows' splits
  // Partial results: of `part_tiles` tiles each, part i of row r at part_row + i * work.part_rows + r.
  int part_tiles, first_tile;  // first_tile: where part 0 begins
  int part_begin, part_end;    // that the rows have, whatever the split
  int64_t part_row;
};

struct AttentionShared {
  AttentionItem item;
  int first[128], last[128];  // per row: the keys it may see, but for a tree's mask
  int open_first[kAttentionWarps], open_last[kAttentionWarps];  // what all rows of these may see
  unsigned exists[kExistsRing][2];                              // per tile: its keys that are there
  bool found, is_last;
};

// What a list says of itself.
struct ScheduleHeader {
  int kind, batch, items, tile_rows, num_splits;

  SKV_DEVICE explicit ScheduleHeader(const int32_t* list)
      : kind(list[kFieldKind]),
        batch(list[kFieldBatch]),
        items(list[kFieldItems]),
        tile_rows(list[kFieldTileRows]),
        num_splits(list[kFieldNumSplits]) {}

  // A schedule of another call names rows that are not here.  All fields are read, then compared: with &&
  // each would wait for the one before.
  SKV_DEVICE bool is_of(const AttentionLaunch& launch) const {
    const DeltaPrefillParams& p = launch.p;
    const bool ok = (kind == kScheduleKind) & (batch == p.batch) & (tile_rows == launch.tile_rows) &
                    (num_splits == p.num_splits);
    if (!ok) out_of_range();
    return ok;
  }
};
SKV_DEVICE bool is_schedule_of(const AttentionLaunch& launch) {
  return ScheduleHeader(launch.p.schedule).is_of(launch);
}

// Keys that new token i may see lie in first .. last; with a tree mask some of the new ones do not.
SKV_DEVICE int2 key_limits(const DeltaPrefillParams& p, const SequenceWork& w, int token) {
  const int prefix = w.length - w.new_tokens;
  int position = prefix + token, last = p.causal ? min(position, w.length - 1) : w.length - 1;
  if (p.tree_mask) {
    last = w.length - 1;
    if (p.window_left >= 0) {  // the position counts ancestors
      int bits = 0;
      const int32_t* mask = p.tree_mask + (w.q_begin + token) * p.tree_mask_stride;
      for (int word = 0; word < p.mask_words && word * 32 < w.new_tokens; ++word) {
        const int left = w.new_tokens - word * 32;
        bits += __popc(uint32_t(mask[word]) & (left >= 32 ? ~0u : (1u << left) - 1));
      }
      position = prefix + bits - 1;
    }
  }
  return make_int2(p.window_left < 0 ? 0 : max(position - p.window_left, 0), last);
}

// Which of the 32 keys from key0 on new token `token` may see by its tree mask.
SKV_DEVICE uint32_t tree_bits(const DeltaPrefillParams& p, const SequenceWork& w, int token, int key0) {
  const int32_t* mask = p.tree_mask + (w.q_begin + token) * p.tree_mask_stride;
  const int j = key0 - (w.length - w.new_tokens), word = j >> 5, shift = j & 31;
  const auto at = [&](int i) { return i < 0 ? ~0u : i < p.mask_words ? uint32_t(mask[i]) : 0u; };
  return shift ? at(word) >> shift | at(word + 1) << (32 - shift) : at(word);
}

// Which of the 32 keys from key0 on lie in first .. last.
SKV_DEVICE uint32_t range_bits(int first, int last, int key0) {
  const int lo = first - key0, hi = last - key0;
  const uint32_t from = lo <= 0 ? ~0u : lo >= 32 ? 0u : ~0u << lo;
  return hi < 0 ? 0u : hi >= 31 ? from : from & ((2u << hi) - 1);
}

// The item of that number, which `entry` has, of sequence b; false if the schedule is not this call's.
SKV_DEVICE bool make_item(const AttentionLaunch& launch, const WorkShape& shape, int number, int b,
                          const ScheduleEntry& entry, const SequenceLengths& lengths, AttentionItem& out) {
  const DeltaPrefillParams& p = launch.p;
  const int per_split = max(entry.tiles_per_split, 1), tile = shape.tile;
  const SequenceWork w = sequence_work(lengths, shape);
  int at = number - entry.first_item;
  out.work = w;
  out.b = b;
  out.splits = w.splits(per_split);
  const int split = at % out.splits;
  out.first_item = number - split;
  at /= out.splits;
  out.kv_head = at % p.cache.num_kv_heads;
  const int row_tile = at / p.cache.num_kv_heads;
  out.row_begin = row_tile * shape.tile_rows;
  out.num_rows = int(min(int64_t(shape.tile_rows), int64_t(w.new_tokens) * shape.group - out.row_begin));
  if (out.num_rows <= 0 || w.q_begin < 0 || w.q_begin + w.new_tokens > p.total_q) return false;

  const int first_token = out.row_begin / shape.group;
  const int last_token = (out.row_begin + out.num_rows - 1) / shape.group, prefix = w.length - w.new_tokens;
  out.key_begin = p.window_left < 0 ? 0 : max(prefix + (p.tree_mask ? -1 : first_token) - p.window_left, 0);
  out.key_end = p.causal && !p.tree_mask ? min(prefix + last_token + 1, w.length) : w.length;
  const int tile_begin = max(w.first_tile, out.key_begin / tile);
  const int64_t in_table = (p.max_blocks * p.cache.block_size + tile - 1) / tile;  // no key lies behind it
  const int tile_end =
      int(min(int64_t(min(w.first_tile + w.tiles, (max(out.key_end, 0) + tile - 1) / tile)), in_table));

  out.first_tile = w.first_tile;
  const auto tiles_per_part = [&] {
    return p.num_splits < 0 ? shape.chunk_tiles : out.splits > 1 ? per_split : max(w.tiles, 1);
  };
  out.part_tiles = tiles_per_part();
  const int all_parts = (w.tiles + out.part_tiles - 1) / out.part_tiles;
  out.part_row = entry.first_part_row +
                 (int64_t(row_tile) * p.cache.num_kv_heads + out.kv_head) * all_parts * w.part_rows;
  // Where a neighbour's length is more than its table holds, the list counts on more rows of parts than there
  // are: the first item of the split does the work of all.
  if (out.splits > 1 &&
      (out.part_row < 0 || out.part_row + int64_t(all_parts) * w.part_rows > launch.part_rows ||
       out.first_item + out.splits > launch.num_tickets)) {
    if (split > 0) return false;
    out.splits = 1;
    out.part_tiles = tiles_per_part();
  }
  out.part_begin = (tile_begin - w.first_tile) / out.part_tiles;
  out.part_end = max((tile_end - w.first_tile + out.part_tiles - 1) / out.part_tiles, out.part_begin);
  out.tile_begin = max(tile_begin, w.first_tile + split * per_split);
  out.tile_end = out.splits > 1 ? min(tile_end, w.first_tile + (split + 1) * per_split) : tile_end;
  return true;
}

// Finds the item of that number and leaves it in shared memory, with what its rows may see.  Whole CTA.
SKV_DEVICE bool find_item(const AttentionLaunch& launch, const WorkShape& shape, int number,
                          AttentionShared& shared) {
  const DeltaPrefillParams& p = launch.p;
  const int thread = prim::opaque(int(threadIdx.x)), warp = thread / kWarpSize;
  __syncthreads();  // of the previous item
  if (thread == 0) shared.found = false;
  __syncthreads();
  for (int b = thread; b < int(p.batch); b += kAttentionThreads) {
    const ScheduleEntry entry(p.schedule, b);
    if (!entry.has(number)) continue;
    shared.found = make_item(launch, shape, number, b, entry, {p.cu_seqlens_q, p.seqused_k, b},
                             shared.item);  // ranges do not overlap
  }
  __syncthreads();
  if (!shared.found) return false;
  const AttentionItem& item = shared.item;
  const int token = (item.row_begin + min(thread, item.num_rows - 1)) / shape.group;
  const int2 limits = key_limits(p, item.work, token);
  shared.first[thread] = limits.x;
  shared.last[thread] = limits.y;
  const int committed = item.work.length - item.work.new_tokens - 1;
  const int open_first = __reduce_max_sync(kFullMask, limits.x);
  const int open_last = __reduce_min_sync(kFullMask, p.tree_mask ? min(limits.y, committed) : limits.y);
  if (thread % kWarpSize == 0) {
    shared.open_first[warp] = open_first;
    shared.open_last[warp] = open_last;
  }
  __syncthreads();
  return true;
}

// Row `row` of the item: its place in query and out.
SKV_DEVICE int64_t query_offset(const HeadsView& v, const AttentionItem& item, int group, int row) {
  const int r = item.row_begin + row;
  return (item.work.q_begin + r / group) * v.token_stride +
         int64_t(item.kv_head * group + r % group) * v.head_stride;
}

template <class T>
SKV_DEVICE uint32_t pack(float lo, float hi) {
  const T pair[2] = {from_float<T>(lo), from_float<T>(hi)};
  uint32_t bits;
  memcpy(&bits, pair, 4);
  return bits;
}

}  // namespace cuda
}  // namespace skv
