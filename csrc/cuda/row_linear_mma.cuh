// The kernel of row_linear for fp16 and bf16; row_linear.cuh says in which order it sums.
//
// Four warps share a tile of rows and columns.  Blocks of 32 elements along k pass through a ring of stages
// in shared memory, filled with cp.async some stages ahead: in a stage lie, for each of its blocks, the rows'
// and then the columns' 64 bytes.  A stage is waited for once, with one barrier, which also says that the
// stage read before is free; its copies are issued block by block between the mma steps, so that they do not
// stand in front of the chain of the accumulators.
//
// What bounds few rows: 132 multiprocessors that are to read 4.3 TB/s take 33 bytes a nanosecond each, 18.5 a
// cycle at 1.755 GHz, and a latency of 1 us under load asks for 33 KB in flight on each.  A CTA of
// FewRowsTile keeps five stages of 8 KB of weights in flight, 40 KB; n = 4096 is 128 such CTAs, one on nearly
// every multiprocessor, and three fit.  A warp's chain takes about 33 cycles a step of 8 columns x 16 x 2
// bytes, four warps 31 bytes a cycle; smaller n has fewer chains and is bounded by them.
//
// What bounds some rows: 64 rows of n = k = 4096 are 64 tiles, half a device, that read 67 MB through L2;
// tiles of 32 columns would be 128 and read 100 MB, which takes longer.  A split of k, the usual way out, is
// what the one order forbids.
#pragma once

#include "row_linear.cuh"

namespace skv {
namespace cuda {

constexpr int kLinearThreads = 128;
constexpr uint32_t kRowTilesTogether = 16;  // walk over the columns together and read weights once

struct RowLinearLaunch {
  RowLinearParams p;
  WeightLayout layout;
  uint32_t row_tiles;
  uint32_t together;               // CTAs of kRowTilesTogether row tiles and all columns
  bool x_aligned, weight_aligned;  // every row and column starts at a multiple of 16 bytes
  bool out_paired;                 // two neighbouring elements of an even column can be stored at once
};

template <int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_, int kBlocks_, int kStages_,
          int kCtas_>
struct LinearTile {
  static constexpr int kRows = kRows_, kColumns = kColumns_;                  // of a CTA
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;  // of a warp
  static constexpr int kBlocks = kBlocks_, kStages = kStages_;                // blocks of a stage
  static constexpr int kCtas = kCtas_;  // that are to fit a multiprocessor's registers
  static constexpr int kWeightAt = kRows * kBlockBytes, kBlock = (kRows + kColumns) * kBlockBytes;
  static constexpr int kStage = kBlocks * kBlock, kSmem = kStages * kStage;
  static_assert(kRows / kWarpRows * (kColumns / kWarpColumns) * kWarpSize == kLinearThreads, "four warps");
};
using FewRowsTile = LinearTile<16, 32, 16, 8, 4, 6, 3>;      // up to 16 rows: streams the weights
using SomeRowsTile = LinearTile<64, 64, 32, 32, 2, 5, 2>;    // too few tiles of the next for the device
using ManyRowsTile = LinearTile<128, 128, 64, 64, 1, 3, 2>;  // 16 mma steps for 4 fragments of each operand

// Where piece `piece` of a block's row or column `line` lies: eight lines of an ldmatrix in different banks.
SKV_DEVICE uint32_t piece_at(int line, int piece) {
  return uint32_t(line * kBlockBytes + (piece ^ (line / 2 % kBlockPieces)) * 16);
}

// Copies a tile's rows and columns to shared memory, one stage after the other: 16 bytes a thread and pass,
// four threads a row.
template <class T, class Tile>
struct LinearCopier {
  const RowLinearLaunch& launch;
  const T *x, *weight;          // this thread's piece of its first row and column, of the next stage
  int rows_left, columns_left;  // that are there, from this thread's first on
  int num_blocks, x_whole, weight_whole;  // blocks; those that cp.async may copy
  int block;                              // the next stage's first
  unsigned char* smem;
  uint32_t ring;  // of smem, this thread's piece
  int stage;      // where in the ring the next stage goes, in bytes

