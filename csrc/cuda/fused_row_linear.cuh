// fused_row_linear in one launch: a linear of up to 8 rows that normalises them itself, and multiplies or
// adds what it has summed (row_linear_stream.cuh).
//
// What it is for: between the linears of a decoder layer stand kernels that do next to nothing, and each of
// them costs a grid's end, the reading of what the one ahead wrote and the writing for the next one, 1.5 to
// 4 us, in which memory has only what the next linear's ring holds of weights, five microseconds' worth.
// Without them a linear waits for one grid and reads its rows once.
//
// Rows stay in shared memory for all units of a CTA.  Each CTA normalises all of them: 8 rows of 4,096 are
// 64 KB from the L2 cache, less than what the rows of a chunk at a time were.  The sums are those of
// rms_norm, to the bit.
#pragma once

#include "../core/fused_row_linear.h"
#include "norm_row.cuh"
#include "row_linear_stream.cuh"

namespace skv {
namespace cuda {

constexpr int kMostFusedRows = 8;
constexpr int kNormBarrier = 1;

// Rows in shared memory: boxes of 64 elements, in each a line of 128 bytes a row, swizzled.
struct StayingRows {
  unsigned char *rows, *norm_weight;
  int count;

  static constexpr int kPieces = kStreamBoxRowBytes / 16;

  SKV_DEVICE unsigned char* piece(int row, int i) const {
    return rows + (i / kPieces * count + row) * kStreamBoxRowBytes + (i % kPieces ^ row % kPieces) * 16;
  }
};

struct FusedShared {
  StreamShared stream;
  float squares[kMostFusedRows][kNormMaxWarps];
};
static_assert(kNormMaxWarps == kMostStreamWarps, "a warp for each of rms_norm's");

// x -> rows, normalised, by kMostStreamWarps warps, each of which does for every row what a warp of
// rms_norm's does; a lane's pieces are nobody else's until all are through.  Everything but the reading is
// done twice, first with zeros: when the rows come, and everyone waits, its instructions need not be fetched
// from behind the weights.
template <class T>
SKV_DEVICE void normalise_rows(const StreamLaunch& launch, FusedShared& shared, const StayingRows& to,
                               int warp) {
  const RowLinearParams& p = launch.l.p;
  const int lane = int(threadIdx.x) % kWarpSize, pieces = int(p.k) / kGroup<T>;
  const auto each_piece = [&](auto f) {
#pragma unroll 2
    for (int i = warp * kWarpSize + lane; i < pieces; i += kNormMaxWarps * kWarpSize) f(i);
  };
  const auto load = [&](const unsigned char* at) {
    return load_vector<T, kGroup<T>>(reinterpret_cast<const T*>(at));
  };
  each_piece([&](int i) {
    prim::cp_async16(prim::smem_u32(to.norm_weight + i * 16),
                     static_cast<const T*>(launch.norm_weight) + i * kGroup<T>);
    for (int row = 0; row < to.count; ++row) {
      store_vector(reinterpret_cast<T*>(to.piece(row, i)), Vector<T, kGroup<T>>{});
    }
  });

#pragma unroll 1
  for (int round = 0; round < 2; ++round) {
    if (round == 1) {
      prim::wait_for_grids();
      each_piece([&](int i) {
        const T* from = static_cast<const T*>(p.x) + i * kGroup<T>;
        for (int row = 0; row < to.count; ++row, from += p.x_stride) {
          prim::cp_async16(prim::smem_u32(to.piece(row, i)), from);
        }
      });
      prim::cp_async_commit();
      prim::cp_async_wait<0>();
    }
#pragma unroll 1
    for (int row = 0; row < to.count; row += 2) {  // two at a time: their sums go side by side
      const int next = min(row + 1, to.count - 1);
      float squares = 0.f, next_squares = 0.f;
      each_piece([&](int i) {
        add_squares<T>(squares, load(to.piece(row, i)));
        add_squares<T>(next_squares, load(to.piece(next, i)));
      });
      squares = sum_over_warp(squares);
      next_squares = sum_over_warp(next_squares);
      if (lane == 0) {
        shared.squares[row][warp] = squares;
        shared.squares[next][warp] = next_squares;
      }
    }
    prim::named_barrier_sync(kNormBarrier, kNormMaxWarps * kWarpSize);
    float squares = 0.f;  // of row `lane`
#pragma unroll
    for (int w = 0; w < kNormMaxWarps; ++w) squares += shared.squares[min(lane, to.count - 1)][w];
    const float scale = norm_scale(squares, p.k, launch.epsilon);
#pragma unroll 1
    for (int row = 0; row < to.count; ++row) {
      const float of_row = __shfl_sync(kFullMask, scale, row);
      each_piece([&](int i) {
        auto v = load(to.piece(row, i));
        scale_group<T>(v, of_row, load(round == 0 ? to.piece(row, i) : to.norm_weight + i * 16));
        store_vector(reinterpret_cast<T*>(to.piece(row, i)), v);
      });
    }
    prim::named_barrier_sync(kNormBarrier, kNormMaxWarps * kWarpSize);
  }
}

constexpr int kFusedThreads = (kMostStreamWarps + 1) * kWarpSize;

template <class T>
__global__ void __launch_bounds__(kFusedThreads, 1)
    fused_row_linear_kernel(const __grid_constant__ StreamLaunch launch) {
  SKV_DYNAMIC_SMEM(smem);
  SKV_SHARED(shared, FusedShared);
  const RowLinearParams& p = launch.l.p;
  const int warp = __shfl_sync(kFullMask, int(threadIdx.x) / kWarpSize, 0);
  const int ring = launch.stages * StreamStage<kMostFusedRows, true>::bytes(launch.warps);
  const StayingRows rows{smem + ring, smem + ring + p.rows * p.k * int64_t(sizeof(T)), int(p.rows)};
  init_stream<true>(launch, shared.stream);
  if (warp == kMostStreamWarps) {
    if (threadIdx.x % kWarpSize == 0) {
      copy_stream<kMostFusedRows, true>(launch, shared.stream, prim::smem_u32(smem));
    }
    return;
  }
  normalise_rows<T>(launch, shared, rows, warp);
  if (warp < launch.warps) {
    sum_stream<T, kMostFusedRows, true>(launch, shared.stream, prim::smem_u32(smem),
                                        prim::smem_u32(rows.rows), warp);
  }
}

// out += x: a thread per element.
constexpr int kAddThreads = 256;

template <class T>
__global__ void __launch_bounds__(kAddThreads) add_rows_kernel(const __grid_constant__ AddRowsParams p) {
  const int64_t column = int64_t(blockIdx.y) * kAddThreads + threadIdx.x;
  if (column >= p.columns) return;
  T& out = static_cast<T*>(p.out)[int64_t(blockIdx.x) * p.out_stride + column];
  const T x = static_cast<const T*>(p.x)[int64_t(blockIdx.x) * p.columns + column];
  out = from_float<T>(to_float(out) + to_float(x));
}

}  // namespace cuda
}  // namespace skv
