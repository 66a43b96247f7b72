// prim_hopper.cuh on the emulator.
#pragma once

#include <simt/core.h>

#include <cstring>

namespace skv {
namespace prim {

inline void mbar_init(uint32_t bar, int count, SIMT_LOC) { simt::mbarrier_init(bar, count, SIMT_HERE); }
inline void mbar_init_fence() {}
inline void mbar_arrive(uint32_t bar, SIMT_LOC) { simt::mbarrier_arrive(bar, 0, SIMT_HERE); }
inline void mbar_arrive_expect_tx(uint32_t bar, int bytes, SIMT_LOC) {
  simt::mbarrier_arrive(bar, bytes, SIMT_HERE);
}
inline bool mbar_try_wait(uint32_t bar, int parity, SIMT_LOC) {
  return simt::mbarrier_try_wait(bar, parity, SIMT_HERE);
}
inline void mbar_wait(uint32_t bar, int parity, SIMT_LOC) {
  while (!simt::mbarrier_try_wait(bar, parity, SIMT_HERE)) {
  }
}
inline void fence_proxy_async() { simt::fence_proxy(); }

inline void bulk_load(uint32_t dst, const void* src, int bytes, uint32_t bar, SIMT_LOC) {
  simt::bulk_load(dst, src, bytes, bar, SIMT_HERE);
}
inline void bulk_store(void* dst, uint32_t src, int bytes, SIMT_LOC) {
  simt::bulk_store(dst, src, bytes, SIMT_HERE);
}
inline void bulk_commit() { simt::bulk_commit(); }
template <int kPending>
inline void bulk_wait(SIMT_LOC) {
  simt::bulk_wait(kPending, SIMT_HERE);
}
template <int kPending>
inline void bulk_wait_read(SIMT_LOC) {  // what was read has been written too
  simt::bulk_wait(kPending, SIMT_HERE);
}

inline simt::TensorMap tensor_map_of(const TensorMap* map) {
  simt::TensorMap m;
  static_assert(sizeof m <= sizeof *map, "");
  std::memcpy(&m, map, sizeof m);
  return m;
}
template <int kRank>
inline void tma_load(uint32_t dst, const TensorMap* map, uint32_t bar, const int (&at)[kRank], SIMT_LOC) {
  simt::tensor_load(dst, tensor_map_of(map), bar, at, kRank, SIMT_HERE);
}
template <int kRank>
inline void tma_load_once(uint32_t dst, const TensorMap* map, uint32_t bar, const int (&at)[kRank],
                          SIMT_LOC) {
  simt::tensor_load(dst, tensor_map_of(map), bar, at, kRank, SIMT_HERE);
}
template <int kRank>
inline void tma_store(const TensorMap* map, uint32_t src, const int (&at)[kRank], SIMT_LOC) {
  simt::tensor_store(tensor_map_of(map), src, at, kRank, SIMT_HERE);
}
inline void prefetch_tensor_map(const TensorMap*) {}
inline TensorMap make_tensor_map(const TensorMapSpec& spec) {
  simt::TensorMap m{};
  m.base = static_cast<simt::u8*>(const_cast<void*>(spec.base));
  m.rank = spec.rank;
  m.element_bytes = spec.element_bytes;
  m.swizzle_bits = spec.swizzle == Swizzle::kNone ? 0 : 4 - int(spec.swizzle);
  for (int k = 0; k < spec.rank && k < 5; ++k) {
    m.size[k] = spec.size[k];
    m.stride[k] = k ? spec.stride_bytes[k] : simt::u64(spec.element_bytes);
    m.box[k] = spec.box[k];
  }
  simt::check_tensor_map(m);
  TensorMap map{};
  std::memcpy(&map, &m, sizeof m);
  return map;
}

inline bool elect_one(SIMT_LOC) { return simt::elect_one(SIMT_HERE); }
template <int kRegisters>
inline void setmaxnreg_inc() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "a multiple of 8, 24 to 256");
}
template <int kRegisters>
inline void setmaxnreg_dec() {
  setmaxnreg_inc<kRegisters>();
}

inline void wgmma_fence(SIMT_LOC) { simt::wgmma_fence(SIMT_HERE); }
inline void wgmma_commit(SIMT_LOC) { simt::wgmma_commit(SIMT_HERE); }
template <int kPending>
inline void wgmma_wait(SIMT_LOC) {
  simt::wgmma_wait(kPending, SIMT_HERE);
}
template <class T, int kN>
constexpr bool check_wgmma() {
  static_assert(std::is_same<T, __nv_bfloat16>::value || std::is_same<T, __half>::value, "fp16 or bf16");
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256, "N is a multiple of 8, 8 to 256");
  return std::is_same<T, __nv_bfloat16>::value;
}
template <class T, int kN, bool kTransposedA = false, bool kTransposedB = false>
inline void wgmma_m64k16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate, SIMT_LOC) {
  simt::wgmma({d, nullptr, a, b, kN, accumulate, kTransposedA, kTransposedB, check_wgmma<T, kN>()},
              SIMT_HERE);
}
template <class T, int kN, bool kTransposedB = false>
inline void wgmma_m64k16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate, SIMT_LOC) {
  simt::wgmma({d, a, 0, b, kN, accumulate, false, kTransposedB, check_wgmma<T, kN>()}, SIMT_HERE);
}

}  // namespace prim
}  // namespace skv
