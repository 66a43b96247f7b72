// verify_drafts's launcher: how many CTAs share a row, and where in the workspace they meet.
#include "verify_drafts.cuh"

namespace skv {
namespace cuda {
namespace {

constexpr int kMaxSplits = 32;
constexpr int kShortRow = 1024;

// Enough CTAs to fill the device, each with at least a pass of work for all its threads.
int choose_splits(const VerifyDraftsParams& p) {
  const int64_t wanted = ceil_div(2 * prim::num_multiprocessors(), p.total_rows);
  const int64_t useful = ceil_div(p.vocab, kSampleThreads * 8);
  return int(std::max<int64_t>(1, std::min<int64_t>({wanted, useful, kMaxSplits})));
}

int64_t round_up(int64_t n) { return (n + 15) / 16 * 16; }

}  // namespace

int64_t verify_drafts_workspace(int64_t total_rows, int64_t batch) {
  return round_up((total_rows + batch) * 4) +
         total_rows * (kMaxSplits * int64_t(sizeof(VerifyPartial)) + kMaxima * 4 + 8);
}

void verify_drafts(const VerifyDraftsParams& p, void* stream) {
  if (p.batch == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  if (p.workspace_size < verify_drafts_workspace(p.total_rows, p.batch)) {
    throw std::runtime_error("[ValueError] verify_drafts: workspace has " + std::to_string(p.workspace_size) +
                             " bytes, expected " +
                             std::to_string(verify_drafts_workspace(p.total_rows, p.batch)));
  }
  VerifyLaunch launch{};
  launch.p = p;
  launch.splits = p.total_rows > 0 ? choose_splits(p) : 1;
  launch.tokens_per_split = int(ceil_div(ceil_div(p.vocab, launch.splits), 32)) * 32;
  char* at = static_cast<char*>(p.workspace);
  launch.row_tickets = reinterpret_cast<uint32_t*>(at);
  launch.sequence_tickets = launch.row_tickets + p.total_rows;
  prim::zero_async(at, size_t(p.total_rows + p.batch) * 4, s);
  at += round_up((p.total_rows + p.batch) * 4);
  launch.partials = reinterpret_cast<VerifyPartial*>(at);
  at += p.total_rows * launch.splits * int64_t(sizeof(VerifyPartial));
  launch.maxima = reinterpret_cast<uint32_t*>(at);
  at += p.total_rows * kMaxima * 4;
  launch.drawn = reinterpret_cast<int32_t*>(at);
  launch.drawn_logprob = reinterpret_cast<float*>(at + p.total_rows * 4);
  const dim3 grid(unsigned(p.total_rows * launch.splits + p.batch));
  by_float_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kCount = 16 / int(sizeof(T));
    const int threads = p.vocab <= kShortRow ? kSampleThreads / 8 : kSampleThreads;
    if (aligned(p.logits, sizeof(T), {p.logits_stride}, 16)) {
      prim::launch(verify_drafts_kernel<T, kCount>, grid, threads, 0, s, launch);
    } else {
      prim::launch(verify_drafts_kernel<T, 1>, grid, threads, 0, s, launch);
    }
  });
}

}  // namespace cuda
}  // namespace skv
