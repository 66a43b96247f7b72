// copy_blocks: whole and partly filled blocks of two layers, ids out of range; more layers than one launch
// takes.
#include "copy_blocks.cu"

#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

constexpr int kBlocks = 5, kBlockSize = 4, kHeads = 3;

void copy(int layers, int head_dim, int shift) {
  const int64_t block = kBlockSize * kHeads * head_dim;
  std::vector<std::vector<uint16_t>> want;
  std::vector<Buffer<uint16_t>*> caches;
  std::vector<void*> k, v;
  for (int c = 0; c < 2 * layers; ++c) {
    caches.push_back(new Buffer<uint16_t>(kBlocks * block + shift));
    for (size_t i = 0; i < caches[c]->size(); ++i)
      (*caches[c])[i] = uint16_t(small::hash(uint32_t(i + 999 * c)));
    (c % 2 ? v : k).push_back(caches[c]->data() + shift);
    want.push_back(small::copy_of(*caches[c]));
  }
  const std::vector<int32_t> src = {0, 3, kBlocks, 1}, dst = {4, 2, 2, kBlocks}, tokens = {3, 9, 4, 4};
  Buffer<int32_t> src_blocks(4), dst_blocks(4), num_tokens(4);
  small::set(src_blocks, src);
  small::set(dst_blocks, dst);
  small::set(num_tokens, tokens);

  CopyBlocksParams p{};
  p.k_caches = k.data();
  p.v_caches = v.data();
  p.num_layers = layers;
  p.k_layout = {nullptr, block, kHeads * head_dim, head_dim};
  p.v_layout = {nullptr, block, head_dim, kBlockSize * head_dim};
  p.cache = {kBlocks, kBlockSize, kHeads, head_dim, DType::kBFloat16};
  p.src_blocks = src_blocks.data();
  p.dst_blocks = dst_blocks.data();
  p.num_tokens = num_tokens.data();
  p.num_copies = 4;
  for (int c = 0; c < 2 * layers; ++c) {
    const CacheView& layout = c % 2 ? p.v_layout : p.k_layout;
    for (int pair = 0; pair < 2; ++pair) {
      for (int t = 0; t < std::min(tokens[pair], kBlockSize); ++t) {
        for (int h = 0; h < kHeads; ++h) {
          for (int d = 0; d < head_dim; ++d) {
            const int64_t at = t * layout.token_stride + h * layout.head_stride + d + shift;
            want[c][dst[pair] * block + at] = want[c][src[pair] * block + at];
          }
        }
      }
    }
  }
  cuda::copy_blocks(p, nullptr);
  for (int c = 0; c < 2 * layers; ++c) {
    small::expect_same(*caches[c], want[c], "cache");
    delete caches[c];
  }
}

void vectors() { copy(2, 16, 0); }
void elements() { copy(1, 128, 1); }  // 1536 elements: two tiles
void many_layers() { copy(130, 8, 0); }

void far_away() {
  constexpr int64_t kFar = (int64_t(1) << 30) + 8;
  small::Sparse<uint16_t> cache(2 * kFar + 64);
  for (int i = 0; i < 8; ++i) cache[i] = uint16_t(i + 1);
  Buffer<int32_t> src(4, 0), dst(4, 2);
  void* const caches[] = {cache.data()};
  void* const v_caches[] = {cache.data() + 16};
  CopyBlocksParams p{};
  p.k_caches = caches;
  p.v_caches = v_caches;
  p.num_layers = 1;
  p.k_layout = p.v_layout = {nullptr, kFar, 8, 8};
  p.cache = {3, 1, 1, 8, DType::kBFloat16};
  p.src_blocks = src.data();
  p.dst_blocks = dst.data();
  p.num_copies = 1;
  cuda::copy_blocks(p, nullptr);
  for (int i = 0; i < 8; ++i) small::expect(cache[2 * kFar + i] == i + 1, "far away");
}

}  // namespace

int main() { return small::run({vectors, elements, many_layers, far_away}, 2); }
