// copy_blocks: checks and fills CopyBlocksParams.
#include "backend_call.h"
#include "layers.h"

namespace skv::entry {

void copy_blocks(std::vector<Tensor> k_caches, std::vector<Tensor> v_caches, Tensor src_blocks,
                 Tensor dst_blocks, OptTensor num_tokens) {
  const Check check("copy_blocks");
  const Layers layers = check_layers(check, k_caches, v_caches);
  const Tensor& k_cache = k_caches[0];
  check_indices(check, src_blocks, "src_blocks", ScalarType::Int, -1, "[num_copies]", k_cache);
  const int64_t num_copies = src_blocks.size(0);
  check_indices(check, dst_blocks, "dst_blocks", ScalarType::Int, num_copies, "[num_copies]", k_cache);
  if (num_tokens) {
    check_indices(check, *num_tokens, "num_tokens", ScalarType::Int, num_copies, "[num_copies]", k_cache);
  }
  if (num_copies == 0) return;

  CopyBlocksParams params{};
  params.k_caches = layers.k_caches.data();
  params.v_caches = layers.v_caches.data();
  params.num_layers = static_cast<int64_t>(layers.k_caches.size());
  params.k_layout = layers.k_layout;
  params.v_layout = layers.v_layout;
  params.cache = layers.cache;
  params.src_blocks = static_cast<const int32_t*>(src_blocks.data_ptr());
  params.dst_blocks = static_cast<const int32_t*>(dst_blocks.data_ptr());
  params.num_tokens = optional_data<const int32_t>(num_tokens);
  params.num_copies = num_copies;
  SKV_CALL(copy_blocks, k_cache, params);
}

}  // namespace skv::entry
