// The kernel of delta_prefill for few rows of few sequences on sm_90, decoding above all; delta_prefill.md
// says why it is as it is.
//
// What counts is how soon it ends after its query rows are there.  A CTA has one item (more where num_splits
// asks for them), and as much of its keys and values as shared memory holds are asked for at once, before the
// grids ahead have ended.  Each warp goes through pieces of 32 keys of its own as they come, all rows at a
// time; nobody waits for another until all are through.  Then the warps' results are summed, and the CTA that
// comes last sums those of the CTAs.
//
// A rehearsal comes first, while the query is not there: a round over zeros (of a CTA's later items: over
// whatever lies there), a sum of the warps that nobody stores, and a sum of no parts.  It brings the
// instructions, which otherwise would come from behind all that the memory has been asked for.
//
// num_splits = -1 is not for this kernel: how a row is summed depends on the split.
#pragma once

#include "attention_few_rows.cuh"

namespace skv {
namespace cuda {

// Leaves the item of that number in shared memory: of the sequence whose entry has it.  Whole CTA.
SKV_DEVICE bool find_few_item(const AttentionLaunch& launch, const WorkShape& shape, int number,
                              const ScheduleEntry& entry, const SequenceLengths& lengths, FewShared& shared) {
  const int thread = int(threadIdx.x);
  __syncthreads();  // nobody reads the item before
  bool found = false;
  if (thread < int(launch.p.batch) && entry.has(number)) {  // one at most, for ranges do not overlap
    found = make_item(launch, shape, number, thread, entry, lengths, shared.item);
  }
  return __syncthreads_or(found);
}

// Sums of exponentials and of some columns' values, and the largest score that they are below: of any number
// of parts, in their order.
template <int kColumns>
struct FewSum {
  float top = -INFINITY, sum = 0.f, values[kColumns] = {};

  SKV_DEVICE static float base_of(float top) { return top == -INFINITY ? 0.f : top; }
  SKV_DEVICE void raise(float most) {
    const float shrink = prim::exp2_approx(__fadd_rn(top, -base_of(most)));
    sum = __fmul_rn(sum, shrink);
#pragma unroll
    for (float& value : values) value = __fmul_rn(value, shrink);
    top = most;
  }
  // Of a part whose largest score is not above `top`.
  SKV_DEVICE void add(const float2& stats, const Vector<float, kColumns>& part) {
    const float weight = prim::exp2_approx(__fadd_rn(stats.x, -base_of(top)));
    sum = __fmaf_rn(stats.y, weight, sum);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) values[c] = __fmaf_rn(part.at[c], weight, values[c]);
  }
};

// Where results go.  By value, for a function that is not inlined would read what it is given by reference
// from memory, one field after another, when everyone waits for it.
struct FewResults {
  HeadsView out;
  float* lse;
  int64_t lse_head_stride;
  const float* sinks;
  float v_scale;
  int group;
  bool aligned;

  SKV_DEVICE FewResults(const AttentionLaunch& launch, const AttentionItem& item)
      : out(launch.p.out),
        lse(launch.p.lse),
        lse_head_stride(launch.p.lse_head_stride),
        sinks(launch.p.sinks),
        v_scale(scale_of(launch.p.v_scale, item.b, item.kv_head)),
        group(launch.group),
        aligned(launch.out_aligned) {}

