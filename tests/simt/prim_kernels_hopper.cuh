// The cases of prim_kernels.cuh for Hopper's instructions (prim_hopper.cuh).
#pragma once

#include "prim_hopper.cuh"
#include "prim_kernels_ampere.cuh"

namespace skv {
namespace prim_cases {

using prim::Swizzle;

constexpr int swizzle_bytes(Swizzle s) {  // of a row of the pattern; 16 if there is none
  return s == Swizzle::k128Bytes ? 128 : s == Swizzle::k64Bytes ? 64 : s == Swizzle::k32Bytes ? 32 : 16;
}
// Where the byte at `offset` of a buffer aligned to 1024 lies.  In the r-th 128 bytes the eight pieces of 16
// change places: piece c lies at c ^ r % 8 (a pattern of 128 bytes), c ^ r % 4 (64) or c ^ r % 2 (32).
inline int swizzled_offset(int offset, Swizzle s) {
  const int flip = offset / 128 % (swizzle_bytes(s) / 16);
  return (offset / 16 ^ flip) * 16 + offset % 16;
}
inline uint16_t half_word(const uint32_t* words, int64_t i) { return uint16_t(words[i / 2] >> (i % 2 * 16)); }
inline void set_half_word(uint32_t* words, int64_t i, uint16_t x) {
  std::memcpy(reinterpret_cast<char*>(words) + 2 * i, &x, 2);
}

// ---- mbarrier ----

// Warp 0 hands ten values to warp 1 through one slot.
__global__ void mbarrier_kernel(const __grid_constant__ Words w) {
  SKV_SHARED(bars, uint64_t[2]);
  SKV_SHARED(slot, uint32_t[32]);
  const uint32_t full = prim::smem_u32(bars), empty = full + 8;
  const int lane = int(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    prim::mbar_init(full, 32);
    prim::mbar_init(empty, 32);
    prim::mbar_init_fence();
  }
  __syncthreads();
  for (int i = 0; i < kHandovers; ++i) {
    if (threadIdx.x < 32) {
      if (i > 0) prim::mbar_wait(empty, (i - 1) & 1);
      slot[lane] = w.in[i * 32 + lane];
      prim::mbar_arrive(full);
    } else {
      while (!prim::mbar_try_wait(full, i & 1)) {
      }
      w.out[i * 32 + lane] = slot[31 - lane];
      prim::mbar_arrive(empty);
    }
  }
}

// ---- bulk copies ----

// Two stages of 256 bytes, four times round.
constexpr int kBulkRounds = 8, kBulkWords = 64;
__global__ void bulk_load_kernel(const __grid_constant__ Words w) {
  SKV_DYNAMIC_SMEM(smem);
  SKV_SHARED(bars, uint64_t[2]);
  const uint32_t bar = prim::smem_u32(bars);
  const auto load = [&](int round) {
    const int stage = round % 2;
    prim::mbar_arrive_expect_tx(bar + 8 * stage, kBulkWords * 4);
    prim::bulk_load(prim::smem_u32(smem) + stage * kBulkWords * 4, w.in + round * kBulkWords, 64,
                    bar + 8 * stage);
    prim::bulk_load(prim::smem_u32(smem) + stage * kBulkWords * 4 + 64, w.in + round * kBulkWords + 16,
                    kBulkWords * 4 - 64, bar + 8 * stage);
  };
  if (threadIdx.x == 0) {
    prim::mbar_init(bar, 1);
    prim::mbar_init(bar + 8, 1);
    prim::mbar_init_fence();
    load(0);
    load(1);
  }
  __syncthreads();
  for (int round = 0; round < kBulkRounds; ++round) {
    prim::mbar_wait(bar + 8 * (round % 2), round / 2 & 1);
    const uint32_t* stage = reinterpret_cast<const uint32_t*>(smem) + round % 2 * kBulkWords;
    w.out[round * kBulkWords + threadIdx.x] = stage[kBulkWords - 1 - threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0 && round + 2 < kBulkRounds) load(round + 2);
  }
}
inline void expect_bulk_load(const uint32_t* in, uint32_t* want) {
  for (int i = 0; i < kBulkRounds * kBulkWords; ++i) {
    want[i] = in[i / kBulkWords * kBulkWords + kBulkWords - 1 - i % kBulkWords];
  }
}

// Ordinary stores, then one thread copies; the buffer is used again as soon as it has been read.
__global__ void bulk_store_kernel(const __grid_constant__ Words w) {
  SKV_DYNAMIC_SMEM(smem);
  uint32_t* words = reinterpret_cast<uint32_t*>(smem);
  for (int round = 0; round < 3; ++round) {
    words[threadIdx.x] = w.in[round * kBulkWords + threadIdx.x] + 1;
    prim::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
      prim::bulk_store(w.out + round * kBulkWords, prim::smem_u32(smem), kBulkWords * 4);
      prim::bulk_commit();
      prim::bulk_wait_read<0>();
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) prim::bulk_wait<0>();
}
inline void expect_bulk_store(const uint32_t* in, uint32_t* want) {
  for (int i = 0; i < 3 * kBulkWords; ++i) want[i] = in[i] + 1;
}

// ---- boxes of a tensor of elements of one or two bytes, partly outside of it ----

template <int kRank, Swizzle kSwizzle, int kElement = 2>
struct Box {
  static constexpr int kWidth =
      kSwizzle == Swizzle::kNone ? 80 / kElement : swizzle_bytes(kSwizzle) / kElement;
  static constexpr int kSize[5] = {72, 5, 3, 4, 2};
  static constexpr int kStride[5] = {kElement, 160, 800, 2432, 9728};  // bytes
  static constexpr int kBox[5] = {kWidth, 4, 2, 3, 2};
  // TMA wants the first coordinate's bytes to be a multiple of 16: anything else is an illegal instruction.
  static constexpr int kAt[5] = {kRank == 2 ? 40 : -16 / kElement, 2, -1, -1, 1};
  static constexpr int kTensorWords = kSize[kRank - 1] * kStride[kRank - 1] / 4;

