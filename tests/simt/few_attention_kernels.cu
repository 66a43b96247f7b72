// Stands in for some of delta_prefill_*.cu in the slow builds, where each of them takes half a minute and its
// tests minutes: on sm_90 bf16 and fp8 with head_dim 64; no queries in f16, whose kernels are those of bf16.
#include "delta_prefill_few_rows.cuh"
#include "delta_prefill_hopper.cuh"
#include "delta_prefill_kernel.cuh"

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
template <>
void launch_few_rows_of<__nv_bfloat16>(const AttentionLaunch& launch, int ctas, cudaStream_t stream) {
  if (launch.p.cache.head_dim != 64) throw std::runtime_error("not in this build");
  launch_few_rows<__nv_bfloat16, 64>(launch, ctas, stream);
}
template <>
void launch_few_rows_of<__half>(const AttentionLaunch&, int, cudaStream_t) {
  throw std::runtime_error("not in this build");
}
template <>
void launch_attention_of<__half, __half>(const AttentionLaunch&, int, cudaStream_t) {
  throw std::runtime_error("not in this build");
}
template <>
void launch_attention_of<__half, __nv_fp8_e4m3>(const AttentionLaunch&, int, cudaStream_t) {
  throw std::runtime_error("not in this build");
}

}  // namespace cuda
}  // namespace skv