  // Some columns of a row.
  template <class T, int kColumns>
  SKV_DEVICE void store(const AttentionItem& item, int row, int column, const FewSum<kColumns>& total,
                        bool is_wanted) const {
    const int of_item = item.row_begin + row, head = item.kv_head * group + of_item % group;
    const RowResult result(sinks, head, v_scale, total.top, total.sum);
    T* to = static_cast<T*>(out.data) + query_offset(out, item, group, row) + column;
    if (!is_wanted) return;
#pragma unroll
    for (int c = 0; c < kColumns; c += 2) {
      store_pair(to + c, aligned, total.values[c] * result.factor, total.values[c + 1] * result.factor);
    }
    if (column == 0 && lse) {
      lse[head * lse_head_stride + item.work.q_begin + of_item / group] = result.lse;
    }
  }
};

// The sums of the CTA's warps: the rows' result, or of rows that are split their part.  Of the first num_rows
// rows; 0 goes once through all of it and stores nothing.
template <class T, int kHeadDim>
SKV_DEVICE void sum_warps(const AttentionLaunch& launch, FewShared& shared,
                          const FewRowsOfWarp<T, kHeadDim>& rows, const ScoreScale& scale, float* exchange,
                          int num_rows) {
  constexpr int kRows = FewTile<T, kHeadDim>::kExchangeRows, kPitch = FewTile<T, kHeadDim>::kExchangePitch;
  const AttentionItem& item = shared.item;
  const FewResults results(launch, item);
  const int thread = int(threadIdx.x), part = (item.tile_begin - item.first_tile) / item.part_tiles;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = rows.whole_sum(0, h);
    if (rows.t == 0) {
      shared.stats[rows.warp][h * 8 + rows.g] = make_float2(scaled_top(rows, 0, h, scale.scale2), sum);
    }
  }
#pragma unroll 1
  for (int first = 0; first < max(num_rows, 1); first += kRows) {
    __syncthreads();  // nobody reads the zeros any more, or the rows before
    if (rows.g / kRows * kRows == first % 8) {
      float* to = exchange + (rows.warp * kRows + rows.g % kRows) * kPitch;
#pragma unroll
      for (int c = 0; c < kHeadDim / 8; ++c) {
        const float (&o)[4] = rows.o[0][c];
        *reinterpret_cast<float2*>(to + rows.column(c)) =
            first < 8 ? make_float2(o[0], o[1]) : make_float2(o[2], o[3]);
      }
    }
    __syncthreads();
    for (int i = thread; i < kRows * (kHeadDim / 2); i += kFewThreads) {
      const int within = i / (kHeadDim / 2), row = first + within, column = i % (kHeadDim / 2) * 2;
      FewSum<2> total;
#pragma unroll
      for (int w = 0; w < kFewWarps; ++w) total.top = fmaxf(total.top, shared.stats[w][row].x);
#pragma unroll
      for (int w = 0; w < kFewWarps; ++w) {
        total.add(shared.stats[w][row],
                  load_vector<float, 2>(exchange + (w * kRows + within) * kPitch + column));
      }
      if (item.splits > 1 && item.tile_begin >= item.tile_end) break;  // no keys, no part
      if (item.splits == 1) {
        results.template store<T>(item, row, column, total, row < num_rows);
      } else if (row < num_rows) {
        const int64_t at = item.part_row + int64_t(part) * item.work.part_rows + row;
        *reinterpret_cast<float2*>(launch.parts + at * kHeadDim + column) =
            make_float2(total.values[0], total.values[1]);
        if (column == 0) launch.part_stats[at] = make_float2(total.top, total.sum);
      }
    }
  }
}

