// The kernel of delta_prefill; see delta_prefill.cuh for who does what.
#pragma once

#include "attention_parts.cuh"

namespace skv {
namespace cuda {

// One item of the work list, all but the folding of parts that other CTAs have stored.  Whole CTA.
template <class T, class Cell, int kHeadDim, Share kShare>
SKV_DEVICE void attend(const AttentionLaunch& launch, AttentionShared& shared, unsigned char* smem) {
  using Rows = AttentionRows<AttentionTile<T, Cell, kHeadDim>, T, kShare>;
  using Tile = typename Rows::Tile;
  constexpr int kKeys = Tile::kKeys,
                kUnroll = kShare == kRows32 || kHeadDim == 256 ? (Tile::kWiden ? 1 : 2) : 4;
  const DeltaPrefillParams& p = launch.p;
  const AttentionItem& item = shared.item;
  const int group = launch.group;
  const int stages = launch.stages;
  const int thread =
      prim::opaque<kShare + 1>(int(threadIdx.x));  // nothing of one way to share is computed for all items
  float* const exchange = reinterpret_cast<float*>(smem);
  KeyPlace* const places = reinterpret_cast<KeyPlace*>(smem + Tile::kPlacesAt);
  unsigned char* const wide = smem + Tile::kWideAt;
  unsigned char* const rows_area = smem + Tile::kQueryAt;
  unsigned char* const ring = rows_area + Tile::query_bytes(launch.tile_rows);
  unsigned char* const query = !Rows::kHoldsQuery ? rows_area
                               : Tile::kWiden     ? wide
                                                  : ring + (stages - 1) * Tile::kStageBytes;
  Rows rows(thread);
  rows.clear();

  // Query rows and the first tiles.
  load_query<Tile, T, kHeadDim>(launch, item, group,
                                kShare == kKeysShared ? 16
                                : kShare == kRows16   ? 64
                                                      : 128,
                                query, thread);
  prim::cp_async_commit();
  for (int i = 0; i < stages; ++i) {
    const int tile = item.tile_begin + i;
    place_keys<Tile>(launch, item, shared, places, tile, block_of(launch, item, tile * kKeys + thread),
                     thread);
  }
  __syncthreads();
  for (int i = 0; i + 1 < stages; ++i) {
    const int tile = item.tile_begin + i;
    if (tile < item.tile_end)
      load_tile<Tile, Cell, kHeadDim, kUnroll>(launch, places, ring + i * Tile::kStageBytes, tile, thread);
    prim::cp_async_commit();
  }
  const uint32_t sq = prim::smem_u32(query);
  if constexpr (Rows::kHoldsQuery) {
    wait_for_copies(stages - 1);
    __syncthreads();
    rows.hold_query(sq);
  }

  // Keys that every row which takes part may see, from tile to tile.
  int open_first = 0, open_last = 0x7fffffff;
  constexpr int kWarpsUsed =
      kShare == kKeysShared ? 1 : kAttentionWarps;  // of those that looked after the rows
  for (int w = 0; w < kWarpsUsed; ++w) {
    open_first = max(open_first, shared.open_first[w]);
    open_last = min(open_last, shared.open_last[w]);
  }
  const ScoreScale scale(p, p.softmax_scale * scale_of(p.k_scale, item.b, item.kv_head));
  const bool takes_part = rows.first_row() < item.num_rows;

  int stage = 0, tile = item.tile_begin;
  int part = tile < item.tile_end ? (tile - item.first_tile) / item.part_tiles : item.part_begin;
  do {
    const int part_end = min(item.first_tile + (part + 1) * item.part_tiles, item.tile_end);
    for (; tile < part_end; ++tile) {
      wait_for_copies(stages - 2);
      __syncthreads();  // the tile is there, and everyone is done with the one before
      const int far = tile + stages, block = block_of(launch, item, far * kKeys + thread);
      if (far - 1 < item.tile_end) {
        const int free_stage = stage == 0 ? stages - 1 : stage - 1;
        load_tile<Tile, Cell, kHeadDim, kUnroll>(launch, places, ring + free_stage * Tile::kStageBytes,
                                                 far - 1, thread);
      }
      prim::cp_async_commit();
      const unsigned char* kv = ring + stage * Tile::kStageBytes;
      stage = stage + 1 == stages ? 0 : stage + 1;
      if constexpr (Tile::kWiden) {
        widen_tile<Tile, T, kHeadDim>(kv, wide, thread);
        __syncthreads();
        kv = wide;
      }
      if (takes_part) {
        const uint32_t sk = prim::smem_u32(kv), sv = sk + Tile::kTileBytes;
        if constexpr (kShare == kKeysShared) {
          rows.give_scores(sk, exchange);
          __syncthreads();
        }
#pragma unroll(kShare == kRows32 ? 1 : 2)  // of 32 rows, one step's scores fill the registers
        for (int first = 0; first < kKeys; first += 32) {
          typename Rows::Scores s;
          if constexpr (kShare == kKeysShared) {
            rows.take_scores(s, exchange, first);
          } else {
            rows.score(s, sq, sk, first);
          }
          scale.apply(s);
          const int key0 = tile * kKeys + first;
          const unsigned exists = shared.exists[tile % kExistsRing][first / 32];
          const bool open = key0 >= open_first && key0 + 31 <= open_last && exists == kFullMask;
          if (!open) rows.mask(s, p, shared, group, exists, key0);
          rows.soften(s, scale.scale2);
          rows.add_values(s, sv, first);
        }
      }
      place_keys<Tile>(launch, item, shared, places, far, block, thread);
    }
    if (item.splits > 1) {
      if (tile > item.tile_begin) store_part<T, kHeadDim>(launch, item, rows, part, scale.scale2);
    } else {
      fold_kept(launch, rows, part == item.part_begin, part + 1 >= item.part_end, scale.scale2);
    }
    if (++part < item.part_end && tile < item.tile_end) rows.clear();
  } while (tile < item.tile_end);
  prim::cp_async_wait<0>();
  if (item.splits == 1) store_rows<T>(launch, item, rows, group);
}

// kMost: how items of more than 16 rows are shared.  More ways in one kernel than these would spill
// registers: in a call that may have more than 64 rows to an item, 17 to 64 rows leave warps idle, and with
// head_dim 256 so do up to 16 rows in a call that may have more.
template <class T, class Cell, int kHeadDim, Share kMost>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    delta_prefill_kernel(const __grid_constant__ AttentionLaunch launch) {
  const DeltaPrefillParams& p = launch.p;
  SKV_DYNAMIC_SMEM(smem);
  SKV_SHARED(shared, AttentionShared);
  const WorkShape shape =
      work_shape(launch.group, p.window_left, p.num_splits, tile_keys(kHeadDim), launch.tile_rows);
  if (!is_schedule_of(launch)) return;
  const int num_items = p.schedule[kFieldItems];

  for (int number = int(blockIdx.x); number < num_items; number += int(gridDim.x)) {
    if (!find_item(launch, shape, number, shared)) continue;
    const AttentionItem& item = shared.item;
    if (kMost == kKeysShared || (item.num_rows <= 16 && kHeadDim < 256)) {
      if constexpr (kMost == kKeysShared || kHeadDim < 256) {
        attend<T, Cell, kHeadDim, kKeysShared>(launch, shared, smem);
      }
    } else {
      if constexpr (kMost != kKeysShared) attend<T, Cell, kHeadDim, kMost>(launch, shared, smem);
    }
    if (item.splits == 1) continue;

    __syncthreads();
    if (threadIdx.x == 0) {
      shared.is_last =
          prim::atomic_add_acq_rel(launch.tickets + item.first_item, 1) == uint32_t(item.splits - 1);
    }
    __syncthreads();
    if (shared.is_last) {
      combine_parts<T, kHeadDim, 4>(launch, item, launch.group, int(threadIdx.x), kAttentionThreads);
    }
  }
}

// As many stages as let two CTAs share a multiprocessor, or where two stages do not, one CTA.
inline int choose_stages(int64_t fixed, int64_t stage) {
  const prim::SharedMemory most = prim::shared_memory();
  const int64_t own = sizeof(AttentionShared) + 1024;  // static, and what the system keeps of each CTA
  const auto stages = [&](int ctas) {
    return int((std::min(most.per_cta + 1024, most.per_multiprocessor / ctas) - own - fixed) / stage);
  };
  const int chosen = std::min(stages(2) >= 2 ? stages(2) : stages(1), kMaxStages);
  if (chosen < 2) {
    throw std::runtime_error("[NotImplementedError] delta_prefill: this device has " +
                             std::to_string(most.per_cta) + " bytes of shared memory a CTA, expected " +
                             std::to_string(fixed + 2 * stage + own - 1024));
  }
  return chosen;
}

template <class T, class Cell, int kHeadDim>
void launch_attention(AttentionLaunch launch, int ctas, cudaStream_t stream) {
  using Tile = AttentionTile<T, Cell, kHeadDim>;
  launch.stages = choose_stages(Tile::smem_bytes(launch.tile_rows, 0), Tile::kStageBytes);
  const int smem = Tile::smem_bytes(launch.tile_rows, launch.stages);
  auto kernel = delta_prefill_kernel<T, Cell, kHeadDim, kRows16>;
  if constexpr (kHeadDim == 256) {
    if (launch.tile_rows == 16) kernel = delta_prefill_kernel<T, Cell, kHeadDim, kKeysShared>;
  } else if constexpr (kHeadDim <= 128) {
    if (launch.tile_rows > 64) kernel = delta_prefill_kernel<T, Cell, kHeadDim, kRows32>;
  }
  prim::launch(kernel, dim3(unsigned(ctas)), kAttentionThreads, smem, stream, launch);
}

// Every head_dim of one type of query and one of cache, in a file each: delta_prefill_*.cu.
template <class T, class Cell>
void launch_attention_of(const AttentionLaunch& launch, int ctas, cudaStream_t stream);

template <class T, class Cell>
void launch_attention_by_head_dim(const AttentionLaunch& launch, int ctas, cudaStream_t stream) {
  switch (launch.p.cache.head_dim) {
    case 64:
      return launch_attention<T, Cell, 64>(launch, ctas, stream);
    case 96:
      return launch_attention<T, Cell, 96>(launch, ctas, stream);
    case 128:
      return launch_attention<T, Cell, 128>(launch, ctas, stream);
    case 192:
      return launch_attention<T, Cell, 192>(launch, ctas, stream);
    default:
      return launch_attention<T, Cell, 256>(launch, ctas, stream);
  }
}

}  // namespace cuda
}  // namespace skv
