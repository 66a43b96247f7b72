// The kernel of delta_prefill on sm_90a; delta_prefill.md says why it is as it is.
//
// A CTA takes items of the work list in turn.  Its first warpgroup feeds the others: one warp finds items,
// one issues TMA boxes, two fill in what TMA cannot bring and widen what it brings as fp8.  One or two
// consumer warpgroups have 64 rows of the item each and go through its tiles of keys side by side.  Keys and
// values come through rings of stages of their own; while a group softens the scores of a tile, its product
// of the tile before with the values is under way, and so are the products of the other group.
//
// Everything else is as in delta_prefill.cuh, the promise about a row's bits included.
#pragma once

#include "attention_hopper_load.cuh"
#include "attention_hopper_rows.cuh"

namespace skv {
namespace cuda {

// Calls f(Tag<Out>) with the type of the result: the cache's, beside an fp8 cache what the call says.
template <class Rows, class F>
SKV_DEVICE void by_out_type(const DeltaPrefillParams& p, F f) {
  if constexpr (!Rows::Tile::kWiden) {
    f(Tag<typename Rows::T>{});
  } else if (p.dtype == DType::kFloat16) {
    f(Tag<__half>{});
  } else {
    f(Tag<__nv_bfloat16>{});
  }
}

// What a consumer warpgroup works with.
template <class Rows>
struct Consumer {
  using Tile = typename Rows::Tile;

  const AttentionLaunch& launch;
  HopperShared& shared;
  const uint32_t sq, sk, sv;  // its query rows; the stages of keys and of values
  RingPlace<Tile::kStages> keys, values;
  bool in_turns;  // both groups have rows: they issue products in turns, so that one softens meanwhile

  SKV_DEVICE uint32_t key_stage() const { return sk + uint32_t(keys.slot * Tile::kTileBytes); }
  SKV_DEVICE uint32_t value_stage() const { return sv + uint32_t(values.slot * Tile::kTileBytes); }
  SKV_DEVICE void wait_keys() { wait_full(shared.full_k[keys.slot], keys.parity); }
  SKV_DEVICE void wait_values() { wait_full(shared.full_v[values.slot], values.parity); }
  SKV_DEVICE void release_keys() {
    arrive_warp(shared.empty_k[keys.slot]);
    keys.next();
  }
  SKV_DEVICE void release_values() {
    arrive_warp(shared.empty_v[values.slot]);
    values.next();
  }
  SKV_DEVICE void take_turn(int group) const {
    if (in_turns) prim::named_barrier_sync(kTurnBarrier + group, 2 * kGroupThreads);
  }
  SKV_DEVICE void give_turn(int group) const {
    if (in_turns) prim::named_barrier_arrive(kTurnBarrier + (group ^ 1), 2 * kGroupThreads);
  }
};

// Zeros for the group's query rows, once.  Behind an item's last row an earlier item's stay: whatever becomes
// of them, no other row sees it.
template <class Rows>
SKV_DEVICE void clear_query(unsigned char* to, int thread) {
  for (int i = thread; i < Rows::Tile::kQueryBytes / 16; i += kGroupThreads) {
    *reinterpret_cast<uint4*>(to + i * 16) = make_uint4(0, 0, 0, 0);
  }
}

// Which pieces of the group's query rows are a thread's: the same one of every kRows-th row.  Divisions are
// done before the grids ahead are waited for: opaque, and the branches of ScoreScale behind them, keep them
// there. From row to row it takes additions.
template <class Rows>
struct QueryPieces {
  static constexpr int kChunks = Rows::Tile::kHeadDim / 8, kRows = kGroupThreads / kChunks;

  int row, chunk;
  int token, head, step_tokens, step_heads;  // tokens of the sequence, heads of the KV head

