// Attention of few rows on keys and values where they lie in the paged cache: nothing is packed.
//
// Scores are dot products along head_dim, several keys at once, each lane of an accumulator a partial sum;
// the sums of kLanes accumulators are taken together. Weighted values are added row by row into registers. A
// key or value is loaded once for up to four query rows. The bits of a row do not depend on how many
// rows there are.
#pragma once
#include "attention_pack.h"

namespace skv::cpu::SKV_ISA {

template <int n>
struct Count {
  static constexpr int value = n;
};

// Vector of kLanes steps (see attention_micro.h) from elements of the cache.
template <class Steps>
struct RowLoad;

template <>
struct RowLoad<FloatSteps> {
  static constexpr int kElements = kLanes;
  static constexpr int64_t kMostRows = 8;  // of a sequence and KV head: more pay for packing
  template <class T>
  static inline Vec steps(const T* row) {
    return load(row);
  }
  static inline Vec mac(Vec acc, Vec a, Vec b) { return fma(a, b, acc); }
  // kVecs columns of one step: one row of values.
  static constexpr int kRows = 1;
  template <int kVecs, class T>
  static inline void columns(const T* const (&rows)[1], int64_t column, Vec (&to)[kVecs]) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) to[v] = load(rows[0] + column + v * kLanes);
  }
};

#if defined(__AVX512BF16__)
template <>
struct RowLoad<BFloat16Steps> {
  static constexpr int kElements = 2 * kLanes;
  static constexpr int64_t kMostRows = 4;
  static inline Vec steps(const BFloat16* row) { return _mm512_loadu_ps(row); }
  static inline Vec steps(const Fp8* row) {  // exact: every e4m3 number is a bfloat16
    return (Vec)_mm512_cvtne2ps_pbh(load(row + kLanes), load(row));
  }
  static inline Vec mac(Vec acc, Vec a, Vec b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
  // A step is two rows of values, interleaved.
  static constexpr int kRows = 2;
  template <int kVecs, class T>
  static inline void columns(const T* const (&rows)[2], int64_t column, Vec (&to)[kVecs]) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7,
                                         38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; v += 2) {
      const __m512i a = (__m512i)steps(rows[0] + column + v * kLanes);
      const __m512i b = (__m512i)steps(rows[1] + column + v * kLanes);
      to[v] = (Vec)_mm512_permutex2var_epi16(a, low, b);
      to[v + 1] = (Vec)_mm512_permutex2var_epi16(a, high, b);
    }
  }
};
#endif

