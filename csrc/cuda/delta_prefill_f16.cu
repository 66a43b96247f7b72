// delta_prefill's kernels for f16 queries and a cache of the same type, a file of their own so that they
// compile beside the others.
#include "delta_prefill_kernel.cuh"

namespace skv {
namespace cuda {

template <>
void launch_attention_of<__half, __half>(const AttentionLaunch& launch, int ctas, cudaStream_t stream) {
  launch_attention_by_head_dim<__half, __half>(launch, ctas, stream);
}

}  // namespace cuda
}  // namespace skv
