// From the paged cache to what the inner products read: one tile of keys transposed into panels, one tile of
// values row by row, both in the element type of the arithmetic; rows that do not exist are zero.
#pragma once
#include "attention_micro.h"

namespace skv::cpu::SKV_ISA {

constexpr int kPackKeys = 16;  // keys transposed at a time

template <class T, class E>
inline void convert(E* dst, const T* src, int count) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(dst + i, load(src + i));
  for (; i < count; ++i) dst[i] = from_float<E>(to_float(src[i]));
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// The same as load() of both halves, in little more than half the instructions.
inline void load_pair(const Fp8* p, Vec& low, Vec& high) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(-16512));  // 0xbf80
  const __m256i magnitude = _mm256_and_si256(half, _mm256_set1_epi16(0x3f80));
  const __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x3f80));
  const __m256i full = _mm256_or_si256(half, _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)));
  low = mul(_mm256_cvtph_ps(_mm256_castsi256_si128(full)), splat(256.0f));
  high = mul(_mm256_cvtph_ps(_mm256_extracti128_si256(full, 1)), splat(256.0f));
}
inline void convert(float* dst, const Fp8* src, int count) {
  int i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    Vec low, high;
    load_pair(src + i, low, high);
    store(dst + i, low);
    store(dst + i + kLanes, high);
  }
  convert<Fp8, float>(dst + i, src + i, count - i);
}
#endif

#if defined(__AVX512BF16__)
// 32 numbers of e4m3 as bfloat16, which holds each of them: an exponent 120 more and the mantissa, but for
// the eight that are subnormal and the NaN.
inline __m512i widen_to_bfloat16(const Fp8* p) {
  const __m512i subnormal = _mm512_set_epi64(0, 0, 0, 0, 0, 0, 0x3c603c403c203c00, 0x3bc03b803b000000);
  const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i magnitude = _mm512_and_si512(wide, _mm512_set1_epi16(0x7f));
  __m512i r = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
  r = _mm512_mask_permutexvar_epi16(r, _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8)), magnitude,
                                    subnormal);
  r = _mm512_mask_mov_epi16(r, _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f)),
                            _mm512_set1_epi16(0x7fc0));
  return _mm512_or_si512(r, _mm512_slli_epi16(_mm512_sub_epi16(wide, magnitude), 8));
}
inline void convert(BFloat16* dst, const Fp8* src, int count) {
  int i = 0;
  for (; i + 32 <= count; i += 32) _mm512_storeu_si512(dst + i, widen_to_bfloat16(src + i));
  convert<Fp8, BFloat16>(dst + i, src + i, count - i);
}
#endif

// dst[0, count) = the row as elements of E, dst[count, padded) = 0. src == nullptr is a row of zeros.
template <class E>
void stage_row(E* dst, const void* src, DType dtype, int count, int padded) {
  if (src == nullptr) count = 0;
  switch (dtype) {
    case DType::kFloat32:
      convert(dst, static_cast<const float*>(src), count);
      break;
    case DType::kFloat16:
      convert(dst, static_cast<const Half*>(src), count);
      break;
    case DType::kBFloat16:
      if constexpr (sizeof(E) == sizeof(BFloat16)) {
        if (count > 0) std::memcpy(dst, src, sizeof(E) * static_cast<size_t>(count));
      } else {
        convert(dst, static_cast<const BFloat16*>(src), count);
      }
      break;
    case DType::kFloat8E4M3:
      convert(dst, static_cast<const Fp8*>(src), count);
      break;
  }
  for (int i = count; i < padded; ++i) dst[i] = from_float<E>(0.0f);
}

