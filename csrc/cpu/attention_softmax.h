// Online softmax: a row's running maximum and sum, and the merge of two states over disjoint keys.
#pragma once
#include "attention_math.h"

namespace skv::cpu::SKV_ISA {

// From raw products to logits: scale * products, then cap * tanh(that / cap) if cap > 0.
struct ScoreScale {
  float scale, cap;
  // Whether a row may keep its products and be scaled within the exponential, whose rounding then is that of
  // weights of bfloat16: a pass over the scores less.
  template <class E>
  bool within_exponential() const {
    return sizeof(E) == 2 && cap <= 0 && scale > 0;
  }
};

inline Vec logits(Vec products, const ScoreScale& scale) {
  const Vec s = mul(products, splat(scale.scale));
  return scale.cap > 0 ? mul(tanh_of(divide(s, splat(scale.cap))), splat(scale.cap)) : s;
}

// A maximum to subtract: exp(-infinity - 0) is 0 where exp(-infinity + infinity) would be NaN.
inline float finite_maximum(float m) { return m == minus_infinity() ? 0.0f : m; }
inline Vec finite_maximum(Vec m) { return select_less(m, splat(-3.402823466e38f), zero(), m); }

struct RowState {
  float maximum, sum;
};

// Raw products [first, last) of a row, of which [begin, end) are visible -> logits in place, unless they are
// scaled within the exponential, the others -infinity. Returns maxima of what is there then, lane by lane.
template <class E>
Vec mask_scores(float* s, int first, int last, int begin, int end, const ScoreScale& scale) {
  Vec m = splat(minus_infinity());
  const bool whole = begin <= first && end >= last;
  if (scale.within_exponential<E>()) {
    for (int j = first; j < last; j += kLanes) {
      Vec x = load(s + j);
      if (!whole) {
        x = keep_range(x, j, begin, end);
        store(s + j, x);
      }
      m = max(m, x);
    }
    return m;
  }
  for (int j = first; j < last; j += kLanes) {
    Vec x = logits(load(s + j), scale);
    if (!whole) x = keep_range(x, j, begin, end);
    store(s + j, x);
    m = max(m, x);
  }
  return m;
}

// Scores [first, last) of a row -> weights exp(factor * score - m) in p (which may be s). Returns their sums.
template <class E>
inline Vec weigh_row(const float* s, E* p, int first, int last, [[maybe_unused]] float factor, float m) {
  Vec sums = zero();
#if defined(__AVX512BF16__)
  if constexpr (sizeof(E) == 2) {
    const Vec scale2 = splat(factor * kLog2E), shift2 = splat(-m * kLog2E);
#pragma GCC unroll 4
    for (int j = first; j < last; j += kLanes) {
      const Vec e = exp2_of(fma(load(s + j), scale2, shift2));
      sums = add(sums, e);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + j), (__m256i)_mm512_cvtneps_pbh(e));
    }
    return sums;
  }
#endif
  const Vec shift = splat(m);
  for (int j = first; j < last; j += kLanes) {
    const Vec e = exp_of(sub(load(s + j), shift));
    sums = add(sums, e);
    store(p + j, e);
  }
  return sums;
}

// A step of the softmax of `count` rows, up to kLanes, a lane each: what mask_scores() left of [first, last)
// and its maxima -> weights in p, rows `stride` apart in s and p. Updates the states; shrink: the factors by
// which what was accumulated before shrinks.
template <class E>
void softmax_rows(const float* s, E* p, int64_t stride, int64_t count, int first, int last,
                  const Vec (&maxima)[kLanes], const ScoreScale& scale, RowState* state, float* shrink) {
  alignas(64) float old_maximum[kLanes], old_sum[kLanes], maximum[kLanes], factors[kLanes];
  for (int64_t r = 0; r < kLanes; ++r) {
    old_maximum[r] = r < count ? state[r].maximum : 0.0f;
    old_sum[r] = r < count ? state[r].sum : 0.0f;
  }
  const float factor = scale.within_exponential<E>() ? scale.scale : 1.0f;
  const Vec before = load(old_maximum);
  const Vec tile = combine_each(maxima, [](Vec a, Vec b) { return max(a, b); });
  const Vec now = max(before, mul(tile, splat(factor))), m = finite_maximum(now);
  const Vec shrinks = exp_of(sub(before, m));
  store(maximum, m);
  Vec sums[kLanes];
  for (int64_t r = 0; r < count; ++r)
    sums[r] = weigh_row(s + r * stride, p + r * stride, first, last, factor, maximum[r]);
  for (int64_t r = count; r < kLanes; ++r) sums[r] = zero();
  const Vec sum = combine_each(sums, [](Vec a, Vec b) { return add(a, b); });
  store(old_sum, fma(load(old_sum), shrinks, sum));
  store(maximum, now);
  store(factors, shrinks);
  for (int64_t r = 0; r < count; ++r) {
    state[r] = {maximum[r], old_sum[r]};
    shrink[r] = factors[r];
  }
}

// (acc, state) = merge of itself and (other, other_state). Merging what has seen nothing changes no bit.
inline void merge_row(float* acc, RowState& state, const float* other, const RowState& other_state,
                      int64_t width) {
  if (other_state.maximum == minus_infinity()) return;
  const float now = state.maximum > other_state.maximum ? state.maximum : other_state.maximum;
  const float m = finite_maximum(now);
  const float a = exp_of(state.maximum - m), b = exp_of(other_state.maximum - m);
  for (int64_t j = 0; j < width; j += kLanes) {
    store(acc + j, fma(load(acc + j), splat(a), mul(load(other + j), splat(b))));
  }
  state.maximum = now;
  state.sum = __builtin_fmaf(state.sum, a, other_state.sum * b);
}

}  // namespace skv::cpu::SKV_ISA
