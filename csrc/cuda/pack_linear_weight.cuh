// pack_linear_weight: a thread per kCount elements of the packed weight (row_linear.cuh describes it).
#pragma once

#include "row_linear.cuh"

namespace skv {
namespace cuda {

constexpr int kPackThreads = 256;

template <class U, int kCount>
__global__ void __launch_bounds__(kPackThreads)
    pack_linear_weight_kernel(const __grid_constant__ PackLinearWeightParams p) {
  const int64_t at = (int64_t(blockIdx.x) * kPackThreads + threadIdx.x) * kCount;
  const int64_t pitch = padded_k(p.dtype, p.k);
  if (at >= p.n * pitch) return;
  int64_t column, k;
  if (packs_blocks(p.dtype, p.n, p.k)) {
    const int64_t group = at / (kGroupColumns * p.k), within = at % (kGroupColumns * p.k);
    column = group * kGroupColumns + within / kBlockK % kGroupColumns;
    k = within / (kGroupColumns * kBlockK) * kBlockK + within % kBlockK;
  } else {
    column = at / pitch;
    k = at % pitch;
  }
  const U* from = static_cast<const U*>(p.weight) + column * p.weight_stride + k;
  U* to = static_cast<U*>(p.packed) + at;
  if constexpr (kCount > 1) {
    store_vector<U, kCount>(to, load_vector<U, kCount>(from));
  } else {
    *to = k < p.k ? *from : U(0);
  }
}

}  // namespace cuda
}  // namespace skv
