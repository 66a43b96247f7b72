// Hopper's part of planted_bugs.cpp: three kernels that are right with Drop::kNothing.
#include "prim_hopper.cuh"
#include "test_emulator.h"

namespace {

namespace prim = skv::prim;

enum class Drop {
  kNothing,
  kFullWait,       // the consumer does not wait for the copy
  kEarlyRelease,   // the consumer hands the stage back before it has read it
  kEmptyWait,      // the producer does not wait for the stage
  kBytes,          // more bytes are expected than come
  kBarrierInit,    // others may use the mbarrier before it is initialised
  kLastWait,       // the CTA ends while a copy is in flight
  kBarrierMemory,  // something is written over the mbarrier
  kProxyFence,
  kProxyFenceOrder,  // the fence comes after the barrier, on threads that issue nothing
  kReadWait,
  kWgmmaFence,
  kWgmmaWait,
  kWgmmaEarlyReuse,
  kWgmmaWarp,  // one warp of four leaves out its part
};

// One thread copies four pieces through two stages, a warp takes them out.
template <Drop kDrop>
__global__ void pipeline(PlantedParams p) {
  SKV_DYNAMIC_SMEM(smem);
  SKV_SHARED(bars, uint64_t[4]);
  const uint32_t full = prim::smem_u32(bars), empty = full + 16;
  const int lane = int(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < 2; ++s) {
      prim::mbar_init(full + 8 * s, 1);
      prim::mbar_init(empty + 8 * s, 32);
    }
    prim::mbar_init_fence();
  }
  if (kDrop != Drop::kBarrierInit) __syncthreads();
  if (threadIdx.x < 32) {
    for (int i = 0; i < 4 && lane == 0; ++i) {
      const int s = i % 2;
      if (i >= 2 && kDrop != Drop::kEmptyWait) prim::mbar_wait(empty + 8 * s, 0);
      prim::mbar_arrive_expect_tx(full + 8 * s, 128 + 16 * (kDrop == Drop::kBytes));
      prim::bulk_load(prim::smem_u32(smem + 128 * s), p.data + 32 * i, 128, full + 8 * s);
    }
    return;
  }
  const int* words = reinterpret_cast<const int*>(smem);
  for (int i = 0; i < 4 - (kDrop == Drop::kLastWait); ++i) {
    const int s = i % 2;
    if (kDrop != Drop::kFullWait) prim::mbar_wait(full + 8 * s, i / 2);
    if (kDrop == Drop::kEarlyRelease) prim::mbar_arrive(empty + 8 * s);
    __syncwarp();
    const int got = words[32 * s + 31 - lane];
    p.data[32 * i + lane] = got;
    if (kDrop == Drop::kBarrierMemory && lane == 0) bars[s + 2] = 0;
    if (kDrop != Drop::kEarlyRelease) prim::mbar_arrive(empty + 8 * s);
  }
}

// Twice: all threads fill a buffer, one copies it out.
template <Drop kDrop>
__global__ void store(PlantedParams p) {
  SKV_DYNAMIC_SMEM(smem);
  int* words = reinterpret_cast<int*>(smem);
  for (int i = 0; i < 2; ++i) {
    words[threadIdx.x] = kDrop == Drop::kReadWait ? i : 0;
    if (kDrop != Drop::kProxyFence && kDrop != Drop::kProxyFenceOrder) prim::fence_proxy_async();
    __syncthreads();
    if (kDrop == Drop::kProxyFenceOrder && threadIdx.x >= 32) prim::fence_proxy_async();
    if (threadIdx.x == 0) {
      prim::bulk_store(p.data + (kDrop == Drop::kReadWait ? 0 : 64 * i), prim::smem_u32(smem), 256);
      prim::bulk_commit();
      if (kDrop != Drop::kReadWait) prim::bulk_wait_read<0>();
    }
    __syncthreads();
    if (kDrop == Drop::kReadWait && i == 0) words[threadIdx.x] = 1;
    if (kDrop == Drop::kReadWait) break;
  }
  if (threadIdx.x == 0) prim::bulk_wait<0>();
}

// A product of zeros.
template <Drop kDrop>
__global__ void product(PlantedParams p) {
  SKV_DYNAMIC_SMEM(smem);
  int* words = reinterpret_cast<int*>(smem);
  for (int i = int(threadIdx.x); i < 3072; i += 128) words[i] = 0;
  if (kDrop != Drop::kProxyFence) prim::fence_proxy_async();
  __syncthreads();
  float d[16];
  for (float& x : d) x = 3.f;
  const uint64_t a = prim::matrix_descriptor(prim::smem_u32(smem), 0, 1024, prim::Swizzle::k128Bytes);
  const uint64_t b = prim::matrix_descriptor(prim::smem_u32(smem) + 8192, 0, 1024, prim::Swizzle::k128Bytes);
  if (kDrop == Drop::kWgmmaWarp && threadIdx.x < 32) return;
  if (kDrop != Drop::kWgmmaFence) prim::wgmma_fence();
  prim::wgmma_m64k16<__half, 32>(d, a, b, false);
  prim::wgmma_commit();
  if (kDrop == Drop::kWgmmaEarlyReuse) {
    __syncthreads();
    words[threadIdx.x] = 0x3c003c00;
    words[2048 + threadIdx.x] = 0x3c003c00;
  }
  if (kDrop != Drop::kWgmmaWait) prim::wgmma_wait<0>();
  p.data[threadIdx.x] = d[0] != 0.f;
  if (kDrop == Drop::kWgmmaWait) prim::wgmma_wait<0>();
}

}  // namespace

const std::vector<PlantedBug>& planted_bugs_hopper() {
  static const std::vector<PlantedBug> bugs = {
      {"hopper_pipeline", pipeline<Drop::kNothing>, 1, 64, 256},
      {"hopper_store", store<Drop::kNothing>, 1, 64, 256},
      {"hopper_product", product<Drop::kNothing>, 1, 128, 12288},
      {"bulk_no_full_wait", pipeline<Drop::kFullWait>, 1, 64, 256},
      {"bulk_early_release", pipeline<Drop::kEarlyRelease>, 1, 64, 256},
      {"bulk_no_empty_wait", pipeline<Drop::kEmptyWait>, 1, 64, 256},
      {"bulk_wrong_bytes", pipeline<Drop::kBytes>, 1, 64, 256},
      {"mbarrier_not_initialised", pipeline<Drop::kBarrierInit>, 1, 64, 256},
      {"bulk_never_awaited", pipeline<Drop::kLastWait>, 1, 64, 256},
      {"mbarrier_overwritten", pipeline<Drop::kBarrierMemory>, 1, 64, 256},
      {"store_no_proxy_fence", store<Drop::kProxyFence>, 1, 64, 256},
      {"store_late_proxy_fence", store<Drop::kProxyFenceOrder>, 1, 64, 256},
      {"store_no_read_wait", store<Drop::kReadWait>, 1, 64, 256},
      {"wgmma_no_proxy_fence", product<Drop::kProxyFence>, 1, 128, 12288},
      {"wgmma_no_fence", product<Drop::kWgmmaFence>, 1, 128, 12288},
      {"wgmma_no_wait", product<Drop::kWgmmaWait>, 1, 128, 12288},
      {"wgmma_early_reuse", product<Drop::kWgmmaEarlyReuse>, 1, 128, 12288},
      {"wgmma_missing_warp", product<Drop::kWgmmaWarp>, 1, 128, 12288},
  };
  return bugs;
}
