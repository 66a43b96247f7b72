// delta_prefill's arithmetic: scores of a tile, softmax, sums of the values.  delta_prefill.cuh says which
// warp does what; kShare names it.
#pragma once

#include "attention_tile.cuh"

namespace skv {
namespace cuda {

// Up to 16 rows, up to 64, more; up to 16, each warp with keys of its own.
enum Share { kKeysShared, kRows16, kRows32, kAllRows };

// Element e of an accumulator is row g + 8 * (e / 2), column 2 * t + e % 2 of its 16 x 8 tile.
template <class KeyTile, class T, Share kShare>
struct AttentionRows {
  using Tile = KeyTile;
  static constexpr int kHeadDim = Tile::kHeadDim, kKeys = Tile::kKeys, kThreads = kAttentionThreads;
  static constexpr int kRowTiles = kShare == kRows32 ? 2 : 1;  // of 16 rows, per warp
  static constexpr int kColumns =
      kShare == kKeysShared ? kHeadDim / 32 : kHeadDim / 8;  // tiles of 8, per warp
  static constexpr bool kHoldsQuery =
      kShare == kKeysShared || Tile::query_bytes(kShare == kRows32 ? 128 : 64) == 0;

  uint32_t q[kHoldsQuery ? kHeadDim / 16 : 1][4];
  float o[kRowTiles][kColumns][4];
  float top[kRowTiles][2], sum[kRowTiles][2];  // of the row's scores; of its exponentials, this lane's part

  const int warp, lane, g, t;

  SKV_DEVICE explicit AttentionRows(int thread)
      : warp(thread / kWarpSize), lane(thread % kWarpSize), g(lane / 4), t(lane % 4) {}

  SKV_DEVICE static int kept_at() { return int(threadIdx.x); }
  SKV_DEVICE int first_row() const {
    return kShare == kKeysShared || kShare == kAllRows ? 0 : warp * 16 * kRowTiles;
  }
  SKV_DEVICE int row(int r, int h) const { return first_row() + r * 16 + h * 8 + g; }
  SKV_DEVICE int column(int c) const {
    return ((kShare == kKeysShared ? warp * kColumns : 0) + c) * 8 + t * 2;
  }

  SKV_DEVICE void clear() {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      top[r][0] = top[r][1] = -INFINITY;
      sum[r][0] = sum[r][1] = 0.f;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) o[r][c][0] = o[r][c][1] = o[r][c][2] = o[r][c][3] = 0.f;
    }
  }

  SKV_DEVICE uint32_t query_address(uint32_t sq) const {
    return sq + Tile::at(first_row() + lane % 16, lane / 16);
  }
  SKV_DEVICE static void query_step(uint32_t (&a)[4], uint32_t address, int r, int step) {
    prim::ldmatrix_x4(a, Tile::along(address, step * 2) + r * 16 * Tile::kPitch);
  }
  SKV_DEVICE void hold_query(uint32_t sq) {
    const uint32_t address = query_address(sq);
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) query_step(q[kHoldsQuery ? step : 0], address, 0, step);
  }

  using Scores = float[kRowTiles][4][4];  // of 32 keys: what softmax takes at a time

  // Scores of the 32 keys from `first` on.  sq: the query rows in shared memory, where they are not held.
  SKV_DEVICE void score(Scores& s, uint32_t sq, uint32_t sk, int first) const {
    const uint32_t query = query_address(sq), key = sk + Tile::at(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int n = 0; n < 4; ++n) s[r][n][0] = s[r][n][1] = s[r][n][2] = s[r][n][3] = 0.f;
    }
