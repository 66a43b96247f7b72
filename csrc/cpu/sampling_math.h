// exp, log and the counter-based Gumbel noise of csrc/core/philox.h, a vector of lanes at a time.
//
// exp_of and log_of are Cephes' single-precision polynomials (relative error about 1e-7). exp_of of -infinity
// is 0; log_of takes positive normal numbers.
#pragma once
#include "../core/philox.h"
#include "simd.h"

namespace skv::cpu::SKV_ISA {

// ---- vectors of kLanes uint32, and the few mixed operations ----
#if defined(__AVX512F__)
using UVec = __m512i;
inline UVec u_splat(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
inline UVec u_load(const uint32_t* p) { return _mm512_loadu_si512(p); }
inline void u_store(uint32_t* p, UVec a) { _mm512_storeu_si512(p, a); }
inline UVec u_add(UVec a, UVec b) { return _mm512_add_epi32(a, b); }
inline UVec u_xor(UVec a, UVec b) { return _mm512_xor_si512(a, b); }
inline void u_mul(UVec a, uint32_t m, UVec& high, UVec& low) {
  const __m512i factor = _mm512_set1_epi32(static_cast<int>(m));
  const __m512i even = _mm512_mul_epu32(a, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor);
  high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
  low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
}
inline Vec to_vec(UVec a) { return _mm512_cvtepu32_ps(a); }
inline uint32_t ge_bits(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline uint32_t gt_bits(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Vec select(Vec a, Vec b, uint32_t bits) {  // lanes of a where the bit is set, else of b
  return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), b, a);
}
inline Vec round_of(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_exp2(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }
// x = m * 2^e with m in [sqrt(1/2), sqrt(2))
inline void split_exponent(Vec x, Vec& m, Vec& e) {
  const __m512i u = _mm512_castps_si512(x);
  const __m512i n = _mm512_srai_epi32(_mm512_sub_epi32(u, _mm512_set1_epi32(0x3f3504f3)), 23);
  m = _mm512_castsi512_ps(_mm512_sub_epi32(u, _mm512_slli_epi32(n, 23)));
  e = _mm512_cvtepi32_ps(n);
}
// Rows of a 4 x kLanes matrix of words to the noise's order: the four words of a group side by side.
inline void interleave(UVec w[4]) {
  const __m512i a = _mm512_unpacklo_epi32(w[0], w[1]), b = _mm512_unpackhi_epi32(w[0], w[1]);
  const __m512i c = _mm512_unpacklo_epi32(w[2], w[3]), d = _mm512_unpackhi_epi32(w[2], w[3]);
  w[0] = _mm512_unpacklo_epi64(a, c);
  w[1] = _mm512_unpackhi_epi64(a, c);
  w[2] = _mm512_unpacklo_epi64(b, d);
  w[3] = _mm512_unpackhi_epi64(b, d);
}
#elif defined(__AVX2__)
using UVec = __m256i;
inline UVec u_splat(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
inline UVec u_load(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void u_store(uint32_t* p, UVec a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
inline UVec u_add(UVec a, UVec b) { return _mm256_add_epi32(a, b); }
inline UVec u_xor(UVec a, UVec b) { return _mm256_xor_si256(a, b); }
inline void u_mul(UVec a, uint32_t m, UVec& high, UVec& low) {
  const __m256i factor = _mm256_set1_epi32(static_cast<int>(m));
  const __m256i even = _mm256_mul_epu32(a, factor);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), factor);
  high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
inline Vec to_vec(UVec a) {  // both halves are exact: one rounding, as in a scalar conversion
  const Vec high = _mm256_cvtepi32_ps(_mm256_srli_epi32(a, 16));
  const Vec low = _mm256_cvtepi32_ps(_mm256_and_si256(a, _mm256_set1_epi32(0xffff)));
  return _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
}
inline uint32_t ge_bits(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
inline uint32_t gt_bits(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}
inline Vec select(Vec a, Vec b, uint32_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
}
inline Vec round_of(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_exp2(Vec a, Vec n) {  // -126 <= n <= 127; below that 0
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  const __m256 power = _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  return _mm256_and_ps(_mm256_mul_ps(a, power), _mm256_cmp_ps(n, _mm256_set1_ps(-126.0f), _CMP_GE_OQ));
}
inline void split_exponent(Vec x, Vec& m, Vec& e) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i n = _mm256_srai_epi32(_mm256_sub_epi32(u, _mm256_set1_epi32(0x3f3504f3)), 23);
  m = _mm256_castsi256_ps(_mm256_sub_epi32(u, _mm256_slli_epi32(n, 23)));
  e = _mm256_cvtepi32_ps(n);
}
inline void interleave(UVec w[4]) {
  const __m256i a = _mm256_unpacklo_epi32(w[0], w[1]), b = _mm256_unpackhi_epi32(w[0], w[1]);
  const __m256i c = _mm256_unpacklo_epi32(w[2], w[3]), d = _mm256_unpackhi_epi32(w[2], w[3]);
  w[0] = _mm256_unpacklo_epi64(a, c);
  w[1] = _mm256_unpackhi_epi64(a, c);
  w[2] = _mm256_unpacklo_epi64(b, d);
  w[3] = _mm256_unpackhi_epi64(b, d);
}
#else
struct UVec {
  uint32_t x[kLanes];
};
#define SKV_LANES(Type, expr)                     \
  Type r;                                         \
  for (int i = 0; i < kLanes; ++i) r.x[i] = expr; \
  return r;
inline UVec u_splat(uint32_t v) { SKV_LANES(UVec, v) }
inline UVec u_load(const uint32_t* p) { SKV_LANES(UVec, p[i]) }
inline void u_store(uint32_t* p, UVec a) { std::memcpy(p, a.x, sizeof(a.x)); }
inline UVec u_add(UVec a, UVec b) { SKV_LANES(UVec, a.x[i] + b.x[i]) }
inline UVec u_xor(UVec a, UVec b) { SKV_LANES(UVec, a.x[i] ^ b.x[i]) }
inline void u_mul(UVec a, uint32_t m, UVec& high, UVec& low) {
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t product = static_cast<uint64_t>(a.x[i]) * m;
    high.x[i] = static_cast<uint32_t>(product >> 32);
    low.x[i] = static_cast<uint32_t>(product);
  }
}
inline Vec to_vec(UVec a) { SKV_LANES(Vec, static_cast<float>(a.x[i])) }
inline uint32_t ge_bits(Vec a, Vec b) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(a.x[i] >= b.x[i]) << i;
  return bits;
}
inline uint32_t gt_bits(Vec a, Vec b) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(a.x[i] > b.x[i]) << i;
  return bits;
}
inline Vec select(Vec a, Vec b, uint32_t bits) { SKV_LANES(Vec, bits >> i & 1 ? a.x[i] : b.x[i]) }
inline Vec round_of(Vec a) { SKV_LANES(Vec, __builtin_rintf(a.x[i])) }
inline Vec times_exp2(Vec a, Vec n) {
  SKV_LANES(Vec, n.x[i] < -126.0f
                     ? 0.0f
                     : a.x[i] * float_of(static_cast<uint32_t>(static_cast<int>(n.x[i]) + 127) << 23))
}
inline void split_exponent(Vec x, Vec& m, Vec& e) {
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t u = bits_of(x.x[i]);
    const int n = static_cast<int>(u - 0x3f3504f3) >> 23;
    m.x[i] = float_of(u - (static_cast<uint32_t>(n) << 23));
    e.x[i] = static_cast<float>(n);
  }
}
inline void interleave(UVec w[4]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const uint32_t kept = w[i].x[j];
      w[i].x[j] = w[j].x[i];
      w[j].x[i] = kept;
    }
  }
}
#undef SKV_LANES
#endif

