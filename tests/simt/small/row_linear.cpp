// row_linear and pack_linear_weight: every tiling and the kernel of sm_90, k that ends within a block, a
// stage and a chunk, plain weights of any stride and packed ones, rows and columns past a tile; NaN wherever
// nothing may be read.
#include "row_linear.cu"

#include "pack_linear_weight.cu"
#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

struct Shape {
  int rows, n, k;
  int x_shift, weight_shift, out_shift;  // elements that the tensors begin later than aligned memory
  int gap;                               // between rows, beyond whole 16 bytes
  bool packed, wide, bias;
};

// The emulated device is one of sm_90, where few rows stream.
struct OnHopper {
  OnHopper() { simt::set_compute_capability(90); }
  ~OnHopper() { simt::set_compute_capability(80); }
};

// Every sum is exact in float32, whatever its order; the fused bias and one rounding are not.
template <class T, class Out>
void multiply(DType dtype, DType out_dtype, const Shape& s) {
  const int per16 = 16 / int(sizeof(T)), pad = (s.k + per16 - 1) / per16 * per16 + s.gap;
  const int x_stride = pad + 2 * per16, weight_stride = pad, out_stride = s.n + s.n % 2 + 2 + s.gap;
  const int64_t pitch = (s.k + linear_pair(dtype) - 1) / linear_pair(dtype) * linear_pair(dtype);
  Buffer<T> x(size_t(s.x_shift) + (s.rows - 1) * x_stride + s.k);
  Buffer<T> weight(size_t(s.weight_shift) + (s.n - 1) * weight_stride + s.k), packed(size_t(s.n * pitch));
  Buffer<T> bias(s.n);
  Buffer<Out> out(size_t(s.out_shift) + (s.rows - 1) * out_stride + s.n);
  for (int r = 0; r < s.rows; ++r) {
    for (int k = 0; k < s.k; ++k) x[s.x_shift + r * x_stride + k] = T(small::number(r * 1000 + k));
  }
  for (int j = 0; j < s.n; ++j) {
    for (int k = 0; k < s.k; ++k) {
      weight[s.weight_shift + j * weight_stride + k] = T(small::number(7777777 + j * 1000 + k));
    }
    bias[j] = T(small::number(j) / 3);
  }
  std::vector<Out> want = small::copy_of(out);
  std::vector<float> row(s.k), columns(size_t(s.n) * s.k);
  for (int i = 0; i < s.n * s.k; ++i) {
    columns[i] = float(weight[s.weight_shift + i / s.k * weight_stride + i % s.k]);
  }
  for (int r = 0; r < s.rows; ++r) {
    for (int k = 0; k < s.k; ++k) row[k] = float(x[s.x_shift + r * x_stride + k]);
    for (int j = 0; j < s.n; ++j) {
      double sum = 0;
      for (int k = 0; k < s.k; ++k) sum += double(row[k]) * double(columns[j * s.k + k]);
      const float exact = float(sum);
      want[s.out_shift + r * out_stride + j] = Out(s.bias ? exact + float(bias[j]) : exact);
    }
  }

  if (s.packed) {
    PackLinearWeightParams pack{};
    pack.packed = packed.data();
    pack.weight = weight.data() + s.weight_shift;
    pack.weight_stride = weight_stride;
    pack.n = s.n;
    pack.k = s.k;
    pack.dtype = dtype;
    cuda::pack_linear_weight(pack, nullptr);
    for (int j = 0; j < s.n && pitch > s.k; ++j) {
      small::expect(float(packed[j * pitch + s.k]) == 0.f, "an odd k does not end with a zero");
    }
  }
  RowLinearParams p{};
  p.out = out.data() + s.out_shift;
  p.out_stride = out_stride;
  p.out_dtype = out_dtype;
  p.x = x.data() + s.x_shift;
  p.x_stride = x_stride;
  p.dtype = dtype;
  p.weight = s.packed ? packed.data() : weight.data() + s.weight_shift;
  p.weight_stride = weight_stride;
  p.packed = s.packed;
  p.bias = s.bias ? bias.data() : nullptr;
  p.rows = s.rows;
  p.n = s.n;
  p.k = s.k;
  cuda::row_linear(p, nullptr);
  small::expect_same(out, want, "out");
}

