// The kernel of row_linear for few rows of fp16 and bf16 on sm_90: reads the weights at the speed
// of memory, and begins to before the rows are there.
//
// A CTA a multiprocessor takes units of 8 columns a warp, one after another.  One warp copies: chunks along k
// of the unit's columns and of the rows pass by TMA through a ring of stages in shared memory, unit after
// unit without a pause.  Each of the other warps sums its 8 columns, in the same order as every other tiling
// (row_linear.cuh): one chain of mma steps along k.
//
// What bounds it: 132 multiprocessors that are to read 4.3 TB/s take 33 bytes a nanosecond each, and a
// latency of 1 us under load asks for 33 KB in flight on each.  The ring keeps five times that on its way.  A
// warp's chain takes about 33 cycles a step of 8 columns x 16 x 2 bytes, so four warps go through 31 bytes a
// cycle where 18.5 arrive.
//
// Launched overlapped, a CTA fills its ring with weights while the grid ahead, which writes the rows, is
// still at work: 132 rings are 20 MB and more, five microseconds of reading.
#pragma once

#include "prim_hopper.cuh"
#include "row_linear_mma.cuh"

namespace skv {
namespace cuda {

constexpr int kMostStreamRows = 32, kMostStreamWarps = 8, kMostStreamStages = 16;
constexpr int kStreamChunk = 256;                                                  // elements of k in a stage
constexpr int kStreamBoxColumns = 64, kStreamBoxRowBytes = 2 * kStreamBoxColumns;  // what the swizzle spans

struct StreamLaunch {
  RowLinearLaunch l;
  prim::TensorMap x_map, weight_map;  // [k, rows] and [k, columns]
  int warps, stages;                  // that sum; of the ring
  int units;                          // of 8 columns a warp
  int prefill;                        // stages that are filled before the rows are there
  int trigger;                        // chunks left to ask for when the next grid may begin
};

struct StreamShared {
  uint64_t full[kMostStreamStages], empty[kMostStreamStages];
};

// A warp that sums has kRows rows, of which 8 are half of a step's, and 8 columns.
template <int kRows>
struct StreamTile {
  static constexpr int kWarpRows = kRows < 16 ? 16 : kRows, kWarpColumns = kGroupColumns,
                       kColumns = kMostStreamWarps * kGroupColumns;
};

// A stage is kBoxes boxes of 64 elements of k for the unit's columns, then as many for the rows: lines of 128
// bytes, swizzled.  Outside of the matrices there are zeros.
template <int kRows>
struct StreamStage {
  static constexpr int kBoxes = kStreamChunk / kStreamBoxColumns, kBlocks = kStreamChunk / kBlockK;
  static constexpr int kRowBox = kRows * kStreamBoxRowBytes;

  SKV_DEVICE static uint32_t weight_box(int warps) {
    return uint32_t(warps * kGroupColumns * kStreamBoxRowBytes);
  }
  static constexpr int bytes(int warps) {
    return kBoxes * (warps * kGroupColumns + kRows) * kStreamBoxRowBytes;
  }
};

struct StreamPlace {
  int slot = 0, parity = 0;

  SKV_DEVICE void next(int stages) {
    if (++slot < stages) return;
    slot = 0;
    parity ^= 1;
  }
};

// A chunk of a CTA's units, in their order.
struct StreamChunk {
  int64_t k = 0;
  int unit = int(blockIdx.x);

