// pack_linear_weight's launcher: 16-byte vectors where every column of the weight is aligned to them, single
// elements otherwise.
#include "pack_linear_weight.cuh"

namespace skv {
namespace cuda {

void pack_linear_weight(const PackLinearWeightParams& p, void* stream) {
  if (p.n == 0 || p.k == 0) return;
  by_element_size(p.dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    if constexpr (sizeof(U) > 1) {
      constexpr int kCount = 16 / int(sizeof(U));
      const bool wide = p.k % kCount == 0 && aligned(p.packed, sizeof(U), {}, 16) &&
                        aligned(p.weight, sizeof(U), {p.weight_stride}, 16);
      const int64_t threads = p.n * padded_k(p.dtype, p.k) / (wide ? kCount : 1);
      const auto kernel = wide ? pack_linear_weight_kernel<U, kCount> : pack_linear_weight_kernel<U, 1>;
      prim::launch(kernel, dim3(ceil_div(threads, kPackThreads)), kPackThreads, 0,
                   static_cast<cudaStream_t>(stream), p);
    }
  });
}

}  // namespace cuda
}  // namespace skv
