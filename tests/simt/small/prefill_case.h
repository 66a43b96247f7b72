// One call of delta_prefill and its schedule: four sequences, split and whole, every kind of mask, NaN
// wherever nothing may be read.
#pragma once

#include "small.h"

// The launchers that a program has no kernels for, one by one or all of a kind.
#define SMALL_WITHOUT_ATTENTION(T, Cell)                                                    \
  template <>                                                                               \
  void skv::cuda::launch_attention_of<T, Cell>(const AttentionLaunch&, int, cudaStream_t) { \
    throw std::runtime_error("not in the small cases");                                     \
  }
#define SMALL_WITHOUT_HOPPER(T)                                                          \
  template <>                                                                            \
  void skv::cuda::launch_hopper_of<T>(const AttentionLaunch&, bool, int, cudaStream_t) { \
    throw std::runtime_error("not in the small cases");                                  \
  }
#define SMALL_WITHOUT_FEW_ROWS(T)                                                    \
  template <>                                                                        \
  void skv::cuda::launch_few_rows_of<T>(const AttentionLaunch&, int, cudaStream_t) { \
    throw std::runtime_error("not in the small cases");                              \
  }
// And those that it has, of head_dim 64.
#define SMALL_WITH_HOPPER(T)                                                                               \
  template <>                                                                                              \
  void skv::cuda::launch_hopper_of<T>(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t s) { \
    launch_hopper<T, 64>(launch, tma, ctas, s);                                                            \
  }
#define SMALL_WITH_FEW_ROWS(T)                                                                     \
  template <>                                                                                      \
  void skv::cuda::launch_few_rows_of<T>(const AttentionLaunch& launch, int ctas, cudaStream_t s) { \
    launch_few_rows<T, 64>(launch, ctas, s);                                                       \
  }
#define SMALL_WITHOUT_ANY_ATTENTION                     \
  SMALL_WITHOUT_ATTENTION(__half, __half)               \
  SMALL_WITHOUT_ATTENTION(__half, __nv_fp8_e4m3)        \
  SMALL_WITHOUT_ATTENTION(__nv_bfloat16, __nv_bfloat16) \
  SMALL_WITHOUT_ATTENTION(__nv_bfloat16, __nv_fp8_e4m3)
#define SMALL_WITHOUT_ANY_HOPPER      \
  SMALL_WITHOUT_HOPPER(__half)        \
  SMALL_WITHOUT_HOPPER(__nv_bfloat16) \
  SMALL_WITHOUT_HOPPER(__nv_fp8_e4m3)
#define SMALL_WITHOUT_ANY_FEW_ROWS \
  SMALL_WITHOUT_FEW_ROWS(__half)   \
  SMALL_WITHOUT_FEW_ROWS(__nv_bfloat16)

