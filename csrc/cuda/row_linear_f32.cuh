// The kernel of row_linear for float32, on CUDA cores.
//
// An output element is a chain of fused multiply-adds over 128 elements of k from zero, in ascending order;
// the chains' sums are added in ascending order (one long chain would round worse than torch's); then the
// bias.  256 threads share a tile of 16 * kThreadRows rows and 64 columns, a thread every 16th of each; which
// rows a call has decides about the tile only.
#pragma once

#include "row_linear.cuh"

namespace skv {
namespace cuda {

constexpr int kF32Threads = 256, kF32Columns = 64, kF32Depth = 16, kF32Chain = 128;
constexpr int f32_rows(int thread_rows) { return 16 * thread_rows; }

struct RowLinearF32Launch {
  RowLinearParams p;
  int64_t weight_stride, row_tiles;
};

template <int kThreadRows>
struct F32Shared {  // an element more a line, so that neither the copies nor the reads share banks
  float x[kF32Depth][f32_rows(kThreadRows) + 1], weight[kF32Depth][kF32Columns + 1];
};

// kLines lines of kF32Depth elements from `from` on, zeros where there are none.
template <int kLines, int kWidth>
SKV_DEVICE void load_f32(float (&to)[kF32Depth][kWidth], const float* from, int64_t stride, int64_t left,
                         int64_t k_left) {
#pragma unroll
  for (int i = int(threadIdx.x); i < kLines * kF32Depth; i += kF32Threads) {
    const int line = i / kF32Depth, k = i % kF32Depth;
    to[k][line] = line < left && k < k_left ? from[line * stride + k] : 0.f;
  }
}

template <int kThreadRows>
__global__ void __launch_bounds__(kF32Threads)
    row_linear_f32_kernel(const __grid_constant__ RowLinearF32Launch launch) {
  const RowLinearParams& p = launch.p;
  SKV_SHARED(shared, F32Shared<kThreadRows>);
  const int r = int(threadIdx.x) / 16, c = int(threadIdx.x) % 16;
  const int64_t first_row = blockIdx.x % launch.row_tiles * f32_rows(kThreadRows);
  const int64_t first_column = blockIdx.x / launch.row_tiles * kF32Columns;
  const float* x = static_cast<const float*>(p.x) + first_row * p.x_stride;
  const float* weight = static_cast<const float*>(p.weight) + first_column * launch.weight_stride;

  float sum[kThreadRows][4] = {}, chain[kThreadRows][4] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kF32Depth) {
    __syncthreads();  // the tile before has been read
    load_f32<f32_rows(kThreadRows)>(shared.x, x + k0, p.x_stride, p.rows - first_row, p.k - k0);
    load_f32<kF32Columns>(shared.weight, weight + k0, launch.weight_stride, p.n - first_column, p.k - k0);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kF32Depth; ++k) {
#pragma unroll
      for (int i = 0; i < kThreadRows * 4; ++i) {
        float& to = chain[i / 4][i % 4];
        to = __fmaf_rn(shared.x[k][r + i / 4 * 16], shared.weight[k][c + i % 4 * 16], to);
      }
    }
    if ((k0 + kF32Depth) % kF32Chain == 0 || k0 + kF32Depth >= p.k) {
#pragma unroll
      for (int i = 0; i < kThreadRows * 4; ++i) {
        sum[i / 4][i % 4] = __fadd_rn(sum[i / 4][i % 4], chain[i / 4][i % 4]);
        chain[i / 4][i % 4] = 0.f;
      }
    }
  }

  const float* bias = static_cast<const float*>(p.bias);
#pragma unroll
  for (int i = 0; i < kThreadRows * 4; ++i) {
    const int64_t row = first_row + r + i / 4 * 16, column = first_column + c + i % 4 * 16;
    if (row >= p.rows || column >= p.n) continue;
    const float value = sum[i / 4][i % 4];
    static_cast<float*>(p.out)[row * p.out_stride + column] = bias ? __fadd_rn(value, bias[column]) : value;
  }
}

}  // namespace cuda
}  // namespace skv
