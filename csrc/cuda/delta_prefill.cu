// delta_prefill's and schedule_delta_prefill's launchers, and the workspace they share.
#include "delta_prefill.cuh"
#include "delta_schedule_kernel.cuh"

namespace skv {
namespace cuda {

template <class T, class Cell>
void launch_attention_of(const AttentionLaunch& launch, int ctas, cudaStream_t stream);
template <>
void launch_attention_of<__half, __half>(const AttentionLaunch& launch, int ctas, cudaStream_t stream);
template <>
void launch_attention_of<__half, __nv_fp8_e4m3>(const AttentionLaunch& launch, int ctas, cudaStream_t stream);
template <>
void launch_attention_of<__nv_bfloat16, __nv_bfloat16>(const AttentionLaunch& launch, int ctas,
                                                       cudaStream_t stream);
template <>
void launch_attention_of<__nv_bfloat16, __nv_fp8_e4m3>(const AttentionLaunch& launch, int ctas,
                                                       cudaStream_t stream);

namespace {

int64_t round_up(int64_t n) { return (n + 127) / 128 * 128; }

// What follows from the shapes alone.
struct Plan {
  int tile_rows, ctas;
  int64_t num_tickets, part_rows, kept_stride;
  int64_t tickets, part_stats, parts, kept, schedule, size;  // offsets and size of the workspace in bytes
};

Plan make_plan(const DeltaPrefillParams& p) {
  const int64_t group = p.num_heads / p.cache.num_kv_heads;
  Plan plan{};
  plan.tile_rows = tile_rows_of(p.max_seqlen_q * group, p.cache.head_dim);
  const int64_t row_tiles = (p.total_q * group / plan.tile_rows + p.batch) * p.cache.num_kv_heads;  // at most
  const int64_t chunks = (p.max_blocks * p.cache.block_size + kChunkKeys - 1) / kChunkKeys;
  int64_t items = row_tiles * std::max(p.num_splits, 1);
  if (p.num_splits > 1) {
    plan.num_tickets = items;
    plan.part_rows = items * plan.tile_rows;
  } else if (p.num_splits < 1 && !(p.num_splits < 0 && chunks <= 1)) {
    // A sequence is split only into parts of at least its share of the work: at most two parts a worker.
    plan.num_tickets = 2 * num_workers();
    plan.part_rows = most_part_rows(p.num_splits, plan.tile_rows, p.cache.head_dim);
    if (p.num_splits < 0) plan.part_rows = std::min(plan.part_rows, chunks * row_tiles * plan.tile_rows);
    items += plan.num_tickets;
  }
  plan.ctas = int(std::min<int64_t>(items, num_workers()));
  if (p.num_splits < 0 && chunks > 1) plan.kept_stride = kept_size(plan.tile_rows, p.cache.head_dim);
  plan.part_stats = plan.tickets + round_up(plan.num_tickets * 4);
  plan.parts = plan.part_stats + round_up(plan.part_rows * 8);
  plan.kept = plan.parts + round_up(plan.part_rows * p.cache.head_dim * 4);
  plan.schedule = plan.kept + round_up(plan.ctas * plan.kept_stride * 16);
  plan.size = plan.schedule + (p.schedule ? 0 : round_up(schedule_size(p.batch) * 4));
  return plan;
}

void check_supported(const DeltaPrefillParams& p) {
  const int d = p.cache.head_dim, block = p.cache.block_size;
  const auto refuse = [](const std::string& what) {
    throw std::runtime_error("[NotImplementedError] delta_prefill: " + what);
  };
  if (p.dtype == DType::kFloat32) refuse("query has dtype float32, CUDA takes float16 and bfloat16");
  if (d != 64 && d != 96 && d != 128 && d != 192 && d != 256) {
    refuse("head_dim is " + std::to_string(d) + ", CUDA takes 64, 96, 128, 192 and 256");
  }
  if (block & (block - 1)) refuse("block_size is " + std::to_string(block) + ", CUDA takes powers of two");
}

}  // namespace

int64_t delta_prefill_workspace(const DeltaPrefillParams& p) {
  check_supported(p);
  return make_plan(p).size;
}

void schedule_delta_prefill(const ScheduleDeltaPrefillParams& p, void* stream) {
  const int64_t max_rows = int64_t(p.max_seqlen_q) * (p.num_heads / p.num_kv_heads);
  const int tile_rows = tile_rows_of(max_rows, p.head_dim);
  const int64_t part_rows =
      p.num_splits > 0 ? INT32_MAX : most_part_rows(p.num_splits, tile_rows, p.head_dim);
  const ScheduleLaunch launch{p, num_workers(), tile_rows, part_rows};
  prim::launch(schedule_delta_prefill_kernel, dim3(1), kScheduleThreads, 0, static_cast<cudaStream_t>(stream),
               launch);
}

void delta_prefill(const DeltaPrefillParams& p, void* stream) {
  const Plan plan = make_plan(p);
  if (p.workspace_size < plan.size)
    throw std::runtime_error("[ValueError] delta_prefill: the workspace is too small");
  char* workspace = static_cast<char*>(p.workspace);
  AttentionLaunch launch{};
  launch.p = p;
  // A window wider than any context is none; wider still, and sums of 32 bits would not hold it.
  launch.p.window_left = int32_t(std::min<int64_t>(p.window_left, p.max_blocks * p.cache.block_size));
  launch.group = p.num_heads / p.cache.num_kv_heads;
  if (p.schedule == nullptr) {
    ScheduleDeltaPrefillParams s{};
    s.schedule = reinterpret_cast<int32_t*>(workspace + plan.schedule);
    s.schedule_size = schedule_size(p.batch);
    s.cu_seqlens_q = p.cu_seqlens_q;
    s.seqused_k = p.seqused_k;
    s.batch = p.batch;
    s.num_heads = p.num_heads;
    s.num_kv_heads = p.cache.num_kv_heads;
    s.head_dim = p.cache.head_dim;
    s.max_seqlen_q = p.max_seqlen_q;
    s.num_splits = p.num_splits;
    s.causal = p.causal;
    s.window_left = p.window_left;
    schedule_delta_prefill(s, stream);
    launch.p.schedule = s.schedule;
  }
  const int64_t size = element_size(p.dtype), cell = element_size(p.cache.dtype);
  while ((1 << launch.block_shift) < p.cache.block_size) ++launch.block_shift;
  launch.kv_aligned = aligned(p.k_cache, cell, 16) && aligned(p.v_cache, cell, 16);
  launch.query_aligned = aligned(p.query, size, 16);
  launch.out_aligned = aligned(p.out, size, 4);
  launch.tile_rows = plan.tile_rows;
  launch.num_tickets = plan.num_tickets;
  launch.part_rows = plan.part_rows;
  launch.kept_stride = plan.kept_stride;
  launch.tickets = reinterpret_cast<uint32_t*>(workspace + plan.tickets);
  launch.part_stats = reinterpret_cast<float2*>(workspace + plan.part_stats);
  launch.parts = reinterpret_cast<float*>(workspace + plan.parts);
  launch.kept = reinterpret_cast<float4*>(workspace + plan.kept);
  const auto s = static_cast<cudaStream_t>(stream);
  if (plan.num_tickets > 0) prim::zero_async(launch.tickets, size_t(plan.num_tickets) * 4, s);
  const bool fp8 = p.cache.dtype == DType::kFloat8E4M3;
  if (p.dtype == DType::kFloat16) {
    fp8 ? launch_attention_of<__half, __nv_fp8_e4m3>(launch, plan.ctas, s)
        : launch_attention_of<__half, __half>(launch, plan.ctas, s);
  } else {
    fp8 ? launch_attention_of<__nv_bfloat16, __nv_fp8_e4m3>(launch, plan.ctas, s)
        : launch_attention_of<__nv_bfloat16, __nv_bfloat16>(launch, plan.ctas, s);
  }
}

}  // namespace cuda
}  // namespace skv
