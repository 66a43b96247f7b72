// merge_states's launcher: 16-byte vectors where every row is aligned to them, single elements otherwise.
#include "merge_states.cuh"

namespace skv {
namespace cuda {
namespace {

template <class T, int kCount>
void launch_merge(const MergeStatesParams& p, cudaStream_t stream) {
  MergeStatesLaunch launch{p, 1};
  while (launch.width < kWarpSize && launch.width * kCount < p.head_dim) launch.width *= 2;
  const dim3 grid(ceil_div(p.total_q * p.num_heads, kMergeThreads / launch.width));
  prim::launch(merge_states_kernel<T, kCount>, grid, kMergeThreads, 0, stream, launch);
}

}  // namespace

void merge_states(const MergeStatesParams& p, void* stream) {
  if (p.total_q == 0 || p.num_heads == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  by_float_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kCount = 16 / int(sizeof(T));
    const bool wide = p.head_dim % kCount == 0 && aligned(p.out, sizeof(T), 16) &&
                      aligned(p.out_a, sizeof(T), 16) && aligned(p.out_b, sizeof(T), 16);
    if (wide) {
      launch_merge<T, kCount>(p, s);
    } else {
      launch_merge<T, 1>(p, s);
    }
  });
}

}  // namespace cuda
}  // namespace skv
