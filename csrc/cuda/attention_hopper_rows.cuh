// delta_prefill on sm_90a: the arithmetic of a consumer warpgroup, 64 rows against one tile of keys at a
// time.
#pragma once

#include "attention_hopper_tile.cuh"

namespace skv {
namespace cuda {

// Element e of an accumulator is row g + 8 * (e / 2 % 2) of the warp's 16, column e / 4 * 8 + 2 * t + e % 2.
template <class Cell, int kHeadDim, int kGroups>
struct HopperRows {
  using Tile = HopperTile<Cell, kHeadDim, kGroups>;
  using T = typename Tile::T;
  // Exponentials beside widened cells are f16, which has few bits for small ones: until the rows are settled
  // they are 2^kLift times as large, the largest 2^8 of 2^16, for a difference of huge scores is rounded.
  static constexpr int kLift = Tile::kWiden ? 8 : 0;
  static constexpr int kKeys = Tile::kKeys, kThreads = kGroups * kGroupThreads;
  static constexpr int kRowTiles = 1, kColumns = kHeadDim / 8;  // of 16 rows, of 8 columns

  float o[1][kColumns][4];
  float top[1][2], sum[1][2];       // of the row's scores; of its exponentials, this lane's part
  uint32_t weights[kKeys / 16][4];  // exponentials, the A operand of the product with the values
  int first[2], last[2];            // the keys that the rows may see, but for a tree's mask
  int open_first, open_last;        // what all rows of the warp may see
  int live;                         // halves of the warp's 16 rows that the item has rows in
  float unit[2];                    // beside widened cells: what the query rows were divided by

  const int group, warp, g, t;  // which warpgroup, which warp of it

  SKV_DEVICE explicit HopperRows(int thread)  // thread: of the consumers
      : group(__shfl_sync(kFullMask, thread / kGroupThreads, 0)),
        warp(thread / kWarpSize % 4),
        g(thread % kWarpSize / 4),
        t(thread % 4) {}

  SKV_DEVICE int row_begin() const { return group * 64 + warp * 16; }
  SKV_DEVICE int row(int, int h) const { return row_begin() + h * 8 + g; }
  SKV_DEVICE int column(int c) const { return c * 8 + t * 2; }
  SKV_DEVICE static int kept_at() { return int(threadIdx.x) - kGroupThreads; }

  SKV_DEVICE void clear() {
    top[0][0] = top[0][1] = -INFINITY;
    sum[0][0] = sum[0][1] = 0.f;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) o[0][c][0] = o[0][c][1] = o[0][c][2] = o[0][c][3] = 0.f;
  }

  // What the rows of a new item may see; rows past its last one see what that one sees.
  SKV_DEVICE void look_at(const DeltaPrefillParams& p, const AttentionItem& item, int heads) {
    const int committed = item.work.length - item.work.new_tokens - 1;
    live = Tile::kWiden ? 2 : min((item.num_rows - row_begin() + 7) / 8, 2);  // 0 and less: none
    open_first = 0;
    open_last = p.tree_mask ? committed : 0x7fffffff;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int2 limits = key_limits(p, item.work, token(item, heads, h));
      first[h] = limits.x;
      last[h] = limits.y;
      open_first = max(open_first, limits.x);
      open_last = min(open_last, limits.y);
    }
    open_first = __reduce_max_sync(kFullMask, open_first);
    open_last = __reduce_min_sync(kFullMask, open_last);
  }
  SKV_DEVICE int token(const AttentionItem& item, int heads, int h) const {
    return (item.row_begin + min(row(0, h), item.num_rows - 1)) / heads;
  }

  // ---- the two products; both are only begun ----

  using Scores = float[kKeys / 2];

  SKV_DEVICE static uint64_t operand(uint32_t address, uint32_t leading_bytes) {
    return prim::matrix_descriptor(address, leading_bytes, Tile::kAtomBytes, Tile::kSwizzle);
  }
  SKV_DEVICE static uint64_t along(uint64_t operand, int bytes) { return operand + uint64_t(bytes >> 4); }

