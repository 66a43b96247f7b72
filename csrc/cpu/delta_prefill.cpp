// delta_prefill on the CPU: threads take work items (rows x KV) until none is left; split rows are merged
// after.
#include "delta_prefill_item.h"

namespace skv::cpu::SKV_ISA {

// On the calling thread alone where there is too little to do for others.
template <class F>
static void for_each_item(const Parallel& pool, bool serial, int64_t count, F&& f) {
  if (!serial) return pool.for_each_item(count, f);
  for (int64_t i = 0; i < count; ++i) f(i);
}

template <class Steps>
static void run_plan(const DeltaPrefillParams& p, const AttentionPlan& plan, const Parallel& pool) {
  const int64_t part_bytes =
      plan.num_parts * ItemRunner<Steps>::part_stride(p.cache.head_dim) * static_cast<int64_t>(sizeof(float));
  auto* parts = plan.num_parts > 0 ? static_cast<float*>(thread_scratch(kPartScratch, part_bytes)) : nullptr;
  for_each_item(pool, plan.small, plan.num_items,
                [&](int64_t i) { ItemRunner<Steps>(p, plan.items[i], parts).run(); });
  for_each_item(pool, plan.small, plan.num_merges, [&](int64_t i) {
    const AttentionItem* splits = plan.items + plan.merges[i].first_item;
    ItemRunner<Steps>(p, splits[0], parts).merge(splits, plan.merges[i].num_items);
  });
}

void delta_prefill(const DeltaPrefillParams& p, const Parallel& pool) {
  const AttentionPlan plan(p, pool.num_threads());
#if defined(__AVX512BF16__)
  if (p.dtype == DType::kBFloat16) return run_plan<BFloat16Steps>(p, plan, pool);
#endif
  run_plan<FloatSteps>(p, plan, pool);
}

void schedule_delta_prefill(const ScheduleDeltaPrefillParams& p, const Parallel& pool) {
  fill_schedule(p, pool.num_threads());
}

}  // namespace skv::cpu::SKV_ISA
