// propose_drafts's launcher: as many threads per sequence as a history of max_history tokens keeps busy.
#include "propose_drafts.cuh"

namespace skv {
namespace cuda {

void propose_drafts(const ProposeDraftsParams& p, void* stream) {
  if (p.batch == 0) return;
  int threads = 64;
  while (threads < kProposeMaxThreads && threads * 16 < p.max_history) threads *= 2;
  const dim3 grid{unsigned(p.batch)};
  prim::launch(propose_drafts_kernel, grid, threads, 0, static_cast<cudaStream_t>(stream), p);
}

}  // namespace cuda
}  // namespace skv