  static constexpr int kBytes = kElement * kBox[0] * kBox[1] * (kRank > 2 ? kBox[2] : 1) *
                                (kRank > 3 ? kBox[3] : 1) * (kRank > 4 ? kBox[4] : 1);

  static prim::TensorMap map(const void* base) {
    prim::TensorMapSpec spec{};
    spec.base = base;
    spec.element_bytes = kElement;
    spec.rank = kRank;
    spec.swizzle = kSwizzle;
    for (int k = 0; k < kRank; ++k) {
      spec.size[k] = uint64_t(kSize[k]);
      spec.stride_bytes[k] = uint64_t(kStride[k]);
      spec.box[k] = uint32_t(kBox[k]);
    }
    return prim::make_tensor_map(spec);
  }
  // Calls f(byte in shared memory, byte in the tensor or -1) for every element of the box.
  template <class F>
  static void for_each(F f) {
    for (int i = 0; i < kBytes / kElement; ++i) {
      int rest = i, at = 0;
      bool inside = true;
      for (int k = 0; k < kRank; ++k) {
        const int x = kAt[k] + rest % kBox[k];
        rest /= kBox[k];
        inside = inside && x >= 0 && x < kSize[k];
        at += x * kStride[k];
      }
      f(swizzled_offset(kElement * i, kSwizzle), inside ? at : -1);
    }
  }
};
struct BoxParams {
  prim::TensorMap map;
  const uint32_t* in;
  uint32_t* out;
  int at[5];
};

template <int kRank, Swizzle kSwizzle, int kElement, bool kOnce>
__global__ void tma_load_kernel(const __grid_constant__ BoxParams p) {
  SKV_DYNAMIC_SMEM(smem);
  SKV_SHARED(bar_word, uint64_t);
  constexpr int kBytes = Box<kRank, kSwizzle, kElement>::kBytes;
  const uint32_t bar = prim::smem_u32(&bar_word);
  if (threadIdx.x == 0) {
    prim::prefetch_tensor_map(&p.map);
    prim::mbar_init(bar, 1);
    prim::mbar_init_fence();
    int at[kRank];
    for (int k = 0; k < kRank; ++k) at[k] = p.at[k];
    prim::mbar_arrive_expect_tx(bar, kBytes);
    if constexpr (kOnce) {
      prim::tma_load_once<kRank>(prim::smem_u32(smem), &p.map, bar, at);
    } else {
      prim::tma_load<kRank>(prim::smem_u32(smem), &p.map, bar, at);
    }
  }
  __syncthreads();
  prim::mbar_wait(bar, 0);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(smem);
  for (int i = int(threadIdx.x); i < kBytes / 4; i += int(blockDim.x)) p.out[i] = words[i];
}
template <int kRank, Swizzle kSwizzle, int kElement, bool kOnce>
void launch_tma_load(const uint32_t* in, uint32_t* out, cudaStream_t stream) {
  using B = Box<kRank, kSwizzle, kElement>;
  BoxParams p{B::map(in), in, out, {}};
  for (int k = 0; k < kRank; ++k) p.at[k] = B::kAt[k];
  prim::launch(tma_load_kernel<kRank, kSwizzle, kElement, kOnce>, dim3(1), 64, size_t(B::kBytes), stream, p);
}
template <int kRank, Swizzle kSwizzle, int kElement>
void expect_tma_load(const uint32_t* in, uint32_t* want) {
  Box<kRank, kSwizzle, kElement>::for_each([&](int shared, int global) {
    const uint8_t zeros[2] = {}, *from = reinterpret_cast<const uint8_t*>(in) + global;
    std::memcpy(reinterpret_cast<uint8_t*>(want) + shared, global < 0 ? zeros : from, kElement);
  });
}

template <int kRank, Swizzle kSwizzle>
__global__ void tma_store_kernel(const __grid_constant__ BoxParams p) {
  SKV_DYNAMIC_SMEM(smem);
  constexpr int kBytes = Box<kRank, kSwizzle>::kBytes;
  uint32_t* words = reinterpret_cast<uint32_t*>(smem);
  for (int i = int(threadIdx.x); i < kBytes / 4; i += int(blockDim.x)) words[i] = p.in[i];
  prim::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    int at[kRank];
    for (int k = 0; k < kRank; ++k) at[k] = p.at[k];
    prim::tma_store<kRank>(&p.map, prim::smem_u32(smem), at);
    prim::bulk_commit();
    prim::bulk_wait<0>();
  }
}
template <int kRank, Swizzle kSwizzle>
void launch_tma_store(const uint32_t* in, uint32_t* out, cudaStream_t stream) {
  using B = Box<kRank, kSwizzle>;
  BoxParams p{B::map(out), in, out, {}};
  for (int k = 0; k < kRank; ++k) p.at[k] = B::kAt[k];
  prim::launch(tma_store_kernel<kRank, kSwizzle>, dim3(1), 64, size_t(B::kBytes), stream, p);
}
template <int kRank, Swizzle kSwizzle>
void expect_tma_store(const uint32_t* in, uint32_t* want) {
  Box<kRank, kSwizzle>::for_each([&](int shared, int global) {
    if (global >= 0) set_half_word(want, global / 2, half_word(in, shared / 2));
  });
}

// ---- warps and registers ----

__global__ void elect_one_kernel(const __grid_constant__ Words w) {
  const unsigned elected = __ballot_sync(0xffffffffu, prim::elect_one());
  w.out[threadIdx.x] = uint32_t(__popc(elected));
}
inline void expect_elect_one(const uint32_t*, uint32_t* want) {
  for (int i = 0; i < 64; ++i) want[i] = 1;
}

// One warpgroup hands registers to two others: 3 * 168 for each thread at the start, 40 + 2 * 232 then.
__global__ void __launch_bounds__(384, 1) setmaxnreg_kernel(const __grid_constant__ Words w) {
  if (threadIdx.x < 128) {
    prim::setmaxnreg_dec<40>();
    w.out[threadIdx.x] = w.in[threadIdx.x] * 3;
  } else {
    prim::setmaxnreg_inc<232>();
    w.out[threadIdx.x] = w.in[threadIdx.x] * 5;
  }
}
inline void expect_setmaxnreg(const uint32_t* in, uint32_t* want) {
  for (int i = 0; i < 384; ++i) want[i] = in[i] * (i < 128 ? 3 : 5);
}

// ---- wgmma: A [64][K] and B [N][K] of T, in this order and row by row; the host lays out a copy of both as
// the descriptors say and the kernel moves that to shared memory ----

enum class From { kShared, kSharedTransposed, kRegisters };

template <Swizzle kSwizzle>
struct OperandLayout {  // of [rows][K]; K is one row of the pattern, or 32 without one
  static constexpr int kWidth = swizzle_bytes(kSwizzle);
  static constexpr int kK = kSwizzle == Swizzle::kNone ? 32 : kWidth / 2;
  static constexpr int kAtom = 8 * kWidth, kGroups = kK / 8;
  static constexpr bool kPlain = kSwizzle == Swizzle::kNone;