void half(const Shape& s) {
  s.wide ? multiply<__half, float>(DType::kFloat16, DType::kFloat32, s)
         : multiply<__half, __half>(DType::kFloat16, DType::kFloat16, s);
}

// More stages than the ring has; k ends within a block; the last CTA has columns for one warp.
void few_rows() { half({5, 40, 805, 0, 0, 0, 0, false, true, true}); }
void few_rows_anywhere() { half({9, 17, 70, 3, 0, 1, 1, false, false, true}); }
void weights_anywhere() { half({2, 9, 133, 0, 5, 0, 3, false, false, false}); }
void packed_blocks() { half({16, 32, 288, 0, 0, 0, 0, true, false, true}); }
void packed_rows() {
  multiply<__nv_bfloat16, float>(DType::kBFloat16, DType::kFloat32,
                                 {3, 10, 71, 0, 0, 0, 0, true, true, false});
}
void packed_unaligned() { half({4, 16, 64, 0, 1, 0, 0, true, true, false}); }
void packed_odd() { half({3, 10, 70, 0, 0, 0, 0, true, true, false}); }
void some_rows() { half({50, 70, 420, 0, 0, 0, 0, false, false, true}); }
void some_rows_anywhere() { half({66, 33, 40, 1, 1, 1, 1, false, true, false}); }
void many_rows() { half({130, 136, 136, 0, 0, 0, 0, true, false, true}); }
void nothing_to_sum() { half({3, 5, 0, 0, 0, 0, 0, false, false, true}); }

void bf16(const Shape& s) {
  s.wide ? multiply<__nv_bfloat16, float>(DType::kBFloat16, DType::kFloat32, s)
         : multiply<__nv_bfloat16, __nv_bfloat16>(DType::kBFloat16, DType::kBFloat16, s);
}
void streams() {
  OnHopper device;
  half({1, 17, 37, 0, 0, 0, 0, false, false, false});  // three units: one multiprocessor has none
  half({3, 1, 200, 0, 0, 1, 8, false, true, true});
  bf16({5, 459, 517, 0, 0, 0, 8, false, true, true});     // three units a CTA, more chunks than stages
  half({8, 250, 1354, 0, 0, 0, 0, false, false, true});   // one unit a CTA, more chunks than stages
  half({9, 270, 600, 0, 0, 1, 8, false, false, true});    // two units for some CTAs
  bf16({16, 270, 512, 0, 0, 0, 0, false, false, false});  // the same of whole chunks
  half({17, 70, 326, 0, 0, 0, 0, false, true, true});
  half({32, 256, 808, 0, 0, 0, 0, false, false, false});  // the smallest ring, three stages
}
void what_does_not_stream() {
  OnHopper device;
  half({33, 9, 64, 0, 0, 0, 0, false, false, false});
  half({2, 9, 64, 1, 0, 0, 0, false, false, false});
  half({2, 9, 64, 0, 1, 0, 0, false, false, false});
  half({2, 8, 64, 0, 0, 0, 0, true, false, false});
  half({3, 5, 0, 0, 0, 0, 0, false, false, true});
}
void f32() {
  multiply<float, float>(DType::kFloat32, DType::kFloat32, {17, 70, 300, 0, 0, 0, 0, true, false, true});
}
void f32_few() {
  multiply<float, float>(DType::kFloat32, DType::kFloat32, {4, 33, 150, 1, 3, 1, 1, false, false, false});
}