  static constexpr int kPassRows = kLinearThreads / kBlockPieces;

  SKV_DEVICE LinearCopier(const RowLinearLaunch& l, int64_t first_row, int64_t first_column,
                          unsigned char* shared)
      : launch(l), block(0), stage(0) {
    const int row = int(threadIdx.x) / kBlockPieces, piece = int(threadIdx.x) % kBlockPieces * 8;
    smem = shared + piece_at(row, piece / 8);
    const int64_t column = first_column + row;
    x = static_cast<const T*>(l.p.x) + (first_row + row) * l.p.x_stride + piece;
    weight = static_cast<const T*>(l.p.weight) + column / kGroupColumns * l.layout.group_stride +
             column % kGroupColumns * l.layout.column_stride + piece;
    rows_left = int(min(l.p.rows - first_row, int64_t(Tile::kRows))) - row;
    columns_left = int(min(l.p.n - first_column, int64_t(Tile::kColumns))) - row;
    num_blocks = int((l.p.k + kBlockK - 1) / kBlockK);
    x_whole = l.x_aligned ? int(l.p.k / kBlockK) : 0;
    weight_whole = l.weight_aligned ? int(l.p.k / kBlockK) : 0;
    // Opaque, or the compiler makes the address anew for every copy, from a slow special register.
    ring = uint32_t(prim::opaque(int(prim::smem_u32(smem))));
  }

  // Whether the next stage's blocks are all there and for cp.async.
  SKV_DEVICE bool is_whole() const { return block + Tile::kBlocks <= min(x_whole, weight_whole); }
  // Starts the copy of block b of a whole stage.
  SKV_DEVICE void start(int b) const {
    copy<Tile::kRows>(b * Tile::kBlock, x + b * kBlockK, kPassRows * launch.p.x_stride, rows_left);
    copy<Tile::kColumns>(b * Tile::kBlock + Tile::kWeightAt, weight + b * launch.layout.block_stride,
                         kPassRows / kGroupColumns * launch.layout.group_stride, columns_left);
  }
  // The next stage whatever it is like: single elements where rows are not aligned or end, nothing where
  // there is no block.
  SKV_DEVICE void start_any() const {
#pragma unroll 1
    for (int b = 0; b < Tile::kBlocks && block + b < num_blocks; ++b) {
      const T* from = x + b * kBlockK;
      int64_t pass_stride = kPassRows * launch.p.x_stride;
      int at = b * Tile::kBlock;
      if (block + b < x_whole) {
        copy<Tile::kRows>(at, from, pass_stride, rows_left);
      } else {
        copy_elements<Tile::kRows>(at, from, pass_stride, rows_left, block + b);
      }
      from = weight + b * launch.layout.block_stride;
      pass_stride = kPassRows / kGroupColumns * launch.layout.group_stride;
      at += Tile::kWeightAt;
      if (block + b < weight_whole) {
        copy<Tile::kColumns>(at, from, pass_stride, columns_left);
      } else {
        copy_elements<Tile::kColumns>(at, from, pass_stride, columns_left, block + b);
      }
    }
  }
  SKV_DEVICE void advance() {
    prim::cp_async_commit();
    block += Tile::kBlocks;
    x += Tile::kBlocks * kBlockK;
    weight += Tile::kBlocks * launch.layout.block_stride;
    stage = stage + Tile::kStage < Tile::kSmem ? stage + Tile::kStage : 0;
  }

