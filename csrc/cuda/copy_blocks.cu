// copy_blocks's launcher.
#include "copy_blocks.cuh"

namespace skv {
namespace cuda {

void copy_blocks(const CopyBlocksParams& p, void* stream) {
  if (p.num_copies == 0 || p.num_layers == 0) return;
  by_copy_unit(p, [&](auto tag, int unit_elements) {
    using Unit = typename decltype(tag)::type;
    const int64_t units =
        int64_t(p.cache.block_size) * p.cache.num_kv_heads * (p.cache.head_dim / unit_elements);
    for_each_layer_table(p, [&](const WithLayers<CopyBlocksParams>& layers, int num_caches) {
      const CopyBlocksLaunch launch{layers, unit_elements, ceil_div(units, kCopyTile)};
      const dim3 grid(unsigned(p.num_copies) * launch.tiles_per_block, unsigned(num_caches));
      prim::launch(copy_blocks_kernel<Unit>, grid, kCopyThreads, 0, static_cast<cudaStream_t>(stream),
                   launch);
    });
  });
}

}  // namespace cuda
}  // namespace skv
