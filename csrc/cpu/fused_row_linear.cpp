// fused_row_linear on the CPU: the ops it stands for, one after another. A row stays in the cache between
// them, and a launch costs nothing that would be worth a kernel of its own.
#include "../core/fused_row_linear.h"

#include "../core/backend.h"
#include "norm_row.h"

namespace skv::cpu::SKV_ISA {

namespace {

struct Steps {
  const Parallel& pool;

  // Of the chosen instruction set, which may be a newer one than this file's.
  void operator()(const RmsNormParams& p) const { cpu::rms_norm(p, pool); }
  void operator()(const RowLinearParams& p) const { cpu::row_linear(p, pool); }
  void operator()(const SiluAndMulParams& p) const { cpu::silu_and_mul(p, pool); }

  void operator()(const AddRowsParams& p) const {
    with_float_type(p.dtype, [&](auto zero) {
      using T = decltype(zero);
      pool.for_each(p.rows, row_grain(p.columns), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          add_row(static_cast<T*>(p.out) + r * p.out_stride, static_cast<const T*>(p.x) + r * p.columns,
                  p.columns);
        }
      });
    });
  }
};

}  // namespace

void fused_row_linear(const FusedRowLinearParams& p, const Parallel& pool) {
  run_fused_row_linear(p, Steps{pool});
}

}  // namespace skv::cpu::SKV_ISA
