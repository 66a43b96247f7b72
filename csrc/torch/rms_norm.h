// What the entries of rms_norm and fused_add_rms_norm check alike.
#pragma once
#include "check.h"

namespace skv::entry {

void norm_weight_and_epsilon(const Check& check, const Tensor& weight, const Tensor& input, double epsilon);

}  // namespace skv::entry
