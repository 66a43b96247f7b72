// delta_prefill on wgmma with fp8 caches.
#include "delta_prefill.cu"
#include "delta_prefill_hopper.cuh"
#include "prefill_case.h"

SMALL_WITH_HOPPER(__nv_fp8_e4m3)
SMALL_WITHOUT_ANY_ATTENTION
SMALL_WITHOUT_HOPPER(__half)
SMALL_WITHOUT_HOPPER(__nv_bfloat16)
SMALL_WITHOUT_ANY_FEW_ROWS

namespace {

using namespace skv;

template <class Query>
void prefill(const small::Options& options) {
  small::prefill<__nv_fp8_e4m3, Query>(DType::kFloat8E4M3, options);
}

// Every ring is filled twice and more; the last tile is cut.
void whole() { prefill<__nv_bfloat16>({1, -1, 0, true, false, false, 40, 0, 906}); }
// Tiles cut at their beginning; one group of rows.
void automatic_window() { prefill<__half>({0, 100, 1, true, false, false, 20}); }
void split_tree_window() { prefill<__nv_bfloat16>({2, 50, 0, true, true, true, 30}); }
void by_hand() { prefill<__nv_bfloat16>({-1, -1, 1, false, false, true, 40, 1}); }

}  // namespace

int main() {
  simt::set_compute_capability(90);
  return small::run({whole, automatic_window, split_tree_window, by_hand}, 2);
}
