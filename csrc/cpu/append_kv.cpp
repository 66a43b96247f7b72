// append_kv on the CPU: one pass over the new tokens, threads over tokens, a vectorised row copy (or fp8
// quantisation).
#include "append_row.h"

namespace skv::cpu::SKV_ISA {

void append_kv(const AppendKvParams& p, const Parallel& pool) {
  check_slots(p);
  with_cache_type(p.cache.dtype, p.dtype, [&](auto cache_zero, auto row_zero) {
    using C = decltype(cache_zero);
    using T = decltype(row_zero);
    const int64_t grain = 1 + 16384 / (int64_t{p.cache.num_kv_heads} * p.cache.head_dim);
    pool.for_each(p.num_tokens, grain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t slot = p.slot_mapping[t];
        if (slot < 0) continue;
        for (int32_t h = 0; h < p.cache.num_kv_heads; ++h) {
          append_row<C, T>(p.cache, p.k_cache, slot, h, head_row<T>(p.key, t, h), scale_of(p.k_scale, h));
          append_row<C, T>(p.cache, p.v_cache, slot, h, head_row<T>(p.value, t, h), scale_of(p.v_scale, h));
        }
      }
    });
  });
}

}  // namespace skv::cpu::SKV_ISA
