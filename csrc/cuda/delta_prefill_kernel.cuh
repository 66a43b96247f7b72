// The kernel of delta_prefill; see delta_prefill.cuh for who does what.
#pragma once

#include "delta_prefill.cuh"

namespace skv {
namespace cuda {

// One row of the result: two neighbouring elements, or none.
template <class T>
SKV_DEVICE void store_pair(T* to, bool aligned4, float a, float b) {
  if (aligned4) {
    *reinterpret_cast<uint32_t*>(to) = pack<T>(a, b);
  } else {
    to[0] = from_float<T>(a);
    to[1] = from_float<T>(b);
  }
}

// With a sink, which takes its share of the probability: the factor of out; lse (base 2) is updated.
SKV_DEVICE float apply_sink(const DeltaPrefillParams& p, int head, float& lse2) {
  if (p.sinks == nullptr) return 1.f;
  const float sink2 = p.sinks[head] * kLog2e, top = fmaxf(sink2, lse2);
  if (top == -INFINITY) return 1.f;
  const float with = top + log2f(exp2f(sink2 - top) + exp2f(lse2 - top));
  const float factor = exp2f(lse2 - with);
  lse2 = with;
  return factor;
}

// The parts of a row tile, in the order of the splits.  Whole CTA.
template <class T, int kHeadDim>
SKV_DEVICE void combine_parts(const AttentionLaunch& launch, const AttentionItem& item, int group) {
  const DeltaPrefillParams& p = launch.p;
  const float* lse = launch.part_lse + item.first_slot * kTileRows;
  const float* parts = launch.parts + item.first_slot * kTileRows * kHeadDim;
  for (int i = int(threadIdx.x); i < item.num_rows * (kHeadDim / 2); i += kAttentionThreads) {
    const int row = i / (kHeadDim / 2), at = i % (kHeadDim / 2) * 2;
    float top = -INFINITY;
    for (int s = 0; s < item.splits; ++s) top = fmaxf(top, lse[s * kTileRows + row]);
    float sum = 0.f, a = 0.f, b = 0.f;
    for (int s = 0; s < item.splits && top > -INFINITY; ++s) {
      const float weight = exp2f(lse[s * kTileRows + row] - top);
      const float* part = parts + (int64_t(s) * kTileRows + row) * kHeadDim + at;
      sum += weight;
      a += weight * part[0];
      b += weight * part[1];
    }
    const int r = item.row_begin + row, head = item.kv_head * group + r % group;
    float lse2 = sum > 0.f ? top + log2f(sum) : -INFINITY;
    const float factor = apply_sink(p, head, lse2) * (sum > 0.f ? 1.f / sum : 0.f);
    store_pair(static_cast<T*>(p.out.data) + query_offset(p.out, item, group, row) + at, launch.out_aligned,
               a * factor, b * factor);
    if (at == 0 && p.lse) p.lse[head * p.lse_head_stride + item.work.q_begin + r / group] = lse2 * kLn2;
  }
}

template <class T, class Cell, int kHeadDim>
__global__ void __launch_bounds__(kAttentionThreads, kHeadDim > 128 ? 1 : 2)
    delta_prefill_kernel(const __grid_constant__ AttentionLaunch launch) {
  using Tile = AttentionTile<T, Cell, kHeadDim>;
  constexpr int kKeys = Tile::kKeys;
  const DeltaPrefillParams& p = launch.p;
  SKV_DYNAMIC_SMEM(smem);
  SKV_SHARED(exists, unsigned[2][2]);  // per stage: keys of the tile that are there
  SKV_SHARED(is_last, bool);
  SKV_SHARED(item, AttentionItem);
  unsigned char* const stages = smem + Tile::kQueryBytes;
  unsigned char* const widened = stages + 2 * Tile::kStageBytes;
  const uint32_t sq = prim::smem_u32(smem);
  const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize, g = lane / 4,
            t = lane % 4;
  const int group = p.num_heads / p.cache.num_kv_heads;
  const int num_items = p.schedule[kFieldItems];

  for (int number = int(blockIdx.x); number < num_items; number += int(gridDim.x)) {
    if (!find_item(launch, number, kKeys, item)) continue;

    // Query rows and the first tile.
    for (int i = int(threadIdx.x); i < kTileRows * (kHeadDim / 8); i += kAttentionThreads) {
      const int row = i / (kHeadDim / 8), chunk = i % (kHeadDim / 8);
      const bool there = row < item.num_rows;
      const T* src =
          static_cast<const T*>(p.query.data) + query_offset(p.query, item, group, there ? row : 0);
      copy_chunk<T>(smem, Tile::at(row, chunk), src + chunk * 8, launch.query_aligned, there);
    }
    if (item.tile_begin < item.tile_end) {
      load_tile<Tile, Cell, kHeadDim>(launch, item, stages, exists[0], item.tile_begin);
    }
    prim::cp_async_commit();

    // The two rows of this lane, and the keys that every row of the warp may see without a mask.
    RowLimits limits[2];
    int open_first = 0, open_last = 0x7fffffff;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp * 16 + g + 8 * h;
      limits[h] = row_limits(p, item.work, (item.row_begin + min(row, item.num_rows - 1)) / group);
      open_first = max(open_first, limits[h].first);
      open_last =
          min(open_last, p.tree_mask ? min(limits[h].last, item.work.length - item.work.new_tokens - 1)
                                     : limits[h].last);
    }
    open_first = __reduce_max_sync(kFullMask, open_first);
    open_last = __reduce_min_sync(kFullMask, open_last);
    const bool warp_has_rows = warp * 16 < item.num_rows;

    const float k_scale = scale_of(p.k_scale, item.b, item.kv_head);
    const float scale = p.softmax_scale * k_scale;
    float o[kHeadDim / 8][4] = {};
    float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0.f, 0.f};

