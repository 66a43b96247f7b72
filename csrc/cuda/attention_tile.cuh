// delta_prefill's tiles of keys and values: where they lie in shared memory and how they get there.
#pragma once

#include "delta_prefill.cuh"

namespace skv {
namespace cuda {

// Where a key's K and V lie, in elements from the caches' first; k is negative where there is no such key.
struct KeyPlace {
  int64_t k, v;
};

template <class T, class Cell, int kColumns>
struct AttentionTile {
  static constexpr int kHeadDim = kColumns, kKeys = tile_keys(kHeadDim);
  static constexpr bool kWiden = !std::is_same<T, Cell>::value;
  // 16-byte chunks of a row are swizzled so that eight rows of an ldmatrix lie in different banks; head_dim
  // 96 has no power of two of them and is padded instead.
  static constexpr bool kSwizzle = kHeadDim % 64 == 0;
  static constexpr int kPitch = kHeadDim * 2 + (kSwizzle ? 0 : 16);
  static constexpr int kTileBytes = kKeys * kPitch;   // of K or V as T
  static constexpr int kRawBytes = kKeys * kHeadDim;  // of K or V as fp8
  static constexpr int kCellBytes = kWiden ? kRawBytes : kTileBytes;
  static constexpr int kStageBytes = 2 * kCellBytes;

  // Shared memory: exchanged scores | places of the keys | widened tile | query rows | stages.
  static constexpr int kScorePitch = kKeys + 8;  // floats; rows 8 banks apart
  static constexpr int kPlacesAt = 16 * kScorePitch * 4;
  static constexpr int kWideAt = kPlacesAt + kMaxStages * kKeys * int(sizeof(KeyPlace));
  static constexpr int kQueryAt = kWideAt + (kWiden ? 2 * kTileBytes : 0);
  // Query rows are read from there at every tile where registers cannot hold them; otherwise they come
  // through the widened tile, or the last stage.
  static constexpr int query_bytes(int tile_rows) {
    return tile_rows > (kHeadDim > 128 ? 16 : 64) ? tile_rows * kPitch : 0;
  }
  static constexpr int smem_bytes(int tile_rows, int stages) {
    return kQueryAt + query_bytes(tile_rows) + stages * kStageBytes;
  }

