// The inner products of attention: register tiles of kMicroRows rows by kMicroVecs vectors of columns.
//
// Both products of a tile, scores = Q K^T and out += P V, are c[r][j] = sum over steps s of a[r][s] *
// b[s][j]. A step is four bytes of a row: one float, or two bfloat16 (then b interleaves two steps, as
// vdpbf16ps wants them). Every element is one chain over s, so its bits depend on nothing but its own row of
// a and column of b.
//
// Where there is a matrix unit it makes the products of bfloat16, 16 rows by 16 columns at a time (tiles.h).
#pragma once
#include "tiles.h"

namespace skv::cpu::SKV_ISA {

// Accumulators, one step's columns and a broadcast fit the registers; columns are a multiple of 16.
#if defined(__AVX512F__)
constexpr int kMicroRows = 6, kMicroVecs = 4;
#elif defined(__AVX2__)
constexpr int kMicroRows = 6, kMicroVecs = 2;
#else
constexpr int kMicroRows = 3, kMicroVecs = 4;
#endif
constexpr int kMicroColumns = kMicroVecs * kLanes;

// The keys and values needed next, fetched into the L2 cache a few at a time while others are computed: with
// few query rows the memory must never wait for the arithmetic, and the rows of a head lie too far apart for
// the processor to guess them.
class TilePrefetch {
 public:
  TilePrefetch(const char* const* keys, int64_t k_offset, const char* const* values, int64_t v_offset,
               int64_t count, int64_t row_bytes)
      : keys_(keys),
        values_(values),
        k_offset_(k_offset),
        v_offset_(v_offset),
        count_(count),
        row_bytes_(row_bytes) {}
  void issue(int64_t rows) {
    for (; rows > 0 && next_ < count_; --rows, ++next_) {
      if (keys_[next_] == nullptr) continue;
      for (int64_t b = 0; b < row_bytes_; b += 64) {
        __builtin_prefetch(keys_[next_] + k_offset_ + b, 0, 2);
        __builtin_prefetch(values_[next_] + v_offset_ + b, 0, 2);
      }
    }
  }

 private:
  const char* const* keys_;
  const char* const* values_;
  int64_t k_offset_, v_offset_, count_, row_bytes_, next_ = 0;
};

struct FloatSteps {
  using Element = float;
  static constexpr int kPerStep = 1;
  static constexpr bool kTiles = false;  // of the matrix unit
  struct Session {                       // the registers of that
    explicit Session(int64_t, bool) {}
  };
  static constexpr int64_t kBlockRows = 48;  // that share scores
  static constexpr int64_t kChain = 32;      // steps of a score summed before they join the others: rounding
  static inline Vec mac(Vec acc, const uint32_t* a, Vec b) { return fma(splat(float_of(*a)), b, acc); }
  static inline Vec column(const uint32_t* b) { return load(reinterpret_cast<const float*>(b)); }
  static inline void order_columns(float*, int64_t) {}
};

#if defined(__AVX512BF16__)
struct BFloat16Steps {
  using Element = BFloat16;
  static constexpr int kPerStep = 2;
#if defined(__AMX_BF16__)
  static constexpr bool kTiles = true;
  struct Session : TileSession {
    Session(int64_t rows, bool few) : TileSession(rows, few ? kFewRows : kAnyRows) {}
  };
  static constexpr int64_t kBlockRows = 32;
#else
  static constexpr bool kTiles = false;
  using Session = FloatSteps::Session;
  static constexpr int64_t kBlockRows = 48;
#endif
  static constexpr int64_t kChain = INT64_MAX / 2;
  static inline Vec mac(Vec acc, const uint32_t* a, Vec b) {
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32(static_cast<int>(*a)), (__m512bh)b);
  }
  static inline Vec column(const uint32_t* b) { return _mm512_loadu_ps(b); }
  // Two rows of values are interleaved four columns at a time, which the processor does at one instruction a
  // vector; so sums of 32 columns lie as 0-3, 8-11, 16-19, 24-27, then the other ones, until they are output.
  static inline void order_columns(float* row, int64_t width) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int64_t j = 0; j < width; j += 2 * kLanes) {
      const Vec a = load(row + j), b = load(row + j + kLanes);
      store(row + j, _mm512_permutex2var_ps(a, low, b));
      store(row + j + kLanes, _mm512_permutex2var_ps(a, high, b));
    }
  }
};
#endif

