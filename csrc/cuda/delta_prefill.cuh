// delta_prefill on mma.m16n8k16 (sm_80 and newer): attention of new tokens over their paged KV.
//
// A CTA of four warps takes items of the work list (delta_schedule.cuh) in turn; a warp owns 16 of the item's
// 64 rows.  Tiles of keys are double-buffered with cp.async; fp8 tiles are widened once per tile.  Keys that
// no row of the item may see, and holes of the block table, are zeros in shared memory, so their NaN goes
// nowhere.
//
// Rows split along KV leave normalised partial results and their log-sum-exp in a slot each; the CTA that
// takes the last ticket of the rows combines them in the order of the splits.
//
// A row's bits do not depend on which rows share its tile: a tile it may not see multiplies its state by
// exactly one and adds exactly zero, and key tiles lie at absolute positions.  With num_splits = -1 nothing
// is split.
#pragma once

#include "delta_schedule.cuh"

namespace skv {
namespace cuda {

constexpr int kAttentionThreads = 128;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

struct AttentionLaunch {
  DeltaPrefillParams p;                         // p.schedule is set
  int block_shift;                              // log2(block_size)
  bool kv_aligned, query_aligned, out_aligned;  // rows start at multiples of 16, 16 and 4 bytes
  float* parts;                                 // [num_slots][kTileRows][head_dim]
  float* part_lse;                              // [num_slots][kTileRows], base 2
  uint32_t* tickets;                            // [num_slots], of the first slot of the rows
  int64_t num_slots;
};

template <class T, class Cell, int kHeadDim>
struct AttentionTile {
  static constexpr int kKeys = tile_keys(kHeadDim);
  static constexpr bool kWiden = !std::is_same<T, Cell>::value;
  // 16-byte chunks of a row are swizzled so that eight rows of an ldmatrix lie in different banks; head_dim
  // 96 has no power of two of them and is padded instead.
  static constexpr bool kSwizzle = kHeadDim % 64 == 0;
  static constexpr int kPitch = kHeadDim * 2 + (kSwizzle ? 0 : 16);
  static constexpr int kQueryBytes = kTileRows * kPitch;
  static constexpr int kTileBytes = kKeys * kPitch;   // of K or V as T
  static constexpr int kRawBytes = kKeys * kHeadDim;  // of K or V as fp8
  static constexpr int kStageBytes = 2 * (kWiden ? kRawBytes : kTileBytes);
  static constexpr int kSmem = kQueryBytes + 2 * kStageBytes + (kWiden ? 2 * kTileBytes : 0);

