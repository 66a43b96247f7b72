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
  int64_t width;      // columns of the accumulator: a multiple of kLanes

  explicit PackShape(int dim) : head_dim(dim) {
    steps = dim / Steps::kPerStep;
    row_steps = (steps + 15) / 16 * 16;
    width = (dim + kLanes - 1) / kLanes * kLanes;
  }
  int row_elements() const { return static_cast<int>(row_steps) * Steps::kPerStep; }
};

// The rows of one KV head: rows[i] + offset bytes, a null row is zeros.
struct TileRows {
  const char* const* rows;
  int64_t offset;
  const char* at(int64_t i) const { return rows[i] == nullptr ? nullptr : rows[i] + offset; }
};

// keys[0, count) -> panels [count / kMicroColumns, rounded up][row_steps][kMicroColumns]. staging:
// kPackKeys rows.
template <class Steps>
void pack_keys(const PackShape<Steps>& shape, TileRows keys, DType dtype, int64_t count, uint32_t* dst,
               uint32_t* staging, TilePrefetch& next) {
  using E = typename Steps::Element;
  const bool direct = element_size(dtype) == sizeof(E) && shape.row_elements() == shape.head_dim;
  const int64_t padded = (count + kMicroColumns - 1) / kMicroColumns * kMicroColumns;
  for (int64_t first = 0; first < padded; first += kPackKeys) {
    next.issue(kPackKeys / 4);
    const uint32_t* rows[kPackKeys];
    for (int i = 0; i < kPackKeys; ++i) {
      const char* key = first + i < count ? keys.at(first + i) : nullptr;
      uint32_t* staged = staging + i * shape.row_steps;
      rows[i] = direct && key != nullptr ? reinterpret_cast<const uint32_t*>(key) : staged;
      if (rows[i] == staged)
        stage_row(reinterpret_cast<E*>(staged), key, dtype, shape.head_dim, shape.row_elements());
    }
    uint32_t* panel = dst + first / kMicroColumns * shape.row_steps * kMicroColumns + first % kMicroColumns;
    for (int64_t s = 0; s < shape.row_steps; s += 16) {
      transpose_steps(rows, s, panel + s * kMicroColumns, kMicroColumns);
    }
  }
}

// values[0, count) -> [steps][width] of FloatSteps: a row per step.
inline void pack_values(const PackShape<FloatSteps>& shape, TileRows values, DType dtype, int64_t count,
                        uint32_t* dst, uint32_t*, TilePrefetch& next) {
  for (int64_t i = 0; i < count; ++i) {
    if (i % 16 == 0) next.issue(4);
    stage_row(reinterpret_cast<float*>(dst + i * shape.width), values.at(i), dtype, shape.head_dim,
              static_cast<int>(shape.width));
  }
}

#if defined(__AVX512BF16__)
// A step is two rows, interleaved; an odd last row is paired with zeros. staging: two rows.
inline void pack_values(const PackShape<BFloat16Steps>& shape, TileRows values, DType dtype, int64_t count,
                        uint32_t* dst, uint32_t* staging, TilePrefetch& next) {
  const bool direct = dtype == DType::kBFloat16 && shape.row_elements() == shape.head_dim;
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7,
                                       38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int64_t i = 0; i < count; i += 2) {
    if (i % 16 == 0) next.issue(4);
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
      _mm512_storeu_si512(out + j, _mm512_permutex2var_epi16(a, low, b));
      if (j + 16 < shape.width) _mm512_storeu_si512(out + j + 16, _mm512_permutex2var_epi16(a, high, b));
    }
  }
}
#endif

}  // namespace skv::cpu::SKV_ISA
