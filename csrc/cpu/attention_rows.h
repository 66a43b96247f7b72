// Attention of few rows on values where they lie in the paged cache, and the order in which memory is read.
//
// With few rows the arithmetic is little and reading keys and values is the cost: they are taken kPackKeys at
// a time, all heads in turn, near the order of their addresses. Keys go through a panel that stays in the L1
// cache; values are widened in registers, a value once for up to four query rows. Every sum is the chain of
// the packed form (attention_micro.h): a row's bits do not depend on which form computes it.
#pragma once
#include "attention_pack.h"
#include "delta_prefill_plan.h"

namespace skv::cpu::SKV_ISA {

template <int n>
struct Count {
  static constexpr int value = n;
};

// Vectors of columns of a step of values, from elements of the cache.
template <class Steps>
struct RowLoad;

template <>
struct RowLoad<FloatSteps> {
  static constexpr int kElements = kLanes;  // head_dim is a multiple
  static constexpr int kRows = 1;           // of values in a step
  template <int kVecs, class T>
  static inline void columns(const T* const* rows, int64_t column, Vec (&to)[kVecs]) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) to[v] = load(rows[0] + column + v * kLanes);
  }
#if defined(__AVX2__) && !defined(__AVX512F__)
  // Two vectors from one load: the even columns and the odd ones. in_order() undoes it for sums of all
  // columns.
  template <int kVecs>
  static inline void columns(const BFloat16* const* rows, int64_t column, Vec (&to)[kVecs]) {
    if constexpr (kVecs == 1) {
      to[0] = load(rows[0] + column);
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v += 2) {
        const __m256i pairs =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[0] + column + v * kLanes));
        to[v] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
        to[v + 1] = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
      }
    }
  }
  template <int kVecs>
  static inline void columns(const Fp8* const* rows, int64_t column, Vec (&to)[kVecs]) {
    if constexpr (kVecs == 1) {
      to[0] = load(rows[0] + column);
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v += 2) load_pair(rows[0] + column + v * kLanes, to[v], to[v + 1]);
    }
  }
  static inline void in_order(const BFloat16*, float* sums, int64_t width) {
    for (int64_t j = 0; j + 2 * kLanes <= width; j += 2 * kLanes) {
      const Vec even = load(sums + j), odd = load(sums + j + kLanes);
      const Vec low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
      store(sums + j, _mm256_permute2f128_ps(low, high, 0x20));
      store(sums + j + kLanes, _mm256_permute2f128_ps(low, high, 0x31));
    }
  }
#endif
  template <class T>
  static inline void in_order(const T*, float*, int64_t) {}
};

#if defined(__AVX512BF16__)
template <>
struct RowLoad<BFloat16Steps> {
  static constexpr int kElements = 2 * kLanes;
  static inline Vec steps(const BFloat16* row) { return _mm512_loadu_ps(row); }
  static inline Vec steps(const Fp8* row) { return (Vec)widen_to_bfloat16(row); }
  // A step is two rows of values, interleaved as in pack_values().
  static constexpr int kRows = 2;
  template <int kVecs, class T>
  static inline void columns(const T* const* rows, int64_t column, Vec (&to)[kVecs]) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; v += 2) {
      const __m512i a = (__m512i)steps(rows[0] + column + v * kLanes);
      const __m512i b = (__m512i)steps(rows[1] + column + v * kLanes);
      to[v] = (Vec)_mm512_unpacklo_epi16(a, b);
      to[v + 1] = (Vec)_mm512_unpackhi_epi16(a, b);
    }
  }
  template <class T>
  static inline void in_order(const T*, float*, int64_t) {}
};
#endif

// What is read soon, fetched into the L2 cache some lines at a time while other things are computed, kLead
// bytes ahead in the order of addresses: kPackKeys rows after another, all heads of a row where they lie side
// by side, else head by head.
class RowPrefetch {
 public:
  static constexpr int64_t kLead = 16 << 10;
  struct Rows {
    const char* const* rows;  // of KV head 0, null = nothing there
    int64_t count, first_head, head_stride;
  };
  // row_bytes: of one head. Offsets and strides in bytes.
  RowPrefetch(int64_t heads, int64_t row_bytes) : heads_(heads), row_bytes_(row_bytes) {
    const int64_t group = kPackKeys * heads * row_bytes;
    early_ = (kLead + group - 1) / group * kPackKeys;
    early_ = early_ < kTileKeys ? early_ : kTileKeys - kPackKeys;
  }
  // The order: all of `keys`, all of `values`, then what leads over from the one to the next call's keys.
  void start(const Rows& keys, const Rows& values, Rows next_keys, bool is_first) {
    next_keys.count = next_keys.count < early_ ? next_keys.count : early_;
    lots_[0] = keys, lots_[1] = values, lots_[2] = next_keys;
    lot_ = key_ = head_ = 0;
    group_ = is_first ? 0 : early_;
    at_ = end_ = nullptr;
    if (is_first) fetch(early_ * heads_ * row_bytes_);
  }
  void fetch(int64_t bytes) {
    while (bytes > 0) {
      while (at_ >= end_) {
        if (!next_row()) return;
      }
      if (end_ - at_ >= kStep) {
#pragma GCC unroll 4
        for (int64_t b = 0; b < kStep; b += 64) __builtin_prefetch(at_ + b, 0, 2);
        bytes -= kStep;
      } else {
        for (const char* line = at_; line < end_; line += 64) __builtin_prefetch(line, 0, 2);
        bytes -= end_ - at_;
      }
      at_ += kStep;
    }
  }