constexpr float kInfinity = __builtin_inff();

inline Vec exp_of(Vec x) {
  const Vec clamped = max(splat(-200.0f), x);  // 0 all the same; a NaN of x stays
  const Vec n = round_of(mul(clamped, splat(1.44269504088896341f)));
  const Vec r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), clamped));
  Vec y = splat(1.9875691500e-4f);
  y = fma(y, r, splat(1.3981999507e-3f));
  y = fma(y, r, splat(8.3334519073e-3f));
  y = fma(y, r, splat(4.1665795894e-2f));
  y = fma(y, r, splat(1.6666665459e-1f));
  y = fma(y, r, splat(5.0000001201e-1f));
  return times_exp2(add(fma(mul(y, r), r, r), splat(1.0f)), n);
}

// log(1 + f) + e * log(2) for f in [sqrt(1/2) - 1, sqrt(2) - 1)
inline Vec log_of_parts(Vec f, Vec e) {
  Vec y = splat(7.0376836292e-2f);
  y = fma(y, f, splat(-1.1514610310e-1f));
  y = fma(y, f, splat(1.1676998740e-1f));
  y = fma(y, f, splat(-1.2420140846e-1f));
  y = fma(y, f, splat(1.4249322787e-1f));
  y = fma(y, f, splat(-1.6668057665e-1f));
  y = fma(y, f, splat(2.0000714765e-1f));
  y = fma(y, f, splat(-2.4999993993e-1f));
  y = fma(y, f, splat(3.3333331174e-1f));
  const Vec square = mul(f, f);
  y = fma(e, splat(-2.12194440e-4f), mul(mul(y, f), square));
  y = add(f, fma(splat(-0.5f), square, y));
  return fma(e, splat(0.693359375f), y);
}
inline Vec log_of(Vec x) {
  Vec m, e;
  split_exponent(x, m, e);
  return log_of_parts(sub(m, splat(1.0f)), e);
}

