// rope_append_kv: checks and fills RopeAppendKvParams; what it shares with append_kv is checked there.
#include "append_kv.h"
#include "backend_call.h"

namespace skv::entry {

namespace {

// A norm weight [head_dim] of query's dtype, or null.
const void* norm_weight(const Check& check, const OptTensor& weight, const char* arg, const Tensor& query) {
  if (!weight) return nullptr;
  check.same_dtype(*weight, arg, query, "query");
  check.shape(*weight, arg, {query.size(2)}, "[head_dim]");
  check.contiguous(*weight, arg);
  check.same_device(*weight, arg, query, "query");
  return weight->data_ptr();
}

void check_query(const Check& check, const Tensor& query_out, const Tensor& query, const Tensor& key,
                 const Tensor& value, const Tensor& k_cache) {
  check.same_dtype(query, "query", key, "key");
  check.shape(query, "query", {-1, -1, key.size(2)}, "[num_tokens, num_heads, head_dim]");
  check.last_dim_contiguous(query, "query");
  check.same_device(query, "query", k_cache, "k_cache");
  if (query.size(1) % key.size(1) != 0) {
    check.value_error("query has " + std::to_string(query.size(1)) + " heads, expected a multiple of " +
                      std::to_string(key.size(1)) + ", the KV heads");
  }
  check.same_dtype(query_out, "query_out", query, "query");
  check.shape(query_out, "query_out", {query.size(0), query.size(1), query.size(2)}, "the shape of query");
  check.last_dim_contiguous(query_out, "query_out");
  check.same_device(query_out, "query_out", k_cache, "k_cache");
  check.no_self_overlap(query_out, "query_out");
  check.same_or_apart(query_out, "query_out", query, "query");
  check.apart(query_out, "query_out", key, "key");
  check.apart(query_out, "query_out", value, "value");
}

}  // namespace

void rope_append_kv(Tensor query_out, Tensor k_cache, Tensor v_cache, Tensor query, Tensor key, Tensor value,
                    Tensor positions, Tensor cos_sin_cache, Tensor slot_mapping, bool interleaved,
                    OptTensor q_norm_weight, OptTensor k_norm_weight, double norm_eps, OptTensor k_scale,
                    OptTensor v_scale) {
  const Check check("rope_append_kv");
  RopeAppendKvParams params{};
  params.append = append_params(check, k_cache, v_cache, key, value, slot_mapping, k_scale, v_scale);
  const int64_t num_tokens = params.append.num_tokens;
  check_query(check, query_out, query, key, value, k_cache);
  check.dtype(positions, "positions", {ScalarType::Long, ScalarType::Int});
  check.shape(positions, "positions", {-1}, "[num_tokens]");
  check.contiguous(positions, "positions");
  check.same_device(positions, "positions", k_cache, "k_cache");
  for (auto [t, arg] : {std::pair{&query, "query"}, {&positions, "positions"}}) {
    if (t->size(0) >= num_tokens) continue;
    check.value_error(std::string(arg) + " has " + std::to_string(t->size(0)) + " rows, expected at least " +
                      std::to_string(num_tokens) + ", the entries of slot_mapping");
  }
  check.dtype(cos_sin_cache, "cos_sin_cache", {ScalarType::Float, query.scalar_type()});
  check.shape(cos_sin_cache, "cos_sin_cache", {-1, -1}, "[max_position, rotary_dim]");
  check.last_dim_contiguous(cos_sin_cache, "cos_sin_cache");
  check.same_device(cos_sin_cache, "cos_sin_cache", k_cache, "k_cache");
  const int64_t rotary_dim = cos_sin_cache.size(1);
  if (rotary_dim < 2 || rotary_dim % 2 != 0 || rotary_dim > query.size(2)) {
    check.value_error("cos_sin_cache has rotary_dim " + std::to_string(rotary_dim) +
                      ", expected an even number from 2 to head_dim = " + std::to_string(query.size(2)));
  }
  if (!(norm_eps >= 0))
    check.value_error("norm_eps is " + std::to_string(norm_eps) + ", expected at least 0");
  params.q_norm_weight = norm_weight(check, q_norm_weight, "q_norm_weight", query);
  params.k_norm_weight = norm_weight(check, k_norm_weight, "k_norm_weight", query);
  if (num_tokens == 0) return;

  params.query_out = heads_view(query_out);
  params.query = heads_view(query);
  params.num_heads = static_cast<int32_t>(query.size(1));
  params.positions = positions.data_ptr();
  params.positions_are_int64 = positions.scalar_type() == ScalarType::Long;
  params.cos_sin_cache = cos_sin_cache.data_ptr();
  params.cos_sin_dtype = to_dtype(cos_sin_cache.scalar_type());
  params.cos_sin_stride = cos_sin_cache.stride(0);
  params.max_position = cos_sin_cache.size(0);
  params.rotary_dim = static_cast<int32_t>(rotary_dim);
  params.interleaved = interleaved;
  params.norm_eps = static_cast<float>(norm_eps);
  SKV_CALL(rope_append_kv, k_cache, params);
}

}  // namespace skv::entry
