// merge_states on the CPU: threads over tokens, one vectorised pass per row. Of two finite states the weights
// are w = 1 / (1 + exp(lse_other - lse)); a state that saw nothing (lse -inf) has no influence, whatever its
// out holds.
#include "simd.h"

namespace skv::cpu::SKV_ISA {

namespace {

template <class T>
void merge_row(T* out, const T* a, const T* b, float weight_a, float weight_b, int n) {
  const Vec wa = splat(weight_a), wb = splat(weight_b);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, fma(wa, load(a + i), mul(wb, load(b + i))));
  for (; i < n; ++i) out[i] = from_float<T>(weight_a * to_float(a[i]) + weight_b * to_float(b[i]));
}

}  // namespace

void merge_states(const MergeStatesParams& p, const Parallel& pool) {
  constexpr float kNothing = -__builtin_inff();
  with_float_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    auto row = [](const HeadsView& v, int64_t t, int64_t h) {
      return static_cast<T*>(v.data) + t * v.token_stride + h * v.head_stride;
    };
    const size_t row_bytes = sizeof(T) * static_cast<size_t>(p.head_dim);
    const int64_t grain = 1 + 16384 / (int64_t{p.num_heads} * p.head_dim);
    pool.for_each(p.total_q, grain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t h = 0; h < p.num_heads; ++h) {
          T* out = row(p.out, t, h);
          const T *a = row(p.out_a, t, h), *b = row(p.out_b, t, h);
          const float lse_a = p.lse_a[h * p.lse_a_stride + t], lse_b = p.lse_b[h * p.lse_b_stride + t];
          float lse;
          if (lse_a == kNothing && lse_b == kNothing) {
            std::memset(out, 0, row_bytes);
            lse = kNothing;
          } else if (lse_a == kNothing || lse_b == kNothing) {
            std::memmove(out, lse_a == kNothing ? b : a, row_bytes);  // out may be that very row
            lse = lse_a == kNothing ? lse_b : lse_a;
          } else {
            const bool a_larger = lse_a >= lse_b;
            const float ratio = __builtin_expf(a_larger ? lse_b - lse_a : lse_a - lse_b);  // <= 1
            const float larger = 1.0f / (1.0f + ratio), smaller = ratio * larger;
            merge_row(out, a, b, a_larger ? larger : smaller, a_larger ? smaller : larger, p.head_dim);
            lse = (a_larger ? lse_a : lse_b) + __builtin_log1pf(ratio);
          }
          p.lse[h * p.lse_stride + t] = lse;
        }
      }
    });
  });
}

}  // namespace skv::cpu::SKV_ISA
