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
  const T* weight = static_cast<const T*>(p.weight);
  HeldGroups<T> held, held_weight;
  prim::launch_dependents();
  hold_weight<T, kWide>(held_weight, weight, p.hidden);
  prim::wait_for_grids();
  float squares = 0.f;
  for_each_group<T>(p.hidden, [&](int64_t at, int i) {
    held[i] = load_group<T, kWide>(x, at, p.hidden);
    add_squares<T>(squares, held[i]);
  });
  write_norm<T, kWide>(out, x, weight, held, held_weight, p.hidden, p.epsilon, squares);
}

}  // namespace cuda
}  // namespace skv
