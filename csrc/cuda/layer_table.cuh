// The caches of many layers as kernel parameters: they travel with the launch, so a captured graph reads no
// host memory.  More layers than the table holds take several launches.
#pragma once

#include <algorithm>

#include "common.cuh"

namespace skv {
namespace cuda {

constexpr int kLayersPerLaunch = 128;

template <class Params>
struct WithLayers {
  Params p;
  void* caches[2 * kLayersPerLaunch];  // K of layer 0, V of layer 0, K of layer 1, ...
};

// Calls f(WithLayers, number of caches) for every launch that `p` needs.
template <class Params, class F>
void for_each_layer_table(const Params& p, F f) {
  WithLayers<Params> launch{p, {}};
  launch.p.k_caches = launch.p.v_caches = nullptr;  // host arrays
  for (int64_t first = 0; first < p.num_layers; first += kLayersPerLaunch) {
    const int64_t n = std::min<int64_t>(kLayersPerLaunch, p.num_layers - first);
    for (int64_t i = 0; i < n; ++i) {
      launch.caches[2 * i] = p.k_caches[first + i];
      launch.caches[2 * i + 1] = p.v_caches[first + i];
    }
    f(launch, int(2 * n));
  }
}

// Whether every cache of `p` can be moved in 16-byte vectors.
template <class Params>
bool layers_aligned(const Params& p) {
  const int64_t size = element_size(p.cache.dtype);
  CacheView k = p.k_layout, v = p.v_layout;
  bool ok = p.cache.head_dim * size % 16 == 0;
  for (int64_t i = 0; i < p.num_layers; ++i) {
    k.data = p.k_caches[i];
    v.data = p.v_caches[i];
    ok = ok && aligned(k, size, 16) && aligned(v, size, 16);
  }
  return ok;
}

// Calls f(Tag<T>, elements) with the type a copy moves at a time and how many elements of the cache it
// covers.
template <class Params, class F>
void by_copy_unit(const Params& p, F f) {
  if (layers_aligned(p)) {
    f(Tag<uint4>{}, int(16 / element_size(p.cache.dtype)));
  } else {
    by_element_size(p.cache.dtype, [&](auto tag) { f(tag, 1); });
  }
}

}  // namespace cuda
}  // namespace skv
