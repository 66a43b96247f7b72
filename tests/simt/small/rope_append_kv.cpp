// rope_append_kv: five tokens, one with a position and one with a slot out of range, query rotated in place.
#include "rope_append_kv.cu"

#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

constexpr int kTokens = 5, kHeads = 3, kKvHeads = 2, kPositions = 6, kSlots = 8, kBlockSize = 2;

struct Shape {
  int head_dim, rotary_dim, shift;
  bool interleaved, norm;
};

template <class T, class Cell>
void rope(DType dtype, DType cache_dtype, const Shape& s) {
  const int d = s.head_dim, head_stride = d + 8, token_stride = (kHeads + 2 * kKvHeads) * head_stride + 8;
  Buffer<T> qkv(kTokens * token_stride + s.shift), q_weight(d), k_weight(d);
  Buffer<Cell> k_cache(kSlots * kKvHeads * d), v_cache(k_cache.size());
  Buffer<float> cos_sin(kPositions * (s.rotary_dim + 4)), scales(4);
  Buffer<int32_t> positions(8);
  Buffer<int64_t> slots(6);
  small::fill_numbers(qkv, 3);
  small::fill_numbers(q_weight, 90);
  small::fill_numbers(k_weight, 190);
  small::fill_numbers(cos_sin, 400);
  small::set(positions, {4, 0, kPositions, 5, 1});
  small::set<int64_t>(slots, {3, 6, 1, kSlots, 2});
  for (int i = 0; i < 4; ++i) scales[i] = 0.5f + i;

  RopeAppendKvParams p{};
  AppendKvParams& a = p.append;
  a.cache = {kSlots / kBlockSize, kBlockSize, kKvHeads, d, cache_dtype};
  a.k_cache = {k_cache.data(), kBlockSize * kKvHeads * d, kKvHeads * d, d};
  a.v_cache = {v_cache.data(), kBlockSize * kKvHeads * d, d, kBlockSize * d};
  T* rows = qkv.data() + s.shift;
  a.key = {rows + kHeads * head_stride, token_stride, head_stride};
  a.value = {rows + (kHeads + kKvHeads) * head_stride, token_stride, head_stride};
  a.dtype = dtype;
  a.slot_mapping = slots.data();
  a.num_tokens = kTokens;
  const bool quantised = dtype != cache_dtype;
  if (quantised) a.k_scale = {scales.data(), 0, 1}, a.v_scale = {scales.data() + 2, 0, 1};
  p.query = p.query_out = {rows, token_stride, head_stride};
  p.num_heads = kHeads;
  p.positions = positions.data();
  p.cos_sin_cache = cos_sin.data();
  p.cos_sin_dtype = DType::kFloat32;
  p.cos_sin_stride = s.rotary_dim + 4;
  p.max_position = kPositions;
  p.rotary_dim = s.rotary_dim;
  p.interleaved = s.interleaved;
  if (s.norm) p.q_norm_weight = q_weight.data(), p.k_norm_weight = k_weight.data();
  p.norm_eps = 1e-5f;

  std::vector<T> want = small::copy_of(qkv);
  std::vector<Cell> want_k = small::copy_of(k_cache), want_v = small::copy_of(v_cache);
  const int half = s.rotary_dim / 2;
  for (int t = 0; t < kTokens; ++t) {
    if (positions[t] >= kPositions) continue;
    const float* table = &cos_sin[positions[t] * (s.rotary_dim + 4)];
    for (int h = 0; h < kHeads + 2 * kKvHeads; ++h) {
      const T* x = rows + t * token_stride + h * head_stride;
      const bool is_query = h < kHeads, is_value = h >= kHeads + kKvHeads;
      std::vector<double> y(d);
      double sum = 0;
      for (int i = 0; i < d; ++i) sum += double(float(x[i])) * double(float(x[i]));
      for (int i = 0; i < d; ++i) {
        y[i] = float(x[i]);
        if (s.norm && !is_value)
          y[i] *= float((is_query ? q_weight : k_weight)[i]) / std::sqrt(sum / d + 1e-5);
      }
      for (int pair = 0; pair < half && !is_value; ++pair) {
        const int i = s.interleaved ? 2 * pair : pair, j = s.interleaved ? i + 1 : pair + half;
        const double first = y[i], second = y[j], c = table[pair], sine = table[half + pair];
        y[i] = first * c - second * sine;
        y[j] = second * c + first * sine;
      }
      const int64_t slot = slots[t];
      for (int i = 0; i < d; ++i) {
        if (is_query) {
          want[s.shift + t * token_stride + h * head_stride + i] = T(float(y[i]));
        } else if (slot < kSlots) {
          const int kv = (h - kHeads) % kKvHeads;
          const double scale = quantised ? scales[(is_value ? 2 : 0) + kv] : 1;
          const int64_t block = slot / kBlockSize, in_block = slot % kBlockSize;
          if (is_value) {
            want_v[((block * kKvHeads + kv) * kBlockSize + in_block) * d + i] = Cell(float(y[i] / scale));
          } else {
            want_k[(slot * kKvHeads + kv) * d + i] = Cell(float(y[i] / scale));
          }
        }
      }
    }
  }
  cuda::rope_append_kv(p, nullptr);
  const float tolerance = quantised ? 0.6f : 0.01f;
  for (size_t i = 0; i < want.size(); ++i) {
    small::expect_close(float(qkv[i]), float(want[i]), 0.01f, "query " + std::to_string(i));
  }
  for (size_t i = 0; i < want_k.size(); ++i) {
    small::expect_close(float(k_cache[i]), float(want_k[i]), tolerance, "k_cache");
    small::expect_close(float(v_cache[i]), float(want_v[i]), quantised ? 0.1f : 0.f, "v_cache");
  }
}

void vectors() { rope<__half, __half>(DType::kFloat16, DType::kFloat16, {64, 64, 0, false, true}); }
void elements() { rope<float, float>(DType::kFloat32, DType::kFloat32, {40, 24, 1, false, true}); }
void interleaved() { rope<__half, __half>(DType::kFloat16, DType::kFloat16, {64, 32, 0, true, false}); }
void quantises() {
  rope<__nv_bfloat16, __nv_fp8_e4m3>(DType::kBFloat16, DType::kFloat8E4M3, {64, 32, 0, false, false});
}

}  // namespace

int main() { return small::run({vectors, elements, interleaved, quantises}); }
