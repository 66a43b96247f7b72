// append_kv: checks and fills AppendKvParams. append_params is shared with rope_append_kv.
#include "append_kv.h"

#include "backend_call.h"
#include "entries.h"

namespace skv::entry {

AppendKvParams append_params(const Check& check, const Tensor& k_cache, const Tensor& v_cache,
                             const Tensor& key, const Tensor& value, const Tensor& slot_mapping,
                             const OptTensor& k_scale, const OptTensor& v_scale) {
  const CacheShape cache = check.caches(k_cache, v_cache);
  check.no_self_overlap(k_cache, "k_cache");
  check.no_self_overlap(v_cache, "v_cache");
  check.heads_dtype(key, "key", cache);
  check.same_dtype(value, "value", key, "key");
  check.dtype(slot_mapping, "slot_mapping", {ScalarType::Long});
  check.shape(slot_mapping, "slot_mapping", {-1}, "[num_tokens]");
  const char* names = "[num_tokens, num_kv_heads, head_dim]";
  check.shape(key, "key", {-1, cache.num_kv_heads, cache.head_dim}, names);
  check.shape(value, "value", {key.size(0), cache.num_kv_heads, cache.head_dim}, names);
  const int64_t num_tokens = slot_mapping.size(0);
  if (num_tokens > key.size(0)) {
    check.value_error("slot_mapping has " + std::to_string(num_tokens) + " entries, expected at most " +
                      std::to_string(key.size(0)) + ", the tokens of key");
  }
  for (auto [t, arg] : {std::pair{&key, "key"}, {&value, "value"}}) {
    check.last_dim_contiguous(*t, arg);
    check.same_device(*t, arg, k_cache, "k_cache");
  }
  check.contiguous(slot_mapping, "slot_mapping");
  check.same_device(slot_mapping, "slot_mapping", k_cache, "k_cache");

  AppendKvParams params{};
  params.k_cache = cache_view(k_cache);
  params.v_cache = cache_view(v_cache);
  params.cache = cache;
  params.key = heads_view(key);
  params.value = heads_view(value);
  params.dtype = to_dtype(key.scalar_type());
  params.slot_mapping = static_cast<const int64_t*>(slot_mapping.data_ptr());
  params.num_tokens = num_tokens;
  params.k_scale = check.scale(k_scale, "k_scale", cache, k_cache);
  params.v_scale = check.scale(v_scale, "v_scale", cache, k_cache);
  return params;
}

void append_kv(Tensor k_cache, Tensor v_cache, Tensor key, Tensor value, Tensor slot_mapping,
               OptTensor k_scale, OptTensor v_scale) {
  const Check check("append_kv");
  const AppendKvParams params =
      append_params(check, k_cache, v_cache, key, value, slot_mapping, k_scale, v_scale);
  if (params.num_tokens == 0) return;
  SKV_CALL(append_kv, k_cache, params);
}

}  // namespace skv::entry
