// The few instructions and conventions behind which kernels stay ordinary CUDA C++.  Under nvcc they are
// inline PTX; any other compiler gets the implementation in the header SKV_PRIM_EMULATION names, which runs
// kernels on the CPU for tests.  Both provide, in namespace skv::prim:
//
//   launch(kernel, grid, threads, smem, stream, params)   sets attributes, launches, throws on error
//   runs_sm90_code()                   whether the device is of sm_90 and kernels were compiled for it
//   launch_overlapped(...)             launch, and where that holds and overlapped() is set, the grid may
//                                      begin before the one launched ahead of it has ended
//   overlapped()                       whether this thread's launches may overlap; a reference
//   launch_dependents()                from here on the next grid may begin, if it was launched overlapped
//   wait_for_grids()                   until all grids ahead have ended and what they wrote is visible; every
//                                      CTA of an overlapped grid does so before it writes and before it ends,
//                                      for the next grid waits for this one alone
//   zero_async(p, bytes, stream), num_multiprocessors(), shared_memory(), compute_capability()
//   smem_u32(p)                        shared address as the 32-bit number PTX takes
//   cp_async16(dst, src, pred)         16 bytes global -> shared; pred false writes zeros
//   cp_async_commit(), cp_async_wait<n>()
//   ldmatrix_x4(r, address), ldmatrix_x4_trans(r, address)   warp-collective
//   mma_m16n8k16<T>(d, a, b0, b1)      d += a * b, T __half or __nv_bfloat16, float accumulators; as above
//   named_barrier_sync(id, threads), named_barrier_arrive(id, threads)
//   load_acquire(p), store_release(p, v), atomic_add_acq_rel(p, v)   device scope
//   load_streaming(p)                  16 bytes that nobody reads again, past L1
//   exp2_approx(x)
//   opaque<place>(x)                   x, of which the compiler knows nothing: what follows from it is
//                                      not computed ahead, and different places are not merged
//
// prim_hopper.cuh has those of sm_90.
//
// SKV_SHARED(name, type) declares a shared variable, SKV_DYNAMIC_SMEM(name) the dynamic shared memory as
// bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace skv {
namespace prim {

inline bool& overlapped() {
  static thread_local bool value = false;
  return value;
}

}  // namespace prim
}  // namespace skv

#if defined(__CUDACC__)
#include "prim_ptx.cuh"
#else
#include SKV_PRIM_EMULATION
#endif
