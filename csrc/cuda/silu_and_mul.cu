// silu_and_mul's launcher: 16-byte vectors where every row is aligned to them, single elements otherwise.
#include "silu_and_mul.cuh"

namespace skv {
namespace cuda {

void silu_and_mul(const SiluAndMulParams& p, void* stream) {
  if (p.rows == 0 || p.size == 0) return;
  by_float_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kCount = 16 / int(sizeof(T));
    const bool wide = p.size % kCount == 0 && aligned(p.out, sizeof(T), {p.out_stride}, 16) &&
                      aligned(p.input, sizeof(T), {p.input_stride}, 16);
    const auto kernel = wide ? silu_and_mul_kernel<T, kCount> : silu_and_mul_kernel<T, 1>;
    const dim3 grid(unsigned(p.rows), ceil_div(p.size, int64_t(kSiluThreads) * (wide ? kCount : 1)));
    prim::launch_overlapped(kernel, grid, kSiluThreads, 0, static_cast<cudaStream_t>(stream), p);
  });
}

}  // namespace cuda
}  // namespace skv