#pragma unroll(kHoldsQuery ? kHeadDim / 16 : 2)
    for (int step = 0; step < kHeadDim / 16; ++step) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if constexpr (kHoldsQuery) {
          memcpy(a[r], q[step], 16);
        } else {
          query_step(a[r], query, r, step);
        }
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint32_t b[4];
        prim::ldmatrix_x4(b, Tile::along(key, step * 2) + (first + n * 16) * Tile::kPitch);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          prim::mma_m16n8k16<T>(s[r][2 * n], a[r], b[0], b[1]);
          prim::mma_m16n8k16<T>(s[r][2 * n + 1], a[r], b[2], b[3]);
        }
      }
    }
  }

  // Scores of a quarter of the tile's keys a warp, for all warps to read after a barrier.
  SKV_DEVICE void give_scores(uint32_t sk, float* exchange) const {
    constexpr int kMine = kKeys / 8 / kAttentionWarps;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int n = warp * kMine + i;
      float mine[4] = {};
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; step += 2) {
        uint32_t b[4];
        prim::ldmatrix_x4(b, sk + Tile::at(n * 8 + lane % 8, step * 2 + lane / 8));
        prim::mma_m16n8k16<T>(mine, q[kHoldsQuery ? step : 0], b[0], b[1]);
        prim::mma_m16n8k16<T>(mine, q[kHoldsQuery ? step + 1 : 0], b[2], b[3]);
      }
      float* to = exchange + g * Tile::kScorePitch + n * 8 + t * 2;
      *reinterpret_cast<float2*>(to) = make_float2(mine[0], mine[1]);
      *reinterpret_cast<float2*>(to + 8 * Tile::kScorePitch) = make_float2(mine[2], mine[3]);
    }
  }
  SKV_DEVICE void take_scores(Scores& s, const float* exchange, int first) const {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float* from = exchange + (g + 8 * h) * Tile::kScorePitch + first + n * 8 + t * 2;
        const float2 pair = *reinterpret_cast<const float2*>(from);
        s[0][n][2 * h] = pair.x;
        s[0][n][2 * h + 1] = pair.y;
      }
    }
  }

  // Of the keys key0 .. key0 + 31, those that a row may not see get a score of -infinity.
  SKV_DEVICE void mask(Scores& s, const DeltaPrefillParams& p, const AttentionShared& shared, int group,
                       unsigned exists, int key0) const {
    const AttentionItem& item = shared.item;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int at = row(r, h);
        uint32_t see = exists & range_bits(shared.first[at], shared.last[at], key0);
        if (p.tree_mask) {
          see &= tree_bits(p, item.work, (item.row_begin + min(at, item.num_rows - 1)) / group, key0);
        }
        see >>= t * 2;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          if (!(see >> (n * 8) & 1)) s[r][n][2 * h] = -INFINITY;
          if (!(see >> (n * 8 + 1) & 1)) s[r][n][2 * h + 1] = -INFINITY;
        }
      }
    }
  }

  // Online softmax over 32 keys: s becomes exponentials (base 2 of s * scale2, which is positive); a row
  // lives in the four lanes of a quad.
  SKV_DEVICE void soften(Scores& s, float scale2) {
    float shrink[kRowTiles][2];
    bool grown = false;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float most = top[r][h];
#pragma unroll
        for (int n = 0; n < 4; ++n) most = fmaxf(most, fmaxf(s[r][n][2 * h], s[r][n][2 * h + 1]));
        most = fmaxf(most, __shfl_xor_sync(kFullMask, most, 1));
        most = fmaxf(most, __shfl_xor_sync(kFullMask, most, 2));
        const float base = most == -INFINITY ? 0.f : __fmul_rn(most, scale2);
        shrink[r][h] = prim::exp2_approx(__fadd_rn(__fmul_rn(top[r][h], scale2), -base));
        grown = grown || top[r][h] != most;
        top[r][h] = most;
        float even = 0.f, odd = 0.f;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float &a = s[r][n][2 * h], &b = s[r][n][2 * h + 1];
          a = prim::exp2_approx(__fmaf_rn(a, scale2, -base));
          b = prim::exp2_approx(__fmaf_rn(b, scale2, -base));
          even = __fadd_rn(even, a);
          odd = __fadd_rn(odd, b);
        }
        sum[r][h] = __fmaf_rn(sum[r][h], shrink[r][h], __fadd_rn(even, odd));
      }
    }
    if (!__any_sync(kFullMask, grown)) return;  // all factors are 1, or the rows have seen nothing
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        o[r][c][0] = __fmul_rn(o[r][c][0], shrink[r][0]);
        o[r][c][1] = __fmul_rn(o[r][c][1], shrink[r][0]);
        o[r][c][2] = __fmul_rn(o[r][c][2], shrink[r][1]);
        o[r][c][3] = __fmul_rn(o[r][c][3], shrink[r][1]);
      }
    }
  }

  // o += P V over the 32 keys from `first` on; the accumulators of two neighbouring tiles of scores have the
  // layout of one step's A.
  SKV_DEVICE void add_values(const Scores& s, uint32_t sv, int first) {
    uint32_t a[2][kRowTiles][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        a[i / 4][r][i % 4] = pack<T>(s[r][i / 2][i % 2 * 2], s[r][i / 2][i % 2 * 2 + 1]);
      }
    }
    if constexpr (kShare == kKeysShared) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        uint32_t b[4];
        prim::ldmatrix_x4_trans(b, sv + Tile::at(first + lane, warp * kColumns + c));
        prim::mma_m16n8k16<T>(o[0][c], a[0][0], b[0], b[1]);
        prim::mma_m16n8k16<T>(o[0][c], a[1][0], b[2], b[3]);
      }
    } else {
      const uint32_t value = sv + Tile::at(lane % 16, lane / 16);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int c = 0; c < kHeadDim / 16; ++c) {
          uint32_t b[4];
          prim::ldmatrix_x4_trans(b, Tile::along(value, c * 2) + (first + step * 16) * Tile::kPitch);
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) {
            prim::mma_m16n8k16<T>(o[r][2 * c], a[step][r], b[0], b[1]);
            prim::mma_m16n8k16<T>(o[r][2 * c + 1], a[step][r], b[2], b[3]);
          }
        }
      }
    }
  }

  // The row's sum of exponentials, the same bits in all four lanes of its quad.
  SKV_DEVICE float whole_sum(int r, int h) const {
    const float pair = __fadd_rn(sum[r][h], __shfl_xor_sync(kFullMask, sum[r][h], 1));
    return __fadd_rn(pair, __shfl_xor_sync(kFullMask, pair, 2));
  }
};