  SKV_DEVICE static uint32_t at(int row, int chunk) {
    return uint32_t(row * kPitch + (kSwizzle ? (chunk ^ (row & 7)) : chunk) * 16);
  }
};

// What the CTA works on; in shared memory, registers are for the accumulators.
struct AttentionItem {
  SequenceWork work;
  int64_t b;
  int kv_head, row_begin, num_rows, split, splits;
  int key_begin, key_end;    // keys that some row of the item may see, within its split
  int tile_begin, tile_end;  // tiles of these
  int64_t first_slot;        // of the row tile's splits
};

// Keys that new token i may see lie in first .. last; with a tree mask some of the new ones do not.
struct RowLimits {
  int first, last, token;
};

SKV_DEVICE RowLimits row_limits(const DeltaPrefillParams& p, const SequenceWork& w, int token) {
  RowLimits r;
  const int prefix = w.length - w.new_tokens;
  r.token = token;
  int position = prefix + token;
  r.last = p.causal ? min(position, w.length - 1) : w.length - 1;
  if (p.tree_mask) {
    r.last = w.length - 1;
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
  r.first = p.window_left < 0 ? 0 : max(position - p.window_left, 0);
  return r;
}

SKV_DEVICE bool tree_allows(const DeltaPrefillParams& p, const SequenceWork& w, int token, int key) {
  const int j = key - (w.length - w.new_tokens);
  if (j < 0) return true;
  if (j >= p.mask_words * 32) return false;
  return p.tree_mask[(w.q_begin + token) * p.tree_mask_stride + j / 32] >> (j % 32) & 1;
}

// The item of that number, of sequence b; false if the schedule is not this call's.
SKV_DEVICE bool make_item(const AttentionLaunch& launch, int number, int b, int tile, AttentionItem& out) {
  const DeltaPrefillParams& p = launch.p;
  const int group = p.num_heads / p.cache.num_kv_heads;
  const int32_t* entry = p.schedule + kScheduleHeader + kScheduleEntry * b;
  const int per_split = max(entry[1], 1);
  const SequenceWork w = sequence_work(p.cu_seqlens_q, p.seqused_k, b, group, p.window_left, tile);
  int at = number - entry[0];
  out.work = w;
  out.b = b;
  out.splits = w.splits(per_split);
  out.split = at % out.splits;
  at /= out.splits;
  out.kv_head = at % p.cache.num_kv_heads;
  out.row_begin = at / p.cache.num_kv_heads * kTileRows;
  out.num_rows = int(min(int64_t(kTileRows), int64_t(w.new_tokens) * group - out.row_begin));
  out.first_slot = number - out.split;
  if (w.q_begin < 0 || w.q_begin + w.new_tokens > p.total_q) return false;
  if (out.splits > 1 && out.first_slot + out.splits > launch.num_slots) return false;

  const int first_token = out.row_begin / group, last_token = (out.row_begin + out.num_rows - 1) / group;
  const int prefix = w.length - w.new_tokens;
  out.key_begin = p.window_left < 0 ? 0 : max(prefix + (p.tree_mask ? 0 : first_token) - p.window_left, 0);
  out.key_end = p.causal && !p.tree_mask ? min(prefix + last_token + 1, w.length) : w.length;
  out.tile_begin = w.first_tile;
  out.tile_end = w.first_tile + w.tiles;
  if (out.splits > 1) {
    out.tile_begin = w.first_tile + out.split * per_split;
    out.tile_end = min(out.tile_begin + per_split, out.tile_end);
  }
  out.tile_begin = max(out.tile_begin, out.key_begin / tile);
  out.tile_end = min(out.tile_end, (max(out.key_end, 0) + tile - 1) / tile);
  return true;
}

// Finds the item of that number and leaves it in shared memory.  Whole CTA.
SKV_DEVICE bool find_item(const AttentionLaunch& launch, int number, int tile, AttentionItem& shared_item) {
  SKV_SHARED(found, bool);
  const DeltaPrefillParams& p = launch.p;
  const int group = p.num_heads / p.cache.num_kv_heads;
  __syncthreads();  // of the previous item
  if (threadIdx.x == 0) found = false;
  __syncthreads();
  for (int64_t b = threadIdx.x; b < p.batch; b += kAttentionThreads) {
    const int32_t* entry = p.schedule + kScheduleHeader + kScheduleEntry * b;
    const SequenceWork w = sequence_work(p.cu_seqlens_q, p.seqused_k, b, group, p.window_left, tile);
    const int items = w.row_tiles * w.splits(max(entry[1], 1)) * p.cache.num_kv_heads;
    if (number < entry[0] || number - entry[0] >= items) continue;
    found = make_item(launch, number, int(b), tile, shared_item);  // the ranges of a schedule do not overlap
  }
  __syncthreads();
  return found;
}

// Row `row` of the item: its place in query and out.
SKV_DEVICE int64_t query_offset(const HeadsView& v, const AttentionItem& item, int group, int row) {
  const int r = item.row_begin + row;
  return (item.work.q_begin + r / group) * v.token_stride +
         int64_t(item.kv_head * group + r % group) * v.head_stride;
}

// kBytes (16) of a row to shared memory: asynchronously where the source is aligned; zeros where `pred` is
// false.
template <class E>
SKV_DEVICE void copy_chunk(unsigned char* smem, uint32_t offset, const E* src, bool aligned_rows, bool pred) {
  if (aligned_rows) {
    prim::cp_async16(prim::smem_u32(smem + offset), src, pred);
    return;
  }
  constexpr int kCount = 16 / int(sizeof(E));
  Vector<E, kCount> v;
#pragma unroll
  for (int e = 0; e < kCount; ++e) v.at[e] = pred ? src[e] : E(0.f);
  store_vector<E, kCount>(reinterpret_cast<E*>(smem + offset), v);
}

template <class Tile, class Cell, int kHeadDim>
SKV_DEVICE void load_tile(const AttentionLaunch& launch, const AttentionItem& item, unsigned char* stage,
                          unsigned (&exists)[2], int tile) {
  constexpr int kCount = 16 / int(sizeof(Cell)), kChunks = kHeadDim / kCount;
  constexpr int kBytes = Tile::kWiden ? Tile::kRawBytes : Tile::kTileBytes;
  const DeltaPrefillParams& p = launch.p;
  const int32_t* table = p.block_table + item.b * p.block_table_stride;
  const auto block_of = [&](int key) {  // -1: not to be read
    const int index = key >> launch.block_shift;
    if (key < item.key_begin || key >= item.key_end || index >= p.max_blocks) return -1;
    const int block = table[index];
    return in_range(block, p.cache.num_blocks) ? block : -1;
  };
  for (int i = int(threadIdx.x); i < Tile::kKeys * kChunks; i += kAttentionThreads) {
    const int row = i / kChunks, chunk = i % kChunks, key = tile * Tile::kKeys + row;
    const int block = block_of(key);
    const int64_t within = key & (p.cache.block_size - 1), at = chunk * kCount;
    const int64_t safe = block < 0 ? 0 : block;
    const uint32_t offset = Tile::kWiden ? uint32_t(row * kHeadDim + chunk * 16) : Tile::at(row, chunk);
    const CacheView &k = p.k_cache, &v = p.v_cache;
    const Cell* k_src = static_cast<const Cell*>(k.data) + at + item.kv_head * k.head_stride;
    const Cell* v_src = static_cast<const Cell*>(v.data) + at + item.kv_head * v.head_stride;
    k_src += safe * k.block_stride + within * k.token_stride;
    v_src += safe * v.block_stride + within * v.token_stride;
    copy_chunk<Cell>(stage, offset, k_src, launch.kv_aligned, block >= 0);
    copy_chunk<Cell>(stage + kBytes, offset, v_src, launch.kv_aligned, block >= 0);
  }
  if (threadIdx.x < 64) {  // which of the tile's keys exist
    const bool ok = int(threadIdx.x) < Tile::kKeys && block_of(tile * Tile::kKeys + int(threadIdx.x)) >= 0;
    const unsigned bits = __ballot_sync(kFullMask, ok);
    if (threadIdx.x % kWarpSize == 0) exists[threadIdx.x / kWarpSize] = bits;
  }
}

// fp8 K and V of a stage to T; eight elements a thread and step.
template <class Tile, class T, int kHeadDim>
SKV_DEVICE void widen_tile(const unsigned char* raw, unsigned char* wide) {
  constexpr int kChunks = kHeadDim / 8;
  for (int i = int(threadIdx.x); i < 2 * Tile::kKeys * kChunks; i += kAttentionThreads) {
    const int which = i / (Tile::kKeys * kChunks), rest = i % (Tile::kKeys * kChunks);
    const int row = rest / kChunks, chunk = rest % kChunks;
    const unsigned char* from = raw + which * Tile::kRawBytes + row * kHeadDim + chunk * 8;
    const Vector<__nv_fp8_e4m3, 8> x =
        load_vector<__nv_fp8_e4m3, 8>(reinterpret_cast<const __nv_fp8_e4m3*>(from));
    Vector<T, 8> y;
#pragma unroll
    for (int e = 0; e < 8; ++e) y.at[e] = from_float<T>(to_float(x.at[e]));
    store_vector<T, 8>(reinterpret_cast<T*>(wide + which * Tile::kTileBytes + Tile::at(row, chunk)), y);
  }
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
