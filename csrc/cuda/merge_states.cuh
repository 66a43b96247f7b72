// merge_states: attention over two disjoint key sets combined by their log-sum-exps.
//
// A group of `width` lanes works on one row (token and head), a lane on every width-th vector of it.  Of two
// finite states the weights are 1 / (1 + exp(difference)); a state that saw nothing (lse -inf) has no
// influence, whatever its out holds.  out may be out_a or out_b, lse may be lse_a or lse_b.
#pragma once

#include "common.cuh"

namespace skv {
namespace cuda {

constexpr int kMergeThreads = 128;

struct MergeStatesLaunch {
  MergeStatesParams p;
  int width;  // lanes per row, a power of two
};

template <class T, int kCount>
__global__ void __launch_bounds__(kMergeThreads)
    merge_states_kernel(const __grid_constant__ MergeStatesLaunch launch) {
  const MergeStatesParams& p = launch.p;
  const int64_t row = (int64_t(blockIdx.x) * kMergeThreads + threadIdx.x) / launch.width;
  const int lane = int(threadIdx.x) % launch.width;
  const bool active = row < p.total_q * p.num_heads;
  const int64_t token = row / p.num_heads, head = row % p.num_heads;

  float lse_a = -INFINITY, lse_b = -INFINITY;
  if (active) {
    lse_a = p.lse_a[head * p.lse_a_stride + token];
    lse_b = p.lse_b[head * p.lse_b_stride + token];
  }
  __syncwarp();  // lse may be lse_a: everyone has read before one lane writes
  if (!active) return;
  const bool a_larger = lse_a >= lse_b;
  const float larger_lse = a_larger ? lse_a : lse_b, smaller_lse = a_larger ? lse_b : lse_a;
  const float ratio = smaller_lse == -INFINITY ? 0.f : expf(smaller_lse - larger_lse);  // <= 1
  const float larger = 1.f / (1.f + ratio), smaller = ratio * larger;
  const float weight_a = a_larger ? larger : smaller, weight_b = a_larger ? smaller : larger;
  const bool use_a = lse_a != -INFINITY, use_b = lse_b != -INFINITY;
  if (lane == 0) p.lse[head * p.lse_stride + token] = larger_lse + log1pf(ratio);

  const T* a =
      static_cast<const T*>(p.out_a.data) + token * p.out_a.token_stride + head * p.out_a.head_stride;
  const T* b =
      static_cast<const T*>(p.out_b.data) + token * p.out_b.token_stride + head * p.out_b.head_stride;
  T* out = static_cast<T*>(p.out.data) + token * p.out.token_stride + head * p.out.head_stride;
  for (int at = lane * kCount; at < p.head_dim; at += launch.width * kCount) {
    const Vector<T, kCount> x = load_vector<T, kCount>(a + at), y = load_vector<T, kCount>(b + at);
    Vector<T, kCount> z;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const float from_a = use_a ? weight_a * to_float(x.at[e]) : 0.f;
      const float from_b = use_b ? weight_b * to_float(y.at[e]) : 0.f;
      z.at[e] = from_float<T>(from_a + from_b);
    }
    store_vector<T, kCount>(out + at, z);
  }
}

}  // namespace cuda
}  // namespace skv
