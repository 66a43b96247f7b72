// fused_row_linear: checks and fills FusedRowLinearParams.
#include "../core/fused_row_linear.h"
#include "backend_call.h"
#include "entries.h"
#include "rms_norm.h"
#include "row_linear.h"

namespace skv::entry {

void fused_row_linear(Tensor out, Tensor x, Tensor weight, OptTensor bias, OptTensor norm_weight,
                      double epsilon, bool silu_and_mul, bool add) {
  const Check check("fused_row_linear");
  FusedRowLinearParams params{};
  params.linear = row_linear_params(check, out, x, weight, bias, silu_and_mul);
  check.same_dtype(out, "out", x, "x");
  if (norm_weight) {
    norm_weight_and_epsilon(check, *norm_weight, x, epsilon, "norm_weight", "x");
    check.apart(out, "out", *norm_weight, "norm_weight");
    params.norm_weight = norm_weight->data_ptr();
    params.epsilon = static_cast<float>(epsilon);
  }
  params.silu_and_mul = silu_and_mul;
  params.add = add;
  if (out.numel() == 0) return;

  if (!runs_cuda_kernels(out)) {
    params.workspace_size = FusedRowLinearMemory(params).size;
  } else if (&cuda::fused_row_linear_workspace) {
    params.workspace_size = workspace_size_on(out, [&] { return cuda::fused_row_linear_workspace(params); });
  }
  Tensor workspace = x;  // from torch's caching allocator, which orders its reuse by the stream
  if (params.workspace_size > 0) {
    workspace = torch::stable::new_empty(x, {params.workspace_size}, ScalarType::Byte);
    params.workspace = workspace.data_ptr();
  }
  SKV_CALL(fused_row_linear, out, params);
}

}  // namespace skv::entry
