// prim.cuh on the emulator: build with -DSKV_PRIM_EMULATION='<simt/prim.h>'.
#pragma once

#include <simt/atomics.h>
#include <simt/core.h>
#include <simt/math.h>
#include <simt/warp.h>

#include <cstring>

#define SKV_DEVICE inline
#define SKV_DEVICE_CALL inline
#define SKV_SHARED(name, ...)                                     \
  static const char name##_key = 0;                               \
  auto& name = *static_cast<::skv::prim::Identity<__VA_ARGS__>*>( \
      simt::static_shared(&name##_key, sizeof(__VA_ARGS__), alignof(__VA_ARGS__)))
#define SKV_DYNAMIC_SMEM(name) unsigned char* const name = simt::dynamic_shared()

namespace skv {
namespace prim {

template <class T>
struct IdentityOf {
  using type = T;
};
template <class T>
using Identity = typename IdentityOf<T>::type;

inline bool& overlapped();  // prim.cuh
// Whether the last grid could have begun before the one ahead of it had ended.
inline bool& last_launch_overlaps() {
  static bool value = false;
  return value;
}

template <class Params>
void launch_with(simt::LaunchOptions options, void (*kernel)(Params), dim3 grid, int threads, size_t smem,
                 const Identity<Params>& params) {
  struct Call {
    void (*kernel)(Params);
    const Identity<Params>* params;
  } call{kernel, &params};
  const auto run = [](void* arg) {
    const Call& c = *static_cast<Call*>(arg);
    c.kernel(*c.params);
  };
  simt::launch(grid, dim3(unsigned(threads)), smem, run, &call, options);
}
template <class Params>
void launch(void (*kernel)(Params), dim3 grid, int threads, size_t smem, cudaStream_t,
            const Identity<Params>& params) {
  last_launch_overlaps() = false;
  simt::LaunchOptions options;
  options.overlapping = overlapped();
  launch_with(options, kernel, grid, threads, smem, params);
}
// Grids run one after another; what those that may overlap have to keep is checked all the same.
template <class Params>
void launch_overlapped(void (*kernel)(Params), dim3 grid, int threads, size_t smem, cudaStream_t,
                       const Identity<Params>& params) {
  simt::LaunchOptions options;
  options.overlapped = true;
  last_launch_overlaps() = options.overlapping = overlapped();
  launch_with(options, kernel, grid, threads, smem, params);
}
inline void launch_dependents() {}
inline void wait_for_grids() { simt::wait_for_grids(); }

inline void zero_async(void* p, size_t bytes, cudaStream_t) { std::memset(p, 0, bytes); }
// Few, so that small cases split their work too, unless SIMT_MULTIPROCESSORS says how many.
inline int num_multiprocessors() {
  const char* value = std::getenv("SIMT_MULTIPROCESSORS");
  return value ? std::atoi(value) : 4;
}

inline int compute_capability() { return simt::compute_capability(); }
inline bool runs_sm90_code() { return compute_capability() == 90; }

struct SharedMemory {
  int64_t per_cta, per_multiprocessor;
};
inline SharedMemory shared_memory() { return {227 << 10, 228 << 10}; }  // of sm_90

inline uint32_t smem_u32(const void* p) { return simt::shared_address(p); }

inline void cp_async16(uint32_t dst, const void* src, bool pred = true, SIMT_LOC) {
  simt::cp_async(dst, src, 16, pred, SIMT_HERE);
}
inline void cp_async_commit() { simt::cp_async_commit(); }
template <int kPending>
inline void cp_async_wait() {
  simt::cp_async_wait(kPending);
}

inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t address, SIMT_LOC) {
  simt::ldmatrix_x4(r, address, false, SIMT_HERE);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address, SIMT_LOC) {
  simt::ldmatrix_x4(r, address, true, SIMT_HERE);
}
template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, SIMT_LOC) {
  constexpr bool kBf16 = std::is_same<T, __nv_bfloat16>::value;
  static_assert(kBf16 || std::is_same<T, __half>::value, "mma takes fp16 or bf16");
  simt::mma_m16n8k16(d, a, b0, b1, kBf16 ? simt::MmaType::kBf16 : simt::MmaType::kF16, SIMT_HERE);
}

inline void named_barrier_sync(int id, int threads, SIMT_LOC) {
  simt::barrier(id, threads, true, false, "bar.sync", SIMT_HERE);
}
inline void named_barrier_arrive(int id, int threads, SIMT_LOC) {
  simt::barrier(id, threads, false, false, "bar.arrive", SIMT_HERE);
}

inline uint32_t load_acquire(const uint32_t* p, SIMT_LOC) {
  const uint32_t v = simt::strong_load(p, SIMT_HERE);
  simt::fence(simt::Scope::kDevice);
  return v;
}
inline void store_release(uint32_t* p, uint32_t v, SIMT_LOC) {
  simt::fence(simt::Scope::kDevice);
  simt::strong_store(p, v, SIMT_HERE);
}
inline uint32_t atomic_add_acq_rel(uint32_t* p, uint32_t v, SIMT_LOC) {
  simt::fence(simt::Scope::kDevice);
  const uint32_t old = atomicAdd(p, v, file, line);
  simt::fence(simt::Scope::kDevice);
  return old;
}
inline uint4 load_streaming(const uint4* p) { return *p; }
template <int kPlace = 0>
inline int opaque(int x) {
  return x;
}
inline float exp2_approx(float x) { return std::exp2(x); }

}  // namespace prim
}  // namespace skv