  // Byte of element (row, k).  Atoms along K lie beside one another.
  static int at(int row, int k, bool transposed) {
    if (!transposed && !kPlain) return swizzled_offset(row * kWidth + k * 2, kSwizzle);
    if (!transposed) return (row / 8 * kGroups + k / 8) * kAtom + row % 8 * 16 + k % 8 * 2;
    const int per_row = kWidth / 2;
    return swizzled_offset((row / per_row * kGroups + k / 8) * kAtom + k % 8 * kWidth + row % per_row * 2,
                           kSwizzle);
  }
  // Of an operand as it is, and transposed.
  static constexpr int kLeading[2] = {kPlain ? kAtom : 0, kPlain ? kAtom : kGroups * kAtom};
  static constexpr int kStride = kPlain ? kGroups * kAtom : kAtom;
  static constexpr int kStep[2] = {kPlain ? 2 * kAtom : 32, 2 * kAtom};  // of 16 k
};

template <class T, int kN, From kA, bool kTransposedB, Swizzle kSwizzle>
struct WgmmaCase {
  using Layout = OperandLayout<kSwizzle>;
  static constexpr int kK = Layout::kK, kAWords = 64 * kK / 2, kBWords = kN * kK / 2;

  static void fill(uint32_t* in) {  // the matrices, then their images
    fill_small<T, kAWords + kBWords>(in);
    uint32_t* image = in + kAWords + kBWords;
    for (int row = 0; row < 64 + kN; ++row) {
      const bool is_a = row < 64, transposed = is_a ? kA == From::kSharedTransposed : kTransposedB;
      for (int k = 0; k < kK; ++k) {
        const int byte = (is_a ? 0 : 64 * kK * 2) + Layout::at(is_a ? row : row - 64, k, transposed);
        set_half_word(image, byte / 2, half_word(in, row * kK + k));
      }
    }
  }
  static void expect(const uint32_t* in, uint32_t* want) {
    for (int m = 0; m < 64; ++m) {
      for (int n = 0; n < kN; ++n) {
        float d = 0.f;
        for (int k = 0; k < kK; ++k) d += half_at<T>(in, m * kK + k) * half_at<T>(in, (64 + n) * kK + k);
        want[m * kN + n] = bits_of(d);
      }
    }
  }
};
template <class T, int kN, From kA, bool kTransposedB, Swizzle kSwizzle>
__global__ void __launch_bounds__(128) wgmma_kernel(const __grid_constant__ Words w) {
  using Case = WgmmaCase<T, kN, kA, kTransposedB, kSwizzle>;
  using Layout = typename Case::Layout;
  constexpr int kImage = Case::kAWords + Case::kBWords;
  constexpr bool kTransposedA = kA == From::kSharedTransposed;
  constexpr int kLeadingA = Layout::kLeading[kTransposedA], kLeadingB = Layout::kLeading[kTransposedB];
  constexpr int kStepA = Layout::kStep[kTransposedA], kStepB = Layout::kStep[kTransposedB];
  SKV_DYNAMIC_SMEM(smem);
  uint32_t* words = reinterpret_cast<uint32_t*>(smem);
  for (int i = int(threadIdx.x); i < kImage; i += 128) words[i] = w.in[kImage + i];
  prim::fence_proxy_async();
  __syncthreads();

  const int warp = int(threadIdx.x) / 32, g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4;
  float d[kN / 2];
  for (int e = 0; e < kN / 2; ++e) d[e] = 1e30f;  // the first product does not accumulate
  prim::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Layout::kK / 16; ++step) {
    const uint32_t a_at = prim::smem_u32(smem) + step * kStepA;
    const uint32_t b_at = prim::smem_u32(smem) + Case::kAWords * 4 + step * kStepB;
    const uint64_t b = prim::matrix_descriptor(b_at, kLeadingB, Layout::kStride, kSwizzle);
    if constexpr (kA == From::kRegisters) {
      const uint32_t* row = w.in + (warp * 16 + g) * Layout::kK / 2 + step * 8 + t;
      const uint32_t a[4] = {row[0], row[8 * Layout::kK / 2], row[4], row[8 * Layout::kK / 2 + 4]};
      prim::wgmma_m64k16<T, kN, kTransposedB>(d, a, b, step > 0);
      prim::wgmma_commit();
      prim::wgmma_wait<0>();  // the registers of A are about to change
      prim::wgmma_fence();
    } else {
      const uint64_t a = prim::matrix_descriptor(a_at, kLeadingA, Layout::kStride, kSwizzle);
      prim::wgmma_m64k16<T, kN, kTransposedA, kTransposedB>(d, a, b, step > 0);
    }
  }
  prim::wgmma_commit();
  prim::wgmma_wait<0>();
#pragma unroll
  for (int e = 0; e < kN / 2; ++e) {
    const int row = warp * 16 + g + e / 2 % 2 * 8, column = e / 4 * 8 + t * 2 + e % 2;
    w.out[row * kN + column] = __float_as_uint(d[e]);
  }
}
template <class T, int kN, From kA, bool kTransposedB, Swizzle kSwizzle>
PrimCase wgmma_case(const char* name) {
  using Case = WgmmaCase<T, kN, kA, kTransposedB, kSwizzle>;
  constexpr int kImage = Case::kAWords + Case::kBWords;
  return {name,         Needs::kOnlyHopper,
          2 * kImage,   64 * kN,
          Case::fill,   launch_words<wgmma_kernel<T, kN, kA, kTransposedB, kSwizzle>, 1, 128, kImage * 4>,
          Case::expect, 0};
}
// Grids that overlap: each but the first begins early, and reads what other CTAs of the one ahead wrote, some
// of them late.
constexpr int kOverlapWords = 4096, kOverlapThreads = 64, kOverlapGrids = 8;

