// pack_linear_weight on the CPU: a transposition panel by panel, threads over panels.
#include "linear_panel.h"

namespace skv::cpu::SKV_ISA {

void pack_linear_weight(const PackLinearWeightParams& p, const Parallel& pool) {
  with_float_type(p.dtype, [&](auto zero) {
    using W = decltype(zero);
    const Weight<W> weight{static_cast<const W*>(p.weight), p.weight_stride, p.n, p.k};
    const int64_t padded_k = div_up(p.k, Layout<W>::kPair) * Layout<W>::kPair;
    pool.for_each(div_up(p.n, kPanel), 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const int columns = weight.columns(panel);
        pack_panel(weight, panel * kPanel, columns, 0, p.k, columns,
                   static_cast<W*>(p.packed) + panel * kPanel * padded_k);
      }
    });
  });
}

}  // namespace skv::cpu::SKV_ISA
