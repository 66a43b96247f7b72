// rms_norm: checks and fills RmsNormParams.
#include "rms_norm.h"

#include "backend_call.h"
#include "entries.h"

namespace skv::entry {

void norm_weight_and_epsilon(const Check& check, const Tensor& weight, const Tensor& input, double epsilon,
                             const char* arg, const char* input_arg) {
  check.same_dtype(weight, arg, input, input_arg);
  check.shape(weight, arg, {input.size(1)}, "[hidden]");
  check.contiguous(weight, arg);
  check.same_device(weight, arg, input, input_arg);
  if (!(epsilon >= 0)) check.value_error("epsilon is " + std::to_string(epsilon) + ", expected at least 0");
}

void rms_norm(Tensor out, Tensor input, Tensor weight, double epsilon) {
  const Check check("rms_norm");
  check.dtype(input, "input", {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  check.shape(input, "input", {-1, -1}, "[rows, hidden]");
  check.last_dim_contiguous(input, "input");
  check.same_dtype(out, "out", input, "input");
  check.shape(out, "out", {input.size(0), input.size(1)}, "[rows, hidden]");
  check.last_dim_contiguous(out, "out");
  check.no_self_overlap(out, "out");
  check.same_device(out, "out", input, "input");
  check.same_or_apart(out, "out", input, "input");
  norm_weight_and_epsilon(check, weight, input, epsilon);
  check.apart(out, "out", weight, "weight");
  if (input.numel() == 0) return;

  RmsNormParams params{};
  params.out = out.data_ptr();
  params.out_stride = out.stride(0);
  params.input = input.data_ptr();
  params.input_stride = input.stride(0);
  params.weight = weight.data_ptr();
  params.rows = input.size(0);
  params.hidden = input.size(1);
  params.dtype = to_dtype(input.scalar_type());
  params.epsilon = static_cast<float>(epsilon);
  SKV_CALL(rms_norm, out, params);
}

}  // namespace skv::entry
