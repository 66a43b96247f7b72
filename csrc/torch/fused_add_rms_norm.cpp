// fused_add_rms_norm: checks and fills FusedAddRmsNormParams.
#include "backend_call.h"
#include "entries.h"
#include "rms_norm.h"

namespace skv::entry {

void fused_add_rms_norm(Tensor input, Tensor residual, Tensor weight, double epsilon) {
  const Check check("fused_add_rms_norm");
  check.dtype(input, "input", {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  check.shape(input, "input", {-1, -1}, "[rows, hidden]");
  check.same_dtype(residual, "residual", input, "input");
  check.shape(residual, "residual", {input.size(0), input.size(1)}, "[rows, hidden]");
  for (auto [t, arg] : {std::pair{&input, "input"}, {&residual, "residual"}}) {
    check.last_dim_contiguous(*t, arg);
    check.no_self_overlap(*t, arg);
  }
  check.same_device(residual, "residual", input, "input");
  check.apart(residual, "residual", input, "input");
  norm_weight_and_epsilon(check, weight, input, epsilon);
  check.apart(input, "input", weight, "weight");
  check.apart(residual, "residual", weight, "weight");
  if (input.numel() == 0) return;

  FusedAddRmsNormParams params{};
  params.input = input.data_ptr();
  params.input_stride = input.stride(0);
  params.residual = residual.data_ptr();
  params.residual_stride = residual.stride(0);
  params.weight = weight.data_ptr();
  params.rows = input.size(0);
  params.hidden = input.size(1);
  params.dtype = to_dtype(input.scalar_type());
  params.epsilon = static_cast<float>(epsilon);
  SKV_CALL(fused_add_rms_norm, input, params);
}

}  // namespace skv::entry
