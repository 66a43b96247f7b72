// A chunk of a panel of bfloat16 weights by many rows on the matrix unit (AMX).
//
// A tile register holds 16 rows of 64 bytes: 16 rows of x by 16 pairs along k, 16 pairs by 16 columns of a
// panel as pack_linear_weight lays them, 16 rows by 16 columns of sums. One instruction adds 32 elements of k
// to each sum, in an order of its own; every number of rows takes it, so a row's bits are the same in all.
#pragma once
#include "linear_step.h"

#if defined(__AMX_BF16__)
namespace skv::cpu::SKV_ISA {

constexpr int kTileSteps = 16;  // along k, of pairs
constexpr int kTileSums = 16;   // rows or columns
constexpr int kBlockRows = 2 * kTileSums;

// The registers: 0 to 3 sums (two of rows by two of columns), 4 and 5 rows of x, 6 and 7 weights.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileShapes(int64_t of_x) {
    const int64_t first = of_x < kTileSums ? of_x : kTileSums, rest = of_x - first;
    const int64_t second = rest == 0 ? first : rest < kTileSums ? rest : kTileSums;
    const int64_t counts[] = {first, first, second, second, first, second, kTileSteps, kTileSteps};
    for (int i = 0; i < 8; ++i) {
      row_bytes[i] = 64;
      rows[i] = static_cast<uint8_t>(counts[i]);
    }
  }
};

template <>
class PanelProduct<BFloat16> {
  using Unit = Step<BFloat16>::Unit;
  static constexpr int kStep = kPanel * Layout<BFloat16>::kPair;  // elements of a panel
  static constexpr int kStepBytes = kStep * static_cast<int>(sizeof(BFloat16));
  static constexpr int kSumBytes = kPanel * static_cast<int>(sizeof(float));
  static constexpr int kRowBytes = kRowUnits<BFloat16> * static_cast<int>(sizeof(Unit));

 public:
  // Up to a block of rows the registers have as many rows as there are; more are whole tiles.
  static int64_t padded_rows(int64_t rows) {
    return rows <= kBlockRows ? rows : div_up(rows, kTileSums) * kTileSums;
  }
  static int64_t padded_steps(int64_t steps) { return div_up(steps, kTileSteps) * kTileSteps; }

  explicit PanelProduct(int64_t rows) : rows_(rows) {
    const TileShapes shapes(rows <= kBlockRows ? rows : kBlockRows);
    _tile_loadconfig(&shapes);
  }
  ~PanelProduct() { _tile_release(); }
  PanelProduct(const PanelProduct&) = delete;
  PanelProduct& operator=(const PanelProduct&) = delete;

  // sums[padded_rows][kPanel] (+)= x[padded_rows] @ one chunk of a panel, `steps` pairs of it; meanwhile
  // fetches `next`.
  void operator()(const BFloat16* w, const BFloat16* next, const Unit* x, int64_t steps, float* sums,
                  bool first) {
    const int64_t whole = steps / kTileSteps, left = steps % kTileSteps;
    if (left > 0) {  // as many pairs of the chunk as are missing are zeros: rows of x have them too
      std::memcpy(tail_, w + whole * kTileSteps * kStep, static_cast<size_t>(left) * kStepBytes);
      std::memset(tail_ + left * kStep, 0, static_cast<size_t>(kTileSteps - left) * kStepBytes);
    }
    asm volatile("" ::: "memory");  // the compiler does not know what tile loads read
    const int64_t blocks = div_up(rows_, kBlockRows);
    Fetch fetch{reinterpret_cast<const char*>(next), kTileSteps * kStepBytes / blocks / 64 * 64};
    if (blocks == 1) fetch.at = reinterpret_cast<const char*>(w) + kNearBytes;
    for (int64_t row = 0; row < rows_; row += kBlockRows) {
      const Unit* block = x + row * kRowUnits<BFloat16>;
      float* to = sums + row * kPanel;
      if (rows_ - row > kTileSums) {
        two_tiles(w, block, whole, left > 0, to, first, fetch);
      } else {
        one_tile(w, block, whole, left > 0, to, first, fetch);
      }
    }
  }

 private:
  // Weights that are needed soon, some at every step: the tile loads alone have too few lines on their way.
  struct Fetch {
    const char* at;
    int64_t bytes;
    void operator()() {
      for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + b, 0, kSecondLevel);
      at += bytes;
    }
  };
  static constexpr int kNearBytes = 8192;

  void one_tile(const BFloat16* w, const Unit* x, int64_t tiles, bool tail, float* to, bool first,
                Fetch& fetch) {
    if (first) {
      _tile_zero(0);
      _tile_zero(1);
    } else {
      _tile_loadd(0, to, kSumBytes);
      _tile_loadd(1, to + kTileSums, kSumBytes);
    }
    const auto step = [&](const BFloat16* weights, const Unit* rows) {
      fetch();
      _tile_loadd(4, rows, kRowBytes);
      _tile_loadd(6, weights, kStepBytes);
      _tile_loadd(7, weights + kStep / 2, kStepBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    };
    for (int64_t t = 0; t < tiles; ++t) step(w + t * kTileSteps * kStep, x + t * kTileSteps);
    if (tail) step(tail_, x + tiles * kTileSteps);
    _tile_stored(0, to, kSumBytes);
    _tile_stored(1, to + kTileSums, kSumBytes);
  }

  void two_tiles(const BFloat16* w, const Unit* x, int64_t tiles, bool tail, float* to, bool first,
                 Fetch& fetch) {
    float* second = to + kTileSums * kPanel;
    if (first) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, to, kSumBytes);
      _tile_loadd(1, to + kTileSums, kSumBytes);
      _tile_loadd(2, second, kSumBytes);
      _tile_loadd(3, second + kTileSums, kSumBytes);
    }
    const auto step = [&](const BFloat16* weights, const Unit* rows) {
      fetch();
      _tile_loadd(4, rows, kRowBytes);
      _tile_loadd(6, weights, kStepBytes);
      _tile_loadd(7, weights + kStep / 2, kStepBytes);
      _tile_loadd(5, rows + kTileSums * kRowUnits<BFloat16>, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    };
    for (int64_t t = 0; t < tiles; ++t) step(w + t * kTileSteps * kStep, x + t * kTileSteps);
    if (tail) step(tail_, x + tiles * kTileSteps);
    _tile_stored(0, to, kSumBytes);
    _tile_stored(1, to + kTileSums, kSumBytes);
    _tile_stored(2, second, kSumBytes);
    _tile_stored(3, second + kTileSums, kSumBytes);
  }

  int64_t rows_;
  alignas(64) BFloat16 tail_[kTileSteps * kStep];
};

}  // namespace skv::cpu::SKV_ISA
#endif
