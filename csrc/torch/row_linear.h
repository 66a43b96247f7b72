// What the entries of row_linear and fused_row_linear check alike.
#pragma once
#include <optional>

#include "check.h"

namespace skv::entry {

// halves: out is [rows, n / 2], made of both halves of the columns.
RowLinearParams row_linear_params(const Check& check, const Tensor& out, const Tensor& x,
                                  const Tensor& weight, const std::optional<Tensor>& bias, bool halves);

}  // namespace skv::entry