 private:
  static constexpr int64_t kStep = 256;
  bool next_row() {
    while (lot_ < 3 && group_ >= lots_[lot_].count) ++lot_, group_ = 0;
    if (lot_ == 3) return false;
    const Rows& lot = lots_[lot_];
    const bool together = lot.head_stride == row_bytes_;
    if (const char* row = lot.rows[group_ + key_]) {
      at_ = row + lot.first_head + head_ * lot.head_stride;
      end_ = at_ + (together ? heads_ : 1) * row_bytes_;
    }
    if (++key_ < kPackKeys && group_ + key_ < lot.count) return true;
    key_ = 0;
    if (!together && ++head_ < heads_) return true;
    head_ = 0;
    group_ += kPackKeys;
    return true;
  }
  Rows lots_[3] = {};
  int64_t heads_, row_bytes_, early_;
  int64_t lot_ = 3, group_ = 0, head_ = 0, key_ = 0;
  const char *at_ = nullptr, *end_ = nullptr;
};

// sums[kRows][kVecs vectors], zero if `fresh`, += weights values: one chain over `steps` steps, whose rows
// are rows[step * Load::kRows, ...).
template <class Steps, class T, int kRows, int kVecs>
inline void add_block(const uint32_t* weights, int64_t weight_stride, const T* const* rows, int64_t steps,
                      int64_t column, float* sums, int64_t sum_stride, bool fresh) {
  using Load = RowLoad<Steps>;
  Vec acc[kRows][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = fresh ? zero() : load(sums + r * sum_stride + column + v * kLanes);
    }
  }
  for (int64_t s = 0; s < steps; ++s) {
    Vec value[kVecs];
    Load::template columns<kVecs>(rows + s * Load::kRows, column, value);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v)
        acc[r][v] = Steps::mac(acc[r][v], weights + r * weight_stride + s, value[v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store(sums + r * sum_stride + column + v * kLanes, acc[r][v]);
  }
}

// All columns of kRows rows, as many at once as the registers hold. Calls between(first, vectors) before each
// lot of columns.
template <class Steps, class T, int kRows, class F>
inline void add_columns(const uint32_t* weights, int64_t weight_stride, const T* const* rows, int64_t steps,
                        int64_t width, float* sums, int64_t sum_stride, bool fresh, F&& between) {
#if defined(__AVX512F__)
  constexpr int kVecs = kRows >= 3 ? 4 : 8;
#else
  constexpr int kVecs = kRows >= 3 ? 2 : 8 / kRows;
#endif
  const int64_t vecs = width / kLanes;
  int64_t v = 0;
  const auto block = [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    between(v, kCount);
    add_block<Steps, T, kRows, kCount>(weights, weight_stride, rows, steps, v * kLanes, sums, sum_stride,
                                       fresh);
    v += kCount;
  };
  while (vecs - v >= kVecs) block(Count<kVecs>{});
  while (vecs - v >= 2) block(Count<2>{});
  if constexpr (RowLoad<Steps>::kRows == 1) {
    if (v < vecs) block(Count<1>{});
  }
}

// sums[rows][width], zero if `fresh`, += weights values. values: kPackKeys pointers. between(first, vectors)
// is called while the first rows are computed, for all vectors of columns.
template <class Steps, class T, class F>
void add_values(int64_t rows, const uint32_t* weights, int64_t weight_stride, const T* const* values,
                int64_t steps, int64_t width, float* sums, int64_t sum_stride, bool fresh, F&& between) {
  for (int64_t r = 0; r < rows;) {
    const uint32_t* from = weights + r * weight_stride;
    float* to = sums + r * sum_stride;
    const auto step = [&](int64_t first, int64_t vecs) {
      if (r == 0) between(first, vecs);
    };
    const auto take = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      add_columns<Steps, T, kCount>(from, weight_stride, values, steps, width, to, sum_stride, fresh, step);
      r += kCount;
    };
    switch (rows - r) {
      case 1:
        take(Count<1>{});
        break;
      case 2:
        take(Count<2>{});
        break;
      case 3:
        take(Count<3>{});
        break;
      default:
        take(Count<4>{});
    }
  }
}

}  // namespace skv::cpu::SKV_ISA