namespace small {

using namespace skv;

constexpr int kBatch = 4, kHeads = 4, kKvHeads = 2, kHeadDim = 64, kBlockSize = 16, kMaxBlocks = 57,
              kNumBlocks = 80;
int kNew[kBatch] = {5, 1, 0, 40};         // the last: as the case says
int kLength[kBatch] = {70, 135, 3, 260};  // the last: as the case says
constexpr int kTotal = 46;

bool is_hole(int b, int key) { return b == 1 && key / kBlockSize == 3; }

struct Options {
  int num_splits, window_left, shift;
  bool causal, tree, extras;  // extras: softcap, sinks, scales
  int last_new;               // at most 40: which way warps share the rows of the last sequence
  int cache_shift = 0;        // elements by which the caches are off 16 bytes
  int last_length = 260;      // at most 912
};

template <class Cell, class Query = __half>
void prefill(DType cache_dtype, const Options& o) {
  constexpr bool kBf16 = std::is_same<Query, __nv_bfloat16>::value;
  kNew[3] = o.last_new;
  kLength[3] = o.last_length;
  constexpr int kHeadStride = kHeadDim + 8, kTokenStride = kHeads * kHeadStride;
  Buffer<Query> query(kTotal * kTokenStride + o.shift), out(kTotal * kTokenStride + o.shift);
  Buffer<float> lse(kHeads * (kTotal + 2)), sinks(4), scales(2 * kBatch * kKvHeads);
  Buffer<Cell> k_cache(kNumBlocks * kBlockSize * kKvHeads * kHeadDim + o.cache_shift),
      v_cache(k_cache.size());
  Buffer<int32_t> cu_seqlens(kBatch + 1), seqused(kBatch), table(kBatch * (kMaxBlocks + 2)), tree(kTotal * 2);
  fill_numbers(query, 11);
  if (kBf16) {  // rows of very different sizes
    for (size_t i = 0; i < query.size(); ++i) {
      query[i] = Query(float(query[i]) * std::ldexp(1.f, -int(i / kHeadStride % 5)));
    }
  }
  for (int i = 0; i < 4; ++i) sinks[i] = number(i);
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = 0.5f + 0.25f * float(i % 5);
  int next_block = 0;
  cu_seqlens[0] = 0;
  for (int b = 0; b < kBatch; ++b) {
    cu_seqlens[b + 1] = cu_seqlens[b] + kNew[b];
    seqused[b] = kLength[b];
    for (int i = 0; i < kMaxBlocks + 2; ++i) {  // past the sequence: ids that do not exist
      table[b * (kMaxBlocks + 2) + i] =
          i * kBlockSize < kLength[b] ? (next_block++ * 7 + 2) % kNumBlocks : kNumBlocks;
    }
    if (b == 1) table[b * (kMaxBlocks + 2) + 3] = 1 << 20;  // a hole
    for (int i = 0; i < kNew[b]; ++i) {
      const uint64_t bits = (uint64_t(1) << i) | (i ? uint64_t(hash(i)) & ((uint64_t(1) << i) - 1) : 0);
      tree[(cu_seqlens[b] + i) * 2] = int32_t(bits);
      tree[(cu_seqlens[b] + i) * 2 + 1] = int32_t(bits >> 32);
    }
  }

  DeltaPrefillParams p{};
  p.query = {query.data() + o.shift, kTokenStride, kHeadStride};
  p.out = {out.data() + o.shift, kTokenStride, kHeadStride};
  p.dtype = kBf16 ? DType::kBFloat16 : DType::kFloat16;
  p.lse = lse.data();
  p.lse_head_stride = kTotal + 2;
  p.cache = {kNumBlocks, kBlockSize, kKvHeads, kHeadDim, cache_dtype};
  p.k_cache = {k_cache.data() + o.cache_shift, kBlockSize * kKvHeads * kHeadDim, kKvHeads * kHeadDim,
               kHeadDim};
  p.v_cache = {v_cache.data() + o.cache_shift, kBlockSize * kKvHeads * kHeadDim, kHeadDim,
               kBlockSize * kHeadDim};
  p.num_heads = kHeads;
  p.total_q = kTotal;
  p.batch = kBatch;
  p.cu_seqlens_q = cu_seqlens.data();
  p.seqused_k = seqused.data();
  p.block_table = table.data();
  p.block_table_stride = kMaxBlocks + 2;
  p.max_blocks = kMaxBlocks;
  p.max_seqlen_q = o.last_new;
  p.softmax_scale = 0.2f;
  p.causal = o.causal;
  p.window_left = o.window_left;
  if (o.tree) p.tree_mask = tree.data(), p.tree_mask_stride = 2, p.mask_words = 2;
  if (o.extras) {
    p.softcap = 3.f;
    p.sinks = sinks.data();
    p.k_scale = {scales.data(), kKvHeads, 1};
    p.v_scale = {scales.data() + kBatch * kKvHeads, kKvHeads, 1};
  }
  p.num_splits = o.num_splits;
  const auto cell = [&](const CacheView& view, Buffer<Cell>& cache, int b, int key, int kv_head) {
    const int block = table[b * (kMaxBlocks + 2) + key / kBlockSize];
    return &cache[o.cache_shift + block * view.block_stride + key % kBlockSize * view.token_stride +
                  kv_head * view.head_stride];
  };
  for (int b = 0; b < kBatch; ++b) {
    // Of a tree's rows one without any bit, which no case has, would see one key more.
    const int oldest = o.window_left < 0 ? 0 : std::max(0, kLength[b] - kNew[b] - o.tree - o.window_left);
    for (int key = oldest; key < kLength[b]; ++key) {
      if (is_hole(b, key)) continue;
      for (int h = 0; h < kKvHeads; ++h) {
        for (int d = 0; d < kHeadDim; ++d) {
          const size_t i = ((b * 300 + key) * kKvHeads + h) * kHeadDim + d;
          cell(p.k_cache, k_cache, b, key, h)[d] = Cell(number(i));
          cell(p.v_cache, v_cache, b, key, h)[d] = Cell(number(i + 7777777));
        }
      }
    }
  }
  p.workspace_size = cuda::delta_prefill_workspace(p);
  Buffer<uint64_t> workspace(size_t(p.workspace_size + 7) / 8);
  p.workspace = workspace.data();
  cuda::delta_prefill(p, nullptr);

  for (int b = 0; b < kBatch; ++b) {
    const int prefix = kLength[b] - kNew[b];
    for (int i = 0; i < kNew[b]; ++i) {
      const int token = cu_seqlens[b] + i;
      uint64_t bits = 0;
      std::memcpy(&bits, &tree[token * 2], 8);
      const int position = prefix + (o.tree ? __builtin_popcountll(bits) - 1 : i);
      for (int h = 0; h < kHeads; ++h) {
        const int kv = h / (kHeads / kKvHeads);
        const float k_scale = o.extras ? scales[b * kKvHeads + kv] : 1.f;
        const float v_scale = o.extras ? scales[(kBatch + b) * kKvHeads + kv] : 1.f;
        double sum = o.extras ? std::exp(double(sinks[h])) : 0;
        std::vector<double> acc(kHeadDim, 0);
        for (int key = 0; key < kLength[b]; ++key) {
          bool see = !is_hole(b, key) && (o.window_left < 0 || key >= position - o.window_left);
          if (o.tree) {
            see = see && (key < prefix || (bits >> (key - prefix) & 1));
          } else if (o.causal) {
            see = see && key <= position;
          }
          if (!see) continue;
          double s = 0;
          for (int d = 0; d < kHeadDim; ++d) {
            s += double(float(query[o.shift + token * kTokenStride + h * kHeadStride + d])) *
                 double(float(cell(p.k_cache, k_cache, b, key, kv)[d]));
          }
          s *= double(p.softmax_scale) * k_scale;
          if (p.softcap > 0) s = p.softcap * std::tanh(s / p.softcap);
          const double weight = std::exp(s);
          sum += weight;
          for (int d = 0; d < kHeadDim; ++d)
            acc[d] += weight * float(cell(p.v_cache, v_cache, b, key, kv)[d]);
        }
        const std::string where = "sequence " + std::to_string(b) + " token " + std::to_string(i);
        expect_close(lse[h * (kTotal + 2) + token], float(std::log(sum)), 0.01f, where + ": lse");
        for (int d = 0; d < kHeadDim; ++d) {
          const float got = out[o.shift + token * kTokenStride + h * kHeadStride + d];
          expect_close(got, float(acc[d] / sum * v_scale), 0.02f, where + ": out");
        }
      }
    }
  }
}

}  // namespace small
