// compact_kv: the moves of every sequence, in every layer, in order.
//
// A thread owns one unit (16 bytes, or one element where the layout is not aligned) of a token's row in one
// cache and walks all moves of one sequence, so no two threads touch the same memory.  It loads kMoveBatch
// sources before it stores any; a source that an earlier move of the batch has written is taken from that
// move's register.
#pragma once

#include "layer_table.cuh"

namespace skv {
namespace cuda {

constexpr int kCompactThreads = 128;
constexpr int kMoveBatch = 4;

struct CompactKvLaunch {
  WithLayers<CompactKvParams> layers;
  int unit_elements;
  unsigned slices;  // CTAs that share a token's row
};

template <class Unit>
__global__ void __launch_bounds__(kCompactThreads)
    compact_kv_kernel(const __grid_constant__ CompactKvLaunch launch) {
  const CompactKvParams& p = launch.layers.p;
  const int64_t sequence = blockIdx.x / launch.slices;
  const unsigned at = blockIdx.x % launch.slices * kCompactThreads + threadIdx.x;
  const int64_t begin = p.cu_moves[sequence], end = p.cu_moves[sequence + 1];
  if (!in_order(begin, end, p.num_moves)) return;
  const unsigned units_per_row = unsigned(p.cache.head_dim / launch.unit_elements);
  if (begin == end || at >= units_per_row * unsigned(p.cache.num_kv_heads)) return;

  const CacheView& layout = blockIdx.y % 2 ? p.v_layout : p.k_layout;
  const int64_t size = element_size(p.cache.dtype), num_slots = p.cache.num_blocks * p.cache.block_size;
  const unsigned head = at / units_per_row, in_row = at % units_per_row;
  char* cache = static_cast<char*>(launch.layers.caches[blockIdx.y]) +
                (head * layout.head_stride + in_row * launch.unit_elements) * size;

  for (int64_t first = begin; first < end; first += kMoveBatch) {
    int64_t src[kMoveBatch], dst[kMoveBatch];
    Unit unit[kMoveBatch];
#pragma unroll
    for (int i = 0; i < kMoveBatch; ++i) {
      src[i] = dst[i] = -1;
      if (first + i >= end) continue;
      const int64_t s = p.src_slots[first + i], d = p.dst_slots[first + i];
      if (!in_range(s, num_slots) || !in_range(d, num_slots) || s == d) continue;
      src[i] = s;
      dst[i] = d;
      unit[i] = *reinterpret_cast<const Unit*>(cache + slot_offset(layout, p.cache, s) * size);
    }
#pragma unroll
    for (int i = 0; i < kMoveBatch; ++i) {
#pragma unroll
      for (int earlier = 0; earlier < i; ++earlier) {
        if (src[i] >= 0 && src[i] == dst[earlier]) unit[i] = unit[earlier];
      }
      if (dst[i] >= 0)
        *reinterpret_cast<Unit*>(cache + slot_offset(layout, p.cache, dst[i]) * size) = unit[i];
    }
  }
}

}  // namespace cuda
}  // namespace skv