// gumbel_of_word of every lane.
inline Vec gumbel_of_words(UVec words) {
  const Vec unit = splat(2.3283064365386963e-10f), half = splat(0.5f);
  const Vec u = mul(add(to_vec(words), half), unit);
  const Vec rest = mul(add(to_vec(u_xor(words, u_splat(0xffffffffu))), half), unit);
  Vec m, e;
  split_exponent(u, m, e);
  // Next to 1, u - 1 is taken from the exact rest; there the exponent is 0.
  const Vec f = select(sub(zero(), rest), sub(m, splat(1.0f)), gt_bits(splat(0.29f), rest));
  return sub(zero(), log_of(sub(zero(), log_of_parts(f, e))));
}

// The words of kLanes groups: words[j] lane i = word j of group i.
inline void philox_words(uint64_t seed, uint64_t position, UVec groups, UVec words[4]) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  UVec x = groups, y = u_splat(static_cast<uint32_t>(position));
  UVec z = u_splat(static_cast<uint32_t>(position >> 32)), w = u_splat(0);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    UVec a_high, a_low, b_high, b_low;
    u_mul(x, kPhiloxM0, a_high, a_low);
    u_mul(z, kPhiloxM1, b_high, b_low);
    x = u_xor(u_xor(b_high, y), u_splat(k0));
    z = u_xor(u_xor(a_high, w), u_splat(k1));
    y = b_low;
    w = a_low;
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  words[0] = x, words[1] = y, words[2] = z, words[3] = w;
}

// The words of 4 * kLanes consecutive tokens, the first a multiple of 4, in their order.
inline void words_of_block(uint64_t seed, uint64_t position, uint32_t first_token, UVec words[4]) {
  alignas(64) uint32_t group[kLanes];
  // interleave() leaves lane i's group at vector i % 4, quarter i / 4.
  for (uint32_t i = 0; i < kLanes; ++i) group[i] = first_token / 4 + i % 4 * (kLanes / 4) + i / 4;
  philox_words(seed, position, u_load(group), words);
  interleave(words);
}

// The noise of any kLanes tokens.
inline Vec gumbel_of_tokens(uint64_t seed, uint64_t position, const int32_t* tokens) {
  alignas(64) uint32_t group[kLanes], all[4][kLanes], own[kLanes];
  for (int i = 0; i < kLanes; ++i) group[i] = static_cast<uint32_t>(tokens[i]) / 4;
  UVec words[4];
  philox_words(seed, position, u_load(group), words);
  for (int j = 0; j < 4; ++j) u_store(all[j], words[j]);
  for (int i = 0; i < kLanes; ++i) own[i] = all[tokens[i] & 3][i];
  return gumbel_of_words(u_load(own));
}

}  // namespace skv::cpu::SKV_ISA
