// delta_prefill's partial results and what becomes of them: a row's part is its largest score, the sum of its
// exponentials and the sum of its values over some of its keys.  Parts are always folded from the first keys
// to the last, (((0 + 1) + 2) + ...), by the same operations, whoever does it.
#pragma once

#include "attention_rows.cuh"

namespace skv {
namespace cuda {

// How part b is folded into a; a part whose sum is 0 has seen nothing and leaves the other as it is.  a's top
// is then -infinity: of many folds the tops wait for no sum, nor for the exponentials that it is made of.
struct Fold {
  float top, sum, weight_a, weight_b;
  bool only_a, only_b;

  SKV_DEVICE Fold(float top_a, float sum_a, float top_b, float sum_b) {
    only_a = sum_b == 0.f;
    only_b = !only_a && sum_a == 0.f;
    top = fmaxf(top_a, top_b);
    weight_a = prim::exp2_approx(__fadd_rn(top_a, -top));
    weight_b = prim::exp2_approx(__fadd_rn(top_b, -top));
    sum = of(sum_a, sum_b);
    if (only_a) top = top_a;
  }
  SKV_DEVICE float of(float a, float b) const {
    const float both = __fmaf_rn(b, weight_b, __fmul_rn(a, weight_a));
    return only_a ? a : only_b ? b : both;
  }
};

// What turns a row's summed values into its result, and the row's log-sum-exp.
struct RowResult {
  float factor, lse;

  SKV_DEVICE RowResult(const float* sinks, int head, float v_scale, float top, float sum) {
    float lse2 = sum == 0.f ? -INFINITY : __fadd_rn(top, log2f(sum));
    factor = sum == 0.f ? 0.f : __fdiv_rn(v_scale, sum);
    if (sinks) {  // takes its share of the probability
      const float sink2 = __fmul_rn(sinks[head], kLog2e), most = fmaxf(sink2, lse2);
      if (most > -INFINITY) {
        const float all =
            __fadd_rn(prim::exp2_approx(__fadd_rn(sink2, -most)), prim::exp2_approx(__fadd_rn(lse2, -most)));
        const float with = __fadd_rn(most, log2f(all));
        factor = __fmul_rn(factor, prim::exp2_approx(__fadd_rn(lse2, -with)));
        lse2 = with;
      }
    }
    lse = __fmul_rn(lse2, kLn2);
  }
};

// Two neighbouring elements of the result.
template <class T>
SKV_DEVICE void store_pair(T* to, bool aligned4, float a, float b) {
  if (aligned4) {
    *reinterpret_cast<uint32_t*>(to) = pack<T>(a, b);
  } else {
    to[0] = from_float<T>(a);
    to[1] = from_float<T>(b);
  }
}

template <class Rows>
SKV_DEVICE float scaled_top(const Rows& rows, int r, int h, float scale2) {
  return rows.top[r][h] == -INFINITY ? -INFINITY : __fmul_rn(rows.top[r][h], scale2);
}

// Part `part` of the item's rows, to be folded by whoever is last.
template <class T, int kHeadDim, class Rows>
SKV_DEVICE void store_part(const AttentionLaunch& launch, const AttentionItem& item, const Rows& rows,
                           int part, float scale2) {
#pragma unroll
  for (int r = 0; r < Rows::kRowTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = rows.whole_sum(r, h);
      const int row = rows.row(r, h);
      if (row >= item.num_rows) continue;
      const int64_t at = item.part_row + int64_t(part) * item.work.part_rows + row;
#pragma unroll
      for (int c = 0; c < Rows::kColumns; ++c) {
        *reinterpret_cast<float2*>(launch.parts + at * kHeadDim + rows.column(c)) =
            make_float2(rows.o[r][c][2 * h], rows.o[r][c][2 * h + 1]);
      }
      if (rows.column(0) == 0) launch.part_stats[at] = make_float2(scaled_top(rows, r, h, scale2), sum);
    }
  }
}

// Folds the rows' newest part into what this thread keeps of the earlier ones (none, if first): in memory of
// its own, or, if last, in its registers, where top is then scaled and sum whole.
template <class Rows>
SKV_DEVICE void fold_kept(const AttentionLaunch& launch, Rows& rows, bool first, bool last, float scale2) {
  constexpr int kCells = Rows::kRowTiles * Rows::kColumns;
  constexpr int kThreads = Rows::kThreads;
  float4* values = launch.kept + int64_t(blockIdx.x) * launch.kept_stride + Rows::kept_at();
  float4* stats = values + kCells * kThreads;
#pragma unroll
  for (int r = 0; r < Rows::kRowTiles; ++r) {
    float top[2], sum[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[h] = scaled_top(rows, r, h, scale2);
      sum[h] = rows.whole_sum(r, h);
    }
    if (!first) {
      const float4 kept = stats[r * kThreads];
      const Fold f[2] = {{kept.x, kept.y, top[0], sum[0]}, {kept.z, kept.w, top[1], sum[1]}};
#pragma unroll
      for (int c = 0; c < Rows::kColumns; ++c) {
        const float4 v = values[(r * Rows::kColumns + c) * kThreads];
        float (&o)[4] = rows.o[r][c];
        o[0] = f[0].of(v.x, o[0]);
        o[1] = f[0].of(v.y, o[1]);
        o[2] = f[1].of(v.z, o[2]);
        o[3] = f[1].of(v.w, o[3]);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        top[h] = f[h].top;
        sum[h] = f[h].sum;
      }
    }
    if (last) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        rows.top[r][h] = top[h];
        rows.sum[r][h] = sum[h];
      }
      continue;
    }
    stats[r * kThreads] = make_float4(top[0], sum[0], top[1], sum[1]);
#pragma unroll
    for (int c = 0; c < Rows::kColumns; ++c) {
      const float (&o)[4] = rows.o[r][c];
      values[(r * Rows::kColumns + c) * kThreads] = make_float4(o[0], o[1], o[2], o[3]);
    }
  }
}

