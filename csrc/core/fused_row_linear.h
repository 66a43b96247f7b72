// fused_row_linear as the ops that it stands for, one after another, through the workspace: both backends
// where they have nothing better.
#pragma once

#include "params.h"

namespace skv {

struct AddRowsParams {
  void* out;  // [rows, columns] of dtype
  int64_t out_stride;
  const void* x;  // [rows, columns], contiguous
  int64_t rows, columns;
  DType dtype;
};

// What lies in the workspace, in bytes from its beginning.
struct FusedRowLinearMemory {
  int64_t product = 0, activated = 0, size = 0;  // the normalised rows are the first

  explicit FusedRowLinearMemory(const FusedRowLinearParams& p) {
    const auto take = [&](int64_t columns) {
      size += (p.linear.rows * columns * element_size(p.linear.dtype) + 63) / 64 * 64;
    };
    if (p.norm_weight) take(p.linear.k);
    product = size;
    if (p.silu_and_mul || p.add) take(p.linear.n);
    activated = size;
    if (p.silu_and_mul && p.add) take(p.linear.n / 2);
  }
};

// run: takes RmsNormParams, RowLinearParams, SiluAndMulParams and AddRowsParams.
template <class Run>
void run_fused_row_linear(const FusedRowLinearParams& p, const Run& run) {
  const FusedRowLinearMemory memory(p);
  const auto at = [&](int64_t offset) { return static_cast<char*>(p.workspace) + offset; };
  RowLinearParams linear = p.linear;
  if (p.norm_weight) {
    run(RmsNormParams{at(0), linear.k, linear.x, linear.x_stride, p.norm_weight, linear.rows, linear.k,
                      linear.dtype, p.epsilon});
    linear.x = at(0);
    linear.x_stride = linear.k;
  }
  if (!p.silu_and_mul && !p.add) return run(linear);
  linear.out = at(memory.product);
  linear.out_stride = linear.n;
  run(linear);
  const void* product = linear.out;
  int64_t columns = linear.n;
  if (p.silu_and_mul) {
    columns /= 2;
    void* to = p.add ? at(memory.activated) : p.linear.out;
    run(SiluAndMulParams{to, p.add ? columns : p.linear.out_stride, product, linear.n, linear.rows, columns,
                         linear.dtype});
    product = to;
  }
  if (p.add)
    run(AddRowsParams{p.linear.out, p.linear.out_stride, product, linear.rows, columns, linear.dtype});
}

}  // namespace skv
