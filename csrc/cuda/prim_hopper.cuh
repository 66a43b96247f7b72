// Hopper's asynchronous instructions, in the same two ways as prim.cuh: inline PTX under nvcc, emulation
// elsewhere.  They need sm_90 or newer, wgmma and setmaxnreg sm_90a itself; code compiled for anything older
// stops at them.  Shared addresses are 32-bit numbers from smem_u32.  In namespace skv::prim:
//
//   mbar_init(bar, count), mbar_init_fence()     one thread; the fence and a barrier before others use it
//   mbar_arrive(bar), mbar_arrive_expect_tx(bar, bytes)
//   mbar_try_wait(bar, parity) -> bool, mbar_wait(bar, parity)   parity of the phase that is waited for
//   fence_proxy_async()                shared memory written by ordinary stores -> bulk copies and wgmma
//   bulk_load(dst, src, bytes, bar)    global -> shared, multiples of 16 bytes; bytes are counted at bar
//   tma_load<rank>(dst, map, bar, at)  a box of a tensor; the whole box is counted, outside are zeros; at[0]
//                                      begins at a multiple of 16 bytes
//   tma_load_once<rank>(...)           the same, of what nobody reads again: the first to leave the L2 cache
//   bulk_store(dst, src, bytes), tma_store<rank>(map, src, at)        shared -> global, then
//   bulk_commit(), bulk_wait_read<n>() shared memory may be reused, bulk_wait<n>() written, of own groups
//   prefetch_tensor_map(map)
//   elect_one() -> bool                true for one lane of the warp
//   setmaxnreg_inc<n>(), setmaxnreg_dec<n>()     warpgroup-collective, n a multiple of 8 from 24 to 256
//   wgmma_fence(), wgmma_commit(), wgmma_wait<n>()                    warpgroup-collective, all of them
//   wgmma_m64k16<T, N, transposed A, transposed B>(d, a, b, accumulate)   d (+)= a * b, T __half or
//     __nv_bfloat16, b a matrix descriptor, a another or four registers in the layout of mma_m16n8k16; warp w
//     has rows 16 w to 16 w + 15, element e of its d is row lane / 4 + 8 * (e / 2 % 2) of these,
//     column e / 4 * 8 + lane % 4 * 2 + e % 2.  Transposed: the matrix lies with M or N contiguous, not K.
//
// Host: make_tensor_map(spec); maps travel in the kernel's parameters (__grid_constant__).
#pragma once

#include "prim.cuh"

namespace skv {
namespace prim {

// How 16-byte pieces lie in shared memory: bits 4 and up of an address are changed by XOR with bits 7 and up,
// one, two or three of them, so a pattern repeats after 256, 512 or 1024 bytes.
enum class Swizzle : uint32_t { kNone = 0, k128Bytes = 1, k64Bytes = 2, k32Bytes = 3 };

struct alignas(64) TensorMap {
  uint64_t words[16];
};

struct TensorMapSpec {
  const void* base;  // aligned to 16 bytes
  int element_bytes, rank;
  uint64_t size[5];          // in elements, the contiguous dimension first
  uint64_t stride_bytes[5];  // multiples of 16; that of dimension 0 is not used
  uint32_t box[5];  // at most 256 each; the first one's bytes a multiple of 16 that the swizzle spans
  Swizzle swizzle;
};

// Operand of wgmma in shared memory.  Eight rows (of M, N or, transposed, of K) of the swizzle's width make
// an atom, aligned to its size.  stride_bytes: from an atom to the next one along its rows; leading_bytes:
// along the other dimension, used only where an atom does not span it.  Without a swizzle atoms are 8 x 16
// bytes, and of a transposed operand the two change places.
SKV_DEVICE uint64_t matrix_descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes,
                                      Swizzle swizzle) {
  const auto field = [](uint32_t bytes) { return uint64_t((bytes & 0x3ffff) >> 4); };
  return field(address) | field(leading_bytes) << 16 | field(stride_bytes) << 32 | uint64_t(swizzle) << 62;
}

}  // namespace prim
}  // namespace skv

#if defined(__CUDACC__)
#include "prim_hopper_ptx.cuh"
#include "prim_wgmma_ptx.cuh"
#else
#include <simt/prim_hopper.h>
#endif
