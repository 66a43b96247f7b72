// rms_norm on the CPU: threads over rows, one row at a time (norm_row.h).
#include "norm_row.h"

namespace skv::cpu::SKV_ISA {

void rms_norm(const RmsNormParams& p, const Parallel& pool) {
  with_float_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    pool.for_each(p.rows, row_grain(p.hidden), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        norm_row(static_cast<T*>(p.out) + r * p.out_stride,
                 static_cast<const T*>(p.input) + r * p.input_stride, static_cast<const T*>(p.weight),
                 p.hidden, p.epsilon);
      }
    });
  });
}

}  // namespace skv::cpu::SKV_ISA
