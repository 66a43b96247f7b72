// row_linear's launcher: a tiling by the number of rows, of which no bit depends.
#include "row_linear_f32.cuh"
#include "row_linear_mma.cuh"
#include "row_linear_stream.cuh"

namespace skv {
namespace cuda {
namespace {

unsigned grid_size(int64_t row_tiles, int64_t column_tiles) {
  const int64_t ctas = row_tiles * column_tiles;
  if (ctas > INT32_MAX) throw std::runtime_error("[NotImplementedError] row_linear: out is too large");
  return unsigned(ctas);
}

template <class T, class Tile>
void launch_tiles(RowLinearLaunch launch, cudaStream_t stream) {
  const RowLinearParams& p = launch.p;
  const unsigned column_tiles = ceil_div(p.n, Tile::kColumns);
  launch.row_tiles = ceil_div(p.rows, Tile::kRows);
  const unsigned ctas = grid_size(launch.row_tiles, column_tiles);
  launch.together = std::min(launch.row_tiles, kRowTilesTogether) * column_tiles;
  prim::launch(row_linear_kernel<T, Tile>, dim3(ctas), kLinearThreads, Tile::kSmem, stream, launch);
}

template <int kThreadRows>
void launch_f32(const RowLinearParams& p, cudaStream_t stream) {
  const RowLinearF32Launch launch{p, weight_layout(p).column_stride,
                                  int64_t(ceil_div(p.rows, f32_rows(kThreadRows)))};
  prim::launch(row_linear_f32_kernel<kThreadRows>,
               dim3(grid_size(launch.row_tiles, ceil_div(p.n, kF32Columns))), kF32Threads, 0, stream, launch);
}

template <class T, int kRows>
void launch_stream_of(StreamLaunch& launch, cudaStream_t stream) {
  const RowLinearParams& p = launch.l.p;
  launch.x_map = stream_map(p.x, p.k, p.rows, p.x_stride, kRows);
  launch.weight_map = stream_map(p.weight, p.k, p.n, p.weight_stride, kGroupColumns * launch.warps);
  launch_stream(row_linear_stream_kernel<T, kRows>, launch, (launch.warps + 1) * kWarpSize,
                StreamStage<kRows, false>::bytes(launch.warps), kStreamRing, 0, stream);
}

template <class T>
void launch_16bit(const RowLinearParams& p, cudaStream_t stream) {
  const RowLinearLaunch launch = linear_launch(p);
  if (can_stream(launch)) return stream_row_linear(launch, false, stream);
  switch (linear_tiling(p.rows, p.n, prim::num_multiprocessors())) {
    case LinearTiling::kFewRows:
      return launch_tiles<T, FewRowsTile>(launch, stream);
    case LinearTiling::kSomeRows:
      return launch_tiles<T, SomeRowsTile>(launch, stream);
    case LinearTiling::kManyRows:
      return launch_tiles<T, ManyRowsTile>(launch, stream);
  }
}

}  // namespace

void stream_row_linear(const RowLinearLaunch& l, bool add, cudaStream_t stream) {
  StreamLaunch launch{};
  launch.l = l;
  launch.add = add;
  launch.warps = stream_warps(l.p.n, prim::num_multiprocessors());
  const auto of_type = [&](auto tag) {
    using T = typename decltype(tag)::type;
    l.p.rows <= 8    ? launch_stream_of<T, 8>(launch, stream)
    : l.p.rows <= 16 ? launch_stream_of<T, 16>(launch, stream)
                     : launch_stream_of<T, 32>(launch, stream);
  };
  l.p.dtype == DType::kFloat16 ? of_type(Tag<__half>{}) : of_type(Tag<__nv_bfloat16>{});
}

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
