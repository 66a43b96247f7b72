// compact_kv on the CPU: threads over (layer, K or V); within one cache the moves run one after the other, so
// a source is read before a later move may overwrite it.
#include "copy_bytes.h"
#include "index_check.h"

namespace skv::cpu::SKV_ISA {

void compact_kv(const CompactKvParams& p, const Parallel& pool) {
  check_indices(p);
  const int64_t size = element_size(p.cache.dtype), row = p.cache.head_dim * size;
  const int64_t heads = p.cache.num_kv_heads, block_size = p.cache.block_size;
  const int64_t cache_bytes = 1 + 2 * p.num_moves * heads * row;
  pool.for_each(p.num_layers * 2, 1 + 65536 / cache_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const bool is_key = item % 2 == 0;
      const CacheView& layout = is_key ? p.k_layout : p.v_layout;
      char* base = static_cast<char*>(is_key ? p.k_caches[item / 2] : p.v_caches[item / 2]);
      auto token = [&](int64_t slot) {
        return base +
               (slot / block_size * layout.block_stride + slot % block_size * layout.token_stride) * size;
      };
      const bool one_run = heads == 1 || layout.head_stride * size == row;
      for (int64_t i = p.cu_moves[0]; i < p.cu_moves[p.batch]; ++i) {
        const int64_t src = p.src_slots[i], dst = p.dst_slots[i];
        if (src < 0 || dst < 0 || src == dst) continue;
        char* to = token(dst);
        const char* from = token(src);
        if (one_run) {
          copy_bytes(to, from, heads * row);
        } else {
          for (int64_t h = 0; h < heads; ++h)
            copy_bytes(to + h * layout.head_stride * size, from + h * layout.head_stride * size, row);
        }
      }
    }
  });
}

}  // namespace skv::cpu::SKV_ISA
