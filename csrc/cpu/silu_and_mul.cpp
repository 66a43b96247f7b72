// silu_and_mul on the CPU: threads over rows, every element by itself.
#include "attention_math.h"
#include "norm_row.h"

namespace skv::cpu::SKV_ISA {

namespace {

// x / (1 + e^-x), through e^-|x|, which is at most 1 whatever x is.
Vec silu(Vec x) {
  const Vec e = exp_of(sub(zero(), absolute(x)));
  return mul(x, divide(select_less(x, zero(), e, splat(1.0f)), add(splat(1.0f), e)));
}

template <class T>
void silu_row(T* out, const T* gate, const T* up, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, mul(silu(load(gate + i)), load(up + i)));
  for (; i < n; ++i) {
    alignas(64) float lane[kLanes];
    store(lane, silu(splat(to_float(gate[i]))));
    out[i] = from_float<T>(lane[0] * to_float(up[i]));
  }
}

}  // namespace

void silu_and_mul(const SiluAndMulParams& p, const Parallel& pool) {
  with_float_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    pool.for_each(p.rows, row_grain(p.size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* gate = static_cast<const T*>(p.input) + r * p.input_stride;
        silu_row(static_cast<T*>(p.out) + r * p.out_stride, gate, gate + p.size, p.size);
      }
    });
  });
}

}  // namespace skv::cpu::SKV_ISA
