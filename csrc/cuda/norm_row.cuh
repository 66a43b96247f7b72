// What rms_norm and fused_add_rms_norm share, and in part fused_row_linear: a CTA per row, whose bits depend
// on that row and the weight alone.
//
// Thread t takes the row's groups of 16 bytes t, t + threads, ..., whether it loads them as one vector or
// element by element, so alignment has no part in the order of the sum either; then a butterfly within each
// warp, and the warps' sums in their order.
#pragma once

#include "common.cuh"

namespace skv {
namespace cuda {

constexpr int kNormMaxWarps = 8;

template <class T>
constexpr int kGroup = 16 / int(sizeof(T));

// Elements at ... of a row of `size`; past its end zeros.
template <class T, bool kWide>
SKV_DEVICE Vector<T, kGroup<T>> load_group(const T* row, int64_t at, int64_t size) {
  if constexpr (kWide) {
    return load_vector<T, kGroup<T>>(row + at);
  } else {
    Vector<T, kGroup<T>> v;
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) v.at[e] = at + e < size ? row[at + e] : from_float<T>(0.f);
    return v;
  }
}

template <class T, bool kWide>
SKV_DEVICE void store_group(T* row, int64_t at, int64_t size, const Vector<T, kGroup<T>>& v) {
  if constexpr (kWide) {
    store_vector<T, kGroup<T>>(row + at, v);
  } else {
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) {
      if (at + e < size) row[at + e] = v.at[e];
    }
  }
}

template <class T>
SKV_DEVICE void add_squares(float& squares, const Vector<T, kGroup<T>>& v) {
#pragma unroll
  for (int e = 0; e < kGroup<T>; ++e) squares += to_float(v.at[e]) * to_float(v.at[e]);
}

SKV_DEVICE float sum_over_warp(float x) {
#pragma unroll
  for (int o = kWarpSize / 2; o; o >>= 1) x += __shfl_xor_sync(kFullMask, x, o);
  return x;
}

// What a row is multiplied by, given its sum of squares.
SKV_DEVICE float norm_scale(float squares, int64_t hidden, float epsilon) {
  return rsqrtf(squares / float(hidden) + epsilon);
}

template <class T>
SKV_DEVICE void scale_group(Vector<T, kGroup<T>>& v, float scale, const Vector<T, kGroup<T>>& weight) {
#pragma unroll
  for (int e = 0; e < kGroup<T>; ++e)
    v.at[e] = from_float<T>(to_float(v.at[e]) * scale * to_float(weight.at[e]));
}

// The sum over the CTA, the same in every thread.
SKV_DEVICE float sum_over_cta(float x) {
  SKV_SHARED(warp_sums, float[kNormMaxWarps]);
  x = sum_over_warp(x);
  if (threadIdx.x % kWarpSize == 0) warp_sums[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  float total = 0.f;
  for (unsigned w = 0; w < blockDim.x / kWarpSize; ++w) total += warp_sums[w];
  return total;
}

// A row in groups, of which a thread keeps its first ones: f(at, i) of each, the i-th of the thread.
constexpr int kHeldGroups = 2;

template <class T, class F>
SKV_DEVICE void for_each_group(int64_t hidden, F f) {
  const int64_t first = int64_t(threadIdx.x) * kGroup<T>, step = int64_t(blockDim.x) * kGroup<T>;
#pragma unroll
  for (int i = 0; i < kHeldGroups; ++i) {
    if (first + i * step < hidden) f(first + i * step, i);
  }
  for (int64_t at = first + kHeldGroups * step; at < hidden; at += step) f(at, kHeldGroups);
}

template <class T>
using HeldGroups = Vector<T, kGroup<T>>[kHeldGroups + 1];  // the last one: of whatever is not kept

// The weight, of which nothing waits for a grid ahead.
template <class T, bool kWide>
SKV_DEVICE void hold_weight(HeldGroups<T>& held, const T* weight, int64_t hidden) {
  const int64_t step = int64_t(blockDim.x) * kGroup<T>;
#pragma unroll
  for (int i = 0; i < kHeldGroups; ++i) {
    const int64_t at = int64_t(threadIdx.x) * kGroup<T> + i * step;
    if (at < hidden) held[i] = load_group<T, kWide>(weight, at, hidden);
  }
}

// out = x / sqrt(mean(x^2) + epsilon) * weight, given the thread's share of the sum of squares and what it
// holds of both; out may be x.
template <class T, bool kWide>
SKV_DEVICE void write_norm(T* out, const T* x, const T* weight, const HeldGroups<T>& held_x,
                           const HeldGroups<T>& held_weight, int64_t hidden, float epsilon, float squares) {
  const float scale = norm_scale(sum_over_cta(squares), hidden, epsilon);
  for_each_group<T>(hidden, [&](int64_t at, int i) {
    Vector<T, kGroup<T>> v = i < kHeldGroups ? held_x[i] : load_group<T, kWide>(x, at, hidden);
    const Vector<T, kGroup<T>> w =
        i < kHeldGroups ? held_weight[i] : load_group<T, kWide>(weight, at, hidden);
    scale_group<T>(v, scale, w);
    store_group<T, kWide>(out, at, hidden, v);
  });
}

// Threads of a row: a function of its length alone, as the order of the sum depends on it.
template <class T>
int norm_threads(int64_t hidden) {
  const int64_t groups = (hidden + kGroup<T> - 1) / kGroup<T>;
  int warps = 1;
  while (warps < kNormMaxWarps && int64_t(warps) * kWarpSize < groups) warps *= 2;
  return warps * kWarpSize;
}

}  // namespace cuda
}  // namespace skv
