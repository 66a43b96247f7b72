// PanelProduct of bfloat16 on the matrix unit, from the panels as pack_linear_weight lays them. A sum is one
// chain over all of k; every number of rows goes this way, so a row's bits are the same in all.
#pragma once
#include "linear_step.h"
#include "tiles.h"

#if defined(__AMX_BF16__)
namespace skv::cpu::SKV_ISA {

template <>
class PanelProduct<BFloat16> {
  using Unit = Step<BFloat16>::Unit;
  static constexpr int kBlockRows = 2 * kTileSums;
  static constexpr int kStepBytes = kPanel * static_cast<int>(sizeof(uint32_t));
  static_assert(kPanel == 2 * kTileSums && Layout<BFloat16>::kPair == 2);

 public:
  // Up to a block of rows the registers have as many rows as there are; more are whole tiles.
  static int64_t padded_rows(int64_t rows) {
    return rows <= kBlockRows ? rows : div_up(rows, kTileSums) * kTileSums;
  }
  static int64_t padded_steps(int64_t steps) { return div_up(steps, kTileSteps) * kTileSteps; }

  explicit PanelProduct(int64_t rows) : rows_(rows), session_(rows <= kBlockRows ? rows : kBlockRows) {}

  void operator()(const BFloat16* weights, const BFloat16* next, const Unit* x, int64_t steps, float* sums,
                  bool first) {
    const auto* w = reinterpret_cast<const uint32_t*>(weights);
    const int64_t whole = steps / kTileSteps * kTileSteps;
    if (whole < steps) {  // what is missing of a tile are zeros, in x too
      std::memcpy(tail_, w + whole * kPanel, static_cast<size_t>((steps - whole) * kStepBytes));
      std::memset(tail_ + (steps - whole) * kPanel, 0,
                  static_cast<size_t>((whole + kTileSteps - steps) * kStepBytes));
    }
    tile_fence();
    const int64_t blocks = div_up(rows_, kBlockRows);
    const char* ahead = reinterpret_cast<const char*>(next);
    if (blocks == 1) ahead = reinterpret_cast<const char*>(weights) + kNearBytes;
    const int64_t ahead_bytes = kTileSteps * kStepBytes / blocks / 64 * 64;
    const auto fetch = [&] {  // tile loads alone have too few lines on their way
      for (int64_t i = 0; i < ahead_bytes; i += 64) __builtin_prefetch(ahead + i, 0, kSecondLevel);
      ahead += ahead_bytes;
    };
    for (int64_t row = 0; row < rows_; row += kBlockRows) {
      const bool two = rows_ - row > kTileSums;
      const auto product = two ? tile_product<2, 2, decltype(fetch)&> : tile_product<1, 2, decltype(fetch)&>;
      const Unit* block = x + row * kRowUnits<BFloat16>;
      float* to = sums + row * kPanel;
      if (whole > 0) product(block, kRowUnits<BFloat16>, w, kPanel, whole, to, kPanel, first, fetch);
      if (whole < steps) {
        product(block + whole, kRowUnits<BFloat16>, tail_, kPanel, kTileSteps, to, kPanel,
                first && whole == 0, fetch);
      }
    }
  }

 private:
  static constexpr int kNearBytes = 8192;  // measured best of 4096 to 16384
  int64_t rows_;
  TileSession session_;
  alignas(64) uint32_t tail_[kTileSteps * kPanel];
};

}  // namespace skv::cpu::SKV_ISA
#endif
