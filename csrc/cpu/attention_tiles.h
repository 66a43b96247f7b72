// Attention of few rows on the matrix unit. Keys are its left operand where they lie in the paged cache, so
// they are neither copied nor transposed: the scores are, which are fewer. Values need a copy with two keys
// interleaved.
//
// A score is the sum of the same products in the same order as in the packed form (attention_micro.h), where
// keys are the right operand.
#pragma once
#include "attention_rows.h"

#if defined(__AMX_BF16__)
namespace skv::cpu::SKV_ISA {

// Query rows as right operand, [steps][rows]: what tall_product() wants.
inline void transpose_row(const uint32_t* row, int64_t steps, int64_t rows, uint32_t* dst) {
  for (int64_t s = 0; s < steps; ++s) dst[s * rows] = row[s];
}

// Floats between the keys of tall scores; those of one row need no transposition.
inline int64_t tall_stride(int64_t rows) { return rows == 1 ? 1 : rows <= 4 ? 4 : rows <= 8 ? 8 : 16; }

// Tall scores of 16 keys, tall_stride(rows) apart -> scores[rows][16].
inline void transpose_scores(const float* tall, int64_t rows, float* scores, int64_t score_stride) {
  __m512 a[8], b[8];
  if (rows <= 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // keys i, 4 + i, 8 + i and 12 + i
      const float* key = tall + 4 * i;
      a[i] = _mm512_castps128_ps512(_mm_loadu_ps(key));
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(key + 16), 1);
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(key + 32), 2);
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(key + 48), 3);
    }
  } else if (rows <= 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {  // keys i and 4 + i, from 4 on 4 + i and 8 + i
      const float* key = tall + 8 * (i < 4 ? i : 4 + i);
      a[i] = _mm512_castps256_ps512(_mm256_loadu_ps(key));
      a[i] = _mm512_castpd_ps(
          _mm512_insertf64x4(_mm512_castps_pd(a[i]), _mm256_castps_pd(_mm256_loadu_ps(key + 32)), 1));
    }
  } else {
    const uint32_t* keys[kPackKeys];
    uint32_t all[16 * kPackKeys];
    for (int i = 0; i < kPackKeys; ++i)
      keys[i] = static_cast<const uint32_t*>(static_cast<const void*>(tall)) + 16 * i;
    transpose_steps(keys, 0, all, kPackKeys);
    for (int64_t r = 0; r < rows; ++r)
      _mm512_storeu_si512(scores + r * score_stride, _mm512_loadu_si512(all + r * kPackKeys));
    return;
  }
  const int count = rows <= 4 ? 4 : 8;
#pragma GCC unroll 2
  for (int i = 0; i < count; i += 4) {
    const __m512d low0 = _mm512_castps_pd(_mm512_unpacklo_ps(a[i], a[i + 1]));
    const __m512d low1 = _mm512_castps_pd(_mm512_unpacklo_ps(a[i + 2], a[i + 3]));
    const __m512d high0 = _mm512_castps_pd(_mm512_unpackhi_ps(a[i], a[i + 1]));
    const __m512d high1 = _mm512_castps_pd(_mm512_unpackhi_ps(a[i + 2], a[i + 3]));
    b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low0, low1));
    b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low0, low1));
    b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high0, high1));
    b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high0, high1));
  }
  if (rows <= 4) {
    for (int64_t r = 0; r < rows; ++r) store(scores + r * score_stride, b[r]);
    return;
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    store(scores + i * score_stride, _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88));
    if (i + 4 < rows) store(scores + (i + 4) * score_stride, _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd));
  }
}

// Where the next kPackKeys rows of `count` begin, and how far apart they are; nowhere if their distances
// differ or one is missing.
inline TileRow16 even_rows(const char* const* rows, int64_t count) {
  if (count < kPackKeys || rows[0] == nullptr || rows[1] == nullptr) return {nullptr, 0};
  const int64_t stride = rows[1] - rows[0];
  bool even = true;
  for (int i = 2; i < kPackKeys; ++i) even &= rows[i] == rows[0] + i * stride;
  return even ? TileRow16{rows[0], stride} : TileRow16{nullptr, 0};
}

}  // namespace skv::cpu::SKV_ISA
#endif
