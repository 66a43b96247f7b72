// The work list of delta_prefill: which items there are and how the KV of a sequence is split.
//
// The rows of a sequence and KV head are its new tokens times the query heads of that KV head, tokens
// outermost: row = token * group + head.  An item is up to tile_rows rows of one sequence and KV head over
// one split of the keys they may see.  Key tiles lie at fixed absolute positions, multiples of the tile size.
//
// Rows of a split sequence leave partial results, one a split; with num_splits = -1 one per kChunkKeys keys
// at fixed absolute positions, whatever the split, so that what is summed with what depends on nothing else.
//
// A list is kScheduleHeader numbers (ScheduleField), then kCudaScheduleEntry per sequence (EntryField).
// Items of sequences that are split come first.  A schedule holds a list for each kernel (PrefillKernel),
// whose tiles differ; elsewhere than on sm_90 only the first one is filled.
#pragma once

#include "common.cuh"
#include "delta_prefill_plan.h"

namespace skv {
namespace cuda {

constexpr int kScheduleKind = 2;  // the CPU's is 1
enum ScheduleField { kFieldKind, kFieldBatch, kFieldItems, kFieldTileRows, kFieldNumSplits };
enum EntryField { kEntryFirstItem, kEntryItems, kEntryTilesPerSplit, kEntryFirstPartRow };

// What a list says of a sequence.
struct ScheduleEntry {
  int first_item, items, tiles_per_split, first_part_row;

  SKV_DEVICE ScheduleEntry(const int32_t* list, int64_t b) {
    const int32_t* entry = list + kScheduleHeader + kCudaScheduleEntry * b;
    first_item = entry[kEntryFirstItem];
    items = entry[kEntryItems];
    tiles_per_split = entry[kEntryTilesPerSplit];
    first_part_row = entry[kEntryFirstPartRow];
  }
  // Both are read, then compared: with && one would wait for the other.
  SKV_DEVICE bool has(int number) const {
    return bool((number >= first_item) & (number - first_item < items));
  }
};

// What the rows of one sequence and KV head have to do.
struct SequenceWork {
  int64_t q_begin;
  int new_tokens, length;  // length includes the new tokens
  int row_tiles, first_tile, tiles;
  int part_rows;  // of a row tile in each of its partial results

  SKV_DEVICE int splits(int tiles_per_split) const {
    return tiles_per_split >= tiles ? 1 : (tiles + tiles_per_split - 1) / tiles_per_split;
  }
};

struct WorkShape {
  int group, window_left, tile, tile_rows;
  int chunk_tiles;  // tiles between the fixed positions of num_splits = -1, otherwise 1
};

SKV_DEVICE WorkShape work_shape(int group, int window_left, int num_splits, int tile, int tile_rows) {
  return {group, window_left, tile, tile_rows, num_splits < 0 ? kChunkKeys / tile : 1};
}

// A sequence's new tokens, and its length with them.
struct SequenceLengths {
  int q_begin, q_end, length;

  SKV_DEVICE SequenceLengths(const int32_t* cu_seqlens_q, const int32_t* seqused_k, int64_t b)
      : q_begin(cu_seqlens_q[b]), q_end(cu_seqlens_q[b + 1]), length(seqused_k[b]) {}
};

// Lengths out of range make a sequence without rows.
SKV_DEVICE SequenceWork sequence_work(const SequenceLengths& lengths, const WorkShape& shape) {
  SequenceWork w{};
  w.q_begin = lengths.q_begin;
  w.new_tokens = max(0, lengths.q_end - lengths.q_begin);
  w.length = max(0, lengths.length);
  const int64_t rows = int64_t(w.new_tokens) * shape.group;
  w.row_tiles = int((rows + shape.tile_rows - 1) / shape.tile_rows);
  w.part_rows = int(min((rows + 15) / 16 * 16, int64_t(shape.tile_rows)));
  // What the first new token sees; of a tree's rows one without any bit, whose position is the one before.
  const int64_t oldest = int64_t(w.length) - w.new_tokens - 1 - shape.window_left;
  if (shape.window_left >= 0 && oldest > 0) w.first_tile = int(min(oldest, int64_t(w.length)) / shape.tile);
  w.first_tile -= w.first_tile % shape.chunk_tiles;
  w.tiles = (w.length + shape.tile - 1) / shape.tile - w.first_tile;
  return w;
}

}  // namespace cuda
}  // namespace skv