 private:
  template <int kCount>
  SKV_DEVICE void copy(int at, const T* from, int64_t pass_stride, int left) const {
    if (kCount < kPassRows && int(threadIdx.x) >= kCount * kBlockPieces) return;
#pragma unroll
    for (int i = 0; i < kCount; i += kPassRows) {
      prim::cp_async16(ring + stage + at + i * kBlockBytes, from + i / kPassRows * pass_stride, i < left);
    }
  }
  template <int kCount>
  SKV_DEVICE void copy_elements(int at, const T* from, int64_t pass_stride, int left, int number) const {
    if (kCount < kPassRows && int(threadIdx.x) >= kCount * kBlockPieces) return;
    const int64_t here = launch.p.k - int64_t(number) * kBlockK - int(threadIdx.x) % kBlockPieces * 8;
#pragma unroll 1
    for (int i = 0; i < kCount; i += kPassRows) {
      Vector<T, 8> v;
#pragma unroll
      for (int e = 0; e < 8; ++e) v.at[e] = i < left && e < here ? from[e] : T(0.f);
      store_vector<T, 8>(reinterpret_cast<T*>(smem + stage + at + i * kBlockBytes), v);
      from += pass_stride;
    }
  }
};

// A warp's part of the tile.  Element e of an accumulator is row g + 8 * (e / 2), column 2 * t + e % 2 of its
// 16 x 8.
template <class T, class Tile>
struct LinearWarp {
  static constexpr int kRowSteps = Tile::kWarpRows / 16, kColumnSteps = Tile::kWarpColumns / 8;

  float sum[kRowSteps][kColumnSteps][4];
  int lane, g, t, row, column;  // row, column: of the warp's first element in the CTA's tile

  SKV_DEVICE LinearWarp() {
    constexpr int kAcross = Tile::kColumns / Tile::kWarpColumns;
    const int warp = int(threadIdx.x) / kWarpSize;
    lane = int(threadIdx.x) % kWarpSize, g = lane / 4, t = lane % 4;
    row = warp / kAcross * Tile::kWarpRows, column = warp % kAcross * Tile::kWarpColumns;
#pragma unroll
    for (int i = 0; i < kRowSteps * kColumnSteps * 4; ++i) {
      sum[i / (kColumnSteps * 4)][i / 4 % kColumnSteps][i % 4] = 0.f;
    }
  }

  struct Fragments {
    uint32_t rows[2][kRowSteps][4], columns[4];  // of both steps; both steps of the first 8 columns
  };
  SKV_DEVICE void load(Fragments& f, uint32_t block) const {
    const uint32_t from = block + piece_at(row + lane % 16, lane / 16);
#pragma unroll
    for (int i = 0; i < 2 * kRowSteps; ++i) {
      prim::ldmatrix_x4(f.rows[i / kRowSteps][i % kRowSteps],
                        (from ^ (i / kRowSteps * 32)) + i % kRowSteps * 16 * kBlockBytes);
    }
    load_columns(f.columns, block, 0);
  }
  SKV_DEVICE void load_columns(uint32_t (&columns)[4], uint32_t block, int c) const {
    prim::ldmatrix_x4(columns,
                      block + Tile::kWeightAt + piece_at(column + lane % 8, lane / 8) + c * 8 * kBlockBytes);
  }
  SKV_DEVICE void multiply(const Fragments& f, uint32_t block) {
    uint32_t b[2][4];
    memcpy(b[0], f.columns, sizeof b[0]);
#pragma unroll
    for (int c = 0; c < kColumnSteps; ++c) {
      if (c + 1 < kColumnSteps) load_columns(b[(c + 1) % 2], block, c + 1);
#pragma unroll
      for (int i = 0; i < 2 * kRowSteps; ++i) {
        const int h = i / kRowSteps, r = i % kRowSteps;
        prim::mma_m16n8k16<T>(sum[r][c], f.rows[h][r], b[c % 2][2 * h], b[c % 2][2 * h + 1]);
      }
    }
  }

