// delta_prefill's launch choice on CUDA: a table of calls and devices, and what is to be launched for each.
#include <cstdio>

#include "check.h"
#include "cuda/delta_prefill_plan.h"

namespace {

using namespace skv;
using cuda::PrefillDevice;
using cuda::PrefillKernel;
using cuda::PrefillPlan;

constexpr PrefillDevice kA100{108, false, true}, kH200{132, true, true}, kB200{148, false, true};
constexpr PrefillKernel kMma = PrefillKernel::kPortable, kWgmma = PrefillKernel::kHopper,
                        kFew = PrefillKernel::kFewRows;
constexpr DType kBf16 = DType::kBFloat16, kFp8 = DType::kFloat8E4M3;

struct Call {
  PrefillDevice device;
  int max_seqlen_q, heads, kv_heads, head_dim, num_splits;
  DType cache;
  int block_size, shift;  // of the cache's base, in bytes
};
struct Launch {
  PrefillKernel kernel;
  bool tma;
  int tile_keys, tile_rows, workers;
};

DeltaPrefillParams params_of(const Call& c, int64_t batch = 4, int64_t max_blocks = 256) {
  DeltaPrefillParams p{};
  p.dtype = kBf16;
  p.cache = {1000, c.block_size, c.kv_heads, c.head_dim, c.cache};
  const int64_t token = int64_t(c.kv_heads) * c.head_dim;
  p.k_cache = {reinterpret_cast<void*>(uintptr_t(4096 + c.shift)), c.block_size * token, token, c.head_dim};
  p.v_cache = {reinterpret_cast<void*>(uintptr_t(8192)), c.block_size * token, token, c.head_dim};
  p.num_heads = c.heads;
  p.batch = batch;
  p.total_q = batch * c.max_seqlen_q;
  p.max_seqlen_q = c.max_seqlen_q;
  p.max_blocks = max_blocks;
  p.num_splits = c.num_splits;
  return p;
}

void kernels() {
  const struct {
    Call call;
    Launch launch;
  } table[] = {
      // Few rows of few sequences.
      {{kH200, 1, 32, 8, 128, 0, kBf16, 16, 0}, {kFew, true, 32, 16, 132}},
      {{kH200, 4, 32, 8, 128, 0, kBf16, 16, 0}, {kFew, true, 32, 16, 132}},
      {{kH200, 1, 32, 8, 96, 3, kBf16, 8, 0}, {kFew, true, 32, 16, 132}},
      {{kH200, 16, 32, 32, 64, 0, kBf16, 256, 0}, {kFew, true, 32, 16, 132}},
      // wgmma, 64 rows or 128: more sequences times heads than multiprocessors, rows too long, more rows.
      {{kH200, 1, 34, 34, 128, 0, kBf16, 16, 0}, {kWgmma, true, 128, 64, 132}},
      {{kH200, 1, 32, 8, 192, 0, kBf16, 16, 0}, {kWgmma, true, 64, 64, 132}},
      {{kH200, 5, 32, 8, 128, 0, kBf16, 16, 0}, {kWgmma, true, 128, 64, 132}},
      {{kH200, 16, 32, 8, 128, 0, kBf16, 16, 0}, {kWgmma, true, 128, 64, 132}},
      {{kH200, 17, 32, 8, 128, 0, kBf16, 128, 0}, {kWgmma, true, 128, 128, 132}},
      {{kH200, 2048, 64, 8, 64, 2, kBf16, 256, 0}, {kWgmma, true, 128, 128, 132}},
      {{kH200, 2048, 64, 8, 192, 0, kBf16, 8, 0}, {kWgmma, true, 64, 128, 132}},
      {{kH200, 3, 64, 8, 256, 1, kBf16, 16, 0}, {kWgmma, true, 64, 64, 132}},
      // Other devices: mma.sync, up to 16 rows of a KV head in tiles of their own.
      {{kA100, 1, 32, 8, 128, 0, kBf16, 16, 0}, {kMma, false, 64, 16, 216}},
      {{kA100, 4, 32, 8, 128, 0, kBf16, 16, 0}, {kMma, false, 64, 16, 216}},
      {{kA100, 5, 32, 8, 128, 0, kBf16, 16, 0}, {kMma, false, 64, 64, 216}},
      {{kB200, 512, 32, 8, 128, 0, kBf16, 16, 0}, {kMma, false, 64, 128, 296}},
      {{kA100, 512, 32, 8, 192, 0, kBf16, 16, 0}, {kMma, false, 32, 64, 216}},
      // An fp8 cache.
      {{kH200, 1, 32, 8, 128, 0, kFp8, 16, 0}, {kWgmma, true, 128, 64, 132}},
      {{kH200, 1, 32, 8, 128, 0, kFp8, 4, 0}, {kMma, false, 64, 16, 264}},
      {{kH200, 5, 32, 8, 128, 0, kFp8, 16, 0}, {kWgmma, true, 128, 64, 132}},
      {{kH200, 512, 32, 8, 128, 0, kFp8, 16, 0}, {kWgmma, true, 128, 128, 132}},
      {{kA100, 512, 32, 8, 128, 0, kFp8, 16, 0}, {kMma, false, 64, 128, 216}},
      // Blocks of fewer than eight tokens, rows that do not start at multiples of 16 bytes.
      {{kH200, 512, 32, 8, 128, 0, kFp8, 4, 0}, {kMma, false, 64, 128, 264}},
      {{kH200, 512, 32, 8, 128, 0, kFp8, 16, 8}, {kMma, false, 64, 128, 264}},
      {{kH200, 1, 32, 8, 128, 0, kBf16, 4, 0}, {kMma, false, 64, 16, 264}},
      {{kH200, 512, 32, 8, 128, 0, kBf16, 4, 0}, {kMma, false, 64, 128, 264}},
      {{kH200, 512, 32, 8, 128, 0, kBf16, 16, 8}, {kMma, false, 64, 128, 264}},
      // Batch-invariant: one instruction for all row counts and layouts.
      {{kH200, 1, 32, 8, 128, -1, kBf16, 16, 0}, {kWgmma, true, 128, 64, 132}},
      {{kH200, 512, 32, 8, 128, -1, kBf16, 16, 0}, {kWgmma, true, 128, 128, 132}},
      {{kH200, 1, 32, 8, 128, -1, kBf16, 4, 0}, {kWgmma, false, 128, 64, 132}},
      {{kH200, 512, 32, 8, 128, -1, kBf16, 16, 2}, {kWgmma, false, 128, 128, 132}},
      {{kH200, 1, 32, 8, 128, -1, kFp8, 16, 0}, {kWgmma, true, 128, 64, 132}},
      {{kH200, 512, 32, 8, 128, -1, kFp8, 16, 8}, {kWgmma, false, 128, 128, 132}},
      {{kA100, 1, 32, 8, 128, -1, kBf16, 16, 0}, {kMma, false, 64, 16, 216}},
  };
  const PrefillDevice without{132, true, false};
  CHECK(cuda::plan_delta_prefill(params_of(table[0].call), without).kernel == kWgmma);
  int row = 0;
  for (const auto& [call, want] : table) {
    const PrefillPlan plan = cuda::plan_delta_prefill(params_of(call), call.device);
    const bool same = plan.kernel == want.kernel && plan.tma == want.tma &&
                      plan.list.tile_keys == want.tile_keys && plan.list.tile_rows == want.tile_rows &&
                      plan.list.workers == want.workers;
    if (!same) {
      std::fprintf(stderr, "row %d: kernel %d, tma %d, tiles of %d keys and %d rows, %d workers\n", row,
                   int(plan.kernel), plan.tma, plan.list.tile_keys, plan.list.tile_rows, plan.list.workers);
    }
    CHECK(same);
    ++row;
  }
}

// Stages of keys and of values, of cells to be widened, and the shared memory of a CTA.
void rings() {
  const struct {
    int head_dim, groups;
    bool fp8;
    int stages, raw_stages, kilobytes;
  } table[] = {
      {64, 1, false, 4, 0, 138},  {64, 2, false, 4, 0, 146},  {96, 2, false, 4, 0, 218},
      {128, 1, false, 3, 0, 210}, {128, 2, false, 3, 0, 226}, {192, 1, false, 4, 0, 218},
      {192, 2, false, 3, 0, 194}, {256, 1, false, 3, 0, 226}, {256, 2, false, 2, 0, 194},
      {64, 1, true, 2, 8, 138},   {64, 2, true, 2, 8, 146},   {96, 2, true, 2, 8, 218},
      {128, 1, true, 2, 5, 226},  {128, 2, true, 2, 4, 226},  {192, 1, true, 2, 8, 218},
      {192, 2, true, 2, 6, 218},  {256, 1, true, 2, 4, 226},  {256, 2, true, 2, 2, 226},
  };
  for (const auto& want : table) {
    const cuda::HopperRings got = cuda::hopper_rings(want.head_dim, want.groups, want.fp8);
    const bool same =
        got.stages == want.stages && got.raw_stages == want.raw_stages && got.bytes == want.kilobytes * 1024;
    if (!same) {
      std::fprintf(stderr, "head_dim %d, %d groups, fp8 %d: %d and %d stages, %d bytes\n", want.head_dim,
                   want.groups, want.fp8, got.stages, got.raw_stages, got.bytes);
    }
    CHECK(same && got.bytes <= cuda::kHopperSmem);
  }
  for (int head_dim : {64, 96, 128}) CHECK(cuda::few_bytes(head_dim) <= cuda::kHopperSmem);
}

// The list a plan reads is the one a schedule of the same shapes holds, whoever made it.
void lists() {
  for (const PrefillDevice& device : {kA100, kH200}) {
    for (int head_dim : {64, 128, 192, 256}) {
      for (int tokens : {1, 4, 5, 16, 17, 600}) {
        for (int splits : {-1, 0, 3}) {
          const Call call{device, tokens, 32, 8, head_dim, splits, kBf16, 16, 0};
          const PrefillPlan plan = cuda::plan_delta_prefill(params_of(call), device);
          const cuda::ListShape lists[] = {cuda::portable_list(tokens * 4, head_dim, splits, device),
                                           cuda::hopper_list(tokens * 4, head_dim, splits, device),
                                           cuda::few_rows_list(splits, head_dim, device)};
          const cuda::ListShape& list = lists[int(plan.kernel)];
          CHECK(list.tile_keys == plan.list.tile_keys && list.tile_rows == plan.list.tile_rows);
          CHECK(list.workers == plan.list.workers && list.most_part_rows == plan.list.most_part_rows);
          CHECK(cuda::kChunkKeys % list.tile_keys == 0);
        }
      }
    }
  }
}

// Pieces of the workspace do not overlap, and it does not grow without bound with the context.
void workspaces() {
  const Call call{kH200, 64, 32, 8, 128, -1, kBf16, 16, 0};
  const PrefillPlan plan = cuda::plan_delta_prefill(params_of(call, 64, 8192), kH200);
  const int64_t ends[] = {plan.tickets + plan.num_tickets * 4, plan.part_stats + plan.part_rows * 8,
                          plan.parts + plan.part_rows * 128 * 4,
                          plan.kept + plan.ctas * plan.kept_stride * 16,
                          plan.schedule + schedule_size(64) * 4};
  const int64_t begins[] = {plan.part_stats, plan.parts, plan.kept, plan.schedule, plan.size};
  for (int i = 0; i < 5; ++i) CHECK(ends[i] <= begins[i]);
  CHECK(plan.size < int64_t(100) << 20);
  DeltaPrefillParams p = params_of(call);
  const int64_t with = cuda::plan_delta_prefill(p, kH200).size;
  int32_t schedule = 0;
  p.schedule = &schedule;
  CHECK(cuda::plan_delta_prefill(p, kH200).size < with);
  p.total_q = p.batch = 1;
  p.max_blocks = 4;
  p.num_splits = 0;
  CHECK(cuda::plan_delta_prefill(p, kH200).ctas <= 132);
  // What the threads of both groups keep: four floats of 16 columns of a row each, and four numbers.
  const Call fp8{kH200, 1, 32, 8, 128, -1, kFp8, 16, 0};
  CHECK(cuda::plan_delta_prefill(params_of(fp8, 64, 8192), kH200).kept_stride >= (128 / 8 + 1) * 256);
}

}  // namespace

int main() {
  kernels();
  rings();
  lists();
  workspaces();
  std::printf("plans are as the table says\n");
  return 0;
}