// c (stride c_stride) = a (stride a_stride, in steps) times b (stride b_stride, in steps); with kAccumulate
// c = c * scale[r] + that.
template <class Steps, int kRows, int kVecs, bool kAccumulate>
inline void micro(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, int64_t steps,
                  float* c, int64_t c_stride, const float* scale) {
  Vec acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v] = zero();
  }
  for (int64_t s = 0; s < steps; ++s) {
    Vec column[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) column[v] = Steps::column(b + s * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[r][v] = Steps::mac(acc[r][v], a + r * a_stride + s, column[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    float* out = c + r * c_stride;
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      if constexpr (kAccumulate) {
        store(out + v * kLanes, fma(load(out + v * kLanes), splat(scale[r]), acc[r][v]));
      } else {
        store(out + v * kLanes, acc[r][v]);
      }
    }
  }
}

template <class Steps, int kVecs, bool kAccumulate>
inline void micro_rows(int rows, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
                       int64_t steps, float* c, int64_t c_stride, const float* scale) {
  switch (rows) {
    case 1:
      return micro<Steps, 1, kVecs, kAccumulate>(a, a_stride, b, b_stride, steps, c, c_stride, scale);
    case 2:
      return micro<Steps, 2, kVecs, kAccumulate>(a, a_stride, b, b_stride, steps, c, c_stride, scale);
    case 3:
      return micro<Steps, 3, kVecs, kAccumulate>(a, a_stride, b, b_stride, steps, c, c_stride, scale);
    case 4:
      return micro<Steps, 4, kVecs, kAccumulate>(a, a_stride, b, b_stride, steps, c, c_stride, scale);
    case 5:
      return micro<Steps, 5, kVecs, kAccumulate>(a, a_stride, b, b_stride, steps, c, c_stride, scale);
    default:
      return micro<Steps, 6, kVecs, kAccumulate>(a, a_stride, b, b_stride, steps, c, c_stride, scale);
  }
}

// kChains chains of a score side by side (see kChain), for rows too few to fill the multipliers otherwise: c
// = their sum in order, added to what is there unless these are the first ones.
template <class Steps, int kRows, int kChains>
inline void micro_chains(const uint32_t* a, int64_t a_stride, const uint32_t* b, float* c, int64_t c_stride,
                         bool first) {
  Vec acc[kChains][kRows][kMicroVecs];
#pragma GCC unroll 4
  for (int k = 0; k < kChains; ++k) {
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kMicroVecs; ++v) acc[k][r][v] = zero();
    }
  }
  for (int64_t s = 0; s < Steps::kChain; ++s) {
#pragma GCC unroll 4
    for (int k = 0; k < kChains; ++k) {
      const int64_t step = k * Steps::kChain + s;
#pragma GCC unroll 4
      for (int v = 0; v < kMicroVecs; ++v) {
        const Vec column = Steps::column(b + step * kMicroColumns + v * kLanes);
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r) {
          acc[k][r][v] = Steps::mac(acc[k][r][v], a + r * a_stride + step, column);
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kMicroVecs; ++v) {
      float* to = c + r * c_stride + v * kLanes;
      Vec sum = first ? acc[0][r][v] : add(load(to), acc[0][r][v]);
#pragma GCC unroll 4
      for (int k = 1; k < kChains; ++k) sum = add(sum, acc[k][r][v]);
      store(to, sum);
    }
  }
}

#if defined(__AMX_BF16__)
// c[rows][columns] of a[rows][steps] b[steps][columns]: columns and steps in whole tiles, rows as the
// TileSession has them or padded to whole tiles.
template <class F>
inline void tile_products(int64_t rows, const uint32_t* a, int64_t a_stride, const uint32_t* b,
                          int64_t b_stride, int64_t columns, int64_t steps, float* c, int64_t c_stride,
                          bool fresh, F&& between) {
  tile_fence();
  for (int64_t r = 0; r < rows; r += 2 * kTileSums) {
    const bool two_rows = rows - r > kTileSums;
    for (int64_t j = 0; j < columns; j += 2 * kTileSums) {
      const bool two_columns = columns - j > kTileSums;
      const auto product = two_rows ? (two_columns ? tile_product<2, 2, F&> : tile_product<2, 1, F&>)
                                    : (two_columns ? tile_product<1, 2, F&> : tile_product<1, 1, F&>);
      product(a + r * a_stride, a_stride, b + j, b_stride, steps, c + r * c_stride + j, c_stride, fresh,
              between);
    }
  }
}
#endif

