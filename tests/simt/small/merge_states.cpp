// merge_states: three tokens, two heads, in place; a state that saw nothing holds NaN.
#include "merge_states.cu"

#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

template <class T>
void merge(DType dtype, int head_dim, int shift) {
  constexpr int kTokens = 3, kHeads = 2;
  const int head_stride = head_dim + 8, token_stride = kHeads * head_stride + 8;
  Buffer<T> a(kTokens * token_stride), b(kTokens * token_stride + shift);
  Buffer<float> lse_a(kHeads * 4), lse_b(kHeads * kTokens);
  small::fill_numbers(a, 5);
  small::fill_numbers(b, 700);
  for (int i = 0; i < kHeads * 4; ++i) lse_a[i] = small::number(40 + i);
  for (int i = 0; i < kHeads * kTokens; ++i) lse_b[i] = small::number(60 + i);
  lse_a[1] = -INFINITY;  // token 1, head 0
  for (int d = 0; d < head_dim; ++d) a[token_stride + d] = T(NAN);
  lse_b[kTokens + 2] = -INFINITY;  // token 2, head 1
  for (int d = 0; d < head_dim; ++d) b[2 * token_stride + head_stride + d + shift] = T(NAN);

  std::vector<T> want = small::copy_of(a);
  std::vector<float> want_lse = small::copy_of(lse_a);
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < kHeads; ++h) {
      const double x = lse_a[h * 4 + t], y = lse_b[h * kTokens + t], sum = std::exp(x) + std::exp(y);
      want_lse[h * 4 + t] = float(std::log(sum));
      for (int d = 0; d < head_dim; ++d) {
        const int at = t * token_stride + h * head_stride + d;
        double out = 0;
        if (x > -INFINITY) out += std::exp(x) / sum * double(float(a[at]));
        if (y > -INFINITY) out += std::exp(y) / sum * double(float(b[at + shift]));
        want[at] = T(float(out));
      }
    }
  }

  MergeStatesParams p{};
  p.out = p.out_a = {a.data(), token_stride, head_stride};
  p.out_b = {b.data() + shift, token_stride, head_stride};
  p.dtype = dtype;
  p.lse = lse_a.data();
  p.lse_a = lse_a.data();
  p.lse_b = lse_b.data();
  p.lse_stride = p.lse_a_stride = 4;
  p.lse_b_stride = kTokens;
  p.total_q = kTokens;
  p.num_heads = kHeads;
  p.head_dim = head_dim;
  cuda::merge_states(p, nullptr);
  for (size_t i = 0; i < want.size(); ++i) small::expect_close(float(a[i]), float(want[i]), 0.01f, "out");
  for (size_t i = 0; i < want_lse.size(); ++i) {
    if (i % 4 < kTokens) small::expect_close(lse_a[i], want_lse[i], 1e-5f, "lse");
  }
}

void vectors() { merge<__half>(DType::kFloat16, 40, 0); }
void elements() { merge<float>(DType::kFloat32, 24, 1); }

}  // namespace

int main() { return small::run({vectors, elements}); }
