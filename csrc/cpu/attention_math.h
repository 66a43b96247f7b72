// exp, tanh and masking on vectors: what softmax over scores needs.
//
// NaN goes through all of them; exp of -infinity is 0.
#pragma once
#include <cmath>

#include "simd.h"

namespace skv::cpu::SKV_ISA {

constexpr float kLog2E = 1.44269504088896341f;
// ln 2 in two parts: n * kLn2High is exact for the n that occur.
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
inline float minus_infinity() { return -__builtin_inff(); }

// e^(x - n ln 2) for n = x / ln 2 rounded: relative error 1e-7 (Cephes expf).
inline Vec exp_fraction(Vec x, Vec n) {
  const Vec f = fma(n, splat(-kLn2Low), fma(n, splat(-kLn2High), x));
  Vec r = fma(splat(1.9875691500e-4f), f, splat(1.3981999507e-3f));
  r = fma(r, f, splat(8.3334519073e-3f));
  r = fma(r, f, splat(4.1665795894e-2f));
  r = fma(r, f, splat(1.6666665459e-1f));
  r = fma(r, f, splat(5.0000001201e-1f));
  return add(fma(r, mul(f, f), f), splat(1.0f));
}

#if defined(__AVX512F__)
inline Vec exp_of(Vec x) {
  x = _mm512_max_ps(splat(-150.0f), x);  // keeps n finite; the second operand is returned when it is NaN
  const Vec n = _mm512_roundscale_ps(mul(x, splat(kLog2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(exp_fraction(x, n), n);
}
// 2^x, relative error 1.5e-7: a polynomial of x - floor(x), which is 0 for an infinity, times 2^floor(x).
inline Vec exp2_of(Vec x) {
  const Vec f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Vec r = fma(splat(1.8671301e-3f), f, splat(9.0170307e-3f));
  r = fma(r, f, splat(5.5799913e-2f));
  r = fma(r, f, splat(2.4016445e-1f));
  r = fma(r, f, splat(6.9315130e-1f));
  return _mm512_scalef_ps(fma(r, f, splat(1.0f)), x);
}
inline Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
inline Vec absolute(Vec a) { return _mm512_abs_ps(a); }
// Lanes whose index, counted from `first`, is outside [begin, end) become -infinity.
inline Vec keep_range(Vec s, int first, int begin, int end) {
  const __m512i index = _mm512_add_epi32(
      _mm512_set1_epi32(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  const __mmask16 keep = _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(begin)) &
                         _mm512_cmplt_epi32_mask(index, _mm512_set1_epi32(end));
  return _mm512_mask_blend_ps(keep, splat(minus_infinity()), s);
}
#elif defined(__AVX2__)
inline Vec exp_of(Vec x) {
  const Vec clamped = _mm256_max_ps(splat(-87.0f), _mm256_min_ps(splat(88.0f), x));
  const Vec n = _mm256_round_ps(mul(clamped, splat(kLog2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  const Vec r = exp_fraction(clamped, n);
  const Vec scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(r), exponent));
  const Vec tiny = _mm256_cmp_ps(x, splat(-87.0f), _CMP_LT_OQ), nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_blendv_ps(_mm256_andnot_ps(tiny, scaled), x, nan);
}
inline Vec divide(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
inline Vec absolute(Vec a) { return _mm256_andnot_ps(splat(-0.0f), a); }
inline Vec keep_range(Vec s, int first, int begin, int end) {
  const __m256i index = _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256i outside = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(begin), index),
                                          _mm256_cmpgt_epi32(index, _mm256_set1_epi32(end - 1)));
  return _mm256_blendv_ps(s, splat(minus_infinity()), _mm256_castsi256_ps(outside));
}
#else
inline Vec exp_of(Vec x) {
  Vec n, scale, clamped;
  for (int i = 0; i < kLanes; ++i) {
    float c = x.x[i] > -87.0f ? x.x[i] : -87.0f;
    c = c < 88.0f ? c : 88.0f;
    n.x[i] = (c * kLog2E + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: the adder rounds to an integer
    scale.x[i] = float_of(static_cast<uint32_t>(static_cast<int32_t>(n.x[i]) + 127) << 23);
    clamped.x[i] = c;
  }
  Vec r = mul(exp_fraction(clamped, n), scale);
  for (int i = 0; i < kLanes; ++i) {
    r.x[i] = x.x[i] < -87.0f ? 0.0f : x.x[i] == x.x[i] ? r.x[i] : x.x[i];
  }
  return r;
}
inline Vec divide(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) a.x[i] /= b.x[i];
  return a;
}
inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  for (int i = 0; i < kLanes; ++i) no.x[i] = a.x[i] < b.x[i] ? yes.x[i] : no.x[i];
  return no;
}
inline Vec absolute(Vec a) {
  for (int i = 0; i < kLanes; ++i) a.x[i] = float_of(bits_of(a.x[i]) & 0x7fffffff);
  return a;
}
inline Vec keep_range(Vec s, int first, int begin, int end) {
  for (int i = 0; i < kLanes; ++i) {
    if (first + i < begin || first + i >= end) s.x[i] = minus_infinity();
  }
  return s;
}
#endif

inline float exp_of(float x) {  // the same bits as a lane of the vector
  alignas(64) float lane[kLanes];
  store(lane, exp_of(splat(x)));
  return lane[0];
}

// tanh: an odd polynomial where 1 - 2 / (e^2x + 1) would cancel (Cephes tanhf).
inline Vec tanh_of(Vec x) {
  const Vec a = absolute(x);
  const Vec far = sub(splat(1.0f), divide(splat(2.0f), add(exp_of(add(a, a)), splat(1.0f))));
  const Vec z = mul(x, x);
  Vec near = fma(splat(-5.70498872745e-3f), z, splat(2.06390887954e-2f));
  near = fma(near, z, splat(-5.37397155531e-2f));
  near = fma(near, z, splat(1.33314422036e-1f));
  near = fma(near, z, splat(-3.33332819422e-1f));
  near = fma(mul(near, z), x, x);
  const Vec signed_far = select_less(x, zero(), sub(zero(), far), far);
  return select_less(a, splat(0.625f), near, signed_far);
}

}  // namespace skv::cpu::SKV_ISA