  // A tile that lies inside of out stores pairs, from one address a row.
  template <class Out>
  SKV_DEVICE void store(const RowLinearLaunch& launch, int64_t first_row, int64_t first_column) const {
    const RowLinearParams& p = launch.p;
    const T* bias = static_cast<const T*>(p.bias);
    const int64_t at = first_column + column + t * 2;
    const int columns = int(min(p.n - first_column - column, int64_t(Tile::kWarpColumns))) - t * 2;
    float offset[kColumnSteps][2];
#pragma unroll
    for (int i = 0; i < kColumnSteps * 2; ++i) {
      const int c = i / 2 * 8 + i % 2;
      offset[i / 2][i % 2] = bias && c < columns ? to_float(bias[at + c]) : -0.f;  // x + -0 is x
    }
    const bool all = launch.out_paired && columns == Tile::kWarpColumns - t * 2;
#pragma unroll
    for (int i = 0; i < kRowSteps * 2; ++i) {
      const int64_t out_row = first_row + row + i * 8 + g;
      if (out_row >= p.rows) continue;
      Out* out = static_cast<Out*>(p.out) + out_row * p.out_stride + at;
#pragma unroll
      for (int c = 0; c < kColumnSteps; ++c) {
        const float* pair = &sum[i / 2][c][i % 2 * 2];
        const Vector<Out, 2> v = {from_float<Out>(__fadd_rn(pair[0], offset[c][0])),
                                  from_float<Out>(__fadd_rn(pair[1], offset[c][1]))};
        if (all) {
          store_vector<Out, 2>(out + c * 8, v);
        } else {
          if (c * 8 < columns) out[c * 8] = v.at[0];
          if (c * 8 + 1 < columns) out[c * 8 + 1] = v.at[1];
        }
      }
    }
  }
};

template <class T, class Tile>
__global__ void __launch_bounds__(kLinearThreads, Tile::kCtas)
    row_linear_kernel(const __grid_constant__ RowLinearLaunch launch) {
  const RowLinearParams& p = launch.p;
  SKV_DYNAMIC_SMEM(smem);
  const uint32_t within = blockIdx.x % launch.together;
  const uint32_t row_tile = blockIdx.x / launch.together * kRowTilesTogether;
  const uint32_t high = min(launch.row_tiles - row_tile, kRowTilesTogether);
  const int64_t first_row = int64_t(row_tile + within % high) * Tile::kRows;
  const int64_t first_column = int64_t(within / high) * Tile::kColumns;

  LinearCopier<T, Tile> copier(launch, first_row, first_column, smem);
#pragma unroll 1
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    copier.start_any();
    copier.advance();
  }

  LinearWarp<T, Tile> warp;
  const uint32_t ring = uint32_t(prim::opaque<1>(int(prim::smem_u32(smem))));
  const int num_blocks = copier.num_blocks;
  const int my_blocks = first_row + warp.row < p.rows ? num_blocks : 0;
  int stage = 0;
#pragma unroll 1
  for (int first_block = 0; first_block < num_blocks; first_block += Tile::kBlocks) {
    prim::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();
    const bool is_whole = copier.is_whole();
    if (!is_whole) copier.start_any();
#pragma unroll
    for (int b = 0; b < Tile::kBlocks; ++b) {
      const uint32_t block = ring + stage + b * Tile::kBlock;
      typename LinearWarp<T, Tile>::Fragments fragments;
      if (first_block + b < my_blocks) warp.load(fragments, block);
      if (is_whole) copier.start(b);
      if (first_block + b < my_blocks) warp.multiply(fragments, block);
    }
    copier.advance();
    stage = stage + Tile::kStage < Tile::kSmem ? stage + Tile::kStage : 0;
  }

  prim::cp_async_wait<0>();

  if (p.out_dtype == DType::kFloat32) {
    warp.template store<float>(launch, first_row, first_column);
  } else {
    warp.template store<T>(launch, first_row, first_column);
  }
}

// ---- host ----

inline RowLinearLaunch linear_launch(const RowLinearParams& p) {
  RowLinearLaunch launch{};
  launch.p = p;
  const WeightLayout& w = launch.layout = weight_layout(p);
  const int64_t size = element_size(p.dtype), out_size = element_size(p.out_dtype);
  launch.x_aligned = aligned(p.x, size, {p.x_stride}, 16);
  launch.weight_aligned = aligned(p.weight, size, {w.group_stride, w.column_stride, w.block_stride}, 16);
  launch.out_paired = aligned(p.out, out_size, {p.out_stride}, 2 * out_size);
  return launch;
}

}  // namespace cuda
}  // namespace skv
