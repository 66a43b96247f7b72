// prim_hopper.cuh for nvcc, all but wgmma: inline PTX.  Contracts are stated there.
#pragma once

#include <cuda.h>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define SKV_SM90(...) __trap()
#else
#define SKV_SM90(...) asm volatile(__VA_ARGS__)
#endif
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SKV_SM90A(...) __trap()
#else
#define SKV_SM90A(...) asm volatile(__VA_ARGS__)
#endif

namespace skv {
namespace prim {

SKV_DEVICE void mbar_init(uint32_t bar, int count) {
  SKV_SM90("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
SKV_DEVICE void mbar_init_fence() { SKV_SM90("fence.mbarrier_init.release.cluster;" :: : "memory"); }
SKV_DEVICE void mbar_arrive(uint32_t bar) {
  SKV_SM90("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
SKV_DEVICE void mbar_arrive_expect_tx(uint32_t bar, int bytes) {
  SKV_SM90("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
SKV_DEVICE bool mbar_try_wait(uint32_t bar, int parity) {
  uint32_t done = 0;
  SKV_SM90(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
  return done != 0;
}
SKV_DEVICE void mbar_wait(uint32_t bar, int parity) {
  while (!mbar_try_wait(bar, parity)) {
  }
}
SKV_DEVICE void fence_proxy_async() { SKV_SM90("fence.proxy.async.shared::cta;" :: : "memory"); }

SKV_DEVICE void bulk_load(uint32_t dst, const void* src, int bytes, uint32_t bar) {
  SKV_SM90(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
      "l"(src), "r"(bytes), "r"(bar) : "memory");
}
SKV_DEVICE void bulk_store(void* dst, uint32_t src, int bytes) {
  SKV_SM90("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(src),
           "r"(bytes) : "memory");
}
SKV_DEVICE void bulk_commit() { SKV_SM90("cp.async.bulk.commit_group;" :: : "memory"); }
template <int kPending>
SKV_DEVICE void bulk_wait() {
  SKV_SM90("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}
template <int kPending>
SKV_DEVICE void bulk_wait_read() {
  SKV_SM90("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

#define SKV_TMA_LOAD(rank, coordinates, ...)                                                     \
  SKV_SM90("cp.async.bulk.tensor." rank                                                          \
           "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" coordinates \
           "}], [%2];" ::"r"(dst),                                                               \
           "l"(map), "r"(bar), __VA_ARGS__ : "memory")
template <int kRank>
SKV_DEVICE void tma_load(uint32_t dst, const TensorMap* map, uint32_t bar, const int (&at)[kRank]) {
  static_assert(kRank >= 2 && kRank <= 5, "tensors of 2 to 5 dimensions");
  if constexpr (kRank == 2) {
    SKV_TMA_LOAD("2", "%3, %4", "r"(at[0]), "r"(at[1]));
  } else if constexpr (kRank == 3) {
    SKV_TMA_LOAD("3", "%3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  } else if constexpr (kRank == 4) {
    SKV_TMA_LOAD("4", "%3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  } else {
    SKV_TMA_LOAD("5", "%3, %4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
  }
}
#undef SKV_TMA_LOAD

#define SKV_TMA_LOAD_ONCE(rank, coordinates, ...)                                        \
  SKV_SM90(                                                                              \
      "{\n.reg .b64 policy;\ncreatepolicy.fractional.L2::evict_first.b64 policy, 1.0;\n" \
      "cp.async.bulk.tensor." rank                                                       \
      "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "       \
      "[%0], [%1, {" coordinates "}], [%2], policy;\n}" ::"r"(dst),                      \
      "l"(map), "r"(bar), __VA_ARGS__ : "memory")
template <int kRank>
SKV_DEVICE void tma_load_once(uint32_t dst, const TensorMap* map, uint32_t bar, const int (&at)[kRank]) {
  static_assert(kRank == 2 || kRank == 4, "what kernels use");
  if constexpr (kRank == 2) {
    SKV_TMA_LOAD_ONCE("2", "%3, %4", "r"(at[0]), "r"(at[1]));
  } else {
    SKV_TMA_LOAD_ONCE("4", "%3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  }
}
#undef SKV_TMA_LOAD_ONCE

#define SKV_TMA_STORE(rank, coordinates, ...)                                                     \
  SKV_SM90("cp.async.bulk.tensor." rank "d.global.shared::cta.tile.bulk_group [%0, {" coordinates \
           "}], [%1];" ::"l"(map),                                                                \
           "r"(src), __VA_ARGS__ : "memory")
template <int kRank>
SKV_DEVICE void tma_store(const TensorMap* map, uint32_t src, const int (&at)[kRank]) {
  static_assert(kRank >= 2 && kRank <= 5, "tensors of 2 to 5 dimensions");
  if constexpr (kRank == 2) {
    SKV_TMA_STORE("2", "%2, %3", "r"(at[0]), "r"(at[1]));
  } else if constexpr (kRank == 3) {
    SKV_TMA_STORE("3", "%2, %3, %4", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  } else if constexpr (kRank == 4) {
    SKV_TMA_STORE("4", "%2, %3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  } else {
    SKV_TMA_STORE("5", "%2, %3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]));
  }
}
#undef SKV_TMA_STORE

SKV_DEVICE void prefetch_tensor_map(const TensorMap* map) {
  SKV_SM90("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

SKV_DEVICE bool elect_one() {
  uint32_t elected = 0;
  SKV_SM90("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}
template <int kRegisters>
SKV_DEVICE void setmaxnreg_inc() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "a multiple of 8, 24 to 256");
  SKV_SM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
SKV_DEVICE void setmaxnreg_dec() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "a multiple of 8, 24 to 256");
  SKV_SM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// The driver's encoder is looked up at run time: nothing links against libcuda.
inline TensorMap make_tensor_map(const TensorMapSpec& spec) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                           &found),
          "cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess)
      throw std::runtime_error("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(function);
  }();
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap), "");
  const CUtensorMapDataType type = spec.element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                   : spec.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                                             : CU_TENSOR_MAP_DATA_TYPE_UINT32;
  const CUtensorMapSwizzle swizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                         CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_32B};
  cuuint64_t size[5], strides[5];
  cuuint32_t box[5], ones[5] = {1, 1, 1, 1, 1};
  for (int i = 0; i < spec.rank; ++i) {
    size[i] = spec.size[i];
    box[i] = spec.box[i];
    if (i) strides[i - 1] = spec.stride_bytes[i];
  }
  TensorMap map;
  const CUresult error =
      encode(reinterpret_cast<CUtensorMap*>(&map), type, cuuint32_t(spec.rank), const_cast<void*>(spec.base),
             size, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzles[int(spec.swizzle)],
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(int(error)));
  }
  return map;
}

}  // namespace prim
}  // namespace skv