struct OverlapParams {
  const uint32_t* from;
  uint32_t* to;
};
inline __global__ void overlap_kernel(const __grid_constant__ OverlapParams p) {
  prim::launch_dependents();
  int delay = int(blockIdx.x);
  for (int i = 0; i < int(blockIdx.x) * 64; ++i) delay = prim::opaque(delay ^ i);
  prim::wait_for_grids();
  const int at = int(blockIdx.x * blockDim.x + threadIdx.x);
  p.to[at] = p.from[kOverlapWords - 1 - at] * 3 + uint32_t(delay < 0);
}
inline void launch_overlap(const uint32_t* in, uint32_t* out, cudaStream_t stream) {
  prim::overlapped() = true;
  for (int grid = 0; grid < kOverlapGrids; ++grid) {
    const uint32_t* from = grid == 0 ? in : out + (grid + 1) % 2 * kOverlapWords;
    prim::launch_overlapped(overlap_kernel, dim3(kOverlapWords / kOverlapThreads), kOverlapThreads, 0, stream,
                            OverlapParams{from, out + grid % 2 * kOverlapWords});
  }
  prim::overlapped() = false;
}
inline void expect_overlap(const uint32_t* in, uint32_t* want) {
  for (int grid = 0; grid < kOverlapGrids; ++grid) {
    const uint32_t* from = grid == 0 ? in : want + (grid + 1) % 2 * kOverlapWords;
    uint32_t* to = want + grid % 2 * kOverlapWords;
    for (int i = 0; i < kOverlapWords; ++i) to[i] = from[kOverlapWords - 1 - i] * 3;
  }
}