  SKV_DEVICE static uint32_t at(int row, int chunk) {
    return uint32_t(row * kPitch + (kSwizzle ? (chunk ^ (row & 7)) : chunk) * 16);
  }
  // The shared address `chunks` further along the row of an address from at(row, chunk), where chunk and
  // chunks have no bit in common: one instruction, so that no register holds the place of every chunk.
  SKV_DEVICE static uint32_t along(uint32_t address, int chunks) {
    return kSwizzle ? (address ^ uint32_t(chunks % 8 * 16)) + uint32_t(chunks / 8 * 128)
                    : address + uint32_t(chunks * 16);
  }
};

// 16 bytes of a row to shared memory: asynchronously where the source is aligned; zeros where `pred` is
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

template <class Tile, class T, int kHeadDim>
SKV_DEVICE void load_query(const AttentionLaunch& launch, const AttentionItem& item, int group, int rows,
                           unsigned char* to, int thread) {
  const DeltaPrefillParams& p = launch.p;
  for (int i = thread; i < rows * (kHeadDim / 8); i += kAttentionThreads) {
    const int row = i / (kHeadDim / 8), chunk = i % (kHeadDim / 8);
    const bool there = row < item.num_rows;
    const T* src = static_cast<const T*>(p.query.data) + query_offset(p.query, item, group, there ? row : 0);
    copy_chunk<T>(to, Tile::at(row, chunk), src + chunk * 8, launch.query_aligned, there);
  }
}

// The block table's entry for `key`, or -1 where the item does not read it.
SKV_DEVICE int block_of(const AttentionLaunch& launch, const AttentionItem& item, int key) {
  const int index = key >> launch.block_shift;
  if (key < item.key_begin || key >= item.key_end || index >= launch.p.max_blocks) return -1;
  return launch.p.block_table[item.b * launch.p.block_table_stride + index];
}

// Notes where a tile's keys lie.  Whole warps; one thread a key, `block` is block_of the thread's.
template <class Tile>
SKV_DEVICE void place_keys(const AttentionLaunch& launch, const AttentionItem& item, AttentionShared& shared,
                           KeyPlace* places, int tile, int block, int thread) {
  const DeltaPrefillParams& p = launch.p;
  if (thread >= Tile::kKeys) return;
  const bool there = in_range(block, p.cache.num_blocks);
  const unsigned bits = __ballot_sync(kFullMask, there);
  if (thread % kWarpSize == 0) shared.exists[tile % kExistsRing][thread / kWarpSize] = bits;
  const int64_t within = (tile * Tile::kKeys + thread) & (p.cache.block_size - 1);
  const auto offset = [&](const CacheView& v) {
    return block * v.block_stride + within * v.token_stride + item.kv_head * v.head_stride;
  };
  places[tile % kMaxStages * Tile::kKeys + thread] =
      there ? KeyPlace{offset(p.k_cache), offset(p.v_cache)} : KeyPlace{-1, -1};
}

// Starts the copy of a tile whose keys have been placed.
template <class Tile, class Cell, int kHeadDim, int kUnroll>
SKV_DEVICE void load_tile(const AttentionLaunch& launch, const KeyPlace* places, unsigned char* stage,
                          int tile, int thread) {
  constexpr int kCount = 16 / int(sizeof(Cell)), kChunks = kHeadDim / kCount;
  const Cell* k_cache = static_cast<const Cell*>(launch.p.k_cache.data);
  const Cell* v_cache = static_cast<const Cell*>(launch.p.v_cache.data);
  const KeyPlace* of_tile = places + tile % kMaxStages * Tile::kKeys;
#pragma unroll(kUnroll)
  for (int i = thread; i < Tile::kKeys * kChunks; i += kAttentionThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const KeyPlace place = of_tile[row];
    const bool there = place.k >= 0;
    const uint32_t offset = Tile::kWiden ? uint32_t(row * kHeadDim + chunk * 16) : Tile::at(row, chunk);
    copy_chunk<Cell>(stage, offset, k_cache + (there ? place.k + chunk * kCount : 0), launch.kv_aligned,
                     there);
    copy_chunk<Cell>(stage + Tile::kCellBytes, offset, v_cache + (there ? place.v + chunk * kCount : 0),
                     launch.kv_aligned, there);
  }
}

// Waits until all but this thread's newest `pending` groups of copies are there.
SKV_DEVICE void wait_for_copies(int pending) {
  static_assert(kMaxStages == 4, "a case each");
  switch (pending) {
    case 0:
      return prim::cp_async_wait<0>();
    case 1:
      return prim::cp_async_wait<1>();
    case 2:
      return prim::cp_async_wait<2>();
    default:
      return prim::cp_async_wait<3>();
  }
}

// fp8 K and V of a stage to T; eight elements a thread and step.
template <class Tile, class T, int kHeadDim>
SKV_DEVICE void widen_tile(const unsigned char* raw, unsigned char* wide, int thread) {
  constexpr int kChunks = kHeadDim / 8;
#pragma unroll 1
  for (int i = thread; i < 2 * Tile::kKeys * kChunks; i += kAttentionThreads) {
    const int which = i / (Tile::kKeys * kChunks), rest = i % (Tile::kKeys * kChunks);
    const int row = rest / kChunks, chunk = rest % kChunks;
    const unsigned char* from = raw + which * Tile::kRawBytes + row * kHeadDim + chunk * 8;
    const Vector<__nv_fp8x2_storage_t, 4> x =
        load_vector<__nv_fp8x2_storage_t, 4>(reinterpret_cast<const __nv_fp8x2_storage_t*>(from));
    Vector<T, 8> y;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(x.at[e], __NV_E4M3);
      y.at[2 * e] = from_float<T>(__half2float(__half(__half_raw{pair.x})));
      y.at[2 * e + 1] = from_float<T>(__half2float(__half(__half_raw{pair.y})));
    }
    store_vector<T, 8>(reinterpret_cast<T*>(wide + which * Tile::kTileBytes + Tile::at(row, chunk)), y);
  }
}

}  // namespace cuda
}  // namespace skv
