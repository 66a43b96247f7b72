// delta_prefill on sm_90a: the warps that bring items, keys and values.
#pragma once

#include "attention_hopper_widen.cuh"

namespace skv {
namespace cuda {

// ---- items of the work list ----

// Publishes the CTA's items one by one, a slot ahead of those who work on them.  One warp, whose lanes have
// read what is known of the first sequences.
SKV_DEVICE void find_items(const AttentionLaunch& launch, const WorkShape& shape, HopperShared& shared,
                           int lane, int num_items, const ScheduleEntry& first_entry,
                           const SequenceLengths& first_lengths) {
  const DeltaPrefillParams& p = launch.p;
  ScheduleEntry entry = first_entry;
  SequenceLengths lengths = first_lengths;
  bool is_read = true;  // once: registers that kept what was read would be missed
  RingPlace<kItemSlots> at;
  for (int number = int(blockIdx.x);; number += int(gridDim.x)) {
    wait_empty(shared.item_empty[at.slot], at.parity);
    bool found = false;
    for (int64_t b = lane; number < num_items && b < p.batch; b += kWarpSize, is_read = false) {
      if (!is_read) entry = ScheduleEntry(p.schedule, b);
      if (!entry.has(number)) continue;
      if (!is_read) lengths = SequenceLengths(p.cu_seqlens_q, p.seqused_k, b);
      found = make_item(launch, shape, number, int(b), entry, lengths,
                        shared.items[at.slot]);  // ranges do not overlap
    }
    is_read = false;
    if (number < num_items && !__any_sync(kFullMask, found)) continue;  // not this call's schedule
    __syncwarp();
    if (number >= num_items && lane == 0) shared.items[at.slot].num_rows = 0;
    arrive_warp(shared.item_full[at.slot]);
    if (number >= num_items) return;
    at.next();
  }
}

// ---- keys and values by TMA ----

// The block of `keys` keys from key0 on, of which some are the item's; -1 if it is not there.
SKV_DEVICE int block_at(const AttentionLaunch& launch, const AttentionItem& item, int key0, int keys) {
  const DeltaPrefillParams& p = launch.p;
  const int index = key0 >> launch.block_shift;
  if (key0 + keys <= item.key_begin || key0 >= item.key_end || index >= p.max_blocks) return -1;
  return p.block_table[item.b * p.block_table_stride + index];
}

// Bit i of the result: whether key 32 * word + i is there, given the bits of the tile's blocks.
SKV_DEVICE uint32_t keys_of_blocks(unsigned blocks, int word, int block_shift) {
  if (block_shift >= 5) return blocks >> ((word * 32) >> block_shift) & 1 ? ~0u : 0u;
  uint32_t bits = 0;
  const int size = 1 << block_shift;
  for (int i = 0; i < 32; i += size) {
    if (blocks >> ((word * 32 + i) >> block_shift) & 1) bits |= ((1u << size) - 1) << i;
  }
  return bits;
}

// log2 of the keys of a box: of a block, or of a tile that lies within one.
template <class Tile>
SKV_DEVICE int box_shift(const AttentionLaunch& launch) {
  return min(launch.block_shift, Tile::kKeysShift);
}

// One tile of K or V into `to`: a box per block and piece of its columns, each lane some of them.
template <class Tile>
SKV_DEVICE void issue_boxes(const HopperLaunch& launch, const prim::TensorMap& map, uint32_t to, uint32_t bar,
                            int kv_head, int first_row, int block, int lane) {
  const int shift = box_shift<Tile>(launch.a), last = (Tile::kKeys >> shift) - 1;
  if (lane == 0) prim::mbar_arrive_expect_tx(bar, Tile::kLandedBytes);
  __syncwarp();
#pragma unroll 1  // once, for most tiles
  for (int i = lane; i - lane < (last + 1) * Tile::kBoxes; i += kWarpSize) {
    const int which = i & last;
    const int piece = i >> (Tile::kKeysShift - shift);
    const int id = __shfl_sync(kFullMask, block, which);
    if (piece >= Tile::kBoxes) continue;
    const int at[4] = {piece * Tile::kBoxColumns, kv_head, first_row, id};
    const uint32_t dst = to + uint32_t((piece * Tile::kKeys + (which << shift)) * Tile::kBoxRowBytes);
    if (launch.read_once) {
      prim::tma_load_once<4>(dst, &map, bar, at);
    } else {
      prim::tma_load<4>(dst, &map, bar, at);
    }
  }
}

// One warp.  A block that is not there is asked for behind the last one, where everything is zero.
template <class Tile>
SKV_DEVICE void load_by_tma(const HopperLaunch& launch, HopperShared& shared, unsigned char* smem, int lane,
                            int num_items) {
  const AttentionLaunch& a = launch.a;
  const int keys = 1 << box_shift<Tile>(a), blocks_shift = Tile::kKeysShift - box_shift<Tile>(a);
  const uint32_t sk = prim::smem_u32(smem), sv = sk + uint32_t(Tile::kValuesAt);
  const uint32_t landing = sk + uint32_t(launch.raw_at);
  RingPlace<Tile::kStages> at;
  RingPlace<0> raw;
  int number = int(blockIdx.x);
  bool waited = false;
  for_each_item(shared, [&](const AttentionItem& item) {
    number += int(gridDim.x);
    if (!launch.tma) return;
    const int kv_head = item.kv_head, tile_end = item.tile_end;
    const auto block_of_lane = [&](int tile) {
      return lane >> blocks_shift == 0 && tile < tile_end
                 ? block_at(a, item, tile * Tile::kKeys + lane * keys, keys)
                 : -1;
    };
    int block = block_of_lane(item.tile_begin);
    for (int tile = item.tile_begin; tile < tile_end; ++tile, at.next()) {
      const int key0 = tile * Tile::kKeys, first_row = key0 & (a.p.cache.block_size - 1);
      const bool there = in_range(block, a.p.cache.num_blocks);
      const unsigned present = __ballot_sync(kFullMask, there);
      const int id = there ? block : int(a.p.cache.num_blocks);
      // Of a grid ahead that may still be at work, all but what it appends is there.
      if (!waited && key0 + Tile::kKeys > item.work.length - item.work.new_tokens) {
        prim::wait_for_grids();
        waited = true;
      }
      block = block_of_lane(tile + 1);  // on its way while this tile waits

      if constexpr (Tile::kWiden) {
        const auto land = [&](const prim::TensorMap& map) {
          wait_empty(shared.empty_raw[raw.slot], raw.parity);
          if (lane < Tile::kKeys / 32)
            shared.raw_exists[raw.slot][lane] = keys_of_blocks(present, lane, a.block_shift);
          __syncwarp();
          issue_boxes<Tile>(launch, map, landing + uint32_t(raw.slot * Tile::kLandedBytes),
                            prim::smem_u32(&shared.full_raw[raw.slot]), kv_head, first_row, id, lane);
          raw.next(launch.raw_stages);
        };
        land(launch.k_map);
        land(launch.v_map);
      } else {
        wait_empty(shared.empty_k[at.slot], at.parity);
        if (lane < Tile::kKeys / 32)
          shared.exists[at.slot][lane] = keys_of_blocks(present, lane, a.block_shift);
        __syncwarp();
        issue_boxes<Tile>(launch, launch.k_map, sk + uint32_t(at.slot * Tile::kTileBytes),
                          prim::smem_u32(&shared.full_k[at.slot]), kv_head, first_row, id, lane);
        wait_empty(shared.empty_v[at.slot], at.parity);
        uint64_t& bar = is_edge(a, item, key0, Tile::kKeys) ? shared.raw_v[at.slot] : shared.full_v[at.slot];
        issue_boxes<Tile>(launch, launch.v_map, sv + uint32_t(at.slot * Tile::kTileBytes),
                          prim::smem_u32(&bar), kv_head, first_row, id, lane);
      }
    }
    // All of this CTA's keys and values are on their way: memory is free for the next grid.
    if (number >= num_items) prim::launch_dependents();
  });
}

// ---- what is filled in by hand ----

// Hands a stage over after ordinary stores to it.  The fill warps.
SKV_DEVICE void publish_stores(uint64_t& bar, int thread) {
  prim::fence_proxy_async();
  prim::named_barrier_sync(kFillBarrier, kFillThreads);
  if (thread == 0) prim::mbar_arrive(prim::smem_u32(&bar));
}

// Values of an edge, once TMA has brought them: keys that are not the item's become zeros.
template <class Tile>
SKV_DEVICE void clear_edge(const AttentionItem& item, HopperShared& shared, unsigned char* stage, int slot,
                           int raw_parity, int key0, int thread) {
  wait_full(shared.raw_v[slot], raw_parity);
  constexpr int kChunks = Tile::kPieces * Tile::kRowBytes / 16;
  for (int i = thread; i < Tile::kKeys * kChunks; i += kFillThreads) {
    const int row = i / kChunks;
    if (key0 + row >= item.key_begin && key0 + row < item.key_end) continue;
    *reinterpret_cast<uint4*>(stage + Tile::at(row, i % kChunks, Tile::kPieceBytes)) = make_uint4(0, 0, 0, 0);
  }
  publish_stores(shared.full_v[slot], thread);
}

// A tile of K or V whose rows TMA cannot bring: a warp takes 32 keys, a lane eight cells of each.
template <class Tile>
SKV_DEVICE void copy_tile(const AttentionLaunch& launch, const AttentionItem& item, const CacheView& cache,
                          unsigned char* stage, uint32_t* exists, int key0, int thread) {
  const DeltaPrefillParams& p = launch.p;
  const int lane = thread % kWarpSize;
  for (int first = thread / kWarpSize * 32; first < Tile::kKeys; first += kFillThreads) {
    const int key = key0 + first + lane, block = block_at(launch, item, key, 1);
    const bool there = in_range(block, p.cache.num_blocks);
    const unsigned bits = __ballot_sync(kFullMask, there);
    if (exists && lane == 0) exists[first / 32] = bits;
    for (int row = 0; row < 32; ++row) {
      const int64_t id = __shfl_sync(kFullMask, there ? block : 0, row);
      if (lane >= Tile::kPieces * Tile::kRowBytes / 16) continue;
      const int64_t within = (key0 + first + row) & (p.cache.block_size - 1);
      const auto* from = static_cast<const typename Tile::Cell*>(cache.data) + id * cache.block_stride +
                         within * cache.token_stride + item.kv_head * cache.head_stride + lane * 8;
      Vector<typename Tile::Cell, 8> v{};
      if (bits >> row & 1) v = load_eight(from, launch.kv_aligned);
      store_cells(stage + Tile::at(first + row, lane, Tile::kPieceBytes), v);
    }
  }
}

// kFillWarps warps.
template <class Tile>
SKV_DEVICE void fill_by_hand(const HopperLaunch& launch, HopperShared& shared, unsigned char* smem,
                             int thread) {
  const AttentionLaunch& a = launch.a;
  RingPlace<Tile::kStages> at;
  RingPlace<0> raw;
  uint32_t raw_parities = 0;  // a bit per stage
  if (!launch.tma) prim::wait_for_grids();
  for_each_item(shared, [&](const AttentionItem& item) {
    for (int tile = item.tile_begin; tile < item.tile_end; ++tile, at.next()) {
      const int key0 = tile * Tile::kKeys, slot = at.slot;
      unsigned char *keys = smem + slot * Tile::kTileBytes, *values = keys + Tile::kValuesAt;
      if (!launch.tma) {
        wait_empty(shared.empty_k[slot], at.parity);
        copy_tile<Tile>(a, item, a.p.k_cache, keys, shared.exists[slot], key0, thread);
        publish_stores(shared.full_k[slot], thread);
        wait_empty(shared.empty_v[slot], at.parity);
        copy_tile<Tile>(a, item, a.p.v_cache, values, nullptr, key0, thread);
        publish_stores(shared.full_v[slot], thread);
      } else if constexpr (Tile::kWiden) {
        const auto widen = [&](uint64_t& empty, uint64_t& full, unsigned char* to, bool of_keys) {
          wait_full(shared.full_raw[raw.slot], raw.parity);
          wait_empty(empty, at.parity);
          if (of_keys && thread < Tile::kKeys / 32)
            shared.exists[slot][thread] = shared.raw_exists[raw.slot][thread];
          widen_tile<Tile>(item, smem + launch.raw_at + raw.slot * Tile::kLandedBytes, to,
                           !of_keys && is_edge(a, item, key0, Tile::kKeys), key0, thread);
          arrive_warp(shared.empty_raw[raw.slot]);
          publish_stores(full, thread);
          raw.next(launch.raw_stages);
        };
        widen(shared.empty_k[slot], shared.full_k[slot], keys, true);
        widen(shared.empty_v[slot], shared.full_v[slot], values, false);
      } else if (is_edge(a, item, key0, Tile::kKeys)) {
        clear_edge<Tile>(item, shared, values, slot, int(raw_parities >> slot & 1), key0, thread);
        raw_parities ^= 1u << slot;
      }
    }
  });
}

// ---- host ----

template <class Tile>
prim::TensorMap cache_map(const CacheView& view, const CacheShape& cache) {
  constexpr int64_t kBytes = sizeof(typename Tile::Cell);
  const auto stride = [](int64_t elements, int64_t size) {  // of a dimension of one element: any will do
    return uint64_t(size == 1 ? 16 : elements * kBytes);
  };
  prim::TensorMapSpec spec{
      view.data, kBytes, 4, {}, {}, {}, Tile::kWiden ? prim::Swizzle::kNone : Tile::kSwizzle};
  const int64_t sizes[4] = {Tile::kHeadDim, cache.num_kv_heads, cache.block_size, cache.num_blocks};
  const int64_t strides[4] = {1, view.head_stride, view.token_stride, view.block_stride};
  const int boxes[4] = {Tile::kBoxColumns, 1, std::min(cache.block_size, Tile::kKeys), 1};
  for (int i = 0; i < 4; ++i) {
    spec.size[i] = uint64_t(sizes[i]);
    spec.stride_bytes[i] = stride(strides[i], sizes[i]);
    spec.box[i] = uint32_t(boxes[i]);
  }
  return prim::make_tensor_map(spec);
}

}  // namespace cuda
}  // namespace skv