template <int kRank, Swizzle kSwizzle, int kElement = 2, bool kOnce = false>
PrimCase tma_load_case(const char* name) {
  using B = Box<kRank, kSwizzle, kElement>;
  return {name,
          Needs::kHopper,
          B::kTensorWords,
          B::kBytes / 4,
          fill_hash<B::kTensorWords>,
          launch_tma_load<kRank, kSwizzle, kElement, kOnce>,
          expect_tma_load<kRank, kSwizzle, kElement>,
          0};
}
template <int kRank, Swizzle kSwizzle>
PrimCase tma_store_case(const char* name) {
  using B = Box<kRank, kSwizzle>;
  return {name,
          Needs::kHopper,
          B::kBytes / 4,
          B::kTensorWords,
          fill_hash<B::kBytes / 4>,
          launch_tma_store<kRank, kSwizzle>,
          expect_tma_store<kRank, kSwizzle>,
          0};
}

inline std::vector<PrimCase> hopper_cases() {
  using H = __half;
  using B = __nv_bfloat16;
  constexpr Needs k90 = Needs::kHopper;
  constexpr Swizzle kNone = Swizzle::kNone, k32 = Swizzle::k32Bytes, k64 = Swizzle::k64Bytes,
                    k128 = Swizzle::k128Bytes;
  constexpr From kShared = From::kShared, kTransposed = From::kSharedTransposed,
                 kRegisters = From::kRegisters;
  constexpr int kHanded = 32 * kHandovers, kBulk = kBulkRounds * kBulkWords;
  return {
      {"mbarrier", k90, kHanded, kHanded, fill_hash<kHanded>, launch_words<mbarrier_kernel, 1, 64>,
       expect_named_barrier, 0},
      {"bulk_load", k90, kBulk, kBulk, fill_hash<kBulk>,
       launch_words<bulk_load_kernel, 1, kBulkWords, 2 * kBulkWords * 4>, expect_bulk_load, 0},
      {"bulk_store", k90, 3 * kBulkWords, 3 * kBulkWords, fill_hash<3 * kBulkWords>,
       launch_words<bulk_store_kernel, 1, kBulkWords, kBulkWords * 4>, expect_bulk_store, 0},
      tma_load_case<2, kNone>("tma_load 2D"),
      tma_load_case<2, k32>("tma_load 2D, swizzle 32"),
      tma_load_case<3, k64>("tma_load 3D, swizzle 64"),
      tma_load_case<4, k128>("tma_load 4D, swizzle 128"),
      tma_load_case<5, k128>("tma_load 5D, swizzle 128"),
      tma_load_case<5, kNone>("tma_load 5D"),
      tma_load_case<4, kNone, 1>("tma_load 4D of bytes"),
      tma_load_case<2, k128, 2, true>("tma_load_once 2D, swizzle 128"),
      tma_load_case<4, k128, 2, true>("tma_load_once 4D, swizzle 128"),
      {"launch_overlapped", k90, kOverlapWords, 2 * kOverlapWords, fill_hash<kOverlapWords>, launch_overlap,
       expect_overlap, 0},
      tma_store_case<2, kNone>("tma_store 2D"),
      tma_store_case<3, k32>("tma_store 3D, swizzle 32"),
      tma_store_case<4, k64>("tma_store 4D, swizzle 64"),
      tma_store_case<5, k128>("tma_store 5D, swizzle 128"),
      {"elect_one", k90, 1, 64, fill_hash<1>, launch_words<elect_one_kernel, 1, 64>, expect_elect_one, 0},
      {"setmaxnreg", Needs::kOnlyHopper, 384, 384, fill_hash<384>, launch_words<setmaxnreg_kernel, 1, 384>,
       expect_setmaxnreg, 0},
      wgmma_case<B, 8, kShared, false, k128>("wgmma_m64k16 bf16 n8"),
      wgmma_case<H, 16, kShared, false, k128>("wgmma_m64k16 f16 n16"),
      wgmma_case<B, 32, kShared, false, k128>("wgmma_m64k16 bf16 n32"),
      wgmma_case<H, 64, kShared, false, k128>("wgmma_m64k16 f16 n64"),
      wgmma_case<B, 96, kShared, false, k128>("wgmma_m64k16 bf16 n96"),
      wgmma_case<H, 128, kShared, false, k128>("wgmma_m64k16 f16 n128"),
      wgmma_case<B, 192, kShared, false, k128>("wgmma_m64k16 bf16 n192"),
      wgmma_case<H, 256, kShared, false, k128>("wgmma_m64k16 f16 n256"),
      wgmma_case<H, 64, kShared, false, k64>("wgmma_m64k16 f16 n64, swizzle 64"),
      wgmma_case<B, 64, kShared, false, k32>("wgmma_m64k16 bf16 n64, swizzle 32"),
      wgmma_case<B, 64, kShared, false, kNone>("wgmma_m64k16 bf16 n64, no swizzle"),
      wgmma_case<B, 128, kShared, true, k128>("wgmma_m64k16 bf16 n128, B transposed"),
      wgmma_case<H, 64, kTransposed, true, k128>("wgmma_m64k16 f16 n64, both transposed"),
      wgmma_case<B, 64, kTransposed, true, k64>("wgmma_m64k16 bf16 n64, both transposed, swizzle 64"),
      wgmma_case<H, 32, kTransposed, true, k32>("wgmma_m64k16 f16 n32, both transposed, swizzle 32"),
      wgmma_case<B, 64, kTransposed, true, kNone>("wgmma_m64k16 bf16 n64, both transposed, no swizzle"),
      wgmma_case<B, 64, kRegisters, false, k128>("wgmma_m64k16 bf16 n64, A in registers"),
      wgmma_case<H, 128, kRegisters, true, k128>("wgmma_m64k16 f16 n128, A in registers, B transposed"),
  };
}

}  // namespace prim_cases
}  // namespace skv
