// delta_prefill's kernels for few rows on sm_90, a file of their own so that they compile beside the others.
#include "delta_prefill_few_rows.cuh"

namespace skv {
namespace cuda {

template <>
void launch_few_rows_of<__half>(const AttentionLaunch& launch, int ctas, cudaStream_t stream) {
  launch_few_rows_by_head_dim<__half>(launch, ctas, stream);
}
template <>
void launch_few_rows_of<__nv_bfloat16>(const AttentionLaunch& launch, int ctas, cudaStream_t stream) {
  launch_few_rows_by_head_dim<__nv_bfloat16>(launch, ctas, stream);
}

}  // namespace cuda
}  // namespace skv
