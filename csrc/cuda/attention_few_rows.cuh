// delta_prefill for few rows on sm_90: pieces of keys in shared memory, and the warp that goes through them.
#pragma once

#include "attention_hopper_load.cuh"

namespace skv {
namespace cuda {

constexpr int kFewWarps = kFewThreads / kWarpSize;

// A piece is kFewKeys keys and their values as TMA brings them: matrices whose rows are cut at the width of
// the swizzle's pattern, the parts of all rows one after the other.
template <class T, int kColumns>
struct FewTile {
  using Cell = T;
  static constexpr bool kWiden = false;
  static constexpr int kHeadDim = kColumns, kKeys = kFewKeys, kKeysShift = 5;
  using Lines = HopperTile<T, kColumns, 1>;        // of shared memory, as that kernel's
  static constexpr int kPitch = Lines::kRowBytes;  // of a row in its parts
  static constexpr prim::Swizzle kSwizzle = Lines::kSwizzle;
  static constexpr int kBoxColumns = Lines::kBoxColumns, kBoxes = Lines::kBoxes, kBoxRowBytes = kPitch;
  static constexpr int kTileBytes = kKeys * kHeadDim * 2, kLandedBytes = kTileBytes;  // of keys or of values
  static constexpr int kSlots = kFewSlots, kSlotBytes = few_slot_bytes(kHeadDim);
  static constexpr int query_bytes(int) { return 0; }  // rows are in registers
  static_assert(kSlotBytes == 2 * kTileBytes && kSlots % kFewWarps == 0, "");

  // Shared memory: slots | zeros, later what the warps exchange | FewShared.
  static constexpr int kZerosAt = kSlots * kSlotBytes, kSharedAt = kZerosAt + kSlotBytes;
  static constexpr int kExchangeRows = 4;              // of each warp at a time
  static constexpr int kExchangePitch = kHeadDim + 8;  // floats: four rows lie in banks of their own
  static_assert(kFewWarps * kExchangeRows * kExchangePitch * 4 <= kSlotBytes, "the exchange fits the zeros");

  // Byte of the 16-byte chunk of a row; and that of the chunk `chunks` further on, where the two have no bit
  // in common.
  SKV_DEVICE static uint32_t at(int row, int chunk) { return Lines::at(row, chunk, kKeys * kPitch); }
  SKV_DEVICE static uint32_t along(uint32_t address, int chunks) {
    constexpr int kChunks = kPitch / 16;
    return (address ^ uint32_t(chunks % kChunks * 16)) + uint32_t(chunks / kChunks * kKeys * kPitch);
  }
};

struct FewShared {
  AttentionItem item;
  uint64_t full[kFewSlots];           // a piece has come, keys and values
  uint32_t exists[kFewSlots];         // which of its keys are there
  float2 stats[kFewWarps][kFewRows];  // of a warp's rows: largest score (base 2), sum of exponentials
  bool is_last;
};
static_assert(sizeof(FewShared) <= kFewSharedBytes, "the room left for it");

// The pieces of a CTA's item: warp w goes through w, w + kFewWarps, ....  There are slots for a whole number
// of pieces of each warp, so a piece takes the place of one that the same warp has read: slots need no
// hand-over, and a warp that waits for a phase of a slot has seen the one before.
template <class Tile>
struct FewPieces {
  const HopperLaunch& launch;
  FewShared& shared;
  const uint32_t ring;
  const int lane;
  int count = 0;
  uint32_t passed = 0;  // pieces of the CTA's earlier items
  bool last_item = false;

  SKV_DEVICE uint32_t slot(int piece) const { return (passed + uint32_t(piece)) % Tile::kSlots; }
  SKV_DEVICE uint32_t address(int piece) const { return ring + slot(piece) * Tile::kSlotBytes; }
  SKV_DEVICE int first_key(int piece) const { return (shared.item.tile_begin + piece) * kFewKeys; }
  SKV_DEVICE void wait(int piece) const {
    const uint32_t parity = (passed + uint32_t(piece)) / Tile::kSlots & 1;
    prim::mbar_wait(prim::smem_u32(&shared.full[slot(piece)]), int(parity));
  }

  // Of a grid ahead that may still be at work, all but what it appends is there.
  SKV_DEVICE bool has_new_keys(int piece) const {
    const SequenceWork& work = shared.item.work;
    return first_key(piece) + kFewKeys > work.length - work.new_tokens;
  }

  // The block of the piece that this lane's boxes are of, if it has any; -1 where there is none.
  SKV_DEVICE int block_of(int piece) const {
    const int shift = box_shift<Tile>(launch.a);
    if (piece >= count || lane >> (Tile::kKeysShift - shift) != 0) return -1;
    return block_at(launch.a, shared.item, first_key(piece) + (lane << shift), 1 << shift);
  }

