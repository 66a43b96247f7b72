// delta_prefill's and schedule_delta_prefill's launchers, and the workspace they share.
#include "delta_prefill.cuh"
#include "delta_schedule_kernel.cuh"

namespace skv {
namespace cuda {

template <class T>
void launch_attention_of(const AttentionLaunch& launch, int ctas, cudaStream_t stream);
template <>
void launch_attention_of<__half>(const AttentionLaunch& launch, int ctas, cudaStream_t stream);
template <>
void launch_attention_of<__nv_bfloat16>(const AttentionLaunch& launch, int ctas, cudaStream_t stream);

namespace {

int64_t round_up(int64_t n) { return (n + 127) / 128 * 128; }

// The grid: as many CTAs as can be at work together, roughly; also what an automatic schedule spreads work
// over.
int num_workers() { return 2 * prim::num_multiprocessors(); }

// Most row tiles that the batch can have, times KV heads.
int64_t max_row_tiles(const DeltaPrefillParams& p) {
  const int64_t group = p.num_heads / p.cache.num_kv_heads;
  return (p.total_q * group / kTileRows + p.batch) * p.cache.num_kv_heads;
}

// Slots of partial results: an automatic schedule splits a sequence only into parts of at least its share of
// the work, so the split items are at most twice the workers.
int64_t max_slots(const DeltaPrefillParams& p) {
  if (p.num_splits < 0 || p.num_splits == 1) return 0;
  return p.num_splits == 0 ? 2 * num_workers() : p.num_splits * max_row_tiles(p);
}

struct Workspace {
  int64_t tickets, part_lse, parts, schedule, size;  // offsets in bytes
};

Workspace lay_out(const DeltaPrefillParams& p) {
  const int64_t slots = max_slots(p);
  Workspace w{};
  w.part_lse = w.tickets + round_up(slots * 4);
  w.parts = w.part_lse + round_up(slots * kTileRows * 4);
  w.schedule = w.parts + round_up(slots * kTileRows * p.cache.head_dim * 4);
  w.size = w.schedule + (p.schedule ? 0 : round_up((kScheduleHeader + kScheduleEntry * p.batch) * 4));
  return w;
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
  return lay_out(p).size;
}

void schedule_delta_prefill(const ScheduleDeltaPrefillParams& p, void* stream) {
  if (p.schedule_size < kScheduleHeader + kScheduleEntry * p.batch) {
    throw std::runtime_error("[ValueError] schedule_delta_prefill: schedule has " +
                             std::to_string(p.schedule_size) + " entries, expected at least " +
                             std::to_string(kScheduleHeader + kScheduleEntry * p.batch));
  }
  const ScheduleLaunch launch{p, num_workers()};
  prim::launch(schedule_delta_prefill_kernel, dim3(1), kScheduleThreads, 0, static_cast<cudaStream_t>(stream),
               launch);
}

void delta_prefill(const DeltaPrefillParams& p, void* stream) {
  const Workspace w = lay_out(p);
  if (p.workspace_size < w.size)
    throw std::runtime_error("[ValueError] delta_prefill: the workspace is too small");
  char* workspace = static_cast<char*>(p.workspace);
  AttentionLaunch launch{};
  launch.p = p;
  if (p.schedule == nullptr) {
    ScheduleDeltaPrefillParams s{};
    s.schedule = reinterpret_cast<int32_t*>(workspace + w.schedule);
    s.schedule_size = kScheduleHeader + kScheduleEntry * p.batch;
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
  launch.num_slots = max_slots(p);
  launch.tickets = reinterpret_cast<uint32_t*>(workspace + w.tickets);
  launch.part_lse = reinterpret_cast<float*>(workspace + w.part_lse);
  launch.parts = reinterpret_cast<float*>(workspace + w.parts);
  const auto s = static_cast<cudaStream_t>(stream);
  if (launch.num_slots > 0) prim::zero_async(launch.tickets, size_t(launch.num_slots) * 4, s);
  const int64_t most_items = max_row_tiles(p) * std::max(1, p.num_splits) + launch.num_slots;
  const int ctas = int(std::min<int64_t>(most_items, num_workers()));
  if (p.dtype == DType::kFloat16) {
    launch_attention_of<__half>(launch, ctas, s);
  } else {
    launch_attention_of<__nv_bfloat16>(launch, ctas, s);
  }
}

}  // namespace cuda
}  // namespace skv
