// silu_and_mul: a thread per kCount elements of the output, rows along the grid's x.
#pragma once

#include "common.cuh"

namespace skv {
namespace cuda {

constexpr int kSiluThreads = 256;

template <class T>
SKV_DEVICE T silu_times(T gate, T up) {
  const float x = to_float(gate);
  return from_float<T>(x / (1.f + expf(-x)) * to_float(up));
}

template <class T, int kCount>
__global__ void __launch_bounds__(kSiluThreads)
    silu_and_mul_kernel(const __grid_constant__ SiluAndMulParams p) {
  prim::launch_dependents();
  prim::wait_for_grids();
  const int64_t at = (int64_t(blockIdx.y) * kSiluThreads + threadIdx.x) * kCount;
  if (at >= p.size) return;
  const T* gate = static_cast<const T*>(p.input) + int64_t(blockIdx.x) * p.input_stride + at;
  Vector<T, kCount> g = load_vector<T, kCount>(gate);
  const Vector<T, kCount> up = load_vector<T, kCount>(gate + p.size);
#pragma unroll
  for (int e = 0; e < kCount; ++e) g.at[e] = silu_times(g.at[e], up.at[e]);
  store_vector<T, kCount>(static_cast<T*>(p.out) + int64_t(blockIdx.x) * p.out_stride + at, g);
}

}  // namespace cuda
}  // namespace skv
