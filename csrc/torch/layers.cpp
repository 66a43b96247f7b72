#include "layers.h"

namespace skv::entry {

namespace {

std::string layer_name(const char* arg, size_t layer) {
  return std::string(arg) + "[" + std::to_string(layer) + "]";
}

void check_same_layout(const Check& check, const std::vector<Tensor>& caches, const char* arg) {
  const Tensor& first = caches[0];
  const std::string first_name = layer_name(arg, 0);
  check.no_self_overlap(first, first_name.c_str());
  for (size_t layer = 1; layer < caches.size(); ++layer) {
    const Tensor& cache = caches[layer];
    const std::string name = layer_name(arg, layer);
    check.same_dtype(cache, name.c_str(), first, first_name.c_str());
    check.same_device(cache, name.c_str(), first, first_name.c_str());
    check.shape(cache, name.c_str(), {first.size(0), first.size(1), first.size(2), first.size(3)},
                "[num_blocks, block_size, num_kv_heads, head_dim]");
    for (int64_t d = 0; d < 4; ++d) {
      if (cache.size(d) <= 1 || cache.stride(d) == first.stride(d)) continue;
      check.value_error(name + " has stride " + std::to_string(cache.stride(d)) + " in dimension " +
                        std::to_string(d) + ", expected " + std::to_string(first.stride(d)) +
                        ", the stride of " + first_name);
    }
  }
}

}  // namespace

Layers check_layers(const Check& check, const std::vector<Tensor>& k_caches,
                    const std::vector<Tensor>& v_caches) {
  if (k_caches.empty()) check.value_error("k_caches is empty, expected one cache per layer");
  if (v_caches.size() != k_caches.size()) {
    check.value_error("v_caches has " + std::to_string(v_caches.size()) + " layers, expected " +
                      std::to_string(k_caches.size()) + ", the layers of k_caches");
  }
  Layers layers;
  layers.cache = check.caches(k_caches[0], v_caches[0], "k_caches[0]", "v_caches[0]");
  check_same_layout(check, k_caches, "k_caches");
  check_same_layout(check, v_caches, "v_caches");
  layers.k_layout = cache_view(k_caches[0]);
  layers.v_layout = cache_view(v_caches[0]);
  layers.k_layout.data = layers.v_layout.data = nullptr;
  for (const Tensor& t : k_caches) layers.k_caches.push_back(t.data_ptr());
  for (const Tensor& t : v_caches) layers.v_caches.push_back(t.data_ptr());
  return layers;
}

void check_indices(const Check& check, const Tensor& t, const char* arg, ScalarType type, int64_t n,
                   const char* names, const Tensor& k_cache) {
  check.dtype(t, arg, {type});
  check.shape(t, arg, {n}, names);
  check.contiguous(t, arg);
  check.same_device(t, arg, k_cache, "k_caches[0]");
}

}  // namespace skv::entry
