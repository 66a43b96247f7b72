// rms_norm and fused_add_rms_norm: rows of several warps, the last group partly filled, operands not aligned
// one at a time.
#include "fewer_types.h"

#include "fused_add_rms_norm.cu"
#include "rms_norm.cu"
#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

constexpr int kRows = 3;
constexpr float kEpsilon = 0.5f;

struct Shifts {
  int x, y, weight;  // y: out, or the residual
};

// Rows of x and y that lie apart by different strides; the last one ends where its buffer ends.
template <class T>
struct Rows {
  int hidden, x_stride, y_stride;
  Buffer<T> x, y, weight;
  Shifts shift;

  Rows(int n, Shifts s)
      : hidden(n),
        x_stride(n + 8 - n % 8),
        y_stride(x_stride + 8),
        x((kRows - 1) * x_stride + n + s.x),
        y((kRows - 1) * y_stride + n + s.y),
        weight(n + s.weight),
        shift(s) {
    small::fill_numbers(x, 17);
    small::fill_numbers(y, 4000);
    small::fill_numbers(weight, 9);
  }
  // Row r of `sum` normalised.
  std::vector<double> norm(const std::vector<double>& sum) const {
    double squares = 0;
    for (double v : sum) squares += v * v;
    std::vector<double> out(hidden);
    for (int i = 0; i < hidden; ++i) {
      const T* w = const_cast<Buffer<T>&>(weight).data() + shift.weight;
      out[i] = sum[i] / std::sqrt(squares / hidden + kEpsilon) * float(w[i]);
    }
    return out;
  }
};

template <class T>
void norm(DType dtype, int hidden, Shifts shift) {
  Rows<T> rows(hidden, shift);
  RmsNormParams p{};
  p.out = rows.y.data() + shift.y;
  p.out_stride = rows.y_stride;
  p.input = rows.x.data() + shift.x;
  p.input_stride = rows.x_stride;
  p.weight = rows.weight.data() + shift.weight;
  p.rows = kRows;
  p.hidden = hidden;
  p.dtype = dtype;
  p.epsilon = kEpsilon;
  std::vector<T> want = small::copy_of(rows.y);
  for (int r = 0; r < kRows; ++r) {
    std::vector<double> x(hidden);
    for (int i = 0; i < hidden; ++i) x[i] = float(rows.x[shift.x + r * rows.x_stride + i]);
    const std::vector<double> out = rows.norm(x);
    for (int i = 0; i < hidden; ++i) want[shift.y + r * rows.y_stride + i] = T(float(out[i]));
  }
  cuda::rms_norm(p, nullptr);
  for (size_t i = 0; i < want.size(); ++i)
    small::expect_close(float(rows.y[i]), float(want[i]), 4e-3f, "out");
}

template <class T>
void fused(DType dtype, int hidden, Shifts shift) {
  Rows<T> rows(hidden, shift);
  FusedAddRmsNormParams p{};
  p.input = rows.x.data() + shift.x;
  p.input_stride = rows.x_stride;
  p.residual = rows.y.data() + shift.y;
  p.residual_stride = rows.y_stride;
  p.weight = rows.weight.data() + shift.weight;
  p.rows = kRows;
  p.hidden = hidden;
  p.dtype = dtype;
  p.epsilon = kEpsilon;
  std::vector<T> want_x = small::copy_of(rows.x), want_y = small::copy_of(rows.y);
  for (int r = 0; r < kRows; ++r) {
    std::vector<double> sum(hidden);
    for (int i = 0; i < hidden; ++i) {
      T& y = want_y[shift.y + r * rows.y_stride + i];
      y = T(float(y) + float(rows.x[shift.x + r * rows.x_stride + i]));
      sum[i] = float(y);
    }
    const std::vector<double> out = rows.norm(sum);
    for (int i = 0; i < hidden; ++i) want_x[shift.x + r * rows.x_stride + i] = T(float(out[i]));
  }
  cuda::fused_add_rms_norm(p, nullptr);
  small::expect_same(rows.y, want_y, "residual");
  for (size_t i = 0; i < want_x.size(); ++i) {
    small::expect_close(float(rows.x[i]), float(want_x[i]), 4e-3f, "input");
  }
}

void norms() {
  norm<float>(DType::kFloat32, 296, {0, 0, 0});
  norm<float>(DType::kFloat32, 1301, {0, 0, 0});  // more groups than threads, and a part of one
  norm<float>(DType::kFloat32, 4500, {0, 0, 0});  // more than a thread keeps
  norm<float>(DType::kFloat32, 4501, {0, 0, 0});
  norm<__half>(DType::kFloat16, 48, {0, 0, 1});
  norm<__half>(DType::kFloat16, 48, {1, 0, 0});
  norm<__half>(DType::kFloat16, 48, {0, 1, 0});
}
void fused_norms() {
  fused<float>(DType::kFloat32, 296, {0, 0, 0});
  fused<float>(DType::kFloat32, 1301, {0, 0, 0});
  fused<float>(DType::kFloat32, 4500, {0, 0, 0});
  fused<float>(DType::kFloat32, 4501, {0, 0, 0});
  fused<__half>(DType::kFloat16, 48, {0, 0, 1});
  fused<__half>(DType::kFloat16, 48, {1, 0, 0});
  fused<__half>(DType::kFloat16, 48, {0, 1, 0});
}

}  // namespace

int main() { return small::run({norms, fused_norms}); }
