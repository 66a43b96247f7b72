// How a call of delta_prefill is launched: a pure function of its shapes and of the device, without CUDA.
//
// Three kernels do the work: one on mma.sync and cp.async, for sm_80 and newer, and two for sm_90: one on
// wgmma and TMA, one for few rows on mma.sync and TMA.  A schedule holds a list of work for each
// (delta_schedule.cuh), because what makes it does not know the cache, which has a say in the choice.
#pragma once

#include <algorithm>

#include "alignment.h"

namespace skv {
namespace cuda {

constexpr int tile_keys(int head_dim) { return head_dim > 128 ? 32 : 64; }
constexpr int hopper_tile_keys(int head_dim) { return head_dim > 128 ? 64 : 128; }
constexpr int kChunkKeys = 1024;

// Shared memory of a CTA on sm_90a: rings of stages for keys and for values, as many stages each; query rows
// of `groups` warpgroups; what the warps tell one another.  Cells of fp8 land in a third ring, keys and
// values in turn, and are widened from there: two stages for each are enough for those, all the rest is for
// what is on its way.
constexpr int kHopperSmem = 227 * 1024, kHopperSharedBytes = 2048;
constexpr int kMostHopperStages = 4, kMostRawStages = 8;

struct HopperRings {
  int stages, raw_stages, bytes;
};
constexpr HopperRings hopper_rings(int head_dim, int groups, bool fp8) {
  const int tile = hopper_tile_keys(head_dim) * head_dim * 2, raw = fp8 ? tile / 2 : 0;
  const int fixed = kHopperSharedBytes + groups * 64 * head_dim * 2, room = kHopperSmem - fixed;
  const int stages = fp8 ? 2 : std::min(kMostHopperStages, room / (2 * tile));
  const int raw_stages = fp8 ? std::min(kMostRawStages, (room - 2 * stages * tile) / raw) : 0;
  return {stages, raw_stages, fixed + 2 * stages * tile + raw_stages * raw};
}

// Few rows: shared memory of a CTA is kFewSlots slots of kFewKeys keys and their values, one more of zeros,
// and what the warps tell one another.
constexpr int kFewRows = 16, kFewKeys = 32, kFewThreads = 192, kFewSlots = 12, kFewSharedBytes = 2048;
constexpr int few_slot_bytes(int head_dim) { return kFewKeys * head_dim * 2 * 2; }
constexpr int few_bytes(int head_dim) { return (kFewSlots + 1) * few_slot_bytes(head_dim) + kFewSharedBytes; }

struct PrefillDevice {
  int multiprocessors;
  bool sm90;      // exactly: wgmma is in no other architecture
  bool few_rows;  // whether the kernel for few rows may be chosen
};

// What a list of work depends on.
struct ListShape {
  int tile_keys;
  int tile_rows;   // most rows of an item
  int workers;     // CTAs that can be at work together, and that the work is spread over
  int min_tiles;   // of a split
  int large_cost;  // of a tile of keys for more than 64 rows, where one for fewer costs 1
  int64_t most_part_rows;
};

// Rows of partial results: what an automatic schedule can ask for, and what a batch-invariant one may, which
// leaves sequences whole that would need more.
inline int64_t most_part_rows(int num_splits, int workers, int tile_rows, int head_dim) {
  constexpr int64_t kMostBytes = 64 << 20;
  return num_splits > 0    ? INT32_MAX
         : num_splits == 0 ? int64_t(2) * workers * tile_rows
                           : kMostBytes / (4 * head_dim);
}

// Tiles have as few rows as a call of this shape can have; head_dim above 128 leaves no registers for 128
// rows of mma.sync.  There more rows take longer; of wgmma 128 rows are two warpgroups side by side.
inline ListShape portable_list(int64_t max_rows, int head_dim, int num_splits, const PrefillDevice& device) {
  const int rows = max_rows <= 16 ? 16 : max_rows <= 64 || head_dim > 128 ? 64 : 128;
  const int workers = 2 * device.multiprocessors;
  return {tile_keys(head_dim), rows, workers, 4, 2, most_part_rows(num_splits, workers, rows, head_dim)};
}
inline ListShape hopper_list(int64_t max_rows, int head_dim, int num_splits, const PrefillDevice& device) {
  const int rows = max_rows <= 64 ? 64 : 128, workers = device.multiprocessors;
  return {
      hopper_tile_keys(head_dim), rows, workers, 2, 1, most_part_rows(num_splits, workers, rows, head_dim)};
}
inline ListShape few_rows_list(int num_splits, int head_dim, const PrefillDevice& device) {
  const int workers = device.multiprocessors;
  return {kFewKeys, kFewRows, workers, 8, 1, most_part_rows(num_splits, workers, kFewRows, head_dim)};
}

// Whether a tensor map can describe the cache, its boxes whole atoms of the swizzle.
inline bool fits_tensor_map(const CacheView& v, const CacheShape& cache, int64_t element_bytes) {
  const auto stride_fits = [&](int64_t stride, int64_t size) {
    return size == 1 || (stride > 0 && stride * element_bytes < int64_t(1) << 40);
  };
  return cache.block_size >= 8 && cache.num_blocks > 0 && aligned(v, element_bytes, 16) &&
         stride_fits(v.block_stride, cache.num_blocks) && stride_fits(v.token_stride, cache.block_size) &&
         stride_fits(v.head_stride, cache.num_kv_heads);
}

enum class PrefillKernel { kPortable, kHopper, kFewRows };  // in the order of a schedule's lists

struct PrefillPlan {
  PrefillKernel kernel;
  bool tma;
  ListShape list;
  int ctas;
  int64_t num_tickets, part_rows, kept_stride;
  int64_t tickets, part_stats, parts, kept, schedule, size;  // offsets and size of the workspace in bytes
};

// Float4 of memory in which a CTA of the portable kernel, and of the other, keeps earlier parts of its rows:
// four floats for each column and row, and two numbers a row and thread.
constexpr int64_t kept_size(int tile_rows, int head_dim) {
  return int64_t(tile_rows < 64 ? 16 : tile_rows) * head_dim / 4 + 2 * 128;
}

// On sm_90 wgmma's kernel takes every call whose cache TMA can bring: its ring keeps more bytes on their way
// than the portable one.  Batch-invariant calls take it whatever the cache's layout, because a row's bits
// must not depend on how many others there are; where TMA cannot bring it, slowly.  Few rows of few sequences
// have a kernel of their own, for there what counts is how soon a call ends: it takes calls that need no CTA
// to have two items, whose cells need no widening, and whose rows fit a warp's registers.
inline PrefillKernel choose_kernel(const DeltaPrefillParams& p, const PrefillDevice& device, bool tma) {
  const int64_t max_rows = int64_t(p.max_seqlen_q) * (p.num_heads / p.cache.num_kv_heads);
  if (!device.sm90 || (p.num_splits >= 0 && !tma)) return PrefillKernel::kPortable;
  const bool few = max_rows <= kFewRows && p.batch <= kFewThreads &&
                   p.batch * p.cache.num_kv_heads <= device.multiprocessors && p.num_splits >= 0 &&
                   element_size(p.cache.dtype) == 2 && p.cache.head_dim <= 128;
  return few && device.few_rows ? PrefillKernel::kFewRows : PrefillKernel::kHopper;
}

inline ListShape list_of(PrefillKernel kernel, const DeltaPrefillParams& p, const PrefillDevice& device) {
  const int64_t max_rows = int64_t(p.max_seqlen_q) * (p.num_heads / p.cache.num_kv_heads);
  switch (kernel) {
    case PrefillKernel::kPortable:
      return portable_list(max_rows, p.cache.head_dim, p.num_splits, device);
    case PrefillKernel::kHopper:
      return hopper_list(max_rows, p.cache.head_dim, p.num_splits, device);
    default:
      return few_rows_list(p.num_splits, p.cache.head_dim, device);
  }
}

inline PrefillPlan plan_delta_prefill(const DeltaPrefillParams& p, const PrefillDevice& device) {
  const int64_t group = p.num_heads / p.cache.num_kv_heads, head_dim = p.cache.head_dim;
  const auto round_up = [](int64_t n) { return (n + 127) / 128 * 128; };
  const int64_t bytes = element_size(p.cache.dtype);
  PrefillPlan plan{};
  plan.tma = fits_tensor_map(p.k_cache, p.cache, bytes) && fits_tensor_map(p.v_cache, p.cache, bytes);
  plan.kernel = choose_kernel(p, device, plan.tma);
  plan.tma = plan.tma && plan.kernel != PrefillKernel::kPortable;
  plan.list = list_of(plan.kernel, p, device);
  const int64_t tile_rows = plan.list.tile_rows, workers = plan.list.workers;
  const int64_t row_tiles = (p.total_q * group / tile_rows + p.batch) * p.cache.num_kv_heads;  // at most
  const int64_t chunks = (p.max_blocks * p.cache.block_size + kChunkKeys - 1) / kChunkKeys;
  int64_t items = row_tiles * std::max(p.num_splits, 1);
  if (p.num_splits > 1) {
    plan.num_tickets = items;
    plan.part_rows = items * tile_rows;
  } else if (p.num_splits < 1 && !(p.num_splits < 0 && chunks <= 1)) {
    // A sequence is split only into parts of at least its share of the work: at most two parts a worker.
    plan.num_tickets = 2 * workers;
    plan.part_rows = plan.list.most_part_rows;
    if (p.num_splits < 0) plan.part_rows = std::min(plan.part_rows, chunks * row_tiles * tile_rows);
    items += plan.num_tickets;
  }
  plan.ctas = int(std::min(items, workers));
  if (p.num_splits < 0 && chunks > 1) {
    // Of fp8 there is one kernel for all numbers of rows, whose threads are those of 128.
    const bool both_groups = plan.kernel == PrefillKernel::kHopper && p.cache.dtype == DType::kFloat8E4M3;
    plan.kept_stride = kept_size(both_groups ? 128 : int(tile_rows), int(head_dim));
  }
  plan.part_stats = plan.tickets + round_up(plan.num_tickets * 4);
  plan.parts = plan.part_stats + round_up(plan.part_rows * 8);
  plan.kept = plan.parts + round_up(plan.part_rows * head_dim * 4);
  plan.schedule = plan.kept + round_up(plan.ctas * plan.kept_stride * 16);
  plan.size = plan.schedule + (p.schedule ? 0 : round_up(schedule_size(p.batch) * 4));
  return plan;
}

}  // namespace cuda
}  // namespace skv
