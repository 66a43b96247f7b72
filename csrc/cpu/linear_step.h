// One step along k of row_linear: kPair elements of k for kTileVecs vectors of columns.
//
// x comes packed in 4-byte units, kUnits per step: floats, or, where the processor multiplies bfloat16 pairs,
// the pair as it is.
#pragma once
#include "linear_panel.h"

namespace skv::cpu::SKV_ISA {

template <class W>
struct Step {  // float32, float16: one fused multiply-add per column
  static constexpr int kUnits = 1;
  using Unit = float;
  using Columns = Vec;
  static void load_columns(const W* w, Columns (&columns)[1]) { columns[0] = load(w); }
  static Columns broadcast(const Unit* x) { return splat(*x); }
  static Vec multiply(Columns w, Columns x, Vec sum) { return fma(w, x, sum); }
};

#if defined(__AVX512BF16__)
template <>
struct Step<BFloat16> {
  static constexpr int kUnits = 1;
  using Unit = uint32_t;
  using Columns = __m512i;
  static void load_columns(const BFloat16* w, Columns (&columns)[1]) { columns[0] = _mm512_loadu_si512(w); }
  static Columns broadcast(const Unit* x) { return _mm512_set1_epi32(static_cast<int>(*x)); }
  static Vec multiply(Columns w, Columns x, Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
  }
};
#else
template <>
struct Step<BFloat16> {  // two multiply-adds: first the even elements of the pairs, then the odd ones
  static constexpr int kUnits = 2;
  using Unit = float;
  using Columns = Vec;
  static void load_columns(const BFloat16* w, Columns (&columns)[2]) {
#if defined(__AVX512F__)
    const __m512i pairs = _mm512_loadu_si512(w);
    columns[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    columns[1] =
        _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    columns[0] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    columns[1] =
        _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
#else
    for (int i = 0; i < kLanes; ++i) {
      columns[0].x[i] = to_float(w[2 * i]);
      columns[1].x[i] = to_float(w[2 * i + 1]);
    }
#endif
  }
  static Columns broadcast(const Unit* x) { return splat(*x); }
  static Vec multiply(Columns w, Columns x, Vec sum) { return fma(w, x, sum); }
};
#endif

template <class W>
constexpr int kChunkSteps = Layout<W>::kChunk / Layout<W>::kPair;
// Units between the rows of a packed chunk of x: a cache line more than it holds, lest rows share cache sets.
template <class W>
constexpr int kRowUnits = kChunkSteps<W> * Step<W>::kUnits + 16;

// Elements [0, count) of one row of x, at most a chunk, as units; a pair that k cuts in half ends with a
// zero.
template <class W>
void pack_row(const W* x, int count, typename Step<W>::Unit* dst) {
  constexpr bool kAsItIs = sizeof(W) * Layout<W>::kPair == 4 && Step<W>::kUnits == 1;
  if constexpr (kAsItIs) {
    std::memcpy(dst, x, static_cast<size_t>(count) * sizeof(W));
    if (count % Layout<W>::kPair) reinterpret_cast<W*>(dst)[count] = W{};
  } else {
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) store(dst + i, load(x + i));
    for (; i < count; ++i) dst[i] = to_float(x[i]);
    if (count % Layout<W>::kPair) dst[count] = 0.0f;
  }
}

constexpr int kTileVecs = 2;
// Rows of a tile: 2 sums each, beside kUnits times 2 vectors of weights and one of x.
#if defined(__AVX512F__)
template <class W>
constexpr int kTileRows = 12;  // at most 29 of 32 registers
#elif defined(__AVX2__)
template <class W>
constexpr int kTileRows = Step<W>::kUnits == 1 ? 6 : 5;  // 15 of 16 registers
#else
template <class W>
constexpr int kTileRows = 4;
#endif
constexpr int kTileColumns = kTileVecs * kLanes;

constexpr int kSecondLevel =
    2;  // of cache, as the compiler's prefetch counts; the first holds the chunk in use

// Weights that a tile fetches while it multiplies others: bytes per step, 128 where one pass covers a whole
// chunk.
struct Ahead {
  const char* at;
  int64_t per_step;
};

// sums[rows][kPanel] (+)= x @ one chunk of kTileColumns columns of a panel, for kRows rows.
template <class W, int kRows>
void multiply_tile(const W* w, const typename Step<W>::Unit* x, int64_t steps, float* sums, bool first,
                   Ahead ahead) {
  using S = Step<W>;
  constexpr int kPair = Layout<W>::kPair;
  Vec sum[kRows][kTileVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVecs; ++v) sum[r][v] = zero();
  }
  for (int64_t s = 0; s < steps; ++s) {
    typename S::Columns columns[kTileVecs][S::kUnits];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVecs; ++v) S::load_columns(w + v * kLanes * kPair, columns[v]);
    __builtin_prefetch(ahead.at, 0, kSecondLevel);
    __builtin_prefetch(ahead.at + 64, 0, kSecondLevel);
    ahead.at += ahead.per_step;
#pragma GCC unroll 2
    for (int u = 0; u < S::kUnits; ++u) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename S::Columns value = S::broadcast(x + r * kRowUnits<W> + u);
#pragma GCC unroll 4
        for (int v = 0; v < kTileVecs; ++v) sum[r][v] = S::multiply(columns[v][u], value, sum[r][v]);
      }
    }
    w += kPanel * kPair;
    x += S::kUnits;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kTileVecs; ++v) {
      float* to = sums + r * kPanel + v * kLanes;
      store(to, first ? sum[r][v] : add(load(to), sum[r][v]));
    }
  }
}

