// verify_drafts's launcher: how many CTAs share a row, and where in the workspace they meet.
#include "verify_drafts.cuh"

#include "verify_cut_rows.cuh"

namespace skv {
namespace cuda {
namespace {

constexpr int kShortRow = 1024;

// Enough CTAs to fill the device, each with at least a pass of work for all its threads.
int choose_splits(const VerifyDraftsParams& p) {
  const int64_t wanted = ceil_div(2 * prim::num_multiprocessors(), p.total_rows);
  const int64_t useful = ceil_div(p.vocab, kSampleThreads * 8);
  return int(std::max<int64_t>(1, std::min<int64_t>({wanted, useful, kMaxSplits})));
}

struct WorkspaceSize {
  int64_t zeros, all;  // bytes; counters that begin as zeros come first
};

// Gives a launch its places in the workspace, if there is one yet.
WorkspaceSize lay_out(VerifyLaunch& launch) {
  const int64_t rows = launch.p.total_rows;
  int64_t size = 0;
  const auto take = [&](auto*& place, int64_t count) {
    using Entry = std::remove_reference_t<decltype(*place)>;
    if (launch.p.workspace) place = reinterpret_cast<Entry*>(static_cast<char*>(launch.p.workspace) + size);
    size += (count * int64_t(sizeof(Entry)) + 15) / 16 * 16;
  };
  take(launch.row_tickets, rows);
  take(launch.cut_tickets, rows);
  take(launch.listed, rows);
  take(launch.sequence_tickets, launch.p.batch);
  const int64_t zeros = size;
  take(launch.partials, rows * launch.splits);
  take(launch.maxima, rows * kMaxima);
  take(launch.list, rows * kListCapacity);
  take(launch.largest, rows);
  take(launch.cut_partials, rows * launch.splits);
  take(launch.drawn, rows);
  take(launch.drawn_logprob, rows);
  return {zeros, size};
}

// f(a kernel's shape): the types of logits, and how many are read at a time.
template <class F>
void by_logits(const VerifyDraftsParams& p, F f) {
  by_float_type(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kCount = 16 / int(sizeof(T));
    if (aligned(p.logits, sizeof(T), {p.logits_stride}, 16)) {
      f(tag, std::integral_constant<int, kCount>());
    } else {
      f(tag, std::integral_constant<int, 1>());
    }
  });
}

}  // namespace

int64_t verify_drafts_workspace(int64_t total_rows, int64_t batch) {
  VerifyLaunch launch{};
  launch.p.total_rows = total_rows;
  launch.p.batch = batch;
  launch.splits = kMaxSplits;
  return lay_out(launch).all;
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
  prim::zero_async(p.workspace, size_t(lay_out(launch).zeros), s);
  const unsigned row_ctas = unsigned(p.total_rows * launch.splits);
  const int threads = p.vocab <= kShortRow ? kSampleThreads / 8 : kSampleThreads;
  by_logits(p, [&](auto tag, auto count) {
    using T = typename decltype(tag)::type;
    constexpr int kCount = decltype(count)::value;
    prim::launch(verify_drafts_kernel<T, kCount>, dim3(row_ctas + unsigned(p.batch)), threads, 0, s, launch);
    const bool may_cut = p.temperature && (p.top_k || p.top_p || p.min_p);
    if (may_cut && row_ctas > 0) {
      prim::launch(verify_drafts_cut_kernel<T, kCount>, dim3(row_ctas), threads, 0, s, launch);
    }
  });
}

}  // namespace cuda
}  // namespace skv