  SKV_DEVICE QueryPieces(const AttentionItem& item, const Rows& rows, int group) {
    if constexpr (Rows::Tile::kWiden) return;  // load_query_in_units brings these
    const int thread = prim::opaque(int(threadIdx.x) % kGroupThreads);
    row = thread / kChunks;
    chunk = thread % kChunks;
    const int first = item.row_begin + rows.group * 64 + row;
    token = prim::opaque(first / group);
    head = prim::opaque(first % group);
    step_tokens = prim::opaque(kRows / group);
    step_heads = prim::opaque(kRows % group);
    if (row >= kRows) row = 64;  // no row's
  }
  SKV_DEVICE int64_t offset(const HeadsView& v, const AttentionItem& item, int group) const {
    return (item.work.q_begin + token) * v.token_stride +
           int64_t(item.kv_head * group + head) * v.head_stride + chunk * 8;
  }
  SKV_DEVICE void next(int group) {
    row += kRows;
    token += step_tokens;
    head += step_heads;
    const bool is_later = head >= group;  // the head of a later token
    token += is_later ? 1 : 0;
    head -= is_later ? group : 0;
  }
};

// The group's query rows to shared memory.
template <class Rows>
SKV_DEVICE void load_query(const AttentionLaunch& launch, const AttentionItem& item, const Rows& rows,
                           QueryPieces<Rows> at, unsigned char* to) {
  using Tile = typename Rows::Tile;
  using T = typename Rows::T;
  prim::named_barrier_sync(kGroupBarrier + rows.group, kGroupThreads);  // nobody reads the last item's
  const int here = min(item.num_rows - rows.group * 64, 64);
#pragma unroll 1  // these instructions are new to most CTAs
  for (; at.row < here; at.next(launch.group)) {
    const T* src = static_cast<const T*>(launch.p.query.data) + at.offset(launch.p.query, item, launch.group);
    copy_chunk<T>(to, Tile::at(at.row, at.chunk, Tile::kQueryPieceBytes), src, launch.query_aligned, true);
  }
  prim::cp_async_commit();
  prim::cp_async_wait<0>();
  prim::fence_proxy_async();
  prim::named_barrier_sync(kGroupBarrier + rows.group, kGroupThreads);
}

// Tiles `tile` to tile_end - 1, at least one, into the state of the rows.
template <class Rows>
SKV_DEVICE void attend_tiles(Consumer<Rows>& c, Rows& rows, const AttentionItem& item,
                             const ScoreScale& scale, int tile, int tile_end) {
  const AttentionLaunch& launch = c.launch;
  typename Rows::Scores s;
  float shrink[2];
  const auto soften = [&] {  // scores that are there, and their keys no longer needed
    rows.scale_scores(s, scale);
    rows.mask(s, launch.p, item, launch.group, c.shared.exists[c.keys.slot], tile * Rows::kKeys);
    c.release_keys();
    return rows.soften(s, scale, shrink);
  };
  c.wait_keys();
  c.take_turn(rows.group);
  prim::wgmma_fence();
  rows.begin_scores(s, c.sq, c.key_stage());
  prim::wgmma_commit();
  c.give_turn(rows.group);
  prim::wgmma_wait<0>();
  bool grown = soften();
  rows.weigh(s, grown, shrink);
  for (++tile; tile < tile_end; ++tile) {
    c.wait_keys();
    c.take_turn(rows.group);
    prim::wgmma_fence();
    rows.begin_scores(s, c.sq, c.key_stage());
    prim::wgmma_commit();
    c.wait_values();
    prim::wgmma_fence();
    rows.begin_values(c.value_stage());
    prim::wgmma_commit();
    c.give_turn(rows.group);
    prim::wgmma_wait<1>();
    grown = soften();
    prim::wgmma_wait<0>();
    c.release_values();
    rows.weigh(s, grown, shrink);
  }
  c.wait_values();
  prim::wgmma_fence();
  rows.begin_values(c.value_stage());
  prim::wgmma_commit();
  prim::wgmma_wait<0>();
  c.release_values();
}

// One item, all but the folding of parts that other CTAs have stored.  One warpgroup.
template <class Rows>
SKV_DEVICE void attend_item(Consumer<Rows>& c, Rows& rows, const AttentionItem& item, unsigned char* query) {
  const AttentionLaunch& launch = c.launch;
  const DeltaPrefillParams& p = launch.p;
  if (rows.group * 64 >= item.num_rows) {  // no rows for this group: the stages pass by
    for (int tile = item.tile_begin; tile < item.tile_end; ++tile) {
      c.wait_keys();
      c.release_keys();
      c.wait_values();
      c.release_values();
    }
    return;
  }
  c.in_turns = item.num_rows > 64;
  rows.look_at(p, item, launch.group);
  rows.clear();
  const QueryPieces<Rows> pieces(item, rows, launch.group);
  const ScoreScale scale(p, p.softmax_scale * scale_of(p.k_scale, item.b, item.kv_head));
  prim::wait_for_grids();  // what is above does not depend on them
  if constexpr (Rows::Tile::kWiden) {
    load_query_in_units(launch, item, c.shared, rows, query);
  } else {
    load_query(launch, item, rows, pieces, query);
  }
  int tile = item.tile_begin;
  int part = tile < item.tile_end ? (tile - item.first_tile) / item.part_tiles : item.part_begin;
  do {
    const int part_end = min(item.first_tile + (part + 1) * item.part_tiles, item.tile_end);
    if (tile < part_end) attend_tiles(c, rows, item, scale, tile, part_end);
    tile = max(tile, part_end);
    rows.settle(scale);
    if (item.splits > 1) {
      if (tile > item.tile_begin)
        store_part<typename Rows::T, Rows::Tile::kHeadDim>(launch, item, rows, part, scale.scale2);
    } else {
      fold_kept(launch, rows, part == item.part_begin, part + 1 >= item.part_end, scale.scale2);
    }
    if (++part < item.part_end && tile < item.tile_end) rows.clear();
  } while (tile < item.tile_end);
  if (item.splits > 1) return;
  by_out_type<Rows>(
      p, [&](auto out) { store_rows<typename decltype(out)::type>(launch, item, rows, launch.group); });
}

// The consumer warpgroups: all items, and the folding of those whose last part is theirs.
template <class Rows>
SKV_DEVICE void consume(const AttentionLaunch& launch, HopperShared& shared, unsigned char* smem) {
  using Tile = typename Rows::Tile;
  const int thread = int(threadIdx.x) - kGroupThreads;
  Rows rows(thread);
  unsigned char* const query = smem + Tile::kQueryAt + rows.group * Tile::kQueryBytes;
  Consumer<Rows> c{launch,
                   shared,
                   prim::smem_u32(query),
                   prim::smem_u32(smem),
                   prim::smem_u32(smem + Tile::kValuesAt),
                   {},
                   {},
                   Rows::kThreads > kGroupThreads};
  if constexpr (!Tile::kWiden) clear_query<Rows>(query, thread % kGroupThreads);
  // Group 0 has the first turn; the last one that group 1 gives is taken at the end.
  if (rows.group == 1) c.give_turn(1);
  for_each_item(shared, [&](const AttentionItem& item) {
    attend_item(c, rows, item, query);
    if (item.splits == 1) return;
    prim::named_barrier_sync(kConsumersBarrier, Rows::kThreads);
    if (thread == 0) {
      const auto last = uint32_t(item.splits - 1);
      shared.is_last = prim::atomic_add_acq_rel(launch.tickets + item.first_item, 1) == last;
    }
    prim::named_barrier_sync(kConsumersBarrier, Rows::kThreads);
    if (!shared.is_last) return;
    if (thread == 0) launch.tickets[item.first_item] = 0;  // for the next call
    by_out_type<Rows>(launch.p, [&](auto out) {
      using Out = typename decltype(out)::type;
      combine_parts<Out, Tile::kHeadDim, 8>(launch, item, launch.group, thread, Rows::kThreads);
    });
  });
  c.in_turns = Rows::kThreads > kGroupThreads;
  if (rows.group == 0) c.take_turn(0);
  prim::wait_for_grids();  // a CTA without items too: who waits for this grid has waited for those ahead
}

// kGroups: consumer warpgroups.
template <class Cell, int kHeadDim, int kGroups>
__global__ void __launch_bounds__((kGroups + 1) * kGroupThreads, 1)
    delta_prefill_hopper_kernel(const __grid_constant__ HopperLaunch launch) {
  using Rows = HopperRows<Cell, kHeadDim, kGroups>;
  using Tile = typename Rows::Tile;
  SKV_DYNAMIC_SMEM(smem);
  HopperShared& shared = *reinterpret_cast<HopperShared*>(smem + Tile::kSharedAt);
  const AttentionLaunch& a = launch.a;
  const int thread = int(threadIdx.x), warp = __shfl_sync(kFullMask, thread / kWarpSize, 0);
  // What finds the first item is asked for at once, before it is known to be wanted: until it is found,
  // memory has nothing else to do.
  const int64_t b = min(int64_t(thread % kWarpSize), a.p.batch - 1);
  const ScheduleHeader header(a.p.schedule);
  const ScheduleEntry entry(a.p.schedule, b);
  const SequenceLengths lengths(a.p.cu_seqlens_q, a.p.seqused_k, b);
  if (thread == 0) start_hopper_shared<kGroups, Tile::kStages>(shared, launch.raw_stages);
  if (thread == kWarpSize && launch.tma) {
    prim::prefetch_tensor_map(&launch.k_map);
    prim::prefetch_tensor_map(&launch.v_map);
  }
  if (!header.is_of(a)) return prim::wait_for_grids();
  __syncthreads();
  if (warp >= 4) {
    if constexpr (kGroups == 2) prim::setmaxnreg_inc<Tile::kConsumerRegisters>();
    consume<Rows>(a, shared, smem);
    return;
  }
  if constexpr (kGroups == 2) prim::setmaxnreg_dec<Tile::kProducerRegisters>();
  if (warp == 0) {
    const WorkShape shape = work_shape(a.group, a.p.window_left, a.p.num_splits, Tile::kKeys, a.tile_rows);
    find_items(a, shape, shared, thread % kWarpSize, header.items, entry, lengths);
  } else if (warp == 1) {
    load_by_tma<Tile>(launch, shared, smem, thread % kWarpSize, header.items);
  } else {
    fill_by_hand<Tile>(launch, shared, smem, thread - 2 * kWarpSize);
  }
}

// ---- host ----

template <class Cell, int kHeadDim, int kGroups>
void launch_hopper_kernel(const AttentionLaunch& a, bool tma, int ctas, cudaStream_t stream) {
  using Tile = HopperTile<Cell, kHeadDim, kGroups>;
  const int groups = a.tile_rows > 64 ? 2 : 1;  // that will have rows
  const HopperRings rings = hopper_rings(kHeadDim, groups, Tile::kWiden);
  const bool read_once = int64_t(a.p.max_seqlen_q) * a.group <= a.tile_rows;
  HopperLaunch launch{
      a, {}, {}, tma, read_once, Tile::kQueryAt + groups * Tile::kQueryBytes, rings.raw_stages};
  if (tma) {
    launch.k_map = cache_map<Tile>(a.p.k_cache, a.p.cache);
    launch.v_map = cache_map<Tile>(a.p.v_cache, a.p.cache);
  }
  prim::launch_overlapped(delta_prefill_hopper_kernel<Cell, kHeadDim, kGroups>, dim3(unsigned(ctas)),
                          (kGroups + 1) * kGroupThreads, size_t(rings.bytes), stream, launch);
}

// Of fp8 one kernel for both: up to 64 rows its second group looks on, and has no query rows in shared
// memory.
template <class Cell, int kHeadDim>
void launch_hopper(const AttentionLaunch& a, bool tma, int ctas, cudaStream_t stream) {
  if constexpr (sizeof(Cell) > 1) {
    if (a.tile_rows <= 64) return launch_hopper_kernel<Cell, kHeadDim, 1>(a, tma, ctas, stream);
  }
  launch_hopper_kernel<Cell, kHeadDim, 2>(a, tma, ctas, stream);
}

// Every head_dim of one type of cache, in a file each: delta_prefill_*_sm90.cu.
template <class Cell>
void launch_hopper_of(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t stream);

template <class Cell>
void launch_hopper_by_head_dim(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t stream) {
  switch (launch.p.cache.head_dim) {
    case 64:
      return launch_hopper<Cell, 64>(launch, tma, ctas, stream);
    case 96:
      return launch_hopper<Cell, 96>(launch, tma, ctas, stream);
    case 128:
      return launch_hopper<Cell, 128>(launch, tma, ctas, stream);
    case 192:
      return launch_hopper<Cell, 192>(launch, tma, ctas, stream);
    default:
      return launch_hopper<Cell, 256>(launch, tma, ctas, stream);
  }
}

}  // namespace cuda
}  // namespace skv
