// delta_prefill on wgmma and its schedule.
#include "delta_prefill_hopper.cuh"
#include "delta_prefill.cu"
#include "prefill_case.h"

SMALL_WITH_HOPPER(__half)
SMALL_WITHOUT_ANY_ATTENTION
SMALL_WITHOUT_HOPPER(__nv_bfloat16)
SMALL_WITHOUT_HOPPER(__nv_fp8_e4m3)
SMALL_WITHOUT_ANY_FEW_ROWS

namespace {

using namespace skv;
using small::prefill;

// A CTA takes a tile of sequence 0 and eight of sequence 3: stages are filled twice, the first cleared twice.
void whole() { prefill<__half>(DType::kFloat16, {1, -1, 0, true, false, false, 40, 0, 906}); }
// A warp of the second group sees a tile but for its first keys.
void automatic_window() { prefill<__half>(DType::kFloat16, {0, 100, 1, true, false, false, 36}); }
void split_tree_window() { prefill<__half>(DType::kFloat16, {2, 50, 0, true, true, true, 30}); }
// The new tokens begin with the last key of a tile.
void small_tree() { prefill<__half>(DType::kFloat16, {-1, -1, 0, true, true, false, 5}); }
void by_hand() { prefill<__half>(DType::kFloat16, {-1, -1, 0, false, false, true, 40, 1}); }

}  // namespace

int main() {
  simt::set_compute_capability(90);
  return small::run({whole, automatic_window, split_tree_window, small_tree, by_hand}, 2);
}
