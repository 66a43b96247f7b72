// append_kv: six tokens into blocks of four, rows of more vectors than one CTA takes, strided on both sides.
#include "append_kv.cu"

#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

constexpr int kBlocks = 3, kBlockSize = 4, kSlots = kBlocks * kBlockSize;

template <class Row, class Cell>
void append(DType dtype, DType cache_dtype, int heads, int head_dim, int key_shift, int value_shift) {
  const int head_stride = head_dim + 8, token_stride = heads * head_stride + 16;
  const std::vector<int64_t> slots = {5, -1, 11, 0, kSlots, 6};
  const int64_t tokens = int64_t(slots.size());
  Buffer<Row> key(tokens * token_stride + key_shift), value(tokens * token_stride + value_shift);
  Buffer<Cell> k_cache(kSlots * heads * head_dim), v_cache(k_cache.size());
  Buffer<int64_t> slot_mapping(slots.size());
  Buffer<float> scales(2 * heads);
  small::fill_numbers(key, 100);
  small::fill_numbers(value, 9000);
  small::set(slot_mapping, slots);
  for (int h = 0; h < 2 * heads; ++h) scales[h] = 1.f + h;

  AppendKvParams p{};
  p.cache = {kBlocks, kBlockSize, heads, head_dim, cache_dtype};
  p.k_cache = {k_cache.data(), kBlockSize * heads * head_dim, heads * head_dim, head_dim};
  p.v_cache = p.k_cache;  // V with heads outside of tokens
  p.v_cache = {v_cache.data(), kBlockSize * heads * head_dim, head_dim, kBlockSize * head_dim};
  p.key = {key.data() + key_shift, token_stride, head_stride};
  p.value = {value.data() + value_shift, token_stride, head_stride};
  p.dtype = dtype;
  p.slot_mapping = slot_mapping.data();
  p.num_tokens = tokens;
  const bool quantised = dtype != cache_dtype;
  if (quantised) p.k_scale = {scales.data(), 0, 1}, p.v_scale = {scales.data() + heads, 0, 1};

  std::vector<Cell> want_k = small::copy_of(k_cache), want_v = small::copy_of(v_cache);
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t slot = slots[t];
    if (slot < 0 || slot >= kSlots) continue;
    for (int h = 0; h < heads; ++h) {
      for (int d = 0; d < head_dim; ++d) {
        const int64_t from = t * token_stride + h * head_stride + d;
        const int64_t block = slot / kBlockSize, in_block = slot % kBlockSize;
        const float k = float(key[from + key_shift]), v = float(value[from + value_shift]);
        want_k[(slot * heads + h) * head_dim + d] = Cell(quantised ? k / scales[h] : k);
        want_v[((block * heads + h) * kBlockSize + in_block) * head_dim + d] =
            Cell(quantised ? v / scales[heads + h] : v);
      }
    }
  }
  cuda::append_kv(p, nullptr);
  small::expect_same(k_cache, want_k, "k_cache");
  small::expect_same(v_cache, want_v, "v_cache");
}

void copies() { append<float, float>(DType::kFloat32, DType::kFloat32, 3, 128, 0, 0); }
void unaligned_key() { append<__half, __half>(DType::kFloat16, DType::kFloat16, 2, 16, 1, 0); }
void unaligned_value() { append<__half, __half>(DType::kFloat16, DType::kFloat16, 2, 16, 0, 1); }
void quantises() { append<__nv_bfloat16, __nv_fp8_e4m3>(DType::kBFloat16, DType::kFloat8E4M3, 2, 16, 0, 0); }

void far_away() {  // offsets past 2^31 elements
  constexpr int64_t kFar = (int64_t(1) << 30) + 8;
  small::Sparse<uint16_t> cache(2 * kFar + 64);
  Buffer<uint16_t> row(8, 7);
  Buffer<int64_t> slot(2);
  slot[0] = 2;
  AppendKvParams p{};
  p.cache = {3, 1, 1, 8, DType::kBFloat16};
  p.k_cache = {cache.data(), kFar, 8, 8};
  p.v_cache = {cache.data() + 8, kFar, 8, 8};
  p.key = p.value = {row.data(), 8, 8};
  p.dtype = DType::kBFloat16;
  p.slot_mapping = slot.data();
  p.num_tokens = 1;
  cuda::append_kv(p, nullptr);
  small::expect(cache[2 * kFar] == 7 && cache[2 * kFar + 15] == 7, "far away");
}

}  // namespace

int main() { return small::run({copies, unaligned_key, unaligned_value, quantises, far_away}); }
