// delta_prefill on sm_90a: shared memory of a CTA and the rings through which its warps hand over tiles.
#pragma once

#include "attention_parts.cuh"
#include "prim_hopper.cuh"

namespace skv {
namespace cuda {

constexpr int kItemSlots = 2, kGroupThreads = 128;

struct HopperLaunch {
  AttentionLaunch a;
  prim::TensorMap k_map, v_map;  // [head_dim, KV head, offset in block, block]
  bool tma;                      // whether the maps describe the caches
  bool read_once;                // whether no second tile of rows reads the same keys
  int raw_at, raw_stages;        // of cells that are widened: where they land in shared memory
};

// Tiles of keys, of values and of query rows are matrices of T whose rows are cut into pieces of one swizzle
// pattern's width; the pieces of all rows lie one after the other: [piece][row][kRowBytes].
//
// Cell is what the caches hold.  fp8 is widened to f16, which holds all its values, whatever the query's
// type.
template <class CacheCell, int kColumns, int kGroups>
struct HopperTile {
  using Cell = CacheCell;
  static constexpr bool kWiden = sizeof(Cell) == 1;
  using T = std::conditional_t<kWiden, __half, Cell>;
  static constexpr int kHeadDim = kColumns;
  static constexpr int kKeys = hopper_tile_keys(kHeadDim), kKeysShift = kKeys == 128 ? 7 : 6;
  static constexpr int kRowBytes = kHeadDim % 64 == 0 ? 128 : 64;
  static constexpr prim::Swizzle kSwizzle =
      kRowBytes == 128 ? prim::Swizzle::k128Bytes : prim::Swizzle::k64Bytes;
  static constexpr int kPieceColumns = kRowBytes / 2, kPieces = kHeadDim / kPieceColumns;
  static constexpr int kAtomBytes = 8 * kRowBytes;
  static constexpr int kPieceBytes = kKeys * kRowBytes, kTileBytes = kPieces * kPieceBytes;
  static constexpr int kQueryPieceBytes = 64 * kRowBytes, kQueryBytes = kPieces * kQueryPieceBytes;
  static constexpr int kStages = hopper_rings(kHeadDim, kGroups, kWiden).stages;
  static_assert(kStages >= 2, "a tile of keys is loaded while another is read");
  // What TMA brings: a piece of a row at a time as it will be read, or whole rows of cells to be widened.
  static constexpr int kBoxColumns = kWiden ? kHeadDim : kPieceColumns, kBoxes = kHeadDim / kBoxColumns;
  static constexpr int kBoxRowBytes = kBoxColumns * int(sizeof(Cell));
  static constexpr int kLandedBytes = kBoxes * kKeys * kBoxRowBytes;

  // Of 504, three times what launch bounds leave each warpgroup.
  static constexpr int kProducerRegisters = kHeadDim > 128 ? 40 : 56;
  static constexpr int kConsumerRegisters = (504 - kProducerRegisters) / 2;

  // Shared memory: keys' stages | values' stages | HopperShared | query rows of each group | cells' stages.
  static constexpr int kValuesAt = kStages * kTileBytes;
  static constexpr int kSharedAt = kValuesAt + kStages * kTileBytes;
  static constexpr int kQueryAt = kSharedAt + kHopperSharedBytes;

