// row_linear on tensor cores (sm_80 and newer) and, in float32, on CUDA cores: out = x @ weight^T with one
// reduction order for every number of rows.
//
// fp16 and bf16: an output element is one chain of mma.m16n8k16 steps from zero, each over 16 elements of k
// in ascending order, x the A operand and the weight the B operand, accumulated in float32; then the bias;
// then one rounding.  Past the end of k, up to whole blocks of 32, both operands are zeros.
//
// Which tile of rows and columns an element belongs to has no part in that.  Three tilings share a kernel
// (row_linear_mma.cuh), a fourth one for few rows has its own on sm_90 (row_linear_stream.cuh), and
// they differ in nothing but which rows and columns a CTA takes and how it copies: an element of any of them
// is the same mma steps on the same values, in the same roles and the same k positions.  That is why no
// tiling splits k, and why few rows do not take the weight as the A operand, which would need half the steps
// for 8 rows: how the hardware sums the products of one step is not documented and may depend on the role.
// That the sums of one step do not depend on the row or column of the tile is an assumption too; the emulator
// cannot show it, tests/test_row_linear.py on a GPU does.
//
// The kernel is our own and not CUTLASS's so that its order is in our hands, one for all tilings, and so that
// the emulator runs it.  A wgmma path for many rows would sum in another order than mma does for few.
//
// float32: row_linear_f32.cuh, for completeness rather than speed.
#pragma once

#include "common.cuh"

namespace skv {
namespace cuda {

constexpr int kBlockK = 32;                     // elements of k that the operands keep together
constexpr int kGroupColumns = 8;                // columns of one mma
constexpr int kBlockBytes = 2 * kBlockK;        // of one row or column
constexpr int kBlockPieces = kBlockBytes / 16;  // of 16 bytes

// Where a 16-bit weight lies, in elements: from eight columns to the next eight, from a column to the next of
// the eight, from 32 elements along k to the next 32.
struct WeightLayout {
  int64_t group_stride, column_stride, block_stride;
};

// A packed weight: [n / 8][k / 32][8][32], so that 32 lanes copy 512 bytes in a row and a CTA that walks
// along k reads whole streams.  A plain weight needs no packing to be right and its 64 contiguous bytes per
// column are whole sectors; packing makes the access independent of k's power of two, which rows of a plain
// weight share DRAM banks by.  Shapes that do not divide, and float32, stay row-major, [n, pairs, pair].
constexpr bool packs_blocks(DType dtype, int64_t n, int64_t k) {
  return element_size(dtype) == 2 && n % kGroupColumns == 0 && k % kBlockK == 0;
}
constexpr int64_t padded_k(DType dtype, int64_t k) {
  return (k + linear_pair(dtype) - 1) / linear_pair(dtype) * linear_pair(dtype);
}
constexpr WeightLayout weight_layout(const RowLinearParams& p) {
  if (p.packed && packs_blocks(p.dtype, p.n, p.k)) {
    return {kGroupColumns * p.k, kBlockK, kGroupColumns * kBlockK};
  }
  const int64_t stride = p.packed ? padded_k(p.dtype, p.k) : p.weight_stride;
  return {kGroupColumns * stride, stride, kBlockK};
}

// Which tiling a call takes that is not streamed: tiles of 16 x 32, 64 x 64 or 128 x 128 rows and columns.
enum class LinearTiling { kFewRows, kSomeRows, kManyRows };

// The time of a tiling is that of its tiles in waves over the multiprocessors.  A small tile does less with
// each fragment that it reads and is taken to run at 0.6 of the large one's rate (an estimate, not measured):
// it wins where large tiles would leave multiprocessors without work.
inline LinearTiling linear_tiling(int64_t rows, int64_t n, int multiprocessors) {
  if (rows <= 16) return LinearTiling::kFewRows;
  const auto waves = [&](int64_t size) {
    const int64_t tiles = (rows + size - 1) / size * ((n + size - 1) / size);
    return (tiles + multiprocessors - 1) / multiprocessors;
  };
  const double some = double(waves(64)) * 64 * 64 / 0.6, many = double(waves(128)) * 128 * 128;
  return many <= some ? LinearTiling::kManyRows : LinearTiling::kSomeRows;
}

}  // namespace cuda
}  // namespace skv
