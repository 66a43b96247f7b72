// Stands in for delta_prefill_*_sm90.cu in the slow builds, where each of them takes half a minute: bf16 and
// fp8, head_dim 64.
#include "delta_prefill_hopper.cuh"

namespace skv {
namespace cuda {

namespace {

template <class Cell>
void launch_few(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t stream) {
  if (launch.p.cache.head_dim != 64) throw std::runtime_error("not in this build");
  launch_hopper<Cell, 64>(launch, tma, ctas, stream);
}

}  // namespace

template <>
void launch_hopper_of<__nv_bfloat16>(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t stream) {
  launch_few<__nv_bfloat16>(launch, tma, ctas, stream);
}
template <>
void launch_hopper_of<__nv_fp8_e4m3>(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t stream) {
  launch_few<__nv_fp8_e4m3>(launch, tma, ctas, stream);
}
template <>
void launch_hopper_of<__half>(const AttentionLaunch&, bool, int, cudaStream_t) {
  throw std::runtime_error("not in this build");
}

}  // namespace cuda
}  // namespace skv
