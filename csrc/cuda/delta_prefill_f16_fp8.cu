// delta_prefill's kernels for f16 queries and an fp8 cache, a file of their own so that they compile beside
// the others.
#include "delta_prefill_kernel.cuh"

namespace skv {
namespace cuda {

template <>
void launch_attention_of<__half, __nv_fp8_e4m3>(const AttentionLaunch& launch, int ctas,
                                                cudaStream_t stream) {
  launch_attention_by_head_dim<__half, __nv_fp8_e4m3>(launch, ctas, stream);
}

}  // namespace cuda
}  // namespace skv
