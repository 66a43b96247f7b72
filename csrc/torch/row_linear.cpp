// row_linear and pack_linear_weight: check and fill their params.
//
// A packed weight is recognised by its shape, [n, ceil(k / pair), pair]: it holds as many elements as the
// weight (k rounded up to whole pairs), says n and k, and a packed weight converted to another dtype by
// accident does not fit.
#include "row_linear.h"

#include "backend_call.h"
#include "entries.h"

namespace skv::entry {

namespace {

void linear_dtype(const Check& check, const Tensor& t, const char* arg) {
  check.given(t, arg);
  switch (t.scalar_type()) {
    case ScalarType::Int:  // GPTQ and AWQ hold eight values in each
    case ScalarType::Char:
    case ScalarType::Byte:
    case ScalarType::Float8_e4m3fn:
    case ScalarType::Float8_e5m2:
    case ScalarType::Float8_e4m3fnuz:
    case ScalarType::Float8_e5m2fnuz:
      check.not_implemented(std::string(arg) + " has dtype " + dtype_name(t.scalar_type()) +
                            "; quantised weights are not supported, expected float32 or float16 or bfloat16");
    default:
      check.dtype(t, arg, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  }
}

int64_t pairs(int64_t k, int64_t pair) { return (k + pair - 1) / pair; }

}  // namespace

RowLinearParams row_linear_params(const Check& check, const Tensor& out, const Tensor& x,
                                  const Tensor& weight, const OptTensor& bias, bool halves) {
  check.dtype(x, "x", {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  check.shape(x, "x", {-1, -1}, "[rows, k]");
  const DType dtype = to_dtype(x.scalar_type());
  linear_dtype(check, weight, "weight");
  const int64_t rows = x.size(0), k = x.size(1), pair = linear_pair(dtype),
                n = weight.dim() > 0 ? weight.size(0) : 0;
  check.same_dtype(weight, "weight", x, "x");
  const bool packed = weight.dim() == 3;
  if (packed) {
    check.shape(weight, "weight", {-1, pairs(k, pair), pair},
                "[n, ceil(k / pair), pair], packed for this dtype,");
    check.contiguous(weight, "weight");
  } else {
    check.shape(weight, "weight", {-1, k}, "[n, k]");
    check.last_dim_contiguous(weight, "weight");
  }
  check.given(out, "out");
  if (halves) {
    check.that(n % 2 == 0,
               "weight has " + std::to_string(n) + " rows, expected an even number: gate, then up");
    check.same_dtype(out, "out", x, "x");
    check.shape(out, "out", {rows, n / 2}, "[rows, n / 2]");
  } else {
    if (out.scalar_type() != ScalarType::Float) check.same_dtype(out, "out", x, "x");
    check.shape(out, "out", {rows, n}, "[rows, n]");
  }
  check.last_dim_contiguous(out, "out");
  check.no_self_overlap(out, "out");
  check.last_dim_contiguous(x, "x");
  check.same_device(x, "x", out, "out");
  check.same_device(weight, "weight", out, "out");
  check.apart(out, "out", x, "x");  // other rows may still need x
  check.apart(out, "out", weight, "weight");
  if (bias) {
    check.same_dtype(*bias, "bias", x, "x");
    check.shape(*bias, "bias", {n}, "[n]");
    check.contiguous(*bias, "bias");
    check.same_device(*bias, "bias", out, "out");
    check.apart(out, "out", *bias, "bias");
  }

  RowLinearParams params{};
  params.out = out.data_ptr();
  params.out_stride = out.stride(0);
  params.out_dtype = to_dtype(out.scalar_type());
  params.x = x.data_ptr();
  params.x_stride = x.stride(0);
  params.dtype = dtype;
  params.weight = weight.data_ptr();
  params.weight_stride = weight.stride(0);
  params.packed = packed;
  params.bias = optional_data<const void>(bias);
  params.rows = rows;
  params.n = n;
  params.k = k;
  return params;
}

void row_linear(Tensor out, Tensor x, Tensor weight, OptTensor bias) {
  const RowLinearParams params = row_linear_params(Check("row_linear"), out, x, weight, bias, false);
  if (params.rows == 0 || params.n == 0) return;
  SKV_CALL(row_linear, out, params);
}

void pack_linear_weight(Tensor packed, Tensor weight) {
  const Check check("pack_linear_weight");
  linear_dtype(check, weight, "weight");
  check.shape(weight, "weight", {-1, -1}, "[n, k]");
  check.last_dim_contiguous(weight, "weight");
  const DType dtype = to_dtype(weight.scalar_type());
  const int64_t n = weight.size(0), k = weight.size(1), pair = linear_pair(dtype);
  check.same_dtype(packed, "packed", weight, "weight");
  check.same_device(packed, "packed", weight, "weight");
  check.shape(packed, "packed", {n, pairs(k, pair), pair}, "[n, ceil(k / pair), pair]");
  check.contiguous(packed, "packed");
  check.apart(packed, "packed", weight, "weight");
  if (n == 0 || k == 0) return;

  PackLinearWeightParams params{};
  params.packed = packed.data_ptr();
  params.weight = weight.data_ptr();
  params.weight_stride = weight.stride(0);
  params.n = n;
  params.k = k;
  params.dtype = dtype;
  SKV_CALL(pack_linear_weight, packed, params);
}

}  // namespace skv::entry
