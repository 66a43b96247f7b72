// delta_prefill's kernels of sm_90a for fp8 caches and queries of either type, a file of their own so that
// they compile beside the others.
#include "delta_prefill_hopper.cuh"

namespace skv {
namespace cuda {

template <>
void launch_hopper_of<__nv_fp8_e4m3>(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t stream) {
  launch_hopper_by_head_dim<__nv_fp8_e4m3>(launch, tma, ctas, stream);
}

}  // namespace cuda
}  // namespace skv
