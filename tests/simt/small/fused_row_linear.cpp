// fused_row_linear: on a device of sm_90 in one launch, elsewhere step by step, with the same bits; those
// against a plain computation.  Rows and columns that fill no unit, k of less and more than a chunk, rows of
// any stride, and NaN wherever nothing may be read.
#include "fewer_types.h"

#include "fused_row_linear.cu"
#include "rms_norm.cu"
#include "row_linear.cu"
#include "silu_and_mul.cu"

#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

struct Shape {
  int rows, n, k;
  bool norm, silu, add, bias;
  int x_gap = 8, weight_gap = 8, norm_shift = 0;  // elements between rows; that norm_weight begins later
};
constexpr DType kType = DType::kFloat16;
constexpr float kEpsilon = 0.125f;

struct Call {
  Shape s;
  int columns, x_stride, weight_stride, out_stride;
  Buffer<__half> x, weight, norm_weight, bias;
  std::vector<__half> before;  // what out holds

  explicit Call(const Shape& shape)
      : s(shape),
        columns(s.silu ? s.n / 2 : s.n),
        x_stride(s.k + s.x_gap),
        weight_stride(s.k + s.weight_gap),
        out_stride(columns + 3),
        x(size_t(s.rows - 1) * x_stride + s.k),
        weight(size_t(s.n - 1) * weight_stride + s.k),
        norm_weight(size_t(s.k) + s.norm_shift),
        bias(s.n) {
    for (int r = 0; r < s.rows; ++r) {
      for (int k = 0; k < s.k; ++k) x[r * x_stride + k] = __half(small::number(r * 1000 + k));
    }
    for (int j = 0; j < s.n; ++j) {
      for (int k = 0; k < s.k; ++k) {
        weight[j * weight_stride + k] = __half(small::number(777777 + j * 1000 + k) / 8);
      }
      bias[j] = __half(small::number(j) / 3);
    }
    for (int k = 0; k < s.k; ++k) norm_weight[k + s.norm_shift] = __half(small::number(k + 55) / 3);
    before.resize(size_t(s.rows - 1) * out_stride + columns);
    for (size_t i = 0; i < before.size(); ++i) before[i] = __half(small::number(i + 5));
  }

  // What the op writes on a device of this capability, and whether it needed memory for that.
  std::vector<__half> run(int capability, bool& has_steps) {
    simt::set_compute_capability(capability);
    Buffer<__half> out(before.size());
    small::set(out, before);
    FusedRowLinearParams p{};
    p.linear.out = out.data();
    p.linear.out_stride = out_stride;
    p.linear.dtype = p.linear.out_dtype = kType;
    p.linear.x = x.data();
    p.linear.x_stride = x_stride;
    p.linear.weight = weight.data();
    p.linear.weight_stride = weight_stride;
    p.linear.bias = s.bias ? bias.data() : nullptr;
    p.linear.rows = s.rows;
    p.linear.n = s.n;
    p.linear.k = s.k;
    p.norm_weight = s.norm ? norm_weight.data() + s.norm_shift : nullptr;
    p.epsilon = kEpsilon;
    p.silu_and_mul = s.silu;
    p.add = s.add;
    p.workspace_size = cuda::fused_row_linear_workspace(p);
    has_steps = p.workspace_size > 0;
    Buffer<char> workspace(size_t(p.workspace_size + 1));
    p.workspace = workspace.data();
    cuda::fused_row_linear(p, nullptr);
    simt::set_compute_capability(80);
    return small::copy_of(out);
  }

  double exact(int r, int column) {
    std::vector<double> row(s.k);
    double squares = 0;
    for (int k = 0; k < s.k; ++k) squares += double(x[r * x_stride + k]) * double(x[r * x_stride + k]);
    for (int k = 0; k < s.k; ++k) {
      row[k] = double(x[r * x_stride + k]);
      if (s.norm) row[k] *= double(norm_weight[k + s.norm_shift]) / std::sqrt(squares / s.k + kEpsilon);
    }
    const auto product = [&](int j) {
      double sum = s.bias ? double(bias[j]) : 0;
      for (int k = 0; k < s.k; ++k) sum += row[k] * double(weight[j * weight_stride + k]);
      return sum;
    };
    double v = product(column);
    if (s.silu) v = v / (1 + std::exp(-v)) * product(column + columns);
    return s.add ? v + double(before[size_t(r) * out_stride + column]) : v;
  }
};

