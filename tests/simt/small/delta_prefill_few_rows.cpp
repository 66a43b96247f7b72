// delta_prefill for few rows on sm_90, and its schedule.
#include "delta_prefill_few_rows.cuh"
#include "delta_prefill.cu"
#include "prefill_case.h"

SMALL_WITH_FEW_ROWS(__half)
SMALL_WITHOUT_ANY_ATTENTION
SMALL_WITHOUT_ANY_HOPPER
SMALL_WITHOUT_FEW_ROWS(__nv_bfloat16)

namespace {

using namespace skv;
using small::Buffer;
using small::prefill;

// More pieces than there are slots, each sequence whole, so that a slot is filled twice.
void whole() { prefill<__half>(DType::kFloat16, {1, -1, 0, true, false, false, 8, 0, 906}); }
// As many items as there are multiprocessors, some of them parts.
void automatic() { prefill<__half>(DType::kFloat16, {0, -1, 0, true, false, false, 5, 0, 906}); }
void automatic_window() { prefill<__half>(DType::kFloat16, {0, 100, 1, true, false, false, 6, 0, 900}); }
void split_tree_window() { prefill<__half>(DType::kFloat16, {2, 50, 0, true, true, true, 8}); }
// Several items for a CTA, and a split without keys: sequence 1 sees those from the second piece on.
void many_splits() { prefill<__half>(DType::kFloat16, {20, 102, 0, false, false, true, 7, 0, 600}); }

// Attention reads its list before it waits for the grids ahead: not behind the one that makes the list.
void overlaps_but_for_its_list() {
  Buffer<__half> query(64), out(64), keys(16 * 64), values(16 * 64);
  Buffer<int32_t> cu_seqlens(2), length(1), table(1), schedule(size_t(schedule_size(1)));
  small::fill_numbers(query);
  small::fill_numbers(keys);
  small::fill_numbers(values);
  cu_seqlens[0] = table[0] = 0;
  cu_seqlens[1] = 1;
  length[0] = 9;
  DeltaPrefillParams p{};
  p.query = {query.data(), 64, 64};
  p.out = {out.data(), 64, 64};
  p.dtype = DType::kFloat16;
  p.k_cache = {keys.data(), 16 * 64, 64, 64};
  p.v_cache = {values.data(), 16 * 64, 64, 64};
  p.cache = {1, 16, 1, 64, DType::kFloat16};
  p.num_heads = 1;
  p.total_q = p.batch = p.max_blocks = p.block_table_stride = p.max_seqlen_q = 1;
  p.cu_seqlens_q = cu_seqlens.data();
  p.seqused_k = length.data();
  p.block_table = table.data();
  p.softmax_scale = 1.f;
  p.window_left = -1;
  p.workspace_size = cuda::delta_prefill_workspace(p);
  Buffer<uint64_t> workspace(size_t(p.workspace_size + 7) / 8);
  p.workspace = workspace.data();
  ScheduleDeltaPrefillParams s{};
  s.schedule = schedule.data();
  s.schedule_size = int64_t(schedule.size());
  s.cu_seqlens_q = p.cu_seqlens_q;
  s.seqused_k = p.seqused_k;
  s.batch = s.num_heads = s.num_kv_heads = s.max_seqlen_q = 1;
  s.head_dim = 64;
  s.window_left = -1;

  prim::overlapped() = true;
  cuda::schedule_delta_prefill(s, nullptr);
  for (const int32_t* list : {schedule.data(), schedule.data(), static_cast<int32_t*>(nullptr)}) {
    const bool is_behind = list == nullptr || p.schedule == nullptr;
    p.schedule = list;
    cuda::delta_prefill(p, nullptr);
    small::expect(prim::last_launch_overlaps() != is_behind, "overlaps or not");
  }
  prim::overlapped() = false;
}

}  // namespace

int main() {
  simt::set_compute_capability(90);
  setenv("SIMT_MULTIPROCESSORS", "8", 1);  // as many as there are sequences times heads
  return small::run(
      {whole, automatic, automatic_window, split_tree_window, many_splits, overlaps_but_for_its_list}, 2);
}