// How scores are scaled: softmax runs on score * scale2 with a positive scale2, so that a score's scale and
// the difference to the largest are one fused multiply-add; other scales and a cap are applied beforehand.
struct ScoreScale {
  float before, scale2;
  bool capped;

  SKV_DEVICE ScoreScale(const DeltaPrefillParams& p, float scale)
      : before(1.f), scale2(scale * kLog2e), capped(p.softcap > 0.f) {
    if (capped) {
      before = 2.f * kLog2e * scale / p.softcap;
      scale2 = p.softcap * kLog2e;
    } else if (!(scale > 0.f)) {
      before = scale2;
      scale2 = 1.f;
    }
  }
  SKV_DEVICE bool does_nothing() const { return before == 1.f && !capped; }
  SKV_DEVICE float of(float x) const {
    x = __fmul_rn(x, before);
    // tanh(y) = 1 - 2 / (exp(2 y) + 1), within a unit of 1's last place: what counts is the absolute error
    return capped ? __fadd_rn(1.f, -__fdividef(2.f, __fadd_rn(prim::exp2_approx(x), 1.f))) : x;
  }
  template <int kRowTiles>
  SKV_DEVICE void apply(float (&s)[kRowTiles][4][4]) const {
    if (does_nothing()) return;
#pragma unroll
    for (int i = 0; i < kRowTiles * 16; ++i) {
      float& x = s[i / 16][i / 4 % 4][i % 4];
      x = of(x);
    }
  }
  template <int kCount>
  SKV_DEVICE void apply(float (&s)[kCount]) const {
    if (does_nothing()) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) s[i] = of(s[i]);
  }
};

}  // namespace cuda
}  // namespace skv
