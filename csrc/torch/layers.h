// The caches of all layers of one call, as copy_blocks and compact_kv take them.
#pragma once
#include <vector>

#include "check.h"
#include "entries.h"

namespace skv::entry {

struct Layers {
  CacheShape cache;
  CacheView k_layout, v_layout;  // of every layer
  std::vector<void*> k_caches, v_caches;
};

// Checks that all layers share shape, strides, dtype and device. At least one layer.
Layers check_layers(const Check& check, const std::vector<Tensor>& k_caches,
                    const std::vector<Tensor>& v_caches);

// An index tensor [n] (n = -1: any) of `type` on the caches' device.
void check_indices(const Check& check, const Tensor& t, const char* arg, ScalarType type, int64_t n,
                   const char* names, const Tensor& k_cache);

}  // namespace skv::entry
