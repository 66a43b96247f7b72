// The kernel of row_linear for few rows of fp16 and bf16 on sm_90: reads the weights at the speed
// of memory, and begins to before the rows are there.  fused_row_linear.cuh makes another one of its parts.
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
// Launched overlapped, a CTA fills its ring with weights while a small grid ahead, which writes the rows, is
// still at work (another one of this kind has to leave its multiprocessor first): 132 rings are 20 MB, nearly
// five microseconds of reading.
#pragma once

#include "prim_hopper.cuh"
#include "row_linear_mma.cuh"
#include "silu_and_mul.cuh"

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
  bool add;                           // the sums to what out holds
  // Of rows that stay in shared memory (fused_row_linear.cuh):
  int halved;               // 1: a unit has as many columns of each half of n, which are multiplied; else 0
  const void* norm_weight;  // [k]
  float epsilon;
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

// A stage is kBoxes boxes of 64 elements of k for the unit's columns, then as many for the rows, unless those
// stay where they are: lines of 128 bytes, swizzled.  Outside of the matrices there are zeros.
template <int kRows, bool kRowsStay>
struct StreamStage {
  static constexpr int kBoxes = kStreamChunk / kStreamBoxColumns, kBlocks = kStreamChunk / kBlockK;
  static constexpr int kRowBox = kRows * kStreamBoxRowBytes;

