// row_linear's launcher: a tiling by the number of rows, of which no bit depends.
#include "row_linear_f32.cuh"
#include "row_linear_mma.cuh"

namespace skv {
namespace cuda {
namespace {

unsigned grid_size(int64_t row_tiles, int64_t column_tiles) {
  const int64_t ctas = row_tiles * column_tiles;
  if (ctas > INT32_MAX) throw std::runtime_error("[NotImplementedError] row_linear: out is too large");
  return unsigned(ctas);
}

template <class T, class Tile>
void launch_tiles(const RowLinearParams& p, cudaStream_t stream) {
  RowLinearLaunch launch{};
  launch.p = p;
  const WeightLayout& w = launch.layout = weight_layout(p);
  const unsigned column_tiles = ceil_div(p.n, Tile::kColumns);
  launch.row_tiles = ceil_div(p.rows, Tile::kRows);
  const unsigned ctas = grid_size(launch.row_tiles, column_tiles);
  launch.together = std::min(launch.row_tiles, kRowTilesTogether) * column_tiles;
  launch.x_aligned = aligned(p.x, sizeof(T), {p.x_stride}, 16);
  launch.weight_aligned = aligned(p.weight, sizeof(T), {w.group_stride, w.column_stride, w.block_stride}, 16);
  const int64_t out_size = element_size(p.out_dtype);
  launch.out_paired = aligned(p.out, out_size, {p.out_stride}, 2 * out_size);
  prim::launch(row_linear_kernel<T, Tile>, dim3(ctas), kLinearThreads, Tile::kSmem, stream, launch);
}

template <int kThreadRows>
void launch_f32(const RowLinearParams& p, cudaStream_t stream) {
  const RowLinearF32Launch launch{p, weight_layout(p).column_stride,
                                  int64_t(ceil_div(p.rows, f32_rows(kThreadRows)))};
  prim::launch(row_linear_f32_kernel<kThreadRows>,
               dim3(grid_size(launch.row_tiles, ceil_div(p.n, kF32Columns))), kF32Threads, 0, stream, launch);
}

template <class T>
void launch_16bit(const RowLinearParams& p, cudaStream_t stream) {
  switch (linear_tiling(p.rows, p.n, prim::num_multiprocessors())) {
    case LinearTiling::kFewRows:
      return launch_tiles<T, FewRowsTile>(p, stream);
    case LinearTiling::kSomeRows:
      return launch_tiles<T, SomeRowsTile>(p, stream);
    case LinearTiling::kManyRows:
      return launch_tiles<T, ManyRowsTile>(p, stream);
  }
}

}  // namespace

void row_linear(const RowLinearParams& params, void* stream) {
  RowLinearParams p = params;
  if (p.rows == 0 || p.n == 0) return;
  if (p.k == 0) p.x = p.weight = p.out;  // nothing is read; they may be null, from which no address is made
  const auto s = static_cast<cudaStream_t>(stream);
  by_float_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if constexpr (std::is_same<T, float>::value) {
      p.rows <= f32_rows(1) ? launch_f32<1>(p, s) : launch_f32<4>(p, s);
    } else {
      launch_16bit<T>(p, s);
    }
  });
}

}  // namespace cuda
}  // namespace skv
