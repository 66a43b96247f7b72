// rms_norm: a CTA per row (norm_row.cuh).
#pragma once

#include "norm_row.cuh"

namespace skv {
namespace cuda {

template <class T, bool kWide>
__global__ void __launch_bounds__(kNormMaxWarps* kWarpSize)
    rms_norm_kernel(const __grid_constant__ RmsNormParams p) {
  const T* x = static_cast<const T*>(p.input) + int64_t(blockIdx.x) * p.input_stride;
  T* out = static_cast<T*>(p.out) + int64_t(blockIdx.x) * p.out_stride;
  prim::launch_dependents();
  prim::wait_for_grids();
  float squares = 0.f;
  for (int64_t at = int64_t(threadIdx.x) * kGroup<T>; at < p.hidden; at += int64_t(blockDim.x) * kGroup<T>) {
    const Vector<T, kGroup<T>> v = load_group<T, kWide>(x, at, p.hidden);
#pragma unroll
    for (int e = 0; e < kGroup<T>; ++e) squares += to_float(v.at[e]) * to_float(v.at[e]);
  }
  write_norm<T, kWide>(out, x, static_cast<const T*>(p.weight), p.hidden, p.epsilon, squares);
}

}  // namespace cuda
}  // namespace skv
