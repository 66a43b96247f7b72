// silu_and_mul: rows longer than one CTA takes, aligned and not.
#include "fewer_types.h"

#include "silu_and_mul.cu"

#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

template <class T>
void silu(DType dtype, int size, int in_shift, int out_shift) {
  constexpr int kRows = 3;
  const int in_stride = 2 * size + 16 - 2 * size % 8, out_stride = size + 8 - size % 8;
  Buffer<T> in((kRows - 1) * in_stride + 2 * size + in_shift),
      out((kRows - 1) * out_stride + size + out_shift);
  small::fill_numbers(in, 31);
  std::vector<T> want = small::copy_of(out);
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < size; ++i) {
      const double g = float(in[in_shift + r * in_stride + i]),
                   up = float(in[in_shift + r * in_stride + size + i]);
      want[out_shift + r * out_stride + i] = T(float(g / (1 + std::exp(-g)) * up));
    }
  }
  SiluAndMulParams p{};
  p.out = out.data() + out_shift;
  p.out_stride = out_stride;
  p.input = in.data() + in_shift;
  p.input_stride = in_stride;
  p.rows = kRows;
  p.size = size;
  p.dtype = dtype;
  cuda::silu_and_mul(p, nullptr);
  for (size_t i = 0; i < want.size(); ++i) small::expect_close(float(out[i]), float(want[i]), 4e-3f, "out");
}

void vectors() {
  silu<float>(DType::kFloat32, 1064, 0, 0);
}  // the last CTA of a row has work for ten threads
void odd() { silu<float>(DType::kFloat32, 259, 0, 0); }
void unaligned_input() { silu<__half>(DType::kFloat16, 64, 1, 0); }
void unaligned_output() { silu<__half>(DType::kFloat16, 64, 0, 1); }

}  // namespace

int main() { return small::run({vectors, odd, unaligned_input, unaligned_output}); }