// Lane i = the sum of a[i], every one of them added in the same order.
#if defined(__AVX512F__)
inline Vec sum_each(const Vec (&a)[16]) {
  Vec quad[4];
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const Vec* x = a + 4 * q;
    const Vec s = add(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    const Vec t = add(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    quad[q] = add(_mm512_shuffle_ps(s, t, 0x44), _mm512_shuffle_ps(s, t, 0xee));
  }
  const Vec s =
      add(_mm512_shuffle_f32x4(quad[0], quad[1], 0x88), _mm512_shuffle_f32x4(quad[0], quad[1], 0xdd));
  const Vec t =
      add(_mm512_shuffle_f32x4(quad[2], quad[3], 0x88), _mm512_shuffle_f32x4(quad[2], quad[3], 0xdd));
  return add(_mm512_shuffle_f32x4(s, t, 0x88), _mm512_shuffle_f32x4(s, t, 0xdd));
}
#elif defined(__AVX2__)
inline Vec sum_each(const Vec (&a)[8]) {
  Vec quad[2];
#pragma GCC unroll 2
  for (int q = 0; q < 2; ++q) {
    const Vec* x = a + 4 * q;
    const Vec s = add(_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
    const Vec t = add(_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
    quad[q] = add(_mm256_shuffle_ps(s, t, 0x44), _mm256_shuffle_ps(s, t, 0xee));
  }
  return add(_mm256_permute2f128_ps(quad[0], quad[1], 0x20), _mm256_permute2f128_ps(quad[0], quad[1], 0x31));
}
#else
inline Vec sum_each(const Vec (&a)[4]) {
  Vec r;
  for (int i = 0; i < 4; ++i) r.x[i] = sum(a[i]);
  return r;
}
#endif

// The keys and values needed next, fetched into the L2 cache in the order of their addresses while others are
// computed: all heads of a token where they lie side by side, else head by head.
class RowPrefetch {
 public:
  RowPrefetch() = default;
  // keys, values: [count] of KV head 0, null = nothing there. Strides and sizes in bytes.
  RowPrefetch(const char* const* keys, const char* const* values, int64_t count, int64_t first_head,
              int64_t heads, int64_t k_head, int64_t v_head, int64_t row_bytes)
      : rows_{keys, values}, head_stride_{k_head, v_head}, count_(count), heads_(heads), bytes_(row_bytes) {
    if (k_head == row_bytes && v_head == row_bytes) {
      bytes_ = heads * row_bytes;
      heads_ = 1;
    }
    begin_ = first_head;
  }
  void issue(int64_t lines) {
    while (lines > 0) {
      while (at_ >= end_) {
        if (!next_row()) return;
      }
      const int64_t left = (end_ - at_ + 63) / 64, count = lines < left ? lines : left;
      for (int64_t i = 0; i < count; ++i) __builtin_prefetch(at_ + 64 * i, 0, 2);
      at_ += 64 * count;
      lines -= count;
    }
  }

 private:
  bool next_row() {
    if (head_ >= heads_ || count_ <= 0) return false;
    const char* row = rows_[which_][key_];
    if (row != nullptr) {
      at_ = row + (begin_ + head_) * head_stride_[which_];
      end_ = at_ + bytes_;
    }
    which_ ^= 1;
    if (which_ == 0 && ++key_ >= count_) {
      key_ = 0;
      ++head_;
    }
    return true;
  }
  const char* const* rows_[2] = {nullptr, nullptr};
  int64_t head_stride_[2] = {0, 0};
  int64_t count_ = 0, heads_ = 0, bytes_ = 0, begin_ = 0;
  int64_t key_ = 0, head_ = 0;
  int which_ = 0;
  const char *at_ = nullptr, *end_ = nullptr;
};

// The rows of one KV head as elements of T; where there is none, zeros.
template <class T>
struct RowsInPlace {
  const char* const* rows;
  int64_t offset;  // bytes
  const void* zeros;
  const T* at(int64_t i) const {
    return static_cast<const T*>(rows[i] == nullptr ? zeros : static_cast<const void*>(rows[i] + offset));
  }
};

// scores[kRows][first, last) = q k: first and last are multiples of kLanes.
template <class Steps, class T, int kRows>
void dot_block(const float* q, int64_t q_stride, const RowsInPlace<T>& keys, int64_t first, int64_t last,
               int64_t vecs, float* scores, int64_t score_stride, RowPrefetch& next, int64_t key_lines) {
  using Load = RowLoad<Steps>;
  constexpr int kKeys = kLanes / kRows;
  for (int64_t i = first; i < last; i += kKeys) {
    next.issue(kKeys * key_lines);
    const T* k[kKeys];
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) k[j] = keys.at(i + j);
    Vec acc[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) acc[j] = zero();
    for (int64_t v = 0; v < vecs; ++v) {
      Vec row[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) row[r] = load(q + r * q_stride + v * kLanes);
#pragma GCC unroll 16
      for (int j = 0; j < kKeys; ++j) {
        const Vec key = Load::steps(k[j] + v * Load::kElements);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) acc[r * kKeys + j] = Load::mac(acc[r * kKeys + j], row[r], key);
      }
    }
    alignas(64) float sums[kLanes];
    store(sums, sum_each(acc));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      std::memcpy(scores + r * score_stride + i, sums + r * kKeys, sizeof(float) * kKeys);
    }
  }
}

