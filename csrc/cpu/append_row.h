// What append_kv and rope_append_kv share: the slot check, who writes which slot, and the store of one head's
// row into its slot.
#pragma once
#include "index_check.h"
#include "simd.h"

namespace skv::cpu::SKV_ISA {

inline void check_slots(const AppendKvParams& p) {
  const int64_t num_slots = p.cache.num_blocks * p.cache.block_size;
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    if (p.slot_mapping[t] >= num_slots) {
      throw_index_error("slot_mapping", t, p.slot_mapping[t], "a negative slot or one below", num_slots);
    }
  }
}

// One worker owns a slot for the whole call and takes its tokens in order, so of a slot named twice the last
// token wins, on any number of threads. Hashed: decoding batches often sit at equal offsets of their blocks.
inline int64_t worker_of_slot(int64_t slot, int64_t num_workers) {
  const uint64_t hash = (static_cast<uint64_t>(slot) * 0x9e3779b97f4a7c15u) >> 32;
  return static_cast<int64_t>((hash * static_cast<uint64_t>(num_workers)) >> 32);
}

inline int64_t num_append_workers(int64_t elements, const Parallel& pool) {
  const int64_t wanted = 1 + elements / 16384;  // below that a thread costs more than it saves
  return wanted < pool.num_threads() ? wanted : pool.num_threads();
}

template <class T>
T* head_row(const HeadsView& v, int64_t token, int64_t head) {
  return static_cast<T*>(v.data) + token * v.token_stride + head * v.head_stride;
}

inline float scale_of(const ScaleView& scale, int64_t head) {
  return scale.data ? scale.data[head * scale.head_stride] : 1.0f;
}

template <class C>
C* slot_row(const CacheShape& shape, const CacheView& cache, int64_t slot, int64_t head) {
  const int64_t block = slot / shape.block_size, offset = slot % shape.block_size;
  return static_cast<C*>(cache.data) + block * cache.block_stride + offset * cache.token_stride +
         head * cache.head_stride;
}

// cache type == row type: a bitwise copy; fp8: value / scale, rounded and saturated.
template <class C, class T>
void append_row(C* dst, const T* row, int head_dim, float scale) {
  if constexpr (sizeof(C) == sizeof(T)) {
    std::memcpy(dst, row, sizeof(T) * static_cast<size_t>(head_dim));
  } else {
    const Vec divisor = splat(scale);
    int i = 0;
    for (; i + kLanes <= head_dim; i += kLanes) store(dst + i, div(load(row + i), divisor));
    for (; i < head_dim; ++i) dst[i] = from_float<C>(to_float(row[i]) / scale);
  }
}

}  // namespace skv::cpu::SKV_ISA