// Sums the parts, up to part_end, of the item's rows: four columns a thread, the first of them number
// `first`, below `end`.  kAtOnce parts are on their way together, and as soon as may be, which is why their
// places are arguments.  Never inlined: there is one copy of the instructions, and it can be brought by a
// call that stores nothing.
template <class T, int kHeadDim>
SKV_DEVICE_CALL void sum_parts(const FewResults results, const AttentionItem& item, const float2* all_stats,
                               const float* all_values, int first, int end, int part_end, bool store) {
  constexpr int kColumns = 4, kAtOnce = 8;
#pragma unroll 1
  for (int i = first; i < end; i += kFewThreads) {
    const int row = i / (kHeadDim / kColumns), column = i % (kHeadDim / kColumns) * kColumns;
    FewSum<kColumns> total;
    int part = item.part_begin;
    do {
      const int64_t at = item.part_row + int64_t(part) * item.work.part_rows + row;
      const float2* const of_stats = all_stats + at;
      const float* const of_values = all_values + at * kHeadDim + column;
      float2 stats[kAtOnce];
      Vector<float, kColumns> values[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        stats[j] = make_float2(-INFINITY, 0.f);
        values[j] = {};
        if (part + j >= part_end) continue;  // there is no such part
        const int rows = j * item.work.part_rows;
        stats[j] = of_stats[rows];
        values[j] = load_vector<float, kColumns>(of_values + rows * kHeadDim);
      }
      float most = total.top;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) most = fmaxf(most, stats[j].x);
      total.raise(most);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) total.add(stats[j], values[j]);
      part += kAtOnce;
    } while (part < part_end);
    results.template store<T>(item, row, column, total, store);
  }
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kFewThreads, 1)
    delta_prefill_few_rows_kernel(const __grid_constant__ HopperLaunch launch) {
  using Tile = FewTile<T, kHeadDim>;
  SKV_DYNAMIC_SMEM(smem);
  FewShared& shared = *reinterpret_cast<FewShared*>(smem + Tile::kSharedAt);
  const AttentionLaunch& a = launch.a;
  const int thread = int(threadIdx.x), warp = __shfl_sync(kFullMask, thread / kWarpSize, 0);
  // A thread looks after a sequence.  What it has to know is asked for at once, before it is known to be
  // wanted: until the item is found, nothing else can be.
  const int b = thread < int(a.p.batch) ? thread : 0;
  const ScheduleEntry entry(a.p.schedule, b);
  const SequenceLengths lengths(a.p.cu_seqlens_q, a.p.seqused_k, b);
  const int listed = a.p.schedule[kFieldItems], num_items = is_schedule_of(a) ? listed : 0;
  if (thread == 0) {
    prim::prefetch_tensor_map(&launch.k_map);
    prim::prefetch_tensor_map(&launch.v_map);
    for (int i = 0; i < Tile::kSlots; ++i) prim::mbar_init(prim::smem_u32(&shared.full[i]), 2);
    prim::mbar_init_fence();
  }
  for (int i = thread; i < Tile::kSlotBytes / 16; i += kFewThreads) {
    *reinterpret_cast<uint4*>(smem + Tile::kZerosAt + i * 16) = make_uint4(0, 0, 0, 0);
  }
  const WorkShape shape = work_shape(a.group, a.p.window_left, a.p.num_splits, kFewKeys, a.tile_rows);
  FewPieces<Tile> pieces{launch, shared, prim::smem_u32(smem), thread % kWarpSize};
  FewRowsOfWarp<T, kHeadDim> rows(thread);
  for (int number = int(blockIdx.x); number < num_items; number += int(gridDim.x)) {
    if (!find_few_item(a, shape, number, entry, lengths, shared)) continue;
    const AttentionItem& item = shared.item;
    pieces.count = max(item.tile_end - item.tile_begin, 0);
    pieces.last_item = number + int(gridDim.x) >= num_items;
    const int second = warp + kFewWarps, blocks[2] = {pieces.block_of(warp), pieces.block_of(second)};
    static_assert(Tile::kSlots == 2 * kFewWarps, "two for each warp");
    int next = warp,
        block = blocks[0];  // the piece to be asked for next: a new one waits for the grids ahead
    if (!pieces.has_new_keys(warp)) {
      pieces.ask(warp, blocks[0]);
      next = second;
      block = blocks[1];
      if (!pieces.has_new_keys(second)) {
        pieces.ask(second, blocks[1]);
        next = warp + Tile::kSlots;
        block = pieces.block_of(next);
      }
    }
    rows.look_at(a.p, item, a.group);
    const ScoreScale scale(a.p, a.p.softmax_scale * scale_of(a.p.k_scale, item.b, item.kv_head));
    float* const exchange = reinterpret_cast<float*>(smem + Tile::kZerosAt);

    // The rehearsal, then the pieces: the same instructions, so neither loop may be unrolled.
#pragma unroll 1
    for (int piece = warp - kFewWarps, end = 0;; end = pieces.count) {
      const bool is_rehearsal = piece < 0;
#pragma unroll 1
      for (; piece < end; piece += kFewWarps) {
        const bool zeros = piece < 0;
        uint32_t keys = pieces.ring + Tile::kZerosAt, exists = kFullMask;
        if (!zeros) {
          pieces.wait(piece);
          keys = pieces.address(piece);
          exists = shared.exists[pieces.slot(piece)];
          pieces.clear_edge(piece, smem + (keys - pieces.ring) + Tile::kTileBytes);
        }
        rows.attend(a.p, item, a.group, scale, keys, exists, zeros ? 0 : pieces.first_key(piece));
        __syncwarp();
        if (!zeros) {
          pieces.ask(next, block);
          next += kFewWarps;
          block = pieces.block_of(next);
        }
      }
      sum_warps<T, kHeadDim>(a, shared, rows, scale, exchange, is_rehearsal ? 0 : item.num_rows);
      if (!is_rehearsal) break;
      if (warp == kFewWarps - 1) {
        sum_parts<T, kHeadDim>(FewResults(a, item), item, a.part_stats, a.parts, thread % kWarpSize,
                               kWarpSize, item.part_begin, false);
      }
      prim::wait_for_grids();  // what is above does not depend on them
      rows.load_query(a.query_aligned, item.num_rows);
      rows.clear();
      if (next < warp + Tile::kSlots) {  // a warp has one piece with new keys at most, its last one
        static_assert(kFewRows <= kFewKeys * (kFewWarps - 1), "more new keys lie in pieces of several warps");
        pieces.ask(next, block);
        next = pieces.count;
      }
      __syncthreads();  // nobody reads the rehearsal's sums any more
    }
    pieces.passed += uint32_t(pieces.count);
    if (item.splits == 1) continue;
    __syncthreads();
    if (thread == 0) {
      shared.is_last = prim::atomic_add_acq_rel(a.tickets + item.first_item, 1) == uint32_t(item.splits - 1);
    }
    __syncthreads();
    if (!shared.is_last) continue;
    if (thread == 0) a.tickets[item.first_item] = 0;  // for the next call
    sum_parts<T, kHeadDim>(FewResults(a, item), item, a.part_stats, a.parts, thread,
                           item.num_rows * (kHeadDim / 4), item.part_end, true);
  }
  prim::wait_for_grids();  // a CTA without items too: who waits for this grid has waited for those ahead
}

