// What the entries of rms_norm, fused_add_rms_norm and fused_row_linear check alike.
#pragma once
#include "check.h"

namespace skv::entry {

void norm_weight_and_epsilon(const Check& check, const Tensor& weight, const Tensor& input, double epsilon,
                             const char* arg = "weight", const char* input_arg = "input");

}  // namespace skv::entry
