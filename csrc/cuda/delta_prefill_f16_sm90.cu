// delta_prefill's kernels of sm_90a for f16 queries and caches, a file of their own so that they compile
// beside the others.
#include "delta_prefill_hopper.cuh"

namespace skv {
namespace cuda {

template <>
void launch_hopper_of<__half>(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t stream) {
  launch_hopper_by_head_dim<__half>(launch, tma, ctas, stream);
}

}  // namespace cuda
}  // namespace skv
