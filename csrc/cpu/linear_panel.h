// What row_linear and pack_linear_weight share: the packed layout of a weight.
//
// A packed weight is a sequence of panels of 32 output columns (the last one may be narrower), each stored
// [ceil(k / kPair)][columns][kPair]: a step along k of a whole panel is two cache lines, and a one-row
// product reads one sequential stream. bfloat16 keeps pairs along k together, as the dot-product instruction
// of AVX-512 BF16 wants them (an odd k ends with a zero); other dtypes have kPair = 1. It takes the memory of
// the weight itself.
#pragma once
#include "simd.h"

namespace skv::cpu::SKV_ISA {

constexpr int kPanel = 32;

template <class W>
struct Layout {
  static constexpr int kPair = 1;
  static constexpr int kChunk = sizeof(W) == 4 ? 128 : 512;  // elements of k whose sum is one chain
};
template <>
struct Layout<BFloat16> {
  static constexpr int kPair = 2;
  static constexpr int kChunk = 512;
};

constexpr int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A plain weight [n, k] with any row stride, or a packed one.
template <class W>
struct Weight {
  static constexpr int kPair = Layout<W>::kPair;
  const W* data;
  int64_t row_stride;
  int64_t n, k;

  int columns(int64_t panel) const {
    const int64_t left = n - panel * kPanel;
    return left < kPanel ? static_cast<int>(left) : kPanel;
  }
};

// Columns of a plain weight -> [steps][width][kPair] from column `begin` and element k_begin on, k_count
// elements; columns past `columns` and the second half of a pair past k_count become 0.
template <class W>
void pack_panel(const Weight<W>& weight, int64_t begin, int columns, int64_t k_begin, int64_t k_count,
                int width, W* dst) {
  constexpr int kPair = Layout<W>::kPair;
  constexpr int kTile = 64 / sizeof(W);  // one cache line of each row at a time
  for (int64_t k0 = 0; k0 < k_count; k0 += kTile) {
    const int count = k_count - k0 < kTile ? static_cast<int>(k_count - k0) : kTile;
    W* tile = dst + k0 * width;
    for (int j = 0; j < width; ++j) {
      W* column = tile + j * kPair;
      const int used = j < columns ? count : 0;
      const W* row = weight.data + (begin + (j < columns ? j : 0)) * weight.row_stride + k_begin + k0;
      int i = 0;
      for (; i + kPair <= used; i += kPair) std::memcpy(column + i * width, row + i, kPair * sizeof(W));
      for (; i < static_cast<int>(div_up(count, kPair)) * kPair; ++i) {
        column[i / kPair * kPair * width + i % kPair] = i < used ? row[i] : W{};
      }
    }
  }
}

// The same from a packed panel of fewer than kPanel columns, given at its first step; whole steps.
template <class W>
void widen_panel(const W* src, int columns, int64_t steps, W* dst) {
  constexpr int kPair = Layout<W>::kPair;
  for (int64_t s = 0; s < steps; ++s) {
    for (int j = 0; j < kPanel * kPair; ++j) {
      dst[s * kPanel * kPair + j] = j < columns * kPair ? src[s * columns * kPair + j] : W{};
    }
  }
}

}  // namespace skv::cpu::SKV_ISA
