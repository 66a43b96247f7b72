// delta_prefill for few rows on sm_90, and its schedule.
#include "delta_prefill_few_rows.cuh"
#include "delta_prefill.cu"
#include "prefill_case.h"

namespace skv {
namespace cuda {
template <>
void launch_few_rows_of<__half>(const AttentionLaunch& launch, int ctas, cudaStream_t stream) {
  launch_few_rows<__half, 64>(launch, ctas, stream);
}
}  // namespace cuda
}  // namespace skv

SMALL_WITHOUT_ANY_ATTENTION
SMALL_WITHOUT_ANY_HOPPER
SMALL_WITHOUT_FEW_ROWS(__nv_bfloat16)

namespace {

using namespace skv;
using small::prefill;

// More pieces than there are slots, each sequence whole, so that a slot is filled twice.
void whole() { prefill<__half>(DType::kFloat16, {1, -1, 0, true, false, false, 8, 0, 906}); }
// As many items as there are multiprocessors, some of them parts.
void automatic() { prefill<__half>(DType::kFloat16, {0, -1, 0, true, false, false, 5, 0, 906}); }
void automatic_window() { prefill<__half>(DType::kFloat16, {0, 100, 1, true, false, false, 6, 0, 900}); }
void split_tree_window() { prefill<__half>(DType::kFloat16, {2, 50, 0, true, true, true, 8}); }
// Several items for a CTA, and a split without keys: sequence 1 sees those from the second piece on.
void many_splits() { prefill<__half>(DType::kFloat16, {20, 102, 0, false, false, true, 7, 0, 600}); }

}  // namespace

int main() {
  simt::set_compute_capability(90);
  setenv("SIMT_MULTIPROCESSORS", "8", 1);  // as many as there are sequences times heads
  return small::run({whole, automatic, automatic_window, split_tree_window, many_splits}, 2);
}