// scores[rows][first, last) = q k.
template <class Steps, class T>
void dot_rows(int64_t rows, const uint32_t* q, int64_t q_stride, const RowsInPlace<T>& keys, int64_t first,
              int64_t last, int64_t vecs, float* scores, int64_t score_stride, RowPrefetch& next,
              int64_t key_lines) {
  const auto* a = reinterpret_cast<const float*>(q);
  for (int64_t r = 0; r < rows;) {
    const float* from = a + r * q_stride;
    float* to = scores + r * score_stride;
    if (rows - r >= 4) {
      dot_block<Steps, T, 4>(from, q_stride, keys, first, last, vecs, to, score_stride, next, key_lines);
      r += 4;
    } else if (rows - r >= 2) {
      dot_block<Steps, T, 2>(from, q_stride, keys, first, last, vecs, to, score_stride, next, key_lines);
      r += 2;
    } else {
      dot_block<Steps, T, 1>(from, q_stride, keys, first, last, vecs, to, score_stride, next, key_lines);
      r += 1;
    }
    key_lines = 0;
  }
}

// acc[kRows][kVecs vectors] = acc * scale[row] + weights values, over steps [first, last).
template <class Steps, class T, int kRows, int kVecs>
void add_block(const uint32_t* weights, int64_t weight_stride, const RowsInPlace<T>& values, int64_t first,
               int64_t last, int64_t column, float* acc, int64_t acc_stride, const float* scale,
               RowPrefetch& next, int64_t step_lines) {
  using Load = RowLoad<Steps>;
  Vec sums[kRows][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) sums[r][v] = zero();
  }
  for (int64_t s = first; s < last; ++s) {
    next.issue(step_lines);
    const T* rows[Load::kRows];
#pragma GCC unroll 2
    for (int i = 0; i < Load::kRows; ++i) rows[i] = values.at(s * Load::kRows + i);
    Vec value[kVecs];
    Load::template columns<kVecs>(rows, column, value);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v)
        sums[r][v] = Steps::mac(sums[r][v], weights + r * weight_stride + s, value[v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      float* to = acc + r * acc_stride + v * kLanes;
      store(to, fma(load(to), splat(scale[r]), sums[r][v]));
    }
  }
}

// All columns of kRows rows, as many at once as the registers hold.
template <class Steps, class T, int kRows>
void add_columns(const uint32_t* weights, int64_t weight_stride, const RowsInPlace<T>& values, int64_t first,
                 int64_t last, int64_t width, float* acc, int64_t acc_stride, const float* scale,
                 RowPrefetch& next, int64_t step_lines) {
#if defined(__AVX512F__)
  constexpr int kVecs = kRows == 4 ? 4 : 8;
#else
  constexpr int kVecs = 8 / kRows;
#endif
  const int64_t vecs = width / kLanes;
  int64_t v = 0;
  const auto block = [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    add_block<Steps, T, kRows, kCount>(weights, weight_stride, values, first, last, v * kLanes,
                                       acc + v * kLanes, acc_stride, scale, next, step_lines);
    v += kCount;
    step_lines = 0;
  };
  while (vecs - v >= kVecs) block(Count<kVecs>{});
  while (vecs - v >= 2) block(Count<2>{});
  if constexpr (RowLoad<Steps>::kRows == 1) {
    if (v < vecs) block(Count<1>{});
  }
}

template <class Steps, class T>
void add_rows(int64_t rows, const uint32_t* weights, int64_t weight_stride, const RowsInPlace<T>& values,
              int64_t first, int64_t last, int64_t width, float* acc, int64_t acc_stride, const float* scale,
              RowPrefetch& next, int64_t step_lines) {
  for (int64_t r = 0; r < rows;) {
    const uint32_t* from = weights + r * weight_stride;
    float* to = acc + r * acc_stride;
    if (rows - r >= 4) {
      add_columns<Steps, T, 4>(from, weight_stride, values, first, last, width, to, acc_stride, scale + r,
                               next, step_lines);
      r += 4;
    } else if (rows - r >= 2) {
      add_columns<Steps, T, 2>(from, weight_stride, values, first, last, width, to, acc_stride, scale + r,
                               next, step_lines);
      r += 2;
    } else {
      add_columns<Steps, T, 1>(from, weight_stride, values, first, last, width, to, acc_stride, scale + r,
                               next, step_lines);
      r += 1;
    }
    step_lines = 0;
  }
}

}  // namespace skv::cpu::SKV_ISA