  SKV_DEVICE void next(int64_t k_end) {
    k += kStreamChunk;
    if (k < k_end) return;
    k = 0;
    unit += int(gridDim.x);
  }
  SKV_DEVICE static int count(const StreamLaunch& launch) {
    const int units = (launch.units - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x);
    return units * int((launch.l.p.k + kStreamChunk - 1) / kStreamChunk);
  }
};

// One lane copies.
template <int kRows>
SKV_DEVICE void copy_stream(const StreamLaunch& launch, StreamShared& shared, uint32_t ring) {
  using Stage = StreamStage<kRows>;
  const int64_t k_end = launch.l.p.k;
  const int stages = launch.stages, bytes = Stage::bytes(launch.warps);
  const uint32_t weight_box = Stage::weight_box(launch.warps);
  int left = StreamChunk::count(launch);
  const auto copy_weights = [&](const StreamChunk& chunk, int slot) {
    const uint32_t to = ring + uint32_t(slot * bytes), bar = prim::smem_u32(&shared.full[slot]);
    prim::mbar_arrive_expect_tx(bar, bytes);
#pragma unroll
    for (int i = 0; i < Stage::kBoxes; ++i) {
      const int at[2] = {int(chunk.k) + i * kStreamBoxColumns, chunk.unit * launch.warps * kGroupColumns};
      prim::tma_load_once<2>(to + uint32_t(i) * weight_box, &launch.weight_map, bar, at);
    }
    if (--left == launch.trigger) prim::launch_dependents();
  };
  const auto copy_rows = [&](const StreamChunk& chunk, int slot) {
    const uint32_t to = ring + uint32_t(slot * bytes) + Stage::kBoxes * weight_box,
                   bar = prim::smem_u32(&shared.full[slot]);
#pragma unroll
    for (int i = 0; i < Stage::kBoxes; ++i) {
      const int at[2] = {int(chunk.k) + i * kStreamBoxColumns, 0};
      prim::tma_load<2>(to + uint32_t(i * Stage::kRowBox), &launch.x_map, bar, at);
    }
  };
  if (left <= launch.trigger) prim::launch_dependents();
  StreamChunk weights, x;
  StreamPlace at;
  const int prefill = min(launch.prefill, left);
  for (int i = 0; i < prefill; ++i, weights.next(k_end), at.next(stages)) copy_weights(weights, i);
  prim::wait_for_grids();
  for (int i = 0; i < prefill; ++i, x.next(k_end)) copy_rows(x, i);
  for (; left > 0; weights.next(k_end), at.next(stages)) {
    prim::mbar_wait(prim::smem_u32(&shared.empty[at.slot]), at.parity ^ 1);
    copy_weights(weights, at.slot);
    copy_rows(weights, at.slot);
  }
}

// What a warp multiplies in a block of k: rows 0 to 7 alone come with one ldmatrix, more with one a step.
template <int kRows>
struct StreamFragments {
  static constexpr int kRowSteps = StreamTile<kRows>::kWarpRows / 16;
  uint32_t rows[2][kRowSteps][4], columns[4];

