// The kernel that makes delta_prefill's work list; delta_schedule.cuh states what the list holds.
#pragma once

#include "delta_schedule.cuh"

namespace skv {
namespace cuda {

constexpr int kScheduleThreads = 256;
constexpr int kMinTilesPerSplit = 4;

struct ScheduleLaunch {
  ScheduleDeltaPrefillParams p;
  int workers;  // CTAs that the work is to be spread over
};

// One CTA.  A thread looks after a run of consecutive sequences.
__global__ void __launch_bounds__(kScheduleThreads)
    schedule_delta_prefill_kernel(const __grid_constant__ ScheduleLaunch launch) {
  const ScheduleDeltaPrefillParams& p = launch.p;
  SKV_SHARED(total_work, unsigned long long);
  SKV_SHARED(split_items, int[kScheduleThreads + 1]);
  SKV_SHARED(whole_items, int[kScheduleThreads + 1]);
  const int thread = int(threadIdx.x), group = p.num_heads / p.num_kv_heads, tile = tile_keys(p.head_dim);
  const int64_t per_thread = (p.batch + kScheduleThreads - 1) / kScheduleThreads;
  const int64_t begin = min(thread * per_thread, p.batch), end = min(begin + per_thread, p.batch);
  const auto work_of = [&](int64_t b) {
    return sequence_work(p.cu_seqlens_q, p.seqused_k, b, group, p.window_left, tile);
  };

  // Splits follow from all the work there is.
  if (thread == 0) total_work = 0;
  __syncthreads();
  unsigned long long mine = 0;
  for (int64_t b = begin; b < end; ++b) {
    const SequenceWork w = work_of(b);
    mine += static_cast<unsigned long long>(w.row_tiles) * w.tiles * p.num_kv_heads;
  }
  atomicAdd(&total_work, mine);
  __syncthreads();
  const int share = int(min((total_work + launch.workers - 1) / launch.workers, 1ull << 30));
  const auto tiles_per_split = [&](const SequenceWork& w) {
    if (p.num_splits < 0 || w.tiles == 0) return max(w.tiles, 1);
    if (p.num_splits == 0) return max(share, kMinTilesPerSplit);
    return max((w.tiles + p.num_splits - 1) / p.num_splits, 1);
  };

  // Items, counted, then numbered.
  int split = 0, whole = 0;
  for (int64_t b = begin; b < end; ++b) {
    const SequenceWork w = work_of(b);
    const int splits = w.splits(tiles_per_split(w));
    (splits > 1 ? split : whole) += w.row_tiles * splits * p.num_kv_heads;
  }
  split_items[thread + 1] = split;
  whole_items[thread + 1] = whole;
  __syncthreads();
  if (thread == 0) {
    split_items[0] = whole_items[0] = 0;
    for (int t = 0; t < kScheduleThreads; ++t) {
      split_items[t + 1] += split_items[t];
      whole_items[t + 1] += whole_items[t];
    }
    p.schedule[kFieldKind] = kScheduleKind;
    p.schedule[kFieldBatch] = int32_t(p.batch);
    p.schedule[kFieldItems] = split_items[kScheduleThreads] + whole_items[kScheduleThreads];
    p.schedule[kFieldSplitItems] = split_items[kScheduleThreads];
    for (int i = kFieldSplitItems + 1; i < kScheduleHeader; ++i) p.schedule[i] = 0;
  }
  __syncthreads();
  split = split_items[thread];
  whole = split_items[kScheduleThreads] + whole_items[thread];
  for (int64_t b = begin; b < end; ++b) {
    const SequenceWork w = work_of(b);
    const int per_split = tiles_per_split(w), splits = w.splits(per_split);
    int& next = splits > 1 ? split : whole;
    p.schedule[kScheduleHeader + kScheduleEntry * b] = next;
    p.schedule[kScheduleHeader + kScheduleEntry * b + 1] = per_split;
    next += w.row_tiles * splits * p.num_kv_heads;
  }
}

}  // namespace cuda
}  // namespace skv
