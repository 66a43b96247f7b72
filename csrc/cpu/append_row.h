// What append_kv and rope_append_kv share: the slot check and the store of one head's row into its slot.
#pragma once
#include "simd.h"

namespace skv::cpu {
// In index_error.cpp, compiled once: throws IndexError("slot_mapping[3] is 99, expected ... below 64").
[[noreturn]] void throw_index_error(const char* arg, int64_t index, int64_t value, const char* expected,
                                    int64_t limit);
}  // namespace skv::cpu

namespace skv::cpu::SKV_ISA {

inline void check_slots(const AppendKvParams& p) {
  const int64_t num_slots = p.cache.num_blocks * p.cache.block_size;
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    if (p.slot_mapping[t] >= num_slots) {
      throw_index_error("slot_mapping", t, p.slot_mapping[t], "a negative slot or one below", num_slots);
    }
  }
}

template <class T>
const T* head_row(const HeadsView& v, int64_t token, int64_t head) {
  return static_cast<const T*>(v.data) + token * v.token_stride + head * v.head_stride;
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
void append_row(const CacheShape& shape, const CacheView& cache, int64_t slot, int64_t head, const T* row,
                float scale) {
  C* dst = slot_row<C>(shape, cache, slot, head);
  if constexpr (sizeof(C) == sizeof(T)) {
    std::memcpy(dst, row, sizeof(T) * static_cast<size_t>(shape.head_dim));
  } else {
    for (int i = 0; i < shape.head_dim; ++i) dst[i] = from_float<C>(to_float(row[i]) / scale);
  }
}

}  // namespace skv::cpu::SKV_ISA