  SKV_DEVICE static uint32_t weight_box(int warps) {
    return uint32_t(warps * kGroupColumns * kStreamBoxRowBytes);
  }
  static constexpr int bytes(int warps) {
    return kBoxes * (warps * kGroupColumns + (kRowsStay ? 0 : kRows)) * kStreamBoxRowBytes;
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
template <int kRows, bool kRowsStay>
SKV_DEVICE void copy_stream(const StreamLaunch& launch, StreamShared& shared, uint32_t ring) {
  using Stage = StreamStage<kRows, kRowsStay>;
  const int64_t k_end = launch.l.p.k;
  const int stages = launch.stages, bytes = Stage::bytes(launch.warps);
  const uint32_t weight_box = Stage::weight_box(launch.warps);
  int left = StreamChunk::count(launch);
  const auto copy_weights = [&](const StreamChunk& chunk, int slot) {
    const uint32_t to = ring + uint32_t(slot * bytes), bar = prim::smem_u32(&shared.full[slot]);
    prim::mbar_arrive_expect_tx(bar, bytes);
#pragma unroll
    for (int i = 0; i < Stage::kBoxes; ++i) {
      const int k = int(chunk.k) + i * kStreamBoxColumns, column = chunk.unit * launch.warps * kGroupColumns;
      if constexpr (kRowsStay) {
        const int at[4] = {k, column >> launch.halved, 0, 0};
        prim::tma_load_once<4>(to + uint32_t(i) * weight_box, &launch.weight_map, bar, at);
      } else {
        const int at[2] = {k, column};
        prim::tma_load_once<2>(to + uint32_t(i) * weight_box, &launch.weight_map, bar, at);
      }
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
  const int prefill =
      kRowsStay ? 0 : min(launch.prefill, left);  // the whole ring, where rows are not waited for
  for (int i = 0; i < prefill; ++i, weights.next(k_end), at.next(stages)) copy_weights(weights, i);
  if constexpr (!kRowsStay) {
    prim::wait_for_grids();
    for (int i = 0; i < prefill; ++i, x.next(k_end)) copy_rows(x, i);
  }
  for (; left > 0; weights.next(k_end), at.next(stages)) {
    prim::mbar_wait(prim::smem_u32(&shared.empty[at.slot]), at.parity ^ 1);
    copy_weights(weights, at.slot);
    if constexpr (!kRowsStay) copy_rows(weights, at.slot);
  }
}

// What a warp multiplies in a block of k: rows 0 to 7 alone come with one ldmatrix, more with one a step.
template <int kRows>
struct StreamFragments {
  static constexpr int kRowSteps = StreamTile<kRows>::kWarpRows / 16;
  uint32_t rows[2][kRowSteps][4], columns[4];

  // Where in a box this lane's line of ldmatrix begins, without what `half` of the box adds.  `last`: the
  // last row that there is; those after it are its copies, and nobody asks for what comes of them.
  SKV_DEVICE static uint32_t row_at(int lane, int last) {
    const int row = min(kRows == 8 ? lane % 8 : lane % 16, last), piece = kRows == 8 ? lane / 8 : lane / 16;
    return uint32_t(row * kStreamBoxRowBytes + (piece ^ row % 8) * 16);
  }
  SKV_DEVICE static uint32_t column_at(int lane, int line) {
    return uint32_t(line * kStreamBoxRowBytes + (lane / 8 ^ line % 8) * 16);
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

// What a warp does with the sums of a unit beyond storing them: it multiplies the halves' columns, whose sums
// are neighbours (column 2 i is the first half's i, column 2 i + 1 the second's), or adds to what out holds.
template <class T, int kRows>
struct StreamOutput {
  static constexpr int kLines = (kRows + 7) / 8;  // a lane has rows g, g + 8, ... and two columns
  const StreamLaunch& launch;
  T held[kLines][2], bias[2];

  struct Place {  // of this lane in a unit
    T* out;
    int row;
    int64_t column;
    int columns;  // that there are
  };
  SKV_DEVICE Place place_of(int unit) const {
    const RowLinearParams& p = launch.l.p;
    const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize,
              width = 2 >> launch.halved;
    const int64_t column =
        int64_t(unit * launch.warps + warp) * (kGroupColumns >> launch.halved) + lane % 4 * width;
    const int64_t left = (p.n >> launch.halved) - column;
    return {static_cast<T*>(p.out) + lane / 4 * p.out_stride + column, lane / 4, column,
            int(min(max(left, int64_t(0)), int64_t(width)))};
  }
  // Asks for what the sums are added to, long before it is needed.
  SKV_DEVICE void hold(int unit) {
    const T* from = static_cast<const T*>(launch.l.p.bias);
    const Place at = place_of(unit);
    const int64_t second = launch.halved ? launch.l.p.n / 2 : 1;  // what a column's neighbour is further on
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const bool there = launch.halved ? at.columns == 1 : c < at.columns;
      bias[c] = from_float<T>(-0.f);  // x + -0 is x
      if (from && there) bias[c] = from[at.column + c * second];
    }
    if (!launch.add) return;
#pragma unroll
    for (int i = 0; i < kLines * 2; ++i) {
      const bool there = at.row + i / 2 * 8 < launch.l.p.rows && i % 2 < at.columns;
      if (there) held[i / 2][i % 2] = at.out[i / 2 * 8 * launch.l.p.out_stride + i % 2];
    }
  }
  template <class Sums>
  SKV_DEVICE void store(int unit, const Sums& sums) const {
    const RowLinearParams& p = launch.l.p;
    const Place at = place_of(unit);
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      if (at.row + i * 8 >= p.rows) continue;
      T* out = at.out + i * 8 * p.out_stride;
      T v[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        v[c] = from_float<T>(__fadd_rn(sums.sum[i / 2][0][i % 2 * 2 + c], to_float(bias[c])));
      }
      if (launch.halved) v[0] = silu_times(v[0], v[1]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (c >= at.columns) continue;
        out[c] = launch.add ? from_float<T>(to_float(held[i][c]) + to_float(v[c])) : v[c];
      }
    }
  }
};

// A warp that sums.  rows: where they lie if they stay.
template <class T, int kRows, bool kRowsStay>
SKV_DEVICE void sum_stream(const StreamLaunch& launch, StreamShared& shared, uint32_t ring, uint32_t rows,
                           int warp) {
  using Stage = StreamStage<kRows, kRowsStay>;
  using Fragments = StreamFragments<kRows>;
  constexpr int kRowSteps = Fragments::kRowSteps;
  const RowLinearParams& p = launch.l.p;
  const int unit_columns = launch.warps * kGroupColumns, lane = int(threadIdx.x) % kWarpSize;
  const uint32_t weight_box = Stage::weight_box(launch.warps);
  int line = warp * kGroupColumns + lane % 8;  // of the unit's columns, this lane's in ldmatrix
  if (kRowsStay && launch.halved) {
    line = (lane % 2 * launch.warps + warp) * (kGroupColumns / 2) + lane % 8 / 2;
  }
  const uint32_t first_weight = ring + Fragments::column_at(lane, line);
  const uint32_t first_row = (kRowsStay ? rows : ring + Stage::kBoxes * weight_box) +
                             Fragments::row_at(lane, kRowsStay ? int(p.rows) - 1 : kRows - 1);
  const uint32_t row_box = kRowsStay ? uint32_t(p.rows) * kStreamBoxRowBytes : uint32_t(Stage::kRowBox);

  StreamPlace at;
  Fragments f[2];
  const auto load = [&](Fragments& to, const StreamPlace& place, int64_t k,
                        int block) {  // two blocks of 64 bytes a line
    const uint32_t stage = uint32_t(place.slot * Stage::bytes(launch.warps)),
                   half = uint32_t(block % 2 * kBlockBytes),
                   box = kRowsStay ? uint32_t(k) / kStreamBoxColumns + uint32_t(block / 2)
                                   : uint32_t(block / 2);
    to.load((first_row + (kRowsStay ? 0 : stage) + box * row_box) ^ half,
            (first_weight + stage + uint32_t(block / 2) * weight_box) ^ half);
  };
  // The first block of a chunk, before the last one of the chunk before is multiplied.
  const auto begin = [&](const StreamPlace& place, int64_t k) {
    prim::mbar_wait(prim::smem_u32(&shared.full[place.slot]), place.parity);
    load(f[0], place, k, 0);
  };
  StreamOutput<T, kRows> output{launch, {}, {}};
  const bool is_plain = !launch.add && (!kRowsStay || (!launch.halved && !p.bias));
  begin(at, 0);
  for (int unit = int(blockIdx.x); unit < launch.units; unit += int(gridDim.x)) {
    LinearWarp<T, StreamTile<kRows>> sums;
    if (!is_plain) output.hold(unit);
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
      const int64_t next_k = k + kStreamChunk < p.k ? k + kStreamChunk : 0;
      if (p.k - k >= kStreamChunk) {
#pragma unroll
        for (int b = 0; b < Stage::kBlocks; ++b) {
          if (b + 1 < Stage::kBlocks) {
            load(f[(b + 1) % 2], at, k, b + 1);
          } else if (more) {
            begin(next, next_k);
          }
          multiply(f[b % 2]);
        }
      } else {
        multiply(f[0]);
#pragma unroll 1
        for (int b = 1; b * kBlockK < int(p.k - k); ++b) {
          load(f[0], at, k, b);
          multiply(f[0]);
        }
        if (more) begin(next, next_k);
      }
      __syncwarp();
      if (lane == 0) prim::mbar_arrive(prim::smem_u32(&shared.empty[at.slot]));
      at = next;
    }
    if (!is_plain) {
      output.store(unit, sums);
    } else if (p.out_dtype == DType::kFloat32) {
      sums.template store<float>(launch.l, 0, int64_t(unit) * unit_columns);
    } else {
      sums.template store<T>(launch.l, 0, int64_t(unit) * unit_columns);
    }
  }
}

template <bool kRowsStay>
SKV_DEVICE void init_stream(const StreamLaunch& launch, StreamShared& shared) {
  if (threadIdx.x == 0) {
    prim::prefetch_tensor_map(&launch.weight_map);
    if constexpr (!kRowsStay) prim::prefetch_tensor_map(&launch.x_map);
    for (int i = 0; i < launch.stages; ++i) {
      prim::mbar_init(prim::smem_u32(&shared.full[i]), 1);
      prim::mbar_init(prim::smem_u32(&shared.empty[i]), launch.warps);
    }
    prim::mbar_init_fence();
  }
  __syncthreads();
}

// kRows: 8, 16 or 32, of which as many as there are.
template <class T, int kRows>
__global__ void __launch_bounds__((kMostStreamWarps + 1) * kWarpSize, 1)
    row_linear_stream_kernel(const __grid_constant__ StreamLaunch launch) {
  SKV_DYNAMIC_SMEM(smem);
  SKV_SHARED(shared, StreamShared);
  const uint32_t ring = prim::smem_u32(smem);
  const int warp = __shfl_sync(kFullMask, int(threadIdx.x) / kWarpSize, 0);
  init_stream<false>(launch, shared);
  if (warp == launch.warps) {
    if (threadIdx.x % kWarpSize == 0) copy_stream<kRows, false>(launch, shared, ring);
  } else {
    prim::wait_for_grids();  // out may be what a grid ahead still reads
    sum_stream<T, kRows, false>(launch, shared, ring, 0, warp);
  }
}

// ---- host ----

constexpr int kStreamRing =
    150 * 1024;  // one CTA a multiprocessor, so that none gets two and another one none
constexpr int kStreamPrefill = 120 * 1024;  // more, and the small grids ahead wait for memory behind it

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

// Whether TMA can bring rows and columns.
inline bool can_stream(const RowLinearLaunch& l) {
  const auto fits = [&](int64_t lines, int64_t stride) {
    return lines == 1 || (stride >= l.p.k && 2 * stride < int64_t(1) << 40);
  };
  return l.p.rows <= kMostStreamRows && !l.p.packed && l.p.k > 0 && l.x_aligned && l.weight_aligned &&
         element_size(l.p.dtype) == 2 && fits(l.p.rows, l.p.x_stride) && fits(l.p.n, l.p.weight_stride) &&
         std::max(l.p.n, l.p.k) <= INT32_MAX && prim::runs_sm90_code();
}

// Launches a kernel that streams, with a ring of at most `ring` bytes of stages and `beside` it.
inline void launch_stream(void (*kernel)(StreamLaunch), StreamLaunch& launch, int threads, int stage,
                          int ring, int64_t beside, cudaStream_t stream) {
  launch.units = int(ceil_div(launch.l.p.n, kGroupColumns * launch.warps));
  launch.stages = std::min(kMostStreamStages, ring / stage);
  launch.prefill = std::min(launch.stages, kStreamPrefill / stage);
  launch.trigger = 2 * launch.stages;
  prim::launch_overlapped(kernel, dim3(unsigned(std::min(launch.units, prim::num_multiprocessors()))),
                          threads, size_t(launch.stages * stage + beside), stream, launch);
}

// What can_stream, of which the sums are added to what out holds or not (row_linear.cu).
void stream_row_linear(const RowLinearLaunch& l, bool add, cudaStream_t stream);

}  // namespace cuda
}  // namespace skv
