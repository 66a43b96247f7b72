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

RowLinearLaunch make_launch(const RowLinearParams& p) {
  RowLinearLaunch launch{};
  launch.p = p;
  const WeightLayout& w = launch.layout = weight_layout(p);
  const int64_t size = element_size(p.dtype), out_size = element_size(p.out_dtype);
  launch.x_aligned = aligned(p.x, size, {p.x_stride}, 16);
  launch.weight_aligned = aligned(p.weight, size, {w.group_stride, w.column_stride, w.block_stride}, 16);
  launch.out_paired = aligned(p.out, out_size, {p.out_stride}, 2 * out_size);
  return launch;
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

// Whether TMA can bring rows and columns.
bool can_stream(const RowLinearLaunch& l) {
  const auto fits = [&](int64_t lines, int64_t stride) {
    return lines == 1 || (stride >= l.p.k && 2 * stride < int64_t(1) << 40);
  };
  return l.p.rows <= kMostStreamRows && !l.p.packed && l.p.k > 0 && l.x_aligned && l.weight_aligned &&
         fits(l.p.rows, l.p.x_stride) && fits(l.p.n, l.p.weight_stride) &&
         std::max(l.p.n, l.p.k) <= INT32_MAX && prim::runs_sm90_code();
}

template <class T, int kRows>
void launch_stream_of(StreamLaunch& launch, cudaStream_t stream) {
  constexpr int kSmem = 150 * 1024;  // one CTA a multiprocessor, so that none gets two and another one none
  constexpr int kPrefill = 120 * 1024;  // more, and the small grids ahead wait for memory behind it
  const RowLinearParams& p = launch.l.p;
  const int stage = StreamStage<kRows>::bytes(launch.warps);
  launch.units = int(ceil_div(p.n, kGroupColumns * launch.warps));
  launch.stages = std::min(kMostStreamStages, kSmem / stage);
  launch.prefill = std::min(launch.stages, kPrefill / stage);
  launch.trigger = 2 * launch.stages;
  launch.x_map = stream_map(p.x, p.k, p.rows, p.x_stride, kRows);
  launch.weight_map = stream_map(p.weight, p.k, p.n, p.weight_stride, kGroupColumns * launch.warps);
  prim::launch_overlapped(row_linear_stream_kernel<T, kRows>,
                          dim3(unsigned(std::min(launch.units, prim::num_multiprocessors()))),
                          (launch.warps + 1) * kWarpSize, size_t(launch.stages * stage), stream, launch);
}

template <class T>
void launch_stream(const RowLinearLaunch& l, cudaStream_t stream) {
  StreamLaunch launch{};
  launch.l = l;
  launch.warps = stream_warps(l.p.n, prim::num_multiprocessors());
  l.p.rows <= 8    ? launch_stream_of<T, 8>(launch, stream)
  : l.p.rows <= 16 ? launch_stream_of<T, 16>(launch, stream)
                   : launch_stream_of<T, 32>(launch, stream);
}

template <class T>
void launch_16bit(const RowLinearParams& p, cudaStream_t stream) {
  const RowLinearLaunch launch = make_launch(p);
  if (can_stream(launch)) return launch_stream<T>(launch, stream);
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