template <class W>
using MultiplyTile = void (*)(const W*, const typename Step<W>::Unit*, int64_t, float*, bool, Ahead);

template <class W, int kRows = kTileRows<W>>
MultiplyTile<W> tile_for(int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_for<W, kRows - 1>(rows);
  }
  return multiply_tile<W, kRows>;
}

// The whole panel chunk by `rows` rows, as evenly many at a time as registers allow. Meanwhile fetches
// `next`, the chunk that comes after it: a pass that finds its weights in the cache would leave the memory
// idle otherwise.
template <class W>
void multiply_panel(const W* w, const W* next, const typename Step<W>::Unit* x, int64_t rows, int64_t steps,
                    float* sums, bool first) {
  constexpr int kStepBytes = kPanel * Layout<W>::kPair * static_cast<int>(sizeof(W));
  constexpr int kNearBytes = 4096;  // a single pass fetches from its own stream, one page on: measured best
  const int64_t tiles = div_up(rows, kTileRows<W>), passes = tiles * (kPanel / kTileColumns);
  Ahead ahead{reinterpret_cast<const char*>(next), kStepBytes / passes};
  if (passes == 1) ahead.at = reinterpret_cast<const char*>(w) + kNearBytes;
  for (int64_t t = 0, row = 0; t < tiles; ++t) {
    const int64_t count = div_up(rows - row, tiles - t);
    const MultiplyTile<W> tile = tile_for<W>(static_cast<int>(count));
    for (int c = 0; c < kPanel; c += kTileColumns) {
      tile(w + c * Layout<W>::kPair, x + row * kRowUnits<W>, steps, sums + row * kPanel + c, first, ahead);
      ahead.at += steps * ahead.per_step;
    }
    row += count;
  }
}

// multiply_panel() for a number of rows. linear_tiles.h has another one for the matrix unit, which wants rows
// and steps rounded up: what is beyond those asked for are zeros in x and not looked at in the sums.
template <class W>
class PanelProduct {
 public:
  static int64_t padded_rows(int64_t rows) { return rows; }
  static int64_t padded_steps(int64_t steps) { return steps; }

  explicit PanelProduct(int64_t rows) : rows_(rows) {}
  void operator()(const W* w, const W* next, const typename Step<W>::Unit* x, int64_t steps, float* sums,
                  bool first) const {
    multiply_panel(w, next, x, rows_, steps, sums, first);
  }

 private:
  int64_t rows_;
};

}  // namespace skv::cpu::SKV_ISA
