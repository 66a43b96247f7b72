// Sums over a CTA.
#pragma once

#include "common.cuh"

namespace skv {
namespace cuda {

// The sum of the values of all threads before this one; `total` that of all.  Whole CTA.
template <int kThreads>
SKV_DEVICE int64_t exclusive_sum(int64_t value, int64_t& total) {
  constexpr int kWarps = kThreads / kWarpSize;
  SKV_SHARED(warp_sums, int64_t[kWarps]);
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
  int64_t sum = value;
  for (int d = 1; d < kWarpSize; d *= 2) {
    const int64_t before = __shfl_up_sync(kFullMask, sum, unsigned(d));
    if (lane >= d) sum += before;
  }
  __syncthreads();  // of the previous call
  if (lane == kWarpSize - 1) warp_sums[warp] = sum;
  __syncthreads();
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) sum += total;
    total += warp_sums[w];
  }
  return sum - value;
}

}  // namespace cuda
}  // namespace skv
