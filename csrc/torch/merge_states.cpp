// merge_states: checks and fills MergeStatesParams.
#include "backend_call.h"
#include "check.h"
#include "entries.h"

namespace skv::entry {

void merge_states(Tensor out, Tensor lse, Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b) {
  const Check check("merge_states");
  check.dtype(out, "out", {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  const char* names = "[total_q, num_heads, head_dim]";
  check.shape(out, "out", {-1, -1, -1}, names);
  const int64_t total_q = out.size(0), num_heads = out.size(1), head_dim = out.size(2);
  check.no_self_overlap(out, "out");  // what same_or_apart relies on
  check.no_self_overlap(lse, "lse");
  for (auto [t, arg] : {std::pair{&out, "out"}, {&out_a, "out_a"}, {&out_b, "out_b"}}) {
    check.same_dtype(*t, arg, out, "out");
    check.shape(*t, arg, {total_q, num_heads, head_dim}, names);
    check.last_dim_contiguous(*t, arg);
    check.same_device(*t, arg, out, "out");
    if (t != &out) check.same_or_apart(out, "out", *t, arg);
  }
  for (auto [t, arg] : {std::pair{&lse, "lse"}, {&lse_a, "lse_a"}, {&lse_b, "lse_b"}}) {
    check.dtype(*t, arg, {ScalarType::Float});
    check.shape(*t, arg, {num_heads, total_q}, "[num_heads, total_q]");
    check.last_dim_contiguous(*t, arg);
    check.same_device(*t, arg, out, "out");
    if (t != &lse) check.same_or_apart(lse, "lse", *t, arg);
  }
  if (total_q == 0 || num_heads == 0 || head_dim == 0) return;

  MergeStatesParams params{};
  params.out = heads_view(out);
  params.out_a = heads_view(out_a);
  params.out_b = heads_view(out_b);
  params.dtype = to_dtype(out.scalar_type());
  params.lse = static_cast<float*>(lse.data_ptr());
  params.lse_a = static_cast<const float*>(lse_a.data_ptr());
  params.lse_b = static_cast<const float*>(lse_b.data_ptr());
  params.lse_stride = lse.stride(0);
  params.lse_a_stride = lse_a.stride(0);
  params.lse_b_stride = lse_b.stride(0);
  params.total_q = total_q;
  params.num_heads = static_cast<int32_t>(num_heads);
  params.head_dim = static_cast<int32_t>(head_dim);
  SKV_CALL(merge_states, out, params);
}

}  // namespace skv::entry
