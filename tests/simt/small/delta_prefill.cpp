// delta_prefill on mma.sync and its schedule, fp16 and fp8 caches.
#include "delta_prefill.cu"
#include "delta_prefill_kernel.cuh"
#include "prefill_case.h"

namespace skv {
namespace cuda {
template <>
void launch_attention_of<__half, __half>(const AttentionLaunch& launch, int ctas, cudaStream_t stream) {
  launch_attention<__half, __half, 64>(launch, ctas, stream);
}
template <>
void launch_attention_of<__half, __nv_fp8_e4m3>(const AttentionLaunch& launch, int ctas,
                                                cudaStream_t stream) {
  launch_attention<__half, __nv_fp8_e4m3, 64>(launch, ctas, stream);
}
}  // namespace cuda
}  // namespace skv

SMALL_WITHOUT_ATTENTION(__nv_bfloat16, __nv_bfloat16)
SMALL_WITHOUT_ATTENTION(__nv_bfloat16, __nv_fp8_e4m3)
SMALL_WITHOUT_ANY_HOPPER
SMALL_WITHOUT_ANY_FEW_ROWS

namespace {

using namespace skv;
using small::prefill;

void causal_split() { prefill<__half>(DType::kFloat16, {2, -1, 0, true, false, false, 40}); }
void automatic_window() { prefill<__half>(DType::kFloat16, {0, 100, 1, true, false, false, 40}); }
void tree_window() { prefill<__half>(DType::kFloat16, {1, 50, 0, true, true, true, 30}); }
void full_fp8() { prefill<__nv_fp8_e4m3>(DType::kFloat8E4M3, {3, -1, 0, false, false, true, 30}); }

}  // namespace

int main() { return small::run({causal_split, automatic_window, tree_window, full_fp8}, 2); }
