// rms_norm's launcher: 16-byte vectors where every row is aligned to them, single elements otherwise.
#include "rms_norm.cuh"

namespace skv {
namespace cuda {

void rms_norm(const RmsNormParams& p, void* stream) {
  if (p.rows == 0 || p.hidden == 0) return;
  by_float_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool wide = p.hidden % kGroup<T> == 0 && aligned(p.out, sizeof(T), {p.out_stride}, 16) &&
                      aligned(p.input, sizeof(T), {p.input_stride}, 16) &&
                      aligned(p.weight, sizeof(T), {}, 16);
    const auto kernel = wide ? rms_norm_kernel<T, true> : rms_norm_kernel<T, false>;
    prim::launch_overlapped(kernel, dim3(unsigned(p.rows)), norm_threads<T>(p.hidden), 0,
                            static_cast<cudaStream_t>(stream), p);
  });
}

}  // namespace cuda
}  // namespace skv
