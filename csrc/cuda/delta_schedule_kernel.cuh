// The kernel that makes delta_prefill's work list; delta_schedule.cuh states what the list holds.
#pragma once

#include "cta_sum.cuh"
#include "delta_schedule.cuh"

namespace skv {
namespace cuda {

constexpr int kScheduleThreads = 256;
constexpr int kMinKeysPerPartRow = 8;  // a part is written and read as float, keys are read once as cells

struct ScheduleLaunch {
  ScheduleDeltaPrefillParams p;
  ListShape lists[kScheduleLists];  // a CTA makes each
};

// A CTA per list.  A thread looks after a run of consecutive sequences.
__global__ void __launch_bounds__(kScheduleThreads)
    schedule_delta_prefill_kernel(const __grid_constant__ ScheduleLaunch launch) {
  const ScheduleDeltaPrefillParams& p = launch.p;
  const int thread = int(threadIdx.x), heads = p.num_kv_heads;
  const ListShape& list = launch.lists[blockIdx.x];
  if (blockIdx.x == 0) {
    int32_t* tickets = p.schedule + kScheduleLists * schedule_list_size(p.batch);
    for (int i = thread; i < int(kScheduleTickets); i += kScheduleThreads) tickets[i] = 0;
  }
  int32_t* const schedule = p.schedule + blockIdx.x * schedule_list_size(p.batch);
  const WorkShape shape =
      work_shape(p.num_heads / heads, p.window_left, p.num_splits, list.tile_keys, list.tile_rows);
  const int64_t per_thread = (p.batch + kScheduleThreads - 1) / kScheduleThreads;
  const int64_t begin = min(thread * per_thread, p.batch), end = min(begin + per_thread, p.batch);
  // Lengths out of range make no items, so nobody computes with them.
  const auto work_of = [&](int64_t b) {
    const SequenceLengths at(p.cu_seqlens_q, p.seqused_k, b);
    bool ok = in_order(at.q_begin, at.q_end, INT32_MAX);  // with && the length would be read after these
    ok &= in_order(0, int64_t(at.q_end) - at.q_begin, p.max_seqlen_q);
    ok &= in_order(0, at.length, INT32_MAX - kChunkKeys);
    return ok ? sequence_work(at, shape) : SequenceWork{};
  };
  // Mostly a thread has one sequence or none: what there is to know of the first one is found out once.
  const SequenceWork first_work = begin < end ? work_of(begin) : SequenceWork{};
  const auto work_at = [&](int64_t b) { return b == begin ? first_work : work_of(b); };

  // Splits follow from all the work there is.
  const auto cost_of = [&](const SequenceWork& w) { return w.part_rows > 64 ? list.large_cost : 1; };
  int64_t cost = 0, uncut = 0, total_cost, least_items;
#pragma unroll 1  // for most threads once at most
  for (int64_t b = begin; b < end; ++b) {
    const SequenceWork w = work_at(b);
    cost += int64_t(w.row_tiles) * w.tiles * heads * cost_of(w);
    uncut += int64_t(w.row_tiles) * heads;
  }
  exclusive_sum<kScheduleThreads>(cost, total_cost);
  exclusive_sum<kScheduleThreads>(uncut, least_items);
  const int fair = (int(min(total_cost, int64_t(1) << 30)) + list.workers - 1) / list.workers;
  // Tiles in each split where a worker takes a cost of `share`: splits of a sequence are as long as one
  // another.
  const auto tiles_per_split = [&](const SequenceWork& w, int share) {
    if (w.tiles == 0) return 1;
    if (p.num_splits > 0) return (w.tiles - 1) / p.num_splits + 1;
    const int least = max(list.min_tiles, kMinKeysPerPartRow * w.part_rows / shape.tile);
    const int most = max((share + cost_of(w) - 1) / cost_of(w), p.num_splits < 0 ? 1 : least);
    const int splits = w.splits(most), tiles = (w.tiles + splits - 1) / splits;
    return (tiles + shape.chunk_tiles - 1) / shape.chunk_tiles * shape.chunk_tiles;
  };
  // One item more than there are workers keeps all of them waiting for the one that takes two: larger shares,
  // until each has one at most. Where there are more even without splits the fair share stays.
  int share = fair;
  if (p.num_splits <= 0 && least_items <= list.workers) {
    for (int64_t tried = fair, total_items; tried <= 4 * int64_t(fair); tried += tried / 32 + 1) {
      int64_t items = 0;
      for (int64_t b = begin; b < end; ++b) {
        const SequenceWork w = work_at(b);
        items += int64_t(w.row_tiles) * heads * w.splits(tiles_per_split(w, int(tried)));
      }
      exclusive_sum<kScheduleThreads>(items, total_items);
      if (total_items > list.workers) continue;
      share = int(tried);
      break;
    }
  }
  const auto part_rows = [&](const SequenceWork& w, int per_split) {
    const int splits = w.splits(per_split);
    const int parts = p.num_splits < 0 ? (w.tiles + shape.chunk_tiles - 1) / shape.chunk_tiles : splits;
    return splits > 1 ? int64_t(w.row_tiles) * heads * parts * w.part_rows : 0;
  };

  // Rows of partial results, by position; a sequence that finds none left stays whole.
  int64_t rows = 0, total_rows, split = 0, whole = 0, total_split, total_whole;
  for (int64_t b = begin; b < end; ++b) {
    const SequenceWork w = work_at(b);
    rows += part_rows(w, tiles_per_split(w, share));
  }
  const int64_t first_row = exclusive_sum<kScheduleThreads>(rows, total_rows);
  const auto settle = [&](const SequenceWork& w, int64_t& row) {  // tiles per split; moves row on
    const int per_split = tiles_per_split(w, share);
    row += part_rows(w, per_split);
    return row <= list.most_part_rows ? per_split : max(w.tiles, 1);
  };

  // Items, counted, then numbered.
  rows = first_row;
  for (int64_t b = begin; b < end; ++b) {
    const SequenceWork w = work_at(b);
    const int splits = w.splits(settle(w, rows));
    const int64_t items = int64_t(w.row_tiles) * splits * heads;
    split += splits > 1 ? items : 0;
    whole += splits > 1 ? 0 : items;
  }
  split = exclusive_sum<kScheduleThreads>(split, total_split);
  whole = total_split + exclusive_sum<kScheduleThreads>(whole, total_whole);
  rows = first_row;
  for (int64_t b = begin; b < end; ++b) {
    const SequenceWork w = work_at(b);
    const int64_t row = rows;
    const int per_split = settle(w, rows), splits = w.splits(per_split);
    const int64_t items = int64_t(w.row_tiles) * splits * heads;
    int32_t* entry = schedule + kScheduleHeader + kCudaScheduleEntry * b;
    entry[kEntryFirstItem] = int32_t(splits > 1 ? split : whole);
    entry[kEntryItems] = int32_t(items);
    entry[kEntryTilesPerSplit] = per_split;
    entry[kEntryFirstPartRow] = int32_t(splits > 1 ? row : 0);
    split += splits > 1 ? items : 0;
    whole += splits > 1 ? 0 : items;
  }
  if (thread == 0) {
    for (int i = 0; i < kScheduleHeader; ++i) schedule[i] = 0;
    schedule[kFieldKind] = kScheduleKind;
    schedule[kFieldBatch] = int32_t(p.batch);
    schedule[kFieldItems] = int32_t(total_split + total_whole);
    schedule[kFieldTileRows] = list.tile_rows;
    schedule[kFieldNumSplits] = p.num_splits;
  }
}

}  // namespace cuda
}  // namespace skv
