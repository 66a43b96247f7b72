// copy_blocks on the CPU: threads over (layer, K or V, pair of blocks); a pair is copied in the longest runs
// that the strides allow.
#include "copy_bytes.h"
#include "index_check.h"

namespace skv::cpu::SKV_ISA {

namespace {

// The tokens of one block, [num_tokens, num_kv_heads, head_dim] elements of `size` bytes.
void copy_tokens(char* to, const char* from, const CacheView& layout, const CacheShape& shape,
                 int64_t num_tokens, int64_t size) {
  const int64_t token = layout.token_stride * size, head = layout.head_stride * size;
  const int64_t row = shape.head_dim * size, heads = shape.num_kv_heads;
  if (heads == 1 || head == row) {  // a token is one run
    if (token == heads * row) return copy_bytes(to, from, num_tokens * token);
    for (int64_t t = 0; t < num_tokens; ++t) copy_bytes(to + t * token, from + t * token, heads * row);
  } else if (token == row) {  // a head is one run
    for (int64_t h = 0; h < heads; ++h) copy_bytes(to + h * head, from + h * head, num_tokens * row);
  } else {
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        copy_bytes(to + t * token + h * head, from + t * token + h * head, row);
      }
    }
  }
}

}  // namespace

void copy_blocks(const CopyBlocksParams& p, const Parallel& pool) {
  check_indices(p);
  const int64_t size = element_size(p.cache.dtype);
  const int64_t block_bytes = size * p.cache.block_size * p.cache.num_kv_heads * p.cache.head_dim;
  const int64_t items = p.num_layers * 2 * p.num_copies;
  pool.for_each(items, 1 + 65536 / block_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t i = item % p.num_copies, layer = item / p.num_copies / 2;
      const bool is_key = item / p.num_copies % 2 == 0;
      const int64_t src = p.src_blocks[i], dst = p.dst_blocks[i];
      if (src < 0 || dst < 0) continue;
      const CacheView& layout = is_key ? p.k_layout : p.v_layout;
      char* base = static_cast<char*>(is_key ? p.k_caches[layer] : p.v_caches[layer]);
      copy_tokens(base + dst * layout.block_stride * size, base + src * layout.block_stride * size, layout,
                  p.cache, p.num_tokens ? p.num_tokens[i] : p.cache.block_size, size);
    }
  });
}

}  // namespace skv::cpu::SKV_ISA
