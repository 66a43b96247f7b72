// Online softmax: a row's running maximum and sum, and the merge of two states over disjoint keys.
#pragma once
#include "attention_math.h"

namespace skv::cpu::SKV_ISA {

// From raw products to logits: scale * products, then cap * tanh(that / cap) if cap > 0.
struct ScoreScale {
  float scale, cap;
};

inline Vec logits(Vec products, const ScoreScale& scale) {
  const Vec s = mul(products, splat(scale.scale));
  return scale.cap > 0 ? mul(tanh_of(divide(s, splat(scale.cap))), splat(scale.cap)) : s;
}

// A maximum to subtract: exp(-infinity - 0) is 0 where exp(-infinity + infinity) would be NaN.
inline float finite_maximum(float m) { return m == minus_infinity() ? 0.0f : m; }

struct RowState {
  float maximum, sum;
};

// Raw products [first, last) of a row, of which [begin, end) are visible -> logits in place, the others
// -infinity. Returns the maximum.
inline float mask_scores(float* s, int first, int last, int begin, int end, const ScoreScale& scale) {
  Vec m = splat(minus_infinity());
  const bool whole = begin <= first && end >= last;
  for (int j = first; j < last; j += kLanes) {
    Vec x = logits(load(s + j), scale);
    if (!whole) x = keep_range(x, j, begin, end);
    store(s + j, x);
    m = max(m, x);
  }
  return max_of(m);
}

// Logits [first, last) -> weights exp(s - maximum) in p (which may be s). Updates the state; returns the
// factor by which what was accumulated before shrinks.
template <class E>
float softmax_row(const float* s, E* p, int first, int last, float tile_maximum, RowState& state) {
  const float before = state.maximum;
  const float now = before > tile_maximum ? before : tile_maximum;
  const float m = finite_maximum(now);
  const Vec shift = splat(m);
  Vec sums = zero();
  for (int j = first; j < last; j += kLanes) {
    const Vec e = exp_of(sub(load(s + j), shift));
    sums = add(sums, e);
    store(p + j, e);
  }
  const float shrink = exp_of(before - m);
  state.maximum = now;
  state.sum = __builtin_fmaf(state.sum, shrink, sum(sums));
  return shrink;
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
