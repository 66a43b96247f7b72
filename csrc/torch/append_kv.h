// The arguments that append_kv and rope_append_kv have in common.
#pragma once
#include "check.h"
#include "entries.h"

namespace skv::entry {

AppendKvParams append_params(const Check& check, const Tensor& k_cache, const Tensor& v_cache,
                             const Tensor& key, const Tensor& value, const Tensor& slot_mapping,
                             const OptTensor& k_scale, const OptTensor& v_scale);

}  // namespace skv::entry
