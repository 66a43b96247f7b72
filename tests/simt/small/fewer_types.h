// Before a .cu whose kernels are made for every type of numbers: only those of float and half, half the time
// to compile.
#pragma once

#include "common.cuh"

namespace skv {
namespace cuda {

template <class F>
void by_float_or_half(DType dtype, F f) {
  dtype == DType::kFloat16 ? f(Tag<__half>{}) : f(Tag<float>{});
}

}  // namespace cuda
}  // namespace skv

#define by_float_type by_float_or_half