  // Byte of the 16-byte piece `chunk` of a row, where pieces of all rows are piece_bytes apart.
  SKV_DEVICE static uint32_t at(int row, int chunk, int piece_bytes) {
    constexpr int kChunks = kRowBytes / 16;
    const uint32_t within = uint32_t(row * kRowBytes + chunk % kChunks * 16);
    return uint32_t(chunk / kChunks * piece_bytes) + (within ^ (within >> 7 & (kChunks - 1)) << 4);
  }
};

struct HopperShared {
  // Of a stage: filled; read by all consumers; filled but for rows that have to become zeros.
  uint64_t full_k[kMostHopperStages], empty_k[kMostHopperStages];
  uint64_t full_v[kMostHopperStages], empty_v[kMostHopperStages], raw_v[kMostHopperStages];
  uint64_t full_raw[kMostRawStages], empty_raw[kMostRawStages];  // of cells that are widened
  uint64_t item_full[kItemSlots], item_empty[kItemSlots];
  uint32_t exists[kMostHopperStages][4];  // which keys of a stage are there
  uint32_t raw_exists[kMostRawStages][4];
  float units[128];                 // what a query row was divided by
  AttentionItem items[kItemSlots];  // num_rows 0: there are no more
  bool is_last;
};
static_assert(sizeof(HopperShared) <= kHopperSharedBytes, "the room left for it");

// A place in a ring of slots, and the parity of the phase that fills it.
template <int kSlots>
struct RingPlace {
  int slot = 0, parity = 0;

  SKV_DEVICE void next(int slots = kSlots) {
    if (++slot == slots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Who reads an item: the warp that issues copies, those that fill in by hand, the consumers.
constexpr int kFillWarps = 2, kFillThreads = kFillWarps * kWarpSize;
constexpr int item_readers(int groups) { return 1 + kFillWarps + 4 * groups; }
enum HopperBarrier { kTurnBarrier = 1, kFillBarrier = 3, kGroupBarrier = 4, kConsumersBarrier = 6 };

template <int kGroups, int kStages>
SKV_DEVICE void start_hopper_shared(HopperShared& shared, int raw_stages) {
  const auto init = [](uint64_t& bar, int count) { prim::mbar_init(prim::smem_u32(&bar), count); };
  for (int i = 0; i < kStages; ++i) {
    init(shared.full_k[i], 1);
    init(shared.full_v[i], 1);
    init(shared.raw_v[i], 1);
    init(shared.empty_k[i], 4 * kGroups);
    init(shared.empty_v[i], 4 * kGroups);
  }
  for (int i = 0; i < raw_stages; ++i) {
    init(shared.full_raw[i], 1);
    init(shared.empty_raw[i], kFillWarps);
  }
  for (int i = 0; i < kItemSlots; ++i) {
    init(shared.item_full[i], 1);
    init(shared.item_empty[i], item_readers(kGroups));
  }
  prim::mbar_init_fence();
}

SKV_DEVICE void wait_full(uint64_t& bar, int parity) { prim::mbar_wait(prim::smem_u32(&bar), parity); }
// Of a slot that nobody has filled yet, the first wait passes.
SKV_DEVICE void wait_empty(uint64_t& bar, int parity) { prim::mbar_wait(prim::smem_u32(&bar), parity ^ 1); }
// One arrival for the whole warp.
SKV_DEVICE void arrive_warp(uint64_t& bar) {
  __syncwarp();
  if (int(threadIdx.x) % kWarpSize == 0) prim::mbar_arrive(prim::smem_u32(&bar));
}

// Calls f(item) for each item of the CTA, as its finder warp publishes them.  Whole warps.
template <class F>
SKV_DEVICE void for_each_item(HopperShared& shared, F f) {
  RingPlace<kItemSlots> at;
  for (;; at.next()) {
    wait_full(shared.item_full[at.slot], at.parity);
    const AttentionItem& item = shared.items[at.slot];
    if (item.num_rows == 0) return;
    f(item);
    arrive_warp(shared.item_empty[at.slot]);
  }
}

// Whether a tile holds keys that TMA brings but that the item must not read: of a block that its range cuts.
// Their values are made zeros, for no weight of zero makes a NaN harmless.
SKV_DEVICE bool is_edge(const AttentionLaunch& launch, const AttentionItem& item, int key0, int keys) {
  const int within = launch.p.cache.block_size - 1;
  const bool begin = item.key_begin > key0 && (item.key_begin & within) != 0;
  const bool end = item.key_end < key0 + keys && (item.key_end & within) != 0;
  return begin || end;
}

}  // namespace cuda
}  // namespace skv
