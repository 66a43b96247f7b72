// compact_kv: checks and fills CompactKvParams.
#include "backend_call.h"
#include "layers.h"

namespace skv::entry {

void compact_kv(std::vector<Tensor> k_caches, std::vector<Tensor> v_caches, Tensor src_slots,
                Tensor dst_slots, Tensor cu_moves) {
  const Check check("compact_kv");
  const Layers layers = check_layers(check, k_caches, v_caches);
  const Tensor& k_cache = k_caches[0];
  check_indices(check, src_slots, "src_slots", ScalarType::Long, -1, "[num_moves]", k_cache);
  const int64_t num_moves = src_slots.size(0);
  check_indices(check, dst_slots, "dst_slots", ScalarType::Long, num_moves, "[num_moves]", k_cache);
  check_indices(check, cu_moves, "cu_moves", ScalarType::Int, -1, "[batch + 1]", k_cache);
  if (cu_moves.size(0) < 1) check.value_error("cu_moves has shape [0], expected [batch + 1]");
  const int64_t batch = cu_moves.size(0) - 1;
  if (batch == 0 && runs_cuda_kernels(k_cache)) return;

  CompactKvParams params{};
  params.k_caches = layers.k_caches.data();
  params.v_caches = layers.v_caches.data();
  params.num_layers = static_cast<int64_t>(layers.k_caches.size());
  params.k_layout = layers.k_layout;
  params.v_layout = layers.v_layout;
  params.cache = layers.cache;
  params.src_slots = static_cast<const int64_t*>(src_slots.data_ptr());
  params.dst_slots = static_cast<const int64_t*>(dst_slots.data_ptr());
  params.cu_moves = static_cast<const int32_t*>(cu_moves.data_ptr());
  params.num_moves = num_moves;
  params.batch = batch;
  SKV_CALL(compact_kv, k_cache, params);
}

}  // namespace skv::entry
