// What rms_norm, fused_add_rms_norm and fused_row_linear share: one row, whose bits depend on that row and
// the weight alone.
//
// The order of the sum of squares: four vectors of partial sums take the row's vectors in turn, the last of
// them what is left over; then ((0 + 1) + (2 + 3)) and across the lanes. It depends on the row's length only.
#pragma once
#include "simd.h"

namespace skv::cpu::SKV_ISA {

template <class T>
float sum_of_squares(const T* x, int64_t n) {
  Vec part[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Vec a = load(x + i + v * kLanes);
      part[v] = fma(a, a, part[v]);
    }
  }
  for (int v = 0; i < n; i += kLanes, ++v) {
    alignas(64) float rest[kLanes] = {};
    load_row(rest, x + i, n - i < kLanes ? static_cast<int>(n - i) : kLanes);
    const Vec a = load(rest);
    part[v] = fma(a, a, part[v]);
  }
  return sum(add(add(part[0], part[1]), add(part[2], part[3])));
}

// out = x / sqrt(mean(x^2) + epsilon) * weight; out may be x.
template <class T>
void norm_row(T* out, const T* x, const T* weight, int64_t n, float epsilon) {
  const float scale = 1.0f / __builtin_sqrtf(sum_of_squares(x, n) / static_cast<float>(n) + epsilon);
  const Vec scales = splat(scale);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, mul(mul(load(x + i), scales), load(weight + i)));
  for (; i < n; ++i) out[i] = from_float<T>(to_float(x[i]) * scale * to_float(weight[i]));
}

// to += x, rounded to T.
template <class T>
void add_row(T* to, const T* x, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, add(load(to + i), load(x + i)));
  for (; i < n; ++i) to[i] = from_float<T>(to_float(to[i]) + to_float(x[i]));
}

// Rows that are worth a thread of their own.
inline int64_t row_grain(int64_t elements_per_row) { return 1 + 32768 / (elements_per_row + 1); }

}  // namespace skv::cpu::SKV_ISA
