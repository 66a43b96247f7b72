// compact_kv's launcher.
#include "compact_kv.cuh"

namespace skv {
namespace cuda {

void compact_kv(const CompactKvParams& p, void* stream) {
  if (p.num_moves == 0 || p.batch == 0 || p.num_layers == 0) return;
  by_copy_unit(p, [&](auto tag, int unit_elements) {
    using Unit = typename decltype(tag)::type;
    const int64_t units = int64_t(p.cache.num_kv_heads) * (p.cache.head_dim / unit_elements);
    for_each_layer_table(p, [&](const WithLayers<CompactKvParams>& layers, int num_caches) {
      const CompactKvLaunch launch{layers, unit_elements, ceil_div(units, kCompactThreads)};
      const dim3 grid(unsigned(p.batch) * launch.slices, unsigned(num_caches));
      prim::launch(compact_kv_kernel<Unit>, grid, kCompactThreads, 0, static_cast<cudaStream_t>(stream),
                   launch);
    });
  });
}

}  // namespace cuda
}  // namespace skv
