// append_kv's launcher: 16-byte vectors where every row is aligned to them, single elements otherwise.
#include "append_kv.cuh"

namespace skv {
namespace cuda {
namespace {

template <class Row, class Cell, int kCount>
void launch_append(const AppendKvParams& p, cudaStream_t stream) {
  const int num_vectors = p.cache.head_dim / kCount * p.cache.num_kv_heads;
  const dim3 grid(ceil_div(p.num_tokens, kAppendWarps),
                  ceil_div(num_vectors, kAppendVectorsPerLane * kWarpSize));
  prim::launch(append_kv_kernel<Row, Cell, kCount>, grid, kAppendWarps * kWarpSize, 0, stream, p);
}

template <class Row, class Cell>
void choose_vector(const AppendKvParams& p, cudaStream_t stream) {
  constexpr int kCount = 16 / int(sizeof(Row));
  constexpr int64_t kRow = sizeof(Row), kCell = sizeof(Cell), kStore = kCount * kCell;
  const bool wide = p.cache.head_dim % kCount == 0 && aligned(p.key, kRow, 16) &&
                    aligned(p.value, kRow, 16) && aligned(p.k_cache, kCell, kStore) &&
                    aligned(p.v_cache, kCell, kStore);
  if (wide) {
    launch_append<Row, Cell, kCount>(p, stream);
  } else {
    launch_append<Row, Cell, 1>(p, stream);
  }
}

}  // namespace

void append_kv(const AppendKvParams& p, void* stream) {
  if (p.num_tokens == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  if (p.dtype == p.cache.dtype) {
    by_element_size(p.dtype, [&](auto tag) {
      using U = typename decltype(tag)::type;
      choose_vector<U, U>(p, s);
    });
  } else {
    by_float_type(p.dtype,
                  [&](auto tag) { choose_vector<typename decltype(tag)::type, __nv_fp8_e4m3>(p, s); });
  }
}

}  // namespace cuda
}  // namespace skv