void fuse(const Shape& s, bool in_one_launch = true) {
  Call call(s);
  bool has_steps = false;
  const std::vector<__half> steps = call.run(80, has_steps), want = steps;
  for (int r = 0; r < s.rows; ++r) {
    for (int c = 0; c < call.columns; ++c) {
      const float exact = float(call.exact(r, c));
      small::expect_close(float(steps[size_t(r) * call.out_stride + c]), exact,
                          0.02f + 0.01f * std::fabs(exact), "steps");
    }
    for (int c = call.columns; c < call.out_stride && r + 1 < s.rows; ++c) {
      const size_t i = size_t(r) * call.out_stride + c;
      small::expect(!std::memcmp(&steps[i], &call.before[i], 2), "steps wrote past a row");
    }
  }
  std::vector<__half> got = call.run(90, has_steps);
  small::expect(has_steps != in_one_launch, "takes the other way");
  for (size_t i = 0; i < got.size(); ++i) {
    small::expect(!std::memcmp(&got[i], &want[i], 2), "one launch, element " + std::to_string(i));
  }
}

void norms() {
  fuse({1, 34, 64, true, false, false, false});
  fuse({8, 18, 320, true, false, true, true});   // of the second chunk a part
  fuse({3, 9, 2112, true, false, false, true});  // more pieces than rms_norm has threads for
}
void activates() {
  fuse({5, 38, 576, true, true, false, true});   // half a group past the last warp's columns
  fuse({8, 1160, 64, true, true, true, false});  // several units a CTA, the last one not full
  fuse({2, 30, 128, true, true, false, true, 0, 0});
}
void adds() {
  fuse({3, 38, 328, false, false, true, true});
  fuse({17, 459, 72, false, false, true, false});  // two units for some CTAs, rows in two steps
}
void what_is_done_in_steps() {
  fuse({9, 16, 64, true, false, false, false}, false);
  fuse({2, 16, 72, true, true, false, false}, false);            // no whole box
  fuse({2, 16, 64, true, false, false, false, 8, 8, 1}, false);  // a weight of the norm anywhere
  fuse({2, 16, 64, true, false, true, false, 7}, false);         // rows anywhere
  fuse({4, 8, 16000, true, false, false, false}, false);         // rows that do not fit
  fuse({2, 16, 64, false, true, true, true}, false);
}

// Rows of out and of the input, and columns of the weight, further apart than 32 bits count.
void far_apart() {
  const int64_t stride = (int64_t(1) << 31) + 64;
  small::Sparse<__half> x(stride + 64), weight(stride + 64), out(stride + 64);
  Buffer<__half> norm_weight(64);
  Buffer<char> workspace(4096);
  for (int i = 0; i < 64; ++i) {
    x[i] = x[stride + i] = weight[i] = weight[stride + i] = norm_weight[i] = __half(small::number(i));
  }
  FusedRowLinearParams p{};
  p.linear = {out.data(), stride, kType,   x.data(), stride, kType, weight.data(),
              stride,     false,  nullptr, 2,        2,      64};
  p.norm_weight = norm_weight.data();
  p.epsilon = kEpsilon;
  p.add = true;
  p.workspace = workspace.data();
  double squares = 0, sum = 0;
  for (int i = 0; i < 64; ++i) squares += double(x[i]) * double(x[i]);
  for (int i = 0; i < 64; ++i) {
    sum += double(x[i]) * double(norm_weight[i]) * double(weight[i]) / std::sqrt(squares / 64 + kEpsilon);
  }
  for (int capability : {80, 90}) {
    simt::set_compute_capability(capability);
    for (int64_t at : {int64_t(0), int64_t(1), stride, stride + 1}) out[at] = __half(1.f);
    p.workspace_size = cuda::fused_row_linear_workspace(p);
    cuda::fused_row_linear(p, nullptr);
    simt::set_compute_capability(80);
    for (int64_t at : {int64_t(0), int64_t(1), stride, stride + 1}) {
      small::expect_close(float(out[at]), float(sum) + 1, 0.02f * float(std::fabs(sum)) + 0.02f,
                          "far apart: element " + std::to_string(at));
    }
  }
}

}  // namespace

int main() { return small::run({norms, activates, adds, what_is_done_in_steps, far_apart}, 2); }
