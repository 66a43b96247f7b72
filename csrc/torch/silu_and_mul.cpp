// silu_and_mul: checks and fills SiluAndMulParams.
#include "backend_call.h"
#include "check.h"
#include "entries.h"

namespace skv::entry {

void silu_and_mul(Tensor out, Tensor input) {
  const Check check("silu_and_mul");
  check.dtype(input, "input", {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  check.shape(input, "input", {-1, -1}, "[rows, 2 * size]");
  check.last_dim_contiguous(input, "input");
  check.same_dtype(out, "out", input, "input");
  check.shape(out, "out", {input.size(0), -1}, "[rows, size]");
  const int64_t size = out.size(1);
  check.shape(input, "input", {-1, 2 * size}, "[rows, 2 * size of out]");
  check.last_dim_contiguous(out, "out");
  check.no_self_overlap(out, "out");
  check.same_device(out, "out", input, "input");
  check.apart(out, "out", input, "input");
  if (out.numel() == 0) return;

  SiluAndMulParams params{};
  params.out = out.data_ptr();
  params.out_stride = out.stride(0);
  params.input = input.data_ptr();
  params.input_stride = input.stride(0);
  params.rows = input.size(0);
  params.size = size;
  params.dtype = to_dtype(input.scalar_type());
  SKV_CALL(silu_and_mul, out, params);
}

}  // namespace skv::entry