  // Where in a box this lane's line of ldmatrix begins, without what `half` of the box adds.
  SKV_DEVICE static uint32_t row_at(int lane) {
    const int row = kRows == 8 ? lane % 8 : lane % 16, piece = kRows == 8 ? lane / 8 : lane / 16;
    return uint32_t(row * kStreamBoxRowBytes + (piece ^ row % 8) * 16);
  }
  SKV_DEVICE static uint32_t column_at(int lane) {
    return uint32_t(lane % 8 * kStreamBoxRowBytes + (lane / 8 ^ lane % 8) * 16);
  }
  SKV_DEVICE void load(uint32_t x, uint32_t weight) {
    prim::ldmatrix_x4(columns, weight);
    if constexpr (kRows == 8) {
      uint32_t both[4];
      prim::ldmatrix_x4(both, x);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        rows[h][0][0] = both[2 * h];
        rows[h][0][2] = both[2 * h + 1];
        rows[h][0][1] = rows[h][0][3] = 0;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2 * kRowSteps; ++i) {
        prim::ldmatrix_x4(rows[i / kRowSteps][i % kRowSteps],
                          (x ^ uint32_t(i / kRowSteps * 32)) + i % kRowSteps * 16 * kStreamBoxRowBytes);
      }
    }
  }
};

// A warp that sums.
template <class T, int kRows>
SKV_DEVICE void sum_stream(const StreamLaunch& launch, StreamShared& shared, uint32_t ring, int warp) {
  using Stage = StreamStage<kRows>;
  using Fragments = StreamFragments<kRows>;
  constexpr int kRowSteps = Fragments::kRowSteps;
  const RowLinearParams& p = launch.l.p;
  const int unit_columns = launch.warps * kGroupColumns, lane = int(threadIdx.x) % kWarpSize;
  const uint32_t weight_box = Stage::weight_box(launch.warps);
  const uint32_t first_weight =
                     ring + uint32_t(warp * kGroupColumns * kStreamBoxRowBytes) + Fragments::column_at(lane),
                 first_row = ring + Stage::kBoxes * weight_box + Fragments::row_at(lane);

  StreamPlace at;
  Fragments f[2];
  const auto load = [&](Fragments& to, const StreamPlace& place,
                        int block) {  // two blocks of 64 bytes a line
    const uint32_t stage = uint32_t(place.slot * Stage::bytes(launch.warps)),
                   half = uint32_t(block % 2 * kBlockBytes);
    to.load((first_row + stage + uint32_t(block / 2 * Stage::kRowBox)) ^ half,
            (first_weight + stage + uint32_t(block / 2) * weight_box) ^ half);
  };
  // The first block of a chunk, before the last one of the chunk before is multiplied.
  const auto begin = [&](const StreamPlace& place) {
    prim::mbar_wait(prim::smem_u32(&shared.full[place.slot]), place.parity);
    load(f[0], place, 0);
  };
  begin(at);
  for (int unit = int(blockIdx.x); unit < launch.units; unit += int(gridDim.x)) {
    LinearWarp<T, StreamTile<kRows>> sums;
    const auto multiply = [&](const Fragments& of) {
#pragma unroll
      for (int i = 0; i < 2 * kRowSteps; ++i) {
        const int h = i / kRowSteps, r = i % kRowSteps;
        prim::mma_m16n8k16<T>(sums.sum[r][0], of.rows[h][r], of.columns[2 * h], of.columns[2 * h + 1]);
      }
    };
    for (int64_t k = 0; k < p.k; k += kStreamChunk) {
      StreamPlace next = at;
      next.next(launch.stages);
      const bool more = k + kStreamChunk < p.k || unit + int(gridDim.x) < launch.units;
      if (p.k - k >= kStreamChunk) {
#pragma unroll
        for (int b = 0; b < Stage::kBlocks; ++b) {
          if (b + 1 < Stage::kBlocks) {
            load(f[(b + 1) % 2], at, b + 1);
          } else if (more) {
            begin(next);
          }
          multiply(f[b % 2]);
        }
      } else {
        multiply(f[0]);
#pragma unroll 1
        for (int b = 1; b * kBlockK < int(p.k - k); ++b) {
          load(f[0], at, b);
          multiply(f[0]);
        }
        if (more) begin(next);
      }
      __syncwarp();
      if (lane == 0) prim::mbar_arrive(prim::smem_u32(&shared.empty[at.slot]));
      at = next;
    }
    if (p.out_dtype == DType::kFloat32) {
      sums.template store<float>(launch.l, 0, int64_t(unit) * unit_columns);
    } else {
      sums.template store<T>(launch.l, 0, int64_t(unit) * unit_columns);
    }
  }
}

// kRows: 8, 16 or 32, of which as many as there are.
template <class T, int kRows>
__global__ void __launch_bounds__((kMostStreamWarps + 1) * kWarpSize, 1)
    row_linear_stream_kernel(const __grid_constant__ StreamLaunch launch) {
  SKV_DYNAMIC_SMEM(smem);
  SKV_SHARED(shared, StreamShared);
  const uint32_t ring = prim::smem_u32(smem);
  const int warp = __shfl_sync(kFullMask, int(threadIdx.x) / kWarpSize, 0);
  if (threadIdx.x == 0) {
    prim::prefetch_tensor_map(&launch.weight_map);
    prim::prefetch_tensor_map(&launch.x_map);
    for (int i = 0; i < launch.stages; ++i) {
      prim::mbar_init(prim::smem_u32(&shared.full[i]), 1);
      prim::mbar_init(prim::smem_u32(&shared.empty[i]), launch.warps);
    }
    prim::mbar_init_fence();
  }
  __syncthreads();
  if (warp == launch.warps) {
    if (threadIdx.x % kWarpSize == 0) copy_stream<kRows>(launch, shared, ring);
  } else {
    prim::wait_for_grids();  // out may be what a grid ahead still reads
    sum_stream<T, kRows>(launch, shared, ring, warp);
  }
}

// ---- host ----

// Columns are handed out in units of 8 a warp: as many warps as let multiprocessors finish together, within
// 4 %; where there are columns for it, chains enough to keep up with memory.
inline int stream_warps(int64_t n, int multiprocessors) {
  const auto over = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const auto cost = [&](int warps) { return over(over(n, kGroupColumns * warps), multiprocessors) * warps; };
  const int fewest = int(std::min<int64_t>(over(over(n, kGroupColumns), multiprocessors), 4));
  int64_t least = INT64_MAX;
  for (int warps = fewest; warps <= kMostStreamWarps; ++warps) least = std::min(least, cost(warps));
  int warps = kMostStreamWarps;
  while (cost(warps) * 25 > least * 26) --warps;
  return warps;
}

inline prim::TensorMap stream_map(const void* base, int64_t k, int64_t lines, int64_t stride, int box_lines) {
  prim::TensorMapSpec spec{base, 2, 2, {}, {}, {}, prim::Swizzle::k128Bytes};
  spec.size[0] = uint64_t(k);
  spec.size[1] = uint64_t(lines);
  spec.stride_bytes[1] = lines == 1 ? 16 : uint64_t(2 * stride);  // of a single line any will do
  spec.box[0] = kStreamBoxColumns;
  spec.box[1] = uint32_t(box_lines);
  return prim::make_tensor_map(spec);
}

}  // namespace cuda
}  // namespace skv