    for (int tile = item.tile_begin; tile < item.tile_end; ++tile) {
      const int buffer = (tile - item.tile_begin) & 1;
      if (tile + 1 < item.tile_end) {
        load_tile<Tile, Cell, kHeadDim>(launch, item, stages + (buffer ^ 1) * Tile::kStageBytes,
                                        exists[buffer ^ 1], tile + 1);
      }
      prim::cp_async_commit();
      prim::cp_async_wait<1>();
      __syncthreads();
      const unsigned char* kv = stages + buffer * Tile::kStageBytes;
      if (Tile::kWiden) {
        widen_tile<Tile, T, kHeadDim>(kv, widened);
        __syncthreads();
        kv = widened;
      }
      if (warp_has_rows) {
        // S = Q K^T
        const uint32_t sk = prim::smem_u32(kv), sv = sk + Tile::kTileBytes;
        float s[kKeys / 8][4] = {};
#pragma unroll(kHeadDim == 256 ? 1 : kHeadDim == 192 ? 2 : kHeadDim / 16)
        for (int kk = 0; kk < kHeadDim / 16; ++kk) {
          uint32_t a[4];
          prim::ldmatrix_x4(a, sq + Tile::at(warp * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
          for (int nn = 0; nn < kKeys / 16; ++nn) {
            uint32_t b[4];
            prim::ldmatrix_x4(b,
                              sk + Tile::at(nn * 16 + (lane / 16) * 8 + lane % 8, kk * 2 + (lane / 8) % 2));
            prim::mma_m16n8k16<T>(s[2 * nn], a, b[0], b[1]);
            prim::mma_m16n8k16<T>(s[2 * nn + 1], a, b[2], b[3]);
          }
        }

        // Scale to base 2, cap, mask.  Element e of s[i] is row g + 8 * (e / 2), key i * 8 + t * 2 + e % 2.
        const int key0 = tile * kKeys;
        const unsigned there[2] = {exists[buffer][0], exists[buffer][1]};
        const bool all_there = there[0] == kFullMask && (kKeys == 32 || there[1] == kFullMask);
        const bool masked = !all_there || key0 < open_first || key0 + kKeys - 1 > open_last;
#pragma unroll
        for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float x = s[i][e] * scale;
            if (p.softcap > 0.f) x = p.softcap * tanhf(x / p.softcap);
            x *= kLog2e;
            if (masked) {
              const int in_tile = i * 8 + t * 2 + e % 2, key = key0 + in_tile;
              const RowLimits& r = limits[e / 2];
              bool see = (there[i / 4] >> (in_tile % 32) & 1) && key >= r.first && key <= r.last;
              if (p.tree_mask) see = see && tree_allows(p, item.work, r.token, key);
              if (!see) x = -INFINITY;
            }
            s[i][e] = x;
          }
        }

        // Online softmax; a row lives in the four lanes of a quad.
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float top = row_max[h];
#pragma unroll
          for (int i = 0; i < kKeys / 8; ++i) top = fmaxf(top, fmaxf(s[i][2 * h], s[i][2 * h + 1]));
          top = fmaxf(top, __shfl_xor_sync(kFullMask, top, 1));
          top = fmaxf(top, __shfl_xor_sync(kFullMask, top, 2));
          const float base = top == -INFINITY ? 0.f : top;
          const float shrink = prim::exp2_approx(row_max[h] - base);
          row_max[h] = top;
          row_sum[h] *= shrink;
#pragma unroll
          for (int i = 0; i < kHeadDim / 8; ++i) {
            o[i][2 * h] *= shrink;
            o[i][2 * h + 1] *= shrink;
          }
#pragma unroll
          for (int i = 0; i < kKeys / 8; ++i) {
            s[i][2 * h] = prim::exp2_approx(s[i][2 * h] - base);
            s[i][2 * h + 1] = prim::exp2_approx(s[i][2 * h + 1] - base);
            row_sum[h] += s[i][2 * h] + s[i][2 * h + 1];
          }
        }

        // O += P V; the accumulators of two neighbouring S tiles have the layout of one step's A.
#pragma unroll
        for (int kk = 0; kk < kKeys / 16; ++kk) {
          const uint32_t a[4] = {pack<T>(s[2 * kk][0], s[2 * kk][1]), pack<T>(s[2 * kk][2], s[2 * kk][3]),
                                 pack<T>(s[2 * kk + 1][0], s[2 * kk + 1][1]),
                                 pack<T>(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
          for (int dd = 0; dd < kHeadDim / 16; ++dd) {
            uint32_t b[4];
            prim::ldmatrix_x4_trans(b, sv + Tile::at(kk * 16 + lane % 16, dd * 2 + lane / 16));
            prim::mma_m16n8k16<T>(o[2 * dd], a, b[0], b[1]);
            prim::mma_m16n8k16<T>(o[2 * dd + 1], a, b[2], b[3]);
          }
        }
      }
      __syncthreads();  // everyone is done with this buffer before it is filled again
    }
    prim::cp_async_wait<0>();

    // The result, or this split's part of it.
    const float v_scale = scale_of(p.v_scale, item.b, item.kv_head);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = row_sum[h];
      sum += __shfl_xor_sync(kFullMask, sum, 1);
      sum += __shfl_xor_sync(kFullMask, sum, 2);
      const int row = warp * 16 + g + 8 * h;
      if (row >= item.num_rows) continue;
      const int r = item.row_begin + row, head = item.kv_head * group + r % group;
      float lse2 = sum > 0.f ? row_max[h] + log2f(sum) : -INFINITY;
      float factor = sum > 0.f ? v_scale / sum : 0.f;
      if (item.splits == 1) {
        factor *= apply_sink(p, head, lse2);
        T* out = static_cast<T*>(p.out.data) + query_offset(p.out, item, group, row) + t * 2;
#pragma unroll
        for (int i = 0; i < kHeadDim / 8; ++i) {
          store_pair(out + i * 8, launch.out_aligned, o[i][2 * h] * factor, o[i][2 * h + 1] * factor);
        }
        if (t == 0 && p.lse) p.lse[head * p.lse_head_stride + item.work.q_begin + r / group] = lse2 * kLn2;
      } else {
        const int64_t slot_row = (item.first_slot + item.split) * kTileRows + row;
        float* part = launch.parts + slot_row * kHeadDim + t * 2;
#pragma unroll
        for (int i = 0; i < kHeadDim / 8; ++i) {
          *reinterpret_cast<float2*>(part + i * 8) =
              make_float2(o[i][2 * h] * factor, o[i][2 * h + 1] * factor);
        }
        if (t == 0) launch.part_lse[slot_row] = lse2;
      }
    }
    if (item.splits == 1) continue;
    __syncthreads();
    if (threadIdx.x == 0) {
      is_last = prim::atomic_add_acq_rel(launch.tickets + item.first_slot, 1) == uint32_t(item.splits - 1);
    }
    __syncthreads();
    if (is_last) combine_parts<T, kHeadDim>(launch, item, group);
  }
}

