// The work list of delta_prefill: which items there are and how the KV of a sequence is split.
//
// The rows of a sequence and KV head are its new tokens times the query heads of that KV head, tokens
// outermost: row = token * group + head.  An item is up to kTileRows rows of one sequence and KV head over
// one split of the keys they may see.  Key tiles lie at fixed absolute positions, multiples of the tile size.
//
// A schedule is kScheduleHeader numbers {kind, batch, items, items of split rows, ...}, then per sequence
// {first item, tiles per split}.  Items of sequences that are split come first, so an item below the fourth
// number is also the number of the slot that holds its partial result.
#pragma once

#include "common.cuh"

namespace skv {
namespace cuda {

constexpr int kTileRows = 64;
constexpr int kScheduleKind = 2;  // the CPU's is 1
enum ScheduleField { kFieldKind, kFieldBatch, kFieldItems, kFieldSplitItems };

constexpr int tile_keys(int head_dim) { return head_dim > 128 ? 32 : 64; }

struct SequenceWork {
  int64_t q_begin;
  int new_tokens, length;  // length includes the new tokens
  int row_tiles, first_tile, tiles;

  SKV_DEVICE int splits(int tiles_per_split) const {
    return tiles_per_split >= tiles ? 1 : (tiles + tiles_per_split - 1) / tiles_per_split;
  }
};

// Lengths out of range make a sequence without rows.
SKV_DEVICE SequenceWork sequence_work(const int32_t* cu_seqlens_q, const int32_t* seqused_k, int64_t b,
                                      int group, int window_left, int tile) {
  SequenceWork w{};
  w.q_begin = cu_seqlens_q[b];
  w.new_tokens = max(0, cu_seqlens_q[b + 1] - cu_seqlens_q[b]);
  w.length = max(0, seqused_k[b]);
  w.row_tiles = int((int64_t(w.new_tokens) * group + kTileRows - 1) / kTileRows);
  const int64_t oldest =
      int64_t(w.length) - w.new_tokens - window_left;  // what the first new token sees first
  w.first_tile = window_left < 0 || oldest <= 0 ? 0 : int(min(oldest, int64_t(w.length)) / tile);
  w.tiles = (w.length + tile - 1) / tile - w.first_tile;
  return w;
}

}  // namespace cuda
}  // namespace skv
