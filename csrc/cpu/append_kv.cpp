// append_kv on the CPU: one pass over the new tokens, every slot owned by one thread, a vectorised row copy
// (or fp8 quantisation).
#include "append_row.h"

namespace skv::cpu::SKV_ISA {

void append_kv(const AppendKvParams& p, const Parallel& pool) {
  check_slots(p);
  const CacheShape& shape = p.cache;
  const int64_t elements = p.num_tokens * shape.num_kv_heads * shape.head_dim;
  const int64_t num_workers = num_append_workers(elements, pool);
  with_cache_type(shape.dtype, p.dtype, [&](auto cache_zero, auto row_zero) {
    using C = decltype(cache_zero);
    using T = decltype(row_zero);
    pool.for_each(num_workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < p.num_tokens; ++t) {
        const int64_t slot = p.slot_mapping[t];
        if (slot < 0) continue;
        const int64_t worker = worker_of_slot(slot, num_workers);
        if (worker < begin || worker >= end) continue;
        for (int32_t h = 0; h < shape.num_kv_heads; ++h) {
          append_row(slot_row<C>(shape, p.k_cache, slot, h), head_row<const T>(p.key, t, h), shape.head_dim,
                     scale_of(p.k_scale, h));
          append_row(slot_row<C>(shape, p.v_cache, slot, h), head_row<const T>(p.value, t, h), shape.head_dim,
                     scale_of(p.v_scale, h));
        }
      }
    });
  });
}

}  // namespace skv::cpu::SKV_ISA
