// fused_add_rms_norm: a CTA per row (norm_row.cuh).  The sum is rounded to the residual's dtype, and it is
// that what the norm sees; a thread reads back what it wrote itself.
#pragma once

#include "norm_row.cuh"

namespace skv {
namespace cuda {

template <class T, bool kWide>
__global__ void __launch_bounds__(kNormMaxWarps* kWarpSize)
    fused_add_rms_norm_kernel(const __grid_constant__ FusedAddRmsNormParams p) {
  T* x = static_cast<T*>(p.input) + int64_t(blockIdx.x) * p.input_stride;
  T* residual = static_cast<T*>(p.residual) + int64_t(blockIdx.x) * p.residual_stride;
  const T* weight = static_cast<const T*>(p.weight);
  HeldGroups<T> sum, held_weight;
  prim::launch_dependents();
  hold_weight<T, kWide>(held_weight, weight, p.hidden);
  prim::wait_for_grids();
  float squares = 0.f;
  for_each_group<T>(p.hidden, [&](int64_t at, int i) {
    const Vector<T, kGroup<T>> v = load_group<T, kWide>(x, at, p.hidden);
    sum[i] = load_group<T, kWide>(residual, at, p.hidden);
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) {
      sum[i].at[e] = from_float<T>(to_float(sum[i].at[e]) + to_float(v.at[e]));
      squares += to_float(sum[i].at[e]) * to_float(sum[i].at[e]);
    }
    store_group<T, kWide>(residual, at, p.hidden, sum[i]);
  });
  write_norm<T, kWide>(x, residual, weight, sum, held_weight, p.hidden, p.epsilon, squares);
}

}  // namespace cuda
}  // namespace skv