#if defined(__AVX512F__)
// 16 rows of 16 steps -> 16 steps of 16 keys, dst_stride apart.
inline void transpose_steps(const uint32_t* const rows[kPackKeys], int64_t offset, uint32_t* dst,
                            int64_t dst_stride) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows[i] + offset);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(dst + i * dst_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
    _mm512_storeu_si512(dst + (i + 4) * dst_stride, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
    _mm512_storeu_si512(dst + (i + 8) * dst_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
    _mm512_storeu_si512(dst + (i + 12) * dst_stride, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
  }
}
#elif defined(__AVX2__)
// Rows i and i + 4 share a register, four steps of each: what is transposed then are 4 x 4 within lanes.
inline void transpose_steps(const uint32_t* const rows[kPackKeys], int64_t offset, uint32_t* dst,
                            int64_t dst_stride) {
  for (int64_t part = 0; part < 8; ++part) {
    const int64_t key = part / 4 * 8, step = part % 4 * 4;
    Vec a[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto* low = reinterpret_cast<const float*>(rows[key + i] + offset + step);
      const auto* high = reinterpret_cast<const float*>(rows[key + i + 4] + offset + step);
      a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
    }
    const Vec b[] = {_mm256_unpacklo_ps(a[0], a[1]), _mm256_unpackhi_ps(a[0], a[1]),
                     _mm256_unpacklo_ps(a[2], a[3]), _mm256_unpackhi_ps(a[2], a[3])};
    auto* to = reinterpret_cast<float*>(dst + step * dst_stride + key);
    store(to, _mm256_shuffle_ps(b[0], b[2], 0x44));
    store(to + dst_stride, _mm256_shuffle_ps(b[0], b[2], 0xee));
    store(to + 2 * dst_stride, _mm256_shuffle_ps(b[1], b[3], 0x44));
    store(to + 3 * dst_stride, _mm256_shuffle_ps(b[1], b[3], 0xee));
  }
}

// Elements of 16 bits are transposed as they are and widened afterwards: 16 rows of 8 -> 8 steps of 16 keys.
inline void store_widened(BFloat16*, float* to, __m256i keys) {
  store(to, _mm256_castsi256_ps(_mm256_unpacklo_epi16(_mm256_setzero_si256(), keys)));
  store(to + 8, _mm256_castsi256_ps(_mm256_unpackhi_epi16(_mm256_setzero_si256(), keys)));
}
inline void store_widened(Half*, float* to, __m256i keys) {
  keys = _mm256_permute4x64_epi64(keys, 0xd8);
  store(to, _mm256_cvtph_ps(_mm256_castsi256_si128(keys)));
  store(to + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(keys, 1)));
}
template <class T>
inline void transpose_halves(const char* const rows[kPackKeys], int64_t offset, float* dst,
                             int64_t dst_stride) {
  __m256i a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {  // keys 0 to 3 and 8 to 11 in the low lanes, the other ones in the high lanes
    const char* const* row = rows + (i < 4 ? i : i + 4);
    const auto* low = reinterpret_cast<const __m128i*>(row[0] + 2 * offset);
    const auto* high = reinterpret_cast<const __m128i*>(row[4] + 2 * offset);
    a[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[i + 4] = _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_epi32(b[2 * i], b[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_epi32(b[2 * i], b[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i low = a[i / 2 * 4 + i % 2], high = a[i / 2 * 4 + i % 2 + 2];
    store_widened(static_cast<T*>(nullptr), dst + 2 * i * dst_stride, _mm256_unpacklo_epi64(low, high));
    store_widened(static_cast<T*>(nullptr), dst + (2 * i + 1) * dst_stride, _mm256_unpackhi_epi64(low, high));
  }
}
#else
inline void transpose_steps(const uint32_t* const rows[kPackKeys], int64_t offset, uint32_t* dst,
                            int64_t dst_stride) {
  for (int s = 0; s < 16; ++s) {
    for (int i = 0; i < kPackKeys; ++i) dst[s * dst_stride + i] = rows[i][offset + s];
  }
}
#endif

// The sizes of packed tiles, in steps of four bytes.
template <class Steps>
struct PackShape {
  int head_dim;
  int64_t row_steps;  // of a staged row and of a panel: a multiple of 16
  int64_t steps;      // of a score
  int64_t width;      // columns of the accumulator: whole vectors of elements

  explicit PackShape(int dim) : head_dim(dim) {
    steps = dim / Steps::kPerStep;
    row_steps = (steps + 15) / 16 * 16;
    constexpr int kColumns = Steps::kPerStep * kLanes;
    width = (dim + kColumns - 1) / kColumns * kColumns;
  }
  int row_elements() const { return static_cast<int>(row_steps) * Steps::kPerStep; }
};

// The rows of one KV head: rows[i] + offset bytes, a null row is zeros.
struct TileRows {
  const char* const* rows;
  int64_t offset;
  const char* at(int64_t i) const { return rows[i] == nullptr ? nullptr : rows[i] + offset; }
};

// Keys [first, first + kPackKeys) of `count`, those past it zeros -> their columns of a panel
// [row_steps][kMicroColumns]. staging: kPackKeys rows. Calls between(step) every 16 steps.
template <class Steps, class F>
inline void pack_key_group(const PackShape<Steps>& shape, TileRows keys, DType dtype, int64_t first,
                           int64_t count, uint32_t* panel, uint32_t* staging, F&& between) {
  using E = typename Steps::Element;
  const bool whole = shape.row_elements() == shape.head_dim;
  const char* in_cache[kPackKeys];
  bool complete = whole;
  for (int i = 0; i < kPackKeys; ++i) {
    in_cache[i] = first + i < count ? keys.at(first + i) : nullptr;
    complete &= in_cache[i] != nullptr;
  }
#if defined(__AVX2__) && !defined(__AVX512F__)
  if (complete && element_size(dtype) == 2) {
    for (int64_t s = 0; s < shape.row_steps; s += 8) {
      auto* to = reinterpret_cast<float*>(panel + s * kMicroColumns);
      if (s % 16 == 0) between(s);
      if (dtype == DType::kBFloat16) {
        transpose_halves<BFloat16>(in_cache, s, to, kMicroColumns);
      } else {
        transpose_halves<Half>(in_cache, s, to, kMicroColumns);
      }
    }
    return;
  }
#endif
  const bool direct = element_size(dtype) == sizeof(E) && whole;
  const uint32_t* rows[kPackKeys];
  for (int i = 0; i < kPackKeys; ++i) {
    uint32_t* staged = staging + i * shape.row_steps;
    rows[i] = direct && in_cache[i] != nullptr ? reinterpret_cast<const uint32_t*>(in_cache[i]) : staged;
    if (rows[i] == staged)
      stage_row(reinterpret_cast<E*>(staged), in_cache[i], dtype, shape.head_dim, shape.row_elements());
  }
  for (int64_t s = 0; s < shape.row_steps; s += 16) {
    between(s);
    transpose_steps(rows, s, panel + s * kMicroColumns, kMicroColumns);
  }
}

// keys[0, count) -> panels [count / kMicroColumns, rounded up][row_steps][kMicroColumns].
template <class Steps>
void pack_keys(const PackShape<Steps>& shape, TileRows keys, DType dtype, int64_t count, uint32_t* dst,
               uint32_t* staging, TilePrefetch& next) {
  const int64_t padded = (count + kMicroColumns - 1) / kMicroColumns * kMicroColumns;
  for (int64_t first = 0; first < padded; first += kPackKeys) {
    next.issue(kPackKeys / 4);
    uint32_t* panel = dst + first / kMicroColumns * shape.row_steps * kMicroColumns + first % kMicroColumns;
    pack_key_group(shape, keys, dtype, first, count, panel, staging, [](int64_t) {});
  }
}

// values[0, count) -> [steps][width] of FloatSteps: a row per step. Calls between() every 16 rows.
template <class F>
void pack_values(const PackShape<FloatSteps>& shape, TileRows values, DType dtype, int64_t count,
                 uint32_t* dst, uint32_t*, F&& between) {
  for (int64_t i = 0; i < count; ++i) {
    if (i % 16 == 0) between();
    stage_row(reinterpret_cast<float*>(dst + i * shape.width), values.at(i), dtype, shape.head_dim,
              static_cast<int>(shape.width));
  }
}

#if defined(__AVX512BF16__)
// A step is two rows, interleaved, columns as BFloat16Steps::order_columns() says; an odd last row is paired
// with zeros, and a tile of the matrix unit is filled with them. staging: two rows.
template <class F>
void pack_values(const PackShape<BFloat16Steps>& shape, TileRows values, DType dtype, int64_t count,
                 uint32_t* dst, uint32_t* staging, F&& between) {
  const bool direct = dtype == DType::kBFloat16 && shape.row_elements() == shape.head_dim;
  for (int64_t i = 0; i < count; i += 2) {
    if (i % 4 == 0) between();
    const uint32_t* rows[2];
    for (int r = 0; r < 2; ++r) {
      const char* value = i + r < count ? values.at(i + r) : nullptr;
      uint32_t* staged = staging + r * shape.row_steps;
      rows[r] = direct && value != nullptr ? reinterpret_cast<const uint32_t*>(value) : staged;
      if (rows[r] == staged) {
        stage_row(reinterpret_cast<BFloat16*>(staged), value, dtype, shape.head_dim, shape.row_elements());
      }
    }
    uint32_t* out = dst + i / 2 * shape.width;
    for (int64_t j = 0; j < shape.width; j += 32) {
      const __m512i a = _mm512_loadu_si512(rows[0] + j / 2), b = _mm512_loadu_si512(rows[1] + j / 2);
      _mm512_storeu_si512(out + j, _mm512_unpacklo_epi16(a, b));
      _mm512_storeu_si512(out + j + 16, _mm512_unpackhi_epi16(a, b));
    }
  }
#if defined(__AMX_BF16__)
  const int64_t steps = (count + 1) / 2, padded = (steps + kTileSteps - 1) / kTileSteps * kTileSteps;
  std::memset(dst + steps * shape.width, 0,
              static_cast<size_t>((padded - steps) * shape.width) * sizeof(uint32_t));
#endif
}
#endif

}  // namespace skv::cpu::SKV_ISA
