// commit_step's launcher.
#include "commit_step.cuh"

namespace skv {
namespace cuda {

void commit_step(const CommitStepParams& p, void* stream) {
  prim::launch(commit_step_kernel, dim3{1}, kCommitThreads, 0, static_cast<cudaStream_t>(stream), p);
}

}  // namespace cuda
}  // namespace skv
