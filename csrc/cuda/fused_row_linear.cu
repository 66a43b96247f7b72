// fused_row_linear's launcher: one launch where a kernel streams the weights, else the ops it stands for.
#include "fused_row_linear.cuh"

#include "../core/backend.h"

namespace skv {
namespace cuda {
namespace {

constexpr int64_t kMostShared = 220 * 1024, kLeastRing = 64 * 1024;

int64_t rows_memory(const RowLinearParams& p) { return (p.rows + 1) * p.k * element_size(p.dtype); }

// Whether rows fit beside a ring; only what is normalised stays.
bool keeps_rows(const FusedRowLinearParams& p) {
  const RowLinearParams& l = p.linear;
  return p.norm_weight && l.rows <= kMostFusedRows && l.k % kStreamBoxColumns == 0 &&
         aligned(p.norm_weight, element_size(l.dtype), {}, 16) && can_stream(linear_launch(l)) &&
         rows_memory(l) + kLeastRing <= kMostShared && l.weight_stride < (int64_t(1) << 38) / l.n;
}

bool only_adds(const FusedRowLinearParams& p) {
  return !p.norm_weight && !p.silu_and_mul && can_stream(linear_launch(p.linear));
}

// [k, columns of a half, halves]
prim::TensorMap halves_map(const StreamLaunch& launch) {
  const RowLinearParams& p = launch.l.p;
  const int halves = 1 + launch.halved;
  prim::TensorMapSpec spec{p.weight, 2, 4, {}, {}, {}, prim::Swizzle::k128Bytes};
  spec.size[0] = uint64_t(p.k);
  spec.size[1] = uint64_t(p.n / halves);
  spec.size[2] = uint64_t(halves);
  spec.size[3] = 1;
  spec.stride_bytes[1] = p.n == 1 ? 16 : uint64_t(2 * p.weight_stride);
  spec.stride_bytes[2] = spec.stride_bytes[3] = spec.stride_bytes[1] * spec.size[1];
  spec.box[0] = kStreamBoxColumns;
  spec.box[1] = uint32_t(kGroupColumns * launch.warps / halves);
  spec.box[2] = uint32_t(halves);
  spec.box[3] = 1;
  return prim::make_tensor_map(spec);
}

template <class T>
void launch_fused(const FusedRowLinearParams& p, cudaStream_t stream) {
  StreamLaunch launch{};
  launch.l = linear_launch(p.linear);
  launch.warps = stream_warps(p.linear.n, prim::num_multiprocessors());
  launch.add = p.add;
  launch.halved = p.silu_and_mul;
  launch.norm_weight = p.norm_weight;
  launch.epsilon = p.epsilon;
  launch.weight_map = halves_map(launch);
  const int64_t rows = rows_memory(p.linear);
  launch_stream(fused_row_linear_kernel<T>, launch, kFusedThreads,
                StreamStage<kMostFusedRows, true>::bytes(launch.warps),
                int(std::min(int64_t(kStreamRing), kMostShared - rows)), rows, stream);
}

struct Steps {
  void* stream;

  void operator()(const RmsNormParams& p) const { rms_norm(p, stream); }
  void operator()(const RowLinearParams& p) const { row_linear(p, stream); }
  void operator()(const SiluAndMulParams& p) const { silu_and_mul(p, stream); }

  void operator()(const AddRowsParams& p) const {
    by_float_type(p.dtype, [&](auto tag) {
      prim::launch(add_rows_kernel<typename decltype(tag)::type>,
                   dim3(unsigned(p.rows), ceil_div(p.columns, kAddThreads)), kAddThreads, 0,
                   static_cast<cudaStream_t>(stream), p);
    });
  }
};

}  // namespace

int64_t fused_row_linear_workspace(const FusedRowLinearParams& p) {
  return keeps_rows(p) || only_adds(p) ? 0 : FusedRowLinearMemory(p).size;
}

void fused_row_linear(const FusedRowLinearParams& p, void* stream) {
  if (p.linear.rows == 0 || p.linear.n == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  if (only_adds(p)) {
    stream_row_linear(linear_launch(p.linear), p.add, s);
  } else if (keeps_rows(p)) {
    p.linear.dtype == DType::kFloat16 ? launch_fused<__half>(p, s) : launch_fused<__nv_bfloat16>(p, s);
  } else {
    if (p.workspace_size < FusedRowLinearMemory(p).size) {
      throw std::runtime_error("[ValueError] fused_row_linear: the workspace is too small");
    }
    run_fused_row_linear(p, Steps{stream});
  }
}

}  // namespace cuda
}  // namespace skv
