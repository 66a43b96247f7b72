// Whether rows of a tensor start at aligned addresses; without CUDA.
#pragma once

#include <initializer_list>

#include "../core/params.h"

namespace skv {
namespace cuda {

// Whether every row that starts at p plus multiples of the strides (in elements) is aligned to `bytes`.
inline bool aligned(const void* p, int64_t element_bytes, std::initializer_list<int64_t> strides,
                    int64_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % uintptr_t(bytes)) return false;
  for (int64_t s : strides) {
    if (s * element_bytes % bytes) return false;
  }
  return true;
}
inline bool aligned(const CacheView& v, int64_t element_bytes, int64_t bytes) {
  return aligned(v.data, element_bytes, {v.block_stride, v.token_stride, v.head_stride}, bytes);
}
inline bool aligned(const HeadsView& v, int64_t element_bytes, int64_t bytes) {
  return aligned(v.data, element_bytes, {v.token_stride, v.head_stride}, bytes);
}

}  // namespace cuda
}  // namespace skv