  // s = Q K^T.  The group's query rows lie at sq, the keys at sk.
  SKV_DEVICE void begin_scores(Scores& s, uint32_t sq, uint32_t sk) const {
    // Opaque: descriptors of all steps would be kept from tile to tile, in registers that are not there.
    const uint64_t query = operand(uint32_t(prim::opaque<10>(int(sq))), 0), keys = operand(sk, 0);
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      constexpr int kSteps = Tile::kRowBytes / 32;  // of 16 columns, in a piece
      const int piece = step / kSteps, within = step % kSteps * 32;
      prim::wgmma_m64k16<T, kKeys>(s, along(query, piece * Tile::kQueryPieceBytes + within),
                                   along(keys, piece * Tile::kPieceBytes + within), step != 0);
    }
  }
  // o += weights * V.  The values lie at sv.
  SKV_DEVICE void begin_values(uint32_t sv) {
    const uint64_t values = operand(sv, Tile::kPieceBytes);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      prim::wgmma_m64k16<T, kHeadDim, true>(reinterpret_cast<float (&)[kHeadDim / 2]>(o), weights[step],
                                            along(values, step * 16 * Tile::kRowBytes), true);
    }
  }

  // ---- softmax ----

  // Of the keys from key0 on, those that a row may not see get a score of -infinity.
  SKV_DEVICE void mask(Scores& s, const DeltaPrefillParams& p, const AttentionItem& item, int heads,
                       const uint32_t* exists, int key0) const {
    bool open = key0 >= open_first && key0 + kKeys - 1 <= open_last;
#pragma unroll
    for (int word = 0; word < kKeys / 32; ++word) open = open && exists[word] == ~0u;
    if (open) return;
#pragma unroll
    for (int word = 0; word < kKeys / 32; ++word) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (h >= live) continue;
        const int key = key0 + word * 32;
        uint32_t see = exists[word] & range_bits(first[h], last[h], key);
        if (p.tree_mask) see &= tree_bits(p, item.work, token(item, heads, h), key);
        see >>= t * 2;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float* x = s + (word * 4 + n) * 4 + h * 2;
          if (!(see >> (n * 8) & 1)) x[0] = -INFINITY;
          if (!(see >> (n * 8 + 1) & 1)) x[1] = -INFINITY;
        }
      }
    }
  }

  // What precedes the softmax.  A row's unit, a power of two, goes where it costs least: into the factor that
  // the softmax applies, unless the scores are to be right before.
  SKV_DEVICE void scale_scores(Scores& s, const ScoreScale& scale) const {
    if constexpr (Tile::kWiden) {
      if (scale.does_nothing()) return;
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) s[i] = __fmul_rn(s[i], unit[i / 2 % 2]);
    }
    scale.apply(s);
  }
  SKV_DEVICE float in_units(const ScoreScale& scale, int h, float x) const {
    return Tile::kWiden && scale.does_nothing() ? __fmul_rn(x, unit[h]) : x;
  }

  // Online softmax: s becomes exponentials (base 2 of s * scale2, which is positive); a row lives in the four
  // lanes of a quad.  shrink: what the row's earlier values are to be multiplied by.  o is not touched.  Rows
  // that the item does not have stay scores: whatever becomes of them, no other row sees it.
  SKV_DEVICE bool soften(Scores& s, const ScoreScale& scale, float (&shrink)[2]) {
    bool grown = false;
    shrink[0] = shrink[1] = 1.f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (h >= live) break;
      const float scale2 = in_units(scale, h, scale.scale2);
      float most = top[0][h];
#pragma unroll
      for (int c = 0; c < kKeys / 8; ++c) most = fmaxf(most, fmaxf(s[c * 4 + h * 2], s[c * 4 + h * 2 + 1]));
      most = fmaxf(most, __shfl_xor_sync(kFullMask, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kFullMask, most, 2));
      const float base = most == -INFINITY ? 0.f : __fmul_rn(most, scale2);
      shrink[h] = prim::exp2_approx(__fadd_rn(__fmul_rn(top[0][h], scale2), -base));
      grown = grown || top[0][h] != most;
      top[0][h] = most;
      const float lifted = kLift == 0 ? -base : __fadd_rn(float(kLift), -base);
      float even = 0.f, odd = 0.f;
#pragma unroll
      for (int c = 0; c < kKeys / 8; ++c) {
        float &a = s[c * 4 + h * 2], &b = s[c * 4 + h * 2 + 1];
        a = prim::exp2_approx(__fmaf_rn(a, scale2, lifted));
        b = prim::exp2_approx(__fmaf_rn(b, scale2, lifted));
        even = __fadd_rn(even, a);
        odd = __fadd_rn(odd, b);
      }
      sum[0][h] = __fmaf_rn(sum[0][h], shrink[h], __fadd_rn(even, odd));
    }
    return __any_sync(kFullMask, grown);
  }

  // Exponentials become the next product's operand, once no product reads the last one's.
  SKV_DEVICE void weigh(const Scores& s, bool grown, const float (&shrink)[2]) {
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = s + step * 8 + i * 2;
        weights[step][i] = pack<T>(pair[0], pair[1]);
      }
    }
    if (!grown) return;  // all factors are 1, or the rows have seen nothing
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      o[0][c][0] = __fmul_rn(o[0][c][0], shrink[0]);
      o[0][c][1] = __fmul_rn(o[0][c][1], shrink[0]);
      o[0][c][2] = __fmul_rn(o[0][c][2], shrink[1]);
      o[0][c][3] = __fmul_rn(o[0][c][3], shrink[1]);
    }
  }

  // The rows of a part that is complete: tops as of queries without units, values and sums without the lift.
  // All of it exact.
  SKV_DEVICE void settle(const ScoreScale& scale) {
    if constexpr (Tile::kWiden) {
      constexpr float kDrop = 1.f / (1 << kLift);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        top[0][h] = in_units(scale, h, top[0][h]);
        sum[0][h] = __fmul_rn(sum[0][h], kDrop);
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[0][c][e] = __fmul_rn(o[0][c][e], kDrop);
      }
    }
  }

  // The row's sum of exponentials, the same bits in all four lanes of its quad.
  SKV_DEVICE float whole_sum(int, int h) const {
    const float pair = __fadd_rn(sum[0][h], __shfl_xor_sync(kFullMask, sum[0][h], 1));
    return __fadd_rn(pair, __shfl_xor_sync(kFullMask, pair, 2));
  }
};

}  // namespace cuda
}  // namespace skv