  // Asks for a piece whose slot is free, given its block_of.  Whole warp.
  SKV_DEVICE void ask(int piece, int block) {
    if (piece >= count) return;
    const AttentionLaunch& a = launch.a;
    const AttentionItem& item = shared.item;
    const int first_row = first_key(piece) & (a.p.cache.block_size - 1);
    const bool there = in_range(block, a.p.cache.num_blocks);
    const unsigned present = __ballot_sync(kFullMask, there);
    const int id = there ? block : int(a.p.cache.num_blocks);  // behind the last one everything is zero
    const uint32_t at = slot(piece), to = address(piece), bar = prim::smem_u32(&shared.full[at]);
    if (lane == 0) shared.exists[at] = keys_of_blocks(present, 0, a.block_shift);  // and arrives, below
    issue_boxes<Tile>(launch, launch.k_map, to, bar, item.kv_head, first_row, id, lane);
    issue_boxes<Tile>(launch, launch.v_map, to + Tile::kTileBytes, bar, item.kv_head, first_row, id, lane);
    if (last_item && piece == count - 1) prim::launch_dependents();  // memory is free for the next grid
  }

  // Of a piece that the item's range cuts, values that it must not read become zeros: no weight of zero makes
  // a NaN harmless.  Whole warp.
  SKV_DEVICE void clear_edge(int piece, unsigned char* values) const {
    const AttentionItem& item = shared.item;
    const int key0 = first_key(piece);
    if (!is_edge(launch.a, item, key0, kFewKeys)) return;
    constexpr int kChunks = Tile::kHeadDim / 8;
    for (int i = lane; i < kFewKeys * kChunks; i += kWarpSize) {
      const int key = key0 + i / kChunks;
      if (key >= item.key_begin && key < item.key_end) continue;
      *reinterpret_cast<uint4*>(values + Tile::at(i / kChunks, i % kChunks)) = make_uint4(0, 0, 0, 0);
    }
    prim::fence_proxy_async();  // before another piece comes to this place
    __syncwarp();
  }
};

// A warp with all rows of an item, and keys of its own.
template <class T, int kColumns>
struct FewRowsOfWarp : AttentionRows<FewTile<T, kColumns>, T, kAllRows> {
  using Base = AttentionRows<FewTile<T, kColumns>, T, kAllRows>;
  using Tile = FewTile<T, kColumns>;

  int first[2], last[2];  // the keys that the rows may see, but for a tree's mask
  const T* query[2];      // this lane's first pair of the rows; of the item's row 0 for those not there

  SKV_DEVICE explicit FewRowsOfWarp(int thread) : Base(thread) {
#pragma unroll
    for (int step = 0; step < kColumns / 16; ++step) {
      this->q[step][0] = this->q[step][1] = this->q[step][2] = this->q[step][3] = 0;
    }
    this->clear();
  }

  // Rows past the item's last one see what that one sees.
  SKV_DEVICE int token(const AttentionItem& item, int group, int h) const {
    return (item.row_begin + min(this->row(0, h), item.num_rows - 1)) / group;
  }
  // All that can be known of the rows before they are there.
  SKV_DEVICE void look_at(const DeltaPrefillParams& p, const AttentionItem& item, int group) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int2 limits = key_limits(p, item.work, token(item, group, h));
      first[h] = limits.x;
      last[h] = limits.y;
      const int row = this->row(0, h) < item.num_rows ? this->row(0, h) : 0;
      query[h] = static_cast<const T*>(p.query.data) + query_offset(p.query, item, group, row) + this->t * 2;
    }
  }

  // The A operand of the first product, straight to where it is used; zeros for rows that are not there.
  // Whether rows are aligned is asked once: asked for each pair, every load would wait for the one before.
  SKV_DEVICE void load_query(bool aligned, int num_rows) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool there = this->row(0, h) < num_rows;
      const T* const src = query[h];
      if (aligned) {
#pragma unroll
        for (int i = 0; i < kColumns / 8; ++i) {
          const uint32_t pair = *reinterpret_cast<const uint32_t*>(src + i * 8);
          this->q[i / 2][i % 2 * 2 + h] = there ? pair : 0u;
        }
        continue;
      }
#pragma unroll
      for (int i = 0; i < kColumns / 8; ++i) {
        const T both[2] = {src[i * 8], src[i * 8 + 1]};
        uint32_t pair;
        memcpy(&pair, both, 4);
        this->q[i / 2][i % 2 * 2 + h] = there ? pair : 0u;
      }
    }
  }

  // Always the same instructions, whether all keys are seen or not: a path of its own for the end of a
  // context would be fetched just when everyone waits for it.
  SKV_DEVICE void mask(typename Base::Scores& s, const DeltaPrefillParams& p, const AttentionItem& item,
                       int group, uint32_t exists, int key0) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t see = exists & range_bits(first[h], last[h], key0);
      if (p.tree_mask) see &= tree_bits(p, item.work, token(item, group, h), key0);
      see >>= this->t * 2;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (!(see >> (n * 8) & 1)) s[0][n][2 * h] = -INFINITY;
        if (!(see >> (n * 8 + 1) & 1)) s[0][n][2 * h + 1] = -INFINITY;
      }
    }
  }

  // The keys and values at `keys` into the state of the rows.
  SKV_DEVICE void attend(const DeltaPrefillParams& p, const AttentionItem& item, int group,
                         const ScoreScale& scale, uint32_t keys, uint32_t exists, int key0) {
    typename Base::Scores s;
    this->score(s, 0, keys, 0);
    scale.apply(s);
    mask(s, p, item, group, exists, key0);
    this->soften(s, scale.scale2);
    this->add_values(s, keys + Tile::kTileBytes, 0);
  }
};

}  // namespace cuda
}  // namespace skv
