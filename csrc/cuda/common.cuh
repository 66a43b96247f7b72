// What the kernels share: conversions, 16-byte vectors, cache rows and the dispatch on a dtype.
#pragma once

#include <algorithm>
#include <cstring>

#include "../core/backend.h"
#include "alignment.h"
#include "prim.cuh"

namespace skv {
namespace cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;

SKV_DEVICE float to_float(float x) { return x; }
SKV_DEVICE float to_float(__half x) { return __half2float(x); }
SKV_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
SKV_DEVICE float to_float(__nv_fp8_e4m3 x) { return float(x); }

template <class T>
SKV_DEVICE T from_float(float x) {
  if constexpr (std::is_same<T, __half>::value) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same<T, __nv_bfloat16>::value) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same<T, __nv_fp8_e4m3>::value) {
    __nv_fp8_e4m3 y;
    y.__x = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
    return y;
  } else {
    return x;
  }
}

// kCount consecutive elements, moved as one access: the address has to be aligned to the whole.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T at[kCount];
};

template <class T, int kCount>
SKV_DEVICE Vector<T, kCount> load_vector(const T* p) {
  Vector<T, kCount> v;
  if constexpr (sizeof v == 16) {  // through the built-in types, which compilers reliably move in one access
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    memcpy(static_cast<void*>(v.at), &raw, 16);
  } else if constexpr (sizeof v == 8) {
    const uint2 raw = *reinterpret_cast<const uint2*>(p);
    memcpy(static_cast<void*>(v.at), &raw, 8);
  } else if constexpr (sizeof v == 4) {
    const uint32_t raw = *reinterpret_cast<const uint32_t*>(p);
    memcpy(static_cast<void*>(v.at), &raw, 4);
  } else {
    for (int i = 0; i < kCount; ++i) v.at[i] = p[i];
  }
  return v;
}

template <class T, int kCount>
SKV_DEVICE void store_vector(T* p, const Vector<T, kCount>& v) {
  if constexpr (sizeof v == 16) {
    uint4 raw;
    memcpy(&raw, v.at, 16);
    *reinterpret_cast<uint4*>(p) = raw;
  } else if constexpr (sizeof v == 8) {
    uint2 raw;
    memcpy(&raw, v.at, 8);
    *reinterpret_cast<uint2*>(p) = raw;
  } else if constexpr (sizeof v == 4) {
    uint32_t raw;
    memcpy(&raw, v.at, 4);
    *reinterpret_cast<uint32_t*>(p) = raw;
  } else {
    for (int i = 0; i < kCount; ++i) p[i] = v.at[i];
  }
}

// Elements between the start of the cache and the row of `slot` (not negative, in range) for head 0.
SKV_DEVICE int64_t slot_offset(const CacheView& cache, const CacheShape& shape, int64_t slot) {
  int64_t block, offset;
  if ((slot >> 32) == 0) {  // a 64-bit division costs more than the rest of the address
    block = uint32_t(slot) / uint32_t(shape.block_size);
    offset = uint32_t(slot) % uint32_t(shape.block_size);
  } else {
    block = slot / shape.block_size;
    offset = slot % shape.block_size;
  }
  return block * cache.block_stride + offset * cache.token_stride;
}

SKV_DEVICE float scale_of(const ScaleView& scale, int64_t batch, int head) {
  return scale.data ? scale.data[batch * scale.batch_stride + head * scale.head_stride] : 1.f;
}

// Out-of-range indices are skipped; a debug build stops at them.
SKV_DEVICE void out_of_range() {
#if defined(SKV_DEBUG)
  __trap();
#endif
}

// Negative ones ask to be skipped.
SKV_DEVICE bool in_range(int64_t index, int64_t limit) {
  const bool ok = uint64_t(index) < uint64_t(limit);
  if (!ok && index >= 0) out_of_range();
  return ok;
}

// Whether begin .. end - 1 is a range below limit; of cumulative counts, and not one of another's.
SKV_DEVICE bool in_order(int64_t begin, int64_t end, int64_t limit) {
  const bool ok = 0 <= begin && begin <= end && end <= limit;
  if (!ok) out_of_range();
  return ok;
}

// ---- host ----

template <class T>
struct Tag {
  using type = T;
};

// Calls f(Tag<T>) with the type of a float32, float16 or bfloat16 tensor.
template <class F>
void by_float_type(DType dtype, F f) {
  if (dtype == DType::kFloat16) {
    f(Tag<__half>{});
  } else if (dtype == DType::kBFloat16) {
    f(Tag<__nv_bfloat16>{});
  } else {
    f(Tag<float>{});
  }
}

// Calls f(Tag<U>) with an unsigned type of the element's size, for copies.
template <class F>
void by_element_size(DType dtype, F f) {
  const int64_t size = element_size(dtype);
  if (size == 1) {
    f(Tag<uint8_t>{});
  } else if (size == 2) {
    f(Tag<uint16_t>{});
  } else {
    f(Tag<uint32_t>{});
  }
}

inline unsigned ceil_div(int64_t a, int64_t b) { return unsigned((a + b - 1) / b); }

}  // namespace cuda
}  // namespace skv
