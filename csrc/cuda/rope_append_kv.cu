// rope_append_kv's launcher: vectors where rows, weights and the rotation allow them, single elements
// otherwise.
#include "rope_append_kv.cuh"

namespace skv {
namespace cuda {
namespace {

template <class T, class Cell, int kCount, int kVectors>
void launch_rope(const RopeAppendKvParams& p, cudaStream_t stream) {
  const AppendKvParams& a = p.append;
  RopeAppendLaunch launch{p, 1};
  while (launch.width < kWarpSize && launch.width * kCount * kVectors < a.cache.head_dim) launch.width *= 2;
  const int groups_per_cta = kRopeWarps * kWarpSize / launch.width;
  const dim3 grid(unsigned(a.num_tokens), ceil_div(p.num_heads + 2 * a.cache.num_kv_heads, groups_per_cta));
  prim::launch_overlapped(rope_append_kv_kernel<T, Cell, kCount, kVectors>, grid, kRopeWarps * kWarpSize, 0,
                          stream, launch);
}

template <class T, class Cell>
void choose_vector(const RopeAppendKvParams& p, cudaStream_t stream) {
  const AppendKvParams& a = p.append;
  constexpr int kCount = 16 / int(sizeof(T));
  constexpr int64_t kRow = sizeof(T), kCell = sizeof(Cell);
  const bool rows = aligned(p.query, kRow, 16) && aligned(p.query_out, kRow, 16) &&
                    aligned(a.key, kRow, 16) && aligned(a.value, kRow, 16) &&
                    aligned(a.k_cache, kCell, kCount * kCell) && aligned(a.v_cache, kCell, kCount * kCell);
  const bool weights = aligned(p.q_norm_weight, kRow, {}, 16) && aligned(p.k_norm_weight, kRow, {}, 16);
  const int rotated_together = p.interleaved ? p.rotary_dim : p.rotary_dim / 2;
  if (rows && weights && a.cache.head_dim % kCount == 0 && rotated_together % kCount == 0) {
    launch_rope<T, Cell, kCount, kRopeMaxHeadDim / kCount / kWarpSize>(p, stream);
  } else {
    launch_rope<T, Cell, 1, kRopeMaxHeadDim / kWarpSize>(p, stream);
  }
}

}  // namespace

void rope_append_kv(const RopeAppendKvParams& p, void* stream) {
  const AppendKvParams& a = p.append;
  if (a.num_tokens == 0) return;
  if (a.cache.head_dim > kRopeMaxHeadDim) {
    throw std::runtime_error("[NotImplementedError] rope_append_kv: head_dim is " +
                             std::to_string(a.cache.head_dim) + ", CUDA takes at most 256");
  }
  const auto s = static_cast<cudaStream_t>(stream);
  by_float_type(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (a.cache.dtype == DType::kFloat8E4M3) {
      choose_vector<T, __nv_fp8_e4m3>(p, s);
    } else {
      choose_vector<T, T>(p, s);
    }
  });
}

}  // namespace cuda
}  // namespace skv
