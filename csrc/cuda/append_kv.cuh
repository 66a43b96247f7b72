// append_kv: key and value rows into their slots of the cache, copied bitwise or quantised to fp8.
//
// One warp per token and per kVectorsPerLane * 32 vectors of its row; a lane has all its loads of key and
// value in flight before the first store.  Slots that are negative or past the cache are skipped.
#pragma once

#include "common.cuh"

namespace skv {
namespace cuda {

constexpr int kAppendWarps = 4;
constexpr int kAppendVectorsPerLane = 2;

// Row is the type of key and value, Cell that of the cache: the same unsigned type for copies.
template <class Row, class Cell, int kCount>
__global__ void __launch_bounds__(kAppendWarps* kWarpSize)
    append_kv_kernel(const __grid_constant__ AppendKvParams p) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const int64_t token = int64_t(blockIdx.x) * kAppendWarps + int(threadIdx.x) / kWarpSize;
  if (token >= p.num_tokens) return;
  const int64_t slot = p.slot_mapping[token];
  if (!in_range(slot, p.cache.num_blocks * p.cache.block_size)) return;

  const int vectors_per_head = p.cache.head_dim / kCount;
  const int num_vectors = vectors_per_head * p.cache.num_kv_heads;
  const Row* key = static_cast<const Row*>(p.key.data) + token * p.key.token_stride;
  const Row* value = static_cast<const Row*>(p.value.data) + token * p.value.token_stride;
  Cell* k_cache = static_cast<Cell*>(p.k_cache.data) + slot_offset(p.k_cache, p.cache, slot);
  Cell* v_cache = static_cast<Cell*>(p.v_cache.data) + slot_offset(p.v_cache, p.cache, slot);

  Vector<Row, kCount> k[kAppendVectorsPerLane], v[kAppendVectorsPerLane];
  const int first = int(blockIdx.y) * kAppendVectorsPerLane * kWarpSize + lane;
#pragma unroll
  for (int i = 0; i < kAppendVectorsPerLane; ++i) {
    const int vector = first + i * kWarpSize;
    if (vector >= num_vectors) break;
    const int head = vector / vectors_per_head, at = vector % vectors_per_head * kCount;
    k[i] = load_vector<Row, kCount>(key + head * p.key.head_stride + at);
    v[i] = load_vector<Row, kCount>(value + head * p.value.head_stride + at);
  }
#pragma unroll
  for (int i = 0; i < kAppendVectorsPerLane; ++i) {
    const int vector = first + i * kWarpSize;
    if (vector >= num_vectors) break;
    const int head = vector / vectors_per_head, at = vector % vectors_per_head * kCount;
    Vector<Cell, kCount> k_out, v_out;
    if constexpr (std::is_same<Row, Cell>::value) {
      k_out = k[i];
      v_out = v[i];
    } else {
      const float k_scale = scale_of(p.k_scale, 0, head), v_scale = scale_of(p.v_scale, 0, head);
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        k_out.at[e] = from_float<Cell>(to_float(k[i].at[e]) / k_scale);
        v_out.at[e] = from_float<Cell>(to_float(v[i].at[e]) / v_scale);
      }
    }
    store_vector<Cell, kCount>(k_cache + head * p.k_cache.head_stride + at, k_out);
    store_vector<Cell, kCount>(v_cache + head * p.v_cache.head_stride + at, v_out);
  }
}

}  // namespace cuda
}  // namespace skv