template <class T, class Cell, int kHeadDim>
void launch_attention(const AttentionLaunch& launch, int ctas, cudaStream_t stream) {
  using Tile = AttentionTile<T, Cell, kHeadDim>;
  prim::launch(delta_prefill_kernel<T, Cell, kHeadDim>, dim3(unsigned(ctas)), kAttentionThreads, Tile::kSmem,
               stream, launch);
}

// Every head_dim of one query type; delta_prefill_f16.cu and delta_prefill_bf16.cu.
template <class T>
void launch_attention_of(const AttentionLaunch& launch, int ctas, cudaStream_t stream);

template <class T, class Cell>
void launch_attention_by_head_dim(const AttentionLaunch& launch, int ctas, cudaStream_t stream) {
  switch (launch.p.cache.head_dim) {
    case 64:
      return launch_attention<T, Cell, 64>(launch, ctas, stream);
    case 96:
      return launch_attention<T, Cell, 96>(launch, ctas, stream);
    case 128:
      return launch_attention<T, Cell, 128>(launch, ctas, stream);
    case 192:
      return launch_attention<T, Cell, 192>(launch, ctas, stream);
    default:
      return launch_attention<T, Cell, 256>(launch, ctas, stream);
  }
}

}  // namespace cuda
}  // namespace skv