// ---- host ----

template <class T, int kHeadDim>
void launch_few_rows(const AttentionLaunch& a, int ctas, cudaStream_t stream) {
  using Tile = FewTile<T, kHeadDim>;
  HopperLaunch launch{a, {}, {}, true, true, 0, 0};
  launch.k_map = cache_map<Tile>(a.p.k_cache, a.p.cache);
  launch.v_map = cache_map<Tile>(a.p.v_cache, a.p.cache);
  prim::launch_overlapped(delta_prefill_few_rows_kernel<T, kHeadDim>, dim3(unsigned(ctas)), kFewThreads,
                          size_t(few_bytes(kHeadDim)), stream, launch);
}

// Every head_dim that it takes, of one type: delta_prefill_few_rows_sm90.cu.
template <class T>
void launch_few_rows_of(const AttentionLaunch& launch, int ctas, cudaStream_t stream);

template <class T>
void launch_few_rows_by_head_dim(const AttentionLaunch& launch, int ctas, cudaStream_t stream) {
  switch (launch.p.cache.head_dim) {
    case 64:
      return launch_few_rows<T, 64>(launch, ctas, stream);
    case 96:
      return launch_few_rows<T, 96>(launch, ctas, stream);
    default:
      return launch_few_rows<T, 128>(launch, ctas, stream);
  }
}

}  // namespace cuda
}  // namespace skv