// Bits of a row in every tiling, where the order of a sum shows.
void same_bits_of(int k) {
  constexpr int kRows = 130, kColumns = 136;
  Buffer<__half> x(kRows * k), weight(kColumns * k);
  for (size_t i = 0; i < x.size(); ++i) x[i] = __half(std::ldexp(small::number(i), int(i % 13) - 8));
  for (size_t i = 0; i < weight.size(); ++i)
    weight[i] = __half(std::ldexp(small::number(i + 99), int(i % 11) - 6));
  RowLinearParams p{};
  p.out_dtype = DType::kFloat32;
  p.dtype = DType::kFloat16;
  p.out_stride = p.n = kColumns;
  p.x_stride = p.weight_stride = p.k = k;
  p.weight = weight.data();
  const auto run = [&](Buffer<float>& out, int first, int rows) {
    p.out = out.data();
    p.x = x.data() + first * k;
    p.rows = rows;
    cuda::row_linear(p, nullptr);
  };
  Buffer<float> all(kRows * kColumns);
  run(all, 0, kRows);
  const auto compare = [&](int first, int rows) {
    Buffer<float> some(rows * kColumns);
    run(some, first, rows);
    small::expect_same(some,
                       std::vector<float>(&all[first * kColumns], &all[first * kColumns] + rows * kColumns),
                       (std::to_string(rows) + " rows").c_str());
  };
  compare(0, 1);
  compare(129, 1);
  compare(77, 40);
  OnHopper device;
  for (int rows : {1, 8, 9, 17, 32}) compare(98, rows);
}
void same_bits() {
  same_bits_of(72);
  same_bits_of(600);
}

template <class T>
void far_apart(DType dtype) {
  const int64_t stride = (int64_t(1) << 31) + 64;
  small::Sparse<T> x(stride + 64), weight(stride + 64), out(stride + 64);
  Buffer<T> packed(2 * 48);
  double sum = 0;
  for (int i = 0; i < 48; ++i) {
    x[i] = weight[i] = x[stride + i] = weight[stride + i] = T(small::number(i));
    sum += double(small::number(i)) * double(small::number(i));
  }
  PackLinearWeightParams pack{packed.data(), weight.data(), stride, 2, 48, dtype};
  cuda::pack_linear_weight(pack, nullptr);
  RowLinearParams p{};
  p.out = out.data();
  p.x = x.data();
  p.out_stride = p.x_stride = p.weight_stride = stride;
  p.out_dtype = p.dtype = dtype;
  p.rows = p.n = 2;
  p.k = 48;
  for (bool is_packed : {false, true}) {
    p.packed = is_packed;
    p.weight = is_packed ? packed.data() : weight.data();
    cuda::row_linear(p, nullptr);
    for (int64_t at : {int64_t(0), int64_t(1), stride, stride + 1}) {
      small::expect(float(out[at]) == float(T(float(sum))), "far apart: element " + std::to_string(at));
    }
  }
}
void far_apart_halves() {
  far_apart<__half>(DType::kFloat16);
  OnHopper device;
  far_apart<__half>(DType::kFloat16);
}
void far_apart_floats() { far_apart<float>(DType::kFloat32); }

// The table of tilings: rows alone decide up to 16; then whether large tiles keep the device busy.
void tilings() {
  using cuda::LinearTiling;
  struct {
    int64_t rows, n;
    LinearTiling want;
  } const table[] = {{1, 4096, LinearTiling::kFewRows},     {16, 128256, LinearTiling::kFewRows},
                     {17, 4096, LinearTiling::kSomeRows},   {64, 28672, LinearTiling::kSomeRows},
                     {128, 4096, LinearTiling::kSomeRows},  {512, 4096, LinearTiling::kManyRows},
                     {2048, 28672, LinearTiling::kManyRows}};
  for (const auto& entry : table) {
    small::expect(cuda::linear_tiling(entry.rows, entry.n, 132) == entry.want,
                  "tiling of " + std::to_string(entry.rows) + " rows");
  }
}

}  // namespace

int main() {
  return small::run(
      {tilings, few_rows, few_rows_anywhere, weights_anywhere, packed_blocks, packed_rows, packed_unaligned,
       packed_odd, some_rows, some_rows_anywhere, many_rows, nothing_to_sum, streams, what_does_not_stream,
       f32, f32_few, same_bits, far_apart_halves, far_apart_floats},
      2);
}