// scores[rows][kMicroColumns] of one key panel [steps][kMicroColumns].
template <class Steps>
void score_panel(int64_t rows, const uint32_t* q, int64_t q_stride, const uint32_t* b, int64_t steps,
                 float* scores, int64_t score_stride) {
#if defined(__AMX_BF16__)
  if constexpr (Steps::kTiles) {  // rows of q and of the panel end with zeros
    const int64_t padded = (steps + kTileSteps - 1) / kTileSteps * kTileSteps;
    tile_products(rows, q, q_stride, b, kMicroColumns, kMicroColumns, padded, scores, score_stride, true,
                  [] {});
    return;
  }
#endif
  const float ones[] = {1, 1, 1, 1, 1, 1};
  for (int64_t r = 0; r < rows;) {
    const int64_t left = rows - r;
    const int count = left == 7 || left == 8 ? 4 : static_cast<int>(left < kMicroRows ? left : kMicroRows);
    const uint32_t* a = q + r * q_stride;
    float* c = scores + r * score_stride;
    int64_t s = 0;
    if constexpr (Steps::kChain < 1024) {
      for (; count == 1 && steps - s >= 4 * Steps::kChain; s += 4 * Steps::kChain)
        micro_chains<Steps, 1, 4>(a + s, q_stride, b + s * kMicroColumns, c, score_stride, s == 0);
      for (; count == 1 && steps - s >= 2 * Steps::kChain; s += 2 * Steps::kChain)
        micro_chains<Steps, 1, 2>(a + s, q_stride, b + s * kMicroColumns, c, score_stride, s == 0);
      for (; count == 2 && steps - s >= 2 * Steps::kChain; s += 2 * Steps::kChain)
        micro_chains<Steps, 2, 2>(a + s, q_stride, b + s * kMicroColumns, c, score_stride, s == 0);
    }
    for (int64_t end; s < steps; s = end) {
      end = steps - s < Steps::kChain ? steps : s + Steps::kChain;
      const uint32_t* from = b + s * kMicroColumns;
      if (s == 0) {
        micro_rows<Steps, kMicroVecs, false>(count, a, q_stride, from, kMicroColumns, end, c, score_stride,
                                             nullptr);
      } else {
        micro_rows<Steps, kMicroVecs, true>(count, a + s, q_stride, from, kMicroColumns, end - s, c,
                                            score_stride, ones);
      }
    }
    r += count;
  }
}

// scores[rows][keys] of the key panels [first_panel, panels): k is [panel][panel_steps][kMicroColumns].
template <class Steps>
void score_panels(int64_t rows, const uint32_t* q, int64_t q_stride, const uint32_t* k, int64_t panel_steps,
                  int64_t steps, int64_t first_panel, int64_t panels, float* scores, int64_t score_stride,
                  TilePrefetch& next) {
  for (int64_t panel = first_panel; panel < panels; ++panel) {
    next.issue(16);
    score_panel<Steps>(rows, q, q_stride, k + panel * panel_steps * kMicroColumns, steps,
                       scores + panel * kMicroColumns, score_stride);
  }
}

// acc[rows][width] = acc * scale[row] + p v: v is [steps][width], width a multiple of kLanes.
template <class Steps>
void accumulate_values(int64_t rows, const uint32_t* p, int64_t p_stride, const uint32_t* v, int64_t width,
                       int64_t steps, float* acc, int64_t acc_stride, const float* scale,
                       TilePrefetch& next) {
  for (int64_t j = 0; j < width; j += kMicroColumns) {
    next.issue(16);
    const int64_t vecs = (width - j < kMicroColumns ? width - j : kMicroColumns) / kLanes;
    for (int64_t r = 0; r < rows; r += kMicroRows) {
      const int count = static_cast<int>(rows - r < kMicroRows ? rows - r : kMicroRows);
      const uint32_t* a = p + r * p_stride;
      float* c = acc + r * acc_stride + j;
      if (vecs == kMicroVecs) {
        micro_rows<Steps, kMicroVecs, true>(count, a, p_stride, v + j, width, steps, c, acc_stride,
                                            scale + r);
      } else if (vecs == 1) {
        micro_rows<Steps, 1, true>(count, a, p_stride, v + j, width, steps, c, acc_stride, scale + r);
      } else if constexpr (kMicroVecs > 2) {
        if (vecs == 2) {
          micro_rows<Steps, 2, true>(count, a, p_stride, v + j, width, steps, c, acc_stride, scale + r);
        } else {
          micro_rows<Steps, 3, true>(count, a, p_stride, v + j, width, steps, c, acc_stride, scale + r);
        }
      }
    }
  }
}

}  // namespace skv::cpu::SKV_ISA
