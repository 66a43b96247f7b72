// delta_prefill on sm_90a, fp8 caches: cells become f16, and query rows as well.
//
// Every value of e4m3 is one of f16, at one instruction for two of them, so both products are of f16 whatever
// the query's type.  A query row in bf16 has the range of float, f16 has not: a row is divided by a power of
// two that brings its largest element just below f16's largest value.  What loses bits then is below 2^-32 of
// that one, and what it loses below 2^-40: less than float sums of the products can tell.  Scores are
// multiplied by the same power of two again.
#pragma once

#include "attention_hopper_tile.cuh"

namespace skv {
namespace cuda {

// Eight elements of a row in global memory.
template <class E>
SKV_DEVICE Vector<E, 8> load_eight(const E* from, bool aligned_rows) {
  Vector<E, 8> v;
  if (aligned_rows) {
    v = load_vector<E, 8>(from);
  } else {
    for (int e = 0; e < 8; ++e) v.at[e] = from[e];
  }
  return v;
}

// Eight cells to shared memory, as 16 bytes of what the products take.
template <class T>
SKV_DEVICE void store_cells(unsigned char* to, const Vector<T, 8>& cells) {
  store_vector<T, 8>(reinterpret_cast<T*>(to), cells);
}
SKV_DEVICE void store_widened(unsigned char* to, uint2 cells) {
  const auto widened = [](uint32_t two) {
    const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(two), __NV_E4M3);
    return uint32_t(pair.x) | uint32_t(pair.y) << 16;
  };
  *reinterpret_cast<uint4*>(to) =
      make_uint4(widened(cells.x), widened(cells.x >> 16), widened(cells.y), widened(cells.y >> 16));
}
SKV_DEVICE void store_cells(unsigned char* to, const Vector<__nv_fp8_e4m3, 8>& cells) {
  uint2 words;
  memcpy(&words, cells.at, 8);
  store_widened(to, words);
}

// A tile that has landed at `raw` into `stage`; on an edge keys that are not the item's become zeros.  The
// fill warps, a thread eight cells at a time: neighbours read and write what lies together.  The swizzle
// repeats after kPeriod rows, and so do a thread's places; some of them are read ahead.
template <class Tile>
SKV_DEVICE void widen_tile(const AttentionItem& item, const unsigned char* raw, unsigned char* stage,
                           bool edge, int key0, int thread) {
  constexpr int kChunks = Tile::kHeadDim / 8, kPeriod = 1024 / Tile::kRowBytes;
  constexpr int kPlaces = kPeriod * kChunks / kFillThreads;
  constexpr int kAhead = Tile::kHeadDim > 128 ? 1
                         : kPlaces > 2        ? 2
                                              : 8 / kPlaces;  // periods, as registers allow
  static_assert(kPeriod * kChunks % kFillThreads == 0, "a thread has as many places as any other");
  static_assert(Tile::kKeys % (kAhead * kPeriod) == 0, "a tile is read to its end");
  const int begin = edge ? item.key_begin - key0 : 0, end = edge ? item.key_end - key0 : Tile::kKeys;
  uint32_t places[kPlaces];
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    const int at = thread + i * kFillThreads;
    places[i] = Tile::at(at / kChunks, at % kChunks, Tile::kPieceBytes);
  }
#pragma unroll 1
  for (int row0 = 0; row0 < Tile::kKeys; row0 += kAhead * kPeriod) {
    uint2 cells[kAhead][kPlaces];
#pragma unroll
    for (int i = 0; i < kAhead * kPlaces; ++i) {
      const int at = thread + i * kFillThreads, row = row0 + at / kChunks;
      const uint2 read = *reinterpret_cast<const uint2*>(raw + row0 * Tile::kHeadDim + at * 8);
      cells[i / kPlaces][i % kPlaces] = edge && (row < begin || row >= end) ? make_uint2(0, 0) : read;
    }
#pragma unroll
    for (int i = 0; i < kAhead * kPlaces; ++i) {
      const int period = row0 / kPeriod + i / kPlaces;
      store_widened(stage + places[i % kPlaces] + period * 1024, cells[i / kPlaces][i % kPlaces]);
    }
  }
}

// The power of two that a row whose largest element is `most` is divided by; 1 where that is no number.  Rows
// of next to nothing are treated as if they held 2^-45.
SKV_DEVICE float unit_of_row(float most) {
  const int exponent = int(__float_as_uint(most) >> 23) - 127;
  return exponent == 128 ? 1.f : __uint_as_float(uint32_t(max(exponent, -45) - 15 + 127) << 23);
}

// The group's query rows as f16 to shared memory, each in units of its own; rows past the item's last one as
// zeros.  Two threads a row.
template <class Rows, class Query>
SKV_DEVICE void divide_query(const AttentionLaunch& launch, const AttentionItem& item, HopperShared& shared,
                             const Rows& rows, unsigned char* to) {
  using Tile = typename Rows::Tile;
  constexpr int kChunks = Tile::kHeadDim / 8;
  const int thread = int(threadIdx.x) % kGroupThreads, row = thread / 2, of_item = rows.group * 64 + row;
  const bool there = of_item < item.num_rows;
  const Query* from = static_cast<const Query*>(launch.p.query.data) +
                      query_offset(launch.p.query, item, launch.group, there ? of_item : 0);
  const auto chunk_at = [&](int chunk) {
    return there ? load_eight(from + chunk * 8, launch.query_aligned) : Vector<Query, 8>{};
  };
  float most = 0.f;
  for (int chunk = thread % 2; chunk < kChunks; chunk += 2) {
    const Vector<Query, 8> v = chunk_at(chunk);
#pragma unroll
    for (int e = 0; e < 8; ++e) most = fmaxf(most, fabsf(to_float(v.at[e])));
  }
  const float unit = unit_of_row(fmaxf(most, __shfl_xor_sync(kFullMask, most, 1)));
  const float by = __fdiv_rn(1.f, unit);
  for (int chunk = thread % 2; chunk < kChunks; chunk += 2) {
    const Vector<Query, 8> v = chunk_at(chunk);
    Vector<__half, 8> divided;
#pragma unroll
    for (int e = 0; e < 8; ++e) divided.at[e] = from_float<__half>(__fmul_rn(to_float(v.at[e]), by));
    store_cells(to + Tile::at(row, chunk, Tile::kQueryPieceBytes), divided);
  }
  if (thread % 2 == 0) shared.units[of_item] = unit;
}

template <class Rows>
SKV_DEVICE void load_query_in_units(const AttentionLaunch& launch, const AttentionItem& item,
                                    HopperShared& shared, Rows& rows, unsigned char* to) {
  prim::named_barrier_sync(kGroupBarrier + rows.group, kGroupThreads);  // nobody reads the last item's
  if (launch.p.dtype == DType::kFloat16) {
    divide_query<Rows, __half>(launch, item, shared, rows, to);
  } else {
    divide_query<Rows, __nv_bfloat16>(launch, item, shared, rows, to);
  }
  prim::fence_proxy_async();
  prim::named_barrier_sync(kGroupBarrier + rows.group, kGroupThreads);
  rows.unit[0] = shared.units[rows.row(0, 0)];
  rows.unit[1] = shared.units[rows.row(0, 1)];
}

}  // namespace cuda
}  // namespace skv