// The result of rows whose parts are all in registers (after fold_kept).
template <class T, class Rows>
SKV_DEVICE void store_rows(const AttentionLaunch& launch, const AttentionItem& item, const Rows& rows,
                           int group) {
  const DeltaPrefillParams& p = launch.p;
  const float v_scale = scale_of(p.v_scale, item.b, item.kv_head);
#pragma unroll
  for (int r = 0; r < Rows::kRowTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = rows.row(r, h);
      if (row >= item.num_rows) continue;
      const int of_item = item.row_begin + row, head = item.kv_head * group + of_item % group;
      const RowResult result(p.sinks, head, v_scale, rows.top[r][h], rows.sum[r][h]);
      T* out = static_cast<T*>(p.out.data) + query_offset(p.out, item, group, row);
#pragma unroll
      for (int c = 0; c < Rows::kColumns; ++c) {
        store_pair(out + rows.column(c), launch.out_aligned, rows.o[r][c][2 * h] * result.factor,
                   rows.o[r][c][2 * h + 1] * result.factor);
      }
      if (rows.column(0) == 0 && p.lse) {
        p.lse[head * p.lse_head_stride + item.work.q_begin + of_item / group] = result.lse;
      }
    }
  }
}

// Folds the stored parts of the item's rows, four columns a thread and step.  One CTA does it, and every part
// is a trip to the L2 cache: kAtOnce of them are under way together, which they are only without a branch
// between two folds (behind one for parts that are not there each load waited for the fold before it).  Not
// more of them, for most calls run this once a CTA, and then its instructions come from as far.
template <class T, int kHeadDim, int kAtOnce>
SKV_DEVICE void combine_parts(const AttentionLaunch& launch, const AttentionItem& item, int group, int thread,
                              int threads) {
  constexpr int kColumns = 4;
  struct Part {
    float2 stats;
    uint4 values;
  };
  const DeltaPrefillParams& p = launch.p;
  const float v_scale = scale_of(p.v_scale, item.b, item.kv_head);
#pragma unroll 1
  for (int i = prim::opaque(thread); i < item.num_rows * (kHeadDim / kColumns); i += threads) {
    const int row = i / (kHeadDim / kColumns), column = i % (kHeadDim / kColumns) * kColumns;
    float top = -INFINITY, sum = 0.f, o[kColumns] = {};
#pragma unroll 1
    for (int first = item.part_begin; first < item.part_end; first += kAtOnce) {
      Part part[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int64_t number = min(first + j, item.part_end - 1);
        const int64_t at = item.part_row + number * item.work.part_rows + row;
        part[j].stats = launch.part_stats[at];
        part[j].values =
            prim::load_streaming(reinterpret_cast<const uint4*>(launch.parts + at * kHeadDim + column));
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const bool is_there = first + j < item.part_end;  // otherwise it has seen nothing
        const Fold f(top, sum, part[j].stats.x, is_there ? part[j].stats.y : 0.f);
        const uint4& four = part[j].values;
        o[0] = f.of(o[0], __uint_as_float(four.x));
        o[1] = f.of(o[1], __uint_as_float(four.y));
        o[2] = f.of(o[2], __uint_as_float(four.z));
        o[3] = f.of(o[3], __uint_as_float(four.w));
        top = f.top;
        sum = f.sum;
      }
    }
    const int of_item = item.row_begin + row, head = item.kv_head * group + of_item % group;
    const RowResult result(p.sinks, head, v_scale, top, sum);
    T* out = static_cast<T*>(p.out.data) + query_offset(p.out, item, group, row) + column;
#pragma unroll
    for (int c = 0; c < kColumns; c += 2) {
      store_pair(out + c, launch.out_aligned, o[c] * result.factor, o[c + 1] * result.factor);
    }
    if (column == 0 && p.lse) {
      p.lse[head * p.lse_head_stride + item.work.q_begin + of_item / group] = result.lse;
    }
  }
}

}  // namespace cuda
}  // namespace skv
