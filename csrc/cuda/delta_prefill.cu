// delta_prefill's and schedule_delta_prefill's launchers, and the workspace they share.
#include <cstdlib>
#include <utility>

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
template <class Cell>
void launch_hopper_of(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t stream);
template <>
void launch_hopper_of<__nv_fp8_e4m3>(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t stream);
template <>
void launch_hopper_of<__half>(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t stream);
template <>
void launch_hopper_of<__nv_bfloat16>(const AttentionLaunch& launch, bool tma, int ctas, cudaStream_t stream);
template <class Cell>
void launch_few_rows_of(const AttentionLaunch& launch, int ctas, cudaStream_t stream);
template <>
void launch_few_rows_of<__half>(const AttentionLaunch& launch, int ctas, cudaStream_t stream);
template <>
void launch_few_rows_of<__nv_bfloat16>(const AttentionLaunch& launch, int ctas, cudaStream_t stream);

namespace {

// STATEFUL_KV_FEW_ROWS=0 leaves the kernel for few rows out, so that it can be compared.
PrefillDevice this_device() {
  static const char* const few_rows = std::getenv("STATEFUL_KV_FEW_ROWS");
  static const bool wanted = few_rows == nullptr || std::string(few_rows) != "0";
  return {prim::num_multiprocessors(), prim::compute_capability() == 90, wanted};
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
  return plan_delta_prefill(p, this_device()).size;
}

// Attention reads its work list before it waits for the grids ahead, so the one that makes the list must have
// ended before: behind it a call is launched like any other.
static thread_local bool list_is_new = false;

void schedule_delta_prefill(const ScheduleDeltaPrefillParams& p, void* stream) {
  list_is_new = true;
  const int64_t max_rows = int64_t(p.max_seqlen_q) * (p.num_heads / p.num_kv_heads);
  const PrefillDevice device = this_device();
  const ScheduleLaunch launch{p,
                              {portable_list(max_rows, p.head_dim, p.num_splits, device),
                               hopper_list(max_rows, p.head_dim, p.num_splits, device),
                               few_rows_list(p.num_splits, p.head_dim, device)}};
  prim::launch(schedule_delta_prefill_kernel, dim3(device.sm90 ? kScheduleLists : 1), kScheduleThreads, 0,
               static_cast<cudaStream_t>(stream), launch);
}

namespace {

void make_schedule(const DeltaPrefillParams& p, int32_t* schedule, cudaStream_t stream) {
  ScheduleDeltaPrefillParams s{};
  s.schedule = schedule;
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
}

// `schedule`: of the call, all lists and tickets.
AttentionLaunch make_launch(const DeltaPrefillParams& p, const PrefillPlan& plan, int32_t* schedule) {
  char* workspace = static_cast<char*>(p.workspace);
  AttentionLaunch launch{};
  launch.p = p;
  // A window wider than any context is none; wider still, and sums of 32 bits would not hold it.
  launch.p.window_left = int32_t(std::min<int64_t>(p.window_left, p.max_blocks * p.cache.block_size));
  launch.p.schedule = schedule + int(plan.kernel) * schedule_list_size(p.batch);
  launch.group = p.num_heads / p.cache.num_kv_heads;
  const int64_t size = element_size(p.dtype), cell = element_size(p.cache.dtype);
  while ((1 << launch.block_shift) < p.cache.block_size) ++launch.block_shift;
  launch.kv_aligned = aligned(p.k_cache, cell, 16) && aligned(p.v_cache, cell, 16);
  launch.query_aligned = aligned(p.query, size, 16);
  launch.out_aligned = aligned(p.out, size, 4);
  launch.tile_rows = plan.list.tile_rows;
  launch.num_tickets = plan.num_tickets;
  launch.part_rows = plan.part_rows;
  launch.kept_stride = plan.kept_stride;
  launch.tickets = reinterpret_cast<uint32_t*>(workspace + plan.tickets);
  launch.part_stats = reinterpret_cast<float2*>(workspace + plan.part_stats);
  launch.parts = reinterpret_cast<float*>(workspace + plan.parts);
  launch.kept = reinterpret_cast<float4*>(workspace + plan.kept);
  return launch;
}

// While it lives, launches do not overlap, if asked for.
class Unoverlapped {
 public:
  explicit Unoverlapped(bool wanted)
      : before_(std::exchange(prim::overlapped(), prim::overlapped() && !wanted)) {}
  ~Unoverlapped() { prim::overlapped() = before_; }
  Unoverlapped(const Unoverlapped&) = delete;

 private:
  const bool before_;
};

}  // namespace

void delta_prefill(const DeltaPrefillParams& p, void* stream) {
  if (p.batch == 0) return;
  const PrefillPlan plan = plan_delta_prefill(p, this_device());
  if (p.workspace_size < plan.size)
    throw std::runtime_error("[ValueError] delta_prefill: the workspace is too small");
  const auto s = static_cast<cudaStream_t>(stream);
  auto* schedule = const_cast<int32_t*>(p.schedule);
  if (schedule == nullptr) {
    schedule = reinterpret_cast<int32_t*>(static_cast<char*>(p.workspace) + plan.schedule);
    make_schedule(p, schedule, s);
  }
  AttentionLaunch launch = make_launch(p, plan, schedule);
  // A schedule's own tickets are zero, and are left so.  Calls that share one may run at the same time, and
  // need tickets of their own, but for overlapped ones, which come one after another.
  if (plan.num_tickets <= kScheduleTickets &&
      (p.schedule == nullptr || (plan.kernel != PrefillKernel::kPortable && prim::overlapped()))) {
    launch.tickets = reinterpret_cast<uint32_t*>(schedule + kScheduleLists * schedule_list_size(p.batch));
  } else if (plan.num_tickets > 0) {
    prim::zero_async(launch.tickets, size_t(plan.num_tickets) * 4, s);
  }
  const bool fp8 = p.cache.dtype == DType::kFloat8E4M3, half = p.dtype == DType::kFloat16;
  const Unoverlapped first(std::exchange(list_is_new, false));
  if (plan.kernel == PrefillKernel::kFewRows) {
    half ? launch_few_rows_of<__half>(launch, plan.ctas, s)
         : launch_few_rows_of<__nv_bfloat16>(launch, plan.ctas, s);
  } else if (plan.kernel == PrefillKernel::kHopper) {
    fp8    ? launch_hopper_of<__nv_fp8_e4m3>(launch, plan.tma, plan.ctas, s)
    : half ? launch_hopper_of<__half>(launch, plan.tma, plan.ctas, s)
           : launch_hopper_of<__nv_bfloat16>(launch, plan.tma, plan.ctas, s);
  } else if (half) {
    fp8 ? launch_attention_of<__half, __nv_fp8_e4m3>(launch, plan.ctas, s)
        : launch_attention_of<__half, __half>(launch, plan.ctas, s);
  } else {
    fp8 ? launch_attention_of<__nv_bfloat16, __nv_fp8_e4m3>(launch, plan.ctas, s)
        : launch_attention_of<__nv_bfloat16, __nv_bfloat16>(launch, plan.ctas, s);
  }
}

}  // namespace cuda
}  // namespace skv
