// copy_blocks: whole blocks, or their first tokens, in every layer.
//
// A CTA copies one tile of one block of one cache; a thread kCopyUnroll units (16 bytes, or one element where
// the layout is not aligned), all loaded before the first is stored.  Pairs with an id out of range are
// skipped.
#pragma once

#include "layer_table.cuh"

namespace skv {
namespace cuda {

constexpr int kCopyThreads = 256;
constexpr int kCopyUnroll = 4;
constexpr int kCopyTile = kCopyThreads * kCopyUnroll;

struct CopyBlocksLaunch {
  WithLayers<CopyBlocksParams> layers;
  int unit_elements;
  unsigned tiles_per_block;
};

template <class Unit>
__global__ void __launch_bounds__(kCopyThreads)
    copy_blocks_kernel(const __grid_constant__ CopyBlocksLaunch launch) {
  const CopyBlocksParams& p = launch.layers.p;
  const int64_t pair = blockIdx.x / launch.tiles_per_block;
  const unsigned tile = blockIdx.x % launch.tiles_per_block;
  const int64_t src = p.src_blocks[pair], dst = p.dst_blocks[pair];
  if (!in_range(src, p.cache.num_blocks) || !in_range(dst, p.cache.num_blocks)) return;

  const CacheView& layout = blockIdx.y % 2 ? p.v_layout : p.k_layout;
  const int64_t size = element_size(p.cache.dtype);
  char* cache = static_cast<char*>(launch.layers.caches[blockIdx.y]);
  const char* from = cache + src * layout.block_stride * size;
  char* to = cache + dst * layout.block_stride * size;

  const unsigned heads = unsigned(p.cache.num_kv_heads);
  const unsigned units_per_row = unsigned(p.cache.head_dim / launch.unit_elements);
  const int num_tokens = p.num_tokens ? min(p.num_tokens[pair], p.cache.block_size) : p.cache.block_size;
  if (p.num_tokens) in_order(0, p.num_tokens[pair], p.cache.block_size);  // a debug build stops
  const int num_units = num_tokens * int(heads * units_per_row);

  Unit unit[kCopyUnroll];
  int64_t offset[kCopyUnroll];  // in bytes
#pragma unroll
  for (int i = 0; i < kCopyUnroll; ++i) {
    const unsigned at = tile * kCopyTile + i * kCopyThreads + threadIdx.x;
    if (int(at) >= num_units) break;
    const unsigned row = at / units_per_row, in_row = at % units_per_row;
    const unsigned token = row / heads, head = row % heads;
    offset[i] =
        (token * layout.token_stride + head * layout.head_stride + in_row * launch.unit_elements) * size;
    unit[i] = *reinterpret_cast<const Unit*>(from + offset[i]);
  }
#pragma unroll
  for (int i = 0; i < kCopyUnroll; ++i) {
    const unsigned at = tile * kCopyTile + i * kCopyThreads + threadIdx.x;
    if (int(at) >= num_units) break;
    *reinterpret_cast<Unit*>(to + offset[i]) = unit[i];
  }
}

}  // namespace cuda
}  // namespace skv
