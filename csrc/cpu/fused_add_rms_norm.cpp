// fused_add_rms_norm on the CPU: threads over rows. The sum is rounded to the residual's dtype, and it is
// that what the norm sees.
#include "norm_row.h"

namespace skv::cpu::SKV_ISA {

void fused_add_rms_norm(const FusedAddRmsNormParams& p, const Parallel& pool) {
  with_float_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    pool.for_each(p.rows, row_grain(p.hidden), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        T* input = static_cast<T*>(p.input) + r * p.input_stride;
        T* residual = static_cast<T*>(p.residual) + r * p.residual_stride;
        add_row(residual, input, p.hidden);
        norm_row(input, residual, static_cast<const T*>(p.weight), p.hidden, p.epsilon);
      }
    });
  });
}

}  // namespace skv::cpu::SKV_ISA
