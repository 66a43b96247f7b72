// Vectors of kLanes floats and the conversions of every storage dtype to and from them, one version per
// instruction set.
//
// Arithmetic is float32 throughout. fp8 (e4m3fn) stores saturate; NaN stays NaN.
#pragma once
#include <cstring>

#include "isa.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace skv::cpu::SKV_ISA {

// ---- storage types
// -------------------------------------------------------------------------------------------------
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
struct Fp8 {
  uint8_t bits;
};

inline uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16, magnitude = h.bits & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | ((magnitude & 0x3ff) << 13));
  // Scaling by 2^112 moves the exponent bias from 15 to 127 and normalises subnormals.
  return float_of(sign | bits_of(float_of(magnitude << 13) * float_of(0x77800000)));
}
inline float to_float(Fp8 x) {
  if ((x.bits & 0x7f) == 0x7f) return float_of(0x7fc00000);
  const Half h{static_cast<uint16_t>(((x.bits & 0x80) << 8) | ((x.bits & 0x7f) << 7))};
  return to_float(h) * 256.0f;  // e4m3 read as e5m10 is 2^-8 too small
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  uint32_t u = bits_of(x);
  if (x != x) return {static_cast<uint16_t>((u >> 16) | 0x40)};
  return {static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
template <>
inline Half from_float<Half>(float x) {
  const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000;
  uint32_t a = u & 0x7fffffff;
  if (a > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (a >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds past 65504
  if (a < 0x38800000) {                                                // subnormal: let the adder round
    const float shifted = float_of(a) + 0.5f;
    return {static_cast<uint16_t>(sign | (bits_of(shifted) - 0x3f000000))};
  }
  a += 0xc8000fff + ((a >> 13) & 1);
  return {static_cast<uint16_t>(sign | (a >> 13))};
}
template <>
inline Fp8 from_float<Fp8>(float x) {
  const uint32_t u = bits_of(x), sign = (u >> 24) & 0x80;
  uint32_t a = u & 0x7fffffff;
  if (a > 0x7f800000) return {static_cast<uint8_t>(sign | 0x7f)};
  if (a >= 0x43e00000) return {static_cast<uint8_t>(sign | 0x7e)};  // 448 and above saturate
  if (a < 0x3c800000) {                                             // below 2^-6: multiples of 2^-9
    const float shifted = float_of(a) + 16384.0f;                   // ulp of 2^14 is 2^-9
    return {static_cast<uint8_t>(sign | (bits_of(shifted) - 0x46800000))};
  }
  a += 0x7ffff + ((a >> 20) & 1);
  a = (a >> 20) - ((127 - 7) << 3);
  return {static_cast<uint8_t>(sign | (a > 0x7e ? 0x7e : a))};
}

// ---- vectors
// -------------------------------------------------------------------------------------------------------
#if defined(__AVX512F__)
constexpr int kLanes = 16;
using Vec = __m512;
inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float x) { return _mm512_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a); }
inline float max_of(Vec a) { return _mm512_reduce_max_ps(a); }
// Lane r = the lanes of rows[r] combined, in the order of sum().
template <class F>
inline Vec combine_each(const Vec (&rows)[kLanes], F&& f) {
  Vec half[8], quarter[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const Vec a = rows[i < 4 ? i : i + 4], b = rows[i < 4 ? i + 4 : i + 8];
    half[i] = f(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // in each quarter of the lanes a row: i, i + 4, i + 8, i + 12
    quarter[i] =
        f(_mm512_shuffle_f32x4(half[i], half[i + 4], 0x88), _mm512_shuffle_f32x4(half[i], half[i + 4], 0xdd));
  }
  const auto pairs = [&](Vec a, Vec b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return f(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  };
  const Vec a = pairs(quarter[0], quarter[1]), b = pairs(quarter[2], quarter[3]);
  return f(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
inline Vec load(const BFloat16* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline Vec load(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load(const Fp8* p) {
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i magnitude = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
  // 0x7f is NaN in e4m3; all ones in the half's exponent make it NaN there too.
  const __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x3f80));
  const __m256i half =
      _mm256_or_si256(_mm256_or_si256(magnitude, sign), _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)));
  return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
}
inline void store(BFloat16* p, Vec a) {
#if defined(__AVX512BF16__)
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m256i rounded =
      (__m256i)_mm512_cvtneps_pbh(a);  // flushes subnormals: take the integer path below then
  const __mmask16 tiny = _mm512_cmp_ps_mask(_mm512_abs_ps(a), _mm512_set1_ps(1.17549435e-38f), _CMP_LT_OQ) &
                         _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_NEQ_OQ);
  if (__builtin_expect((nan | tiny) == 0, 1)) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded);
    return;
  }
#endif
  const __m512i u = _mm512_castps_si512(a);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
  r = _mm512_mask_or_epi32(r, is_nan, _mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
}
inline void store(Half* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
constexpr int kLanes = 8;
using Vec = __m256;
inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec splat(float x) { return _mm256_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline float sum(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
inline float max_of(Vec a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
// Lane r = the lanes of rows[r] combined, in the order of sum().
template <class F>
inline Vec combine_each(const Vec (&rows)[kLanes], F&& f) {
  Vec half[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    half[i] = f(_mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20),
                _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31));
  }
  const auto pairs = [&](Vec a, Vec b) {
    const __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
    return f(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  };
  const Vec a = pairs(half[0], half[1]), b = pairs(half[2], half[3]);
  return f(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
inline Vec load(const BFloat16* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline Vec load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load(const Fp8* p) {
  const __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i magnitude = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x7f)), 7);
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x80)), 8);
  const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x3f80));
  const __m128i half =
      _mm_or_si128(_mm_or_si128(magnitude, sign), _mm_and_si128(nan, _mm_set1_epi16(0x7e00)));
  return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
}
inline void store(BFloat16* p, Vec a) {
  const __m256i u = _mm256_castps_si256(a);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(u, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
  r = _mm256_blendv_epi8(r, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), is_nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline void store(Half* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
#else
constexpr int kLanes = 4;
struct Vec {
  float x[kLanes];
};
#define SKV_LANES(expr)                           \
  Vec r;                                          \
  for (int i = 0; i < kLanes; ++i) r.x[i] = expr; \
  return r;
inline Vec zero() { return Vec{}; }
inline Vec splat(float v) { SKV_LANES(v) }
inline Vec add(Vec a, Vec b) { SKV_LANES(a.x[i] + b.x[i]) }
inline Vec sub(Vec a, Vec b) { SKV_LANES(a.x[i] - b.x[i]) }
inline Vec mul(Vec a, Vec b) { SKV_LANES(a.x[i] * b.x[i]) }
inline Vec div(Vec a, Vec b) { SKV_LANES(a.x[i] / b.x[i]) }
inline Vec fma(Vec a, Vec b, Vec c) { SKV_LANES(a.x[i] * b.x[i] + c.x[i]) }
inline Vec max(Vec a, Vec b) { SKV_LANES(a.x[i] > b.x[i] ? a.x[i] : b.x[i]) }
inline float sum(Vec a) { return (a.x[0] + a.x[2]) + (a.x[1] + a.x[3]); }
inline float max_of(Vec a) {
  float m = a.x[0];
  for (int i = 1; i < kLanes; ++i) m = a.x[i] > m ? a.x[i] : m;
  return m;
}
// Lane r = the lanes of rows[r] combined, in the order of sum().
template <class F>
inline Vec combine_each(const Vec (&rows)[kLanes], F&& f) {
  Vec part[kLanes];
  for (int r = 0; r < kLanes; ++r) {
    for (int i = 0; i < kLanes; ++i) part[i].x[r] = rows[r].x[i];
  }
  return f(f(part[0], part[2]), f(part[1], part[3]));
}
template <class T>
inline Vec load(const T* p) {
  SKV_LANES(to_float(p[i]))
}
template <class T>
inline void store(T* p, Vec a) {
  for (int i = 0; i < kLanes; ++i) p[i] = from_float<T>(a.x[i]);
}
#undef SKV_LANES
#endif

// fp8 stores follow from_float<Fp8>: three ranges of the magnitude, blended.
#if defined(__AVX512F__)
inline void store(Fp8* p, Vec x) {
  const __m512i u = _mm512_castps_si512(x);
  const __m512i a = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(a, 20), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(0x7ffff)), odd), 20);
  r = _mm512_min_epi32(_mm512_sub_epi32(r, _mm512_set1_epi32(120 << 3)), _mm512_set1_epi32(0x7e));
  const __m512i shifted =
      _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), _mm512_set1_ps(16384.0f)));
  const __mmask16 tiny = _mm512_cmplt_epi32_mask(a, _mm512_set1_epi32(0x3c800000));
  r = _mm512_mask_sub_epi32(r, tiny, shifted, _mm512_set1_epi32(0x46800000));
  const __mmask16 nan = _mm512_cmpgt_epi32_mask(a, _mm512_set1_epi32(0x7f800000));
  r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7f));
  r = _mm512_or_si512(r, _mm512_and_si512(_mm512_srli_epi32(u, 24), _mm512_set1_epi32(0x80)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(r));
}
#elif defined(__AVX2__)
inline void store(Fp8* p, Vec x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i a = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(a, 20), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(a, _mm256_set1_epi32(0x7ffff)), odd), 20);
  r = _mm256_min_epi32(_mm256_sub_epi32(r, _mm256_set1_epi32(120 << 3)), _mm256_set1_epi32(0x7e));
  const __m256i shifted =
      _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(a), _mm256_set1_ps(16384.0f)));
  const __m256i tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), a);
  r = _mm256_blendv_epi8(r, _mm256_sub_epi32(shifted, _mm256_set1_epi32(0x46800000)), tiny);
  const __m256i nan = _mm256_cmpgt_epi32(a, _mm256_set1_epi32(0x7f800000));
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7f), nan);
  r = _mm256_or_si256(r, _mm256_and_si256(_mm256_srli_epi32(u, 24), _mm256_set1_epi32(0x80)));
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_castsi256_si128(words));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
}
#endif

// ---- rows ----
template <class T>
inline void load_row(float* to, const T* from, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = to_float(from[i]);
}
template <class T>
inline void store_row(T* to, const float* from, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = from_float<T>(from[i]);
}

// Calls f with a value of the C++ type of `dtype`: with_type(dtype, [&](auto zero) { using T =
// decltype(zero); ... }).
template <class F>
void with_float_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(Half{});
    case DType::kBFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}
template <class F>
void with_cache_type(DType cache, DType dtype, F&& f) {  // the cache has the dtype of the rows, or fp8
  if (cache == DType::kFloat8E4M3) return with_float_type(dtype, [&](auto t) { f(Fp8{}, t); });
  with_float_type(dtype, [&](auto t) { f(t, t); });
}

}  // namespace skv::cpu::SKV_ISA
