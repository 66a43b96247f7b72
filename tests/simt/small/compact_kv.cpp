// compact_kv: two sequences whose moves chain and overlap, with slots out of range.
#include "compact_kv.cu"

#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

constexpr int kBlocks = 4, kBlockSize = 4, kSlots = kBlocks * kBlockSize, kHeads = 3;

void compact(int head_dim, int shift) {
  const int64_t block = kBlockSize * kHeads * head_dim;
  Buffer<uint16_t> k(kBlocks * block + shift), v(kBlocks * block + shift);
  for (size_t i = 0; i < k.size(); ++i) {
    k[i] = uint16_t(small::hash(uint32_t(i)));
    v[i] = uint16_t(small::hash(uint32_t(i + 5000)));
  }
  // 0: 5 -> 1, 1 -> 2 (the copy), 2 -> 9 (the copy of the copy), then others; 1: two moves.
  const std::vector<int64_t> src = {5, 1, 2, kSlots, 7, 6, 12, 13}, dst = {1, 2, 9, 3, 4, kSlots, 11, 14};
  Buffer<int64_t> src_slots(src.size()), dst_slots(dst.size());
  Buffer<int32_t> cu_moves(4);
  small::set(src_slots, src);
  small::set(dst_slots, dst);
  small::set(cu_moves, {0, 6, 8, 20});

  CompactKvParams p{};
  void* const k_caches[] = {k.data() + shift};
  void* const v_caches[] = {v.data() + shift};
  p.k_caches = k_caches;
  p.v_caches = v_caches;
  p.num_layers = 1;
  p.k_layout = {nullptr, block, kHeads * head_dim, head_dim};
  p.v_layout = {nullptr, block, head_dim, kBlockSize * head_dim};
  p.cache = {kBlocks, kBlockSize, kHeads, head_dim, DType::kBFloat16};
  p.src_slots = src_slots.data();
  p.dst_slots = dst_slots.data();
  p.cu_moves = cu_moves.data();
  p.num_moves = int64_t(src.size());
  p.batch = 3;
  std::vector<uint16_t> want_k = small::copy_of(k), want_v = small::copy_of(v);
  for (int c = 0; c < 2; ++c) {
    const CacheView& layout = c ? p.v_layout : p.k_layout;
    std::vector<uint16_t>& want = c ? want_v : want_k;
    const auto at = [&](int64_t slot, int h, int d) {
      return slot / kBlockSize * block + slot % kBlockSize * layout.token_stride + h * layout.head_stride +
             d + shift;
    };
    for (size_t m = 0; m < src.size(); ++m) {
      if (src[m] >= kSlots || dst[m] >= kSlots) continue;
      for (int i = 0; i < kHeads * head_dim; ++i) {
        want[at(dst[m], i / head_dim, i % head_dim)] = want[at(src[m], i / head_dim, i % head_dim)];
      }
    }
  }
  cuda::compact_kv(p, nullptr);
  small::expect_same(k, want_k, "k_cache");
  small::expect_same(v, want_v, "v_cache");
}

void vectors() { compact(16, 0); }
void elements() { compact(64, 1); }  // 192 units: two CTAs a row

}  // namespace

int main() { return small::run({vectors, elements}); }
