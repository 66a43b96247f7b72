// plan_step's launcher.
#include "plan_step.cuh"

namespace skv {
namespace cuda {

void plan_step(const PlanStepParams& p, void* stream) {
  prim::launch(plan_step_kernel, dim3{1}, kPlanThreads, 0, static_cast<cudaStream_t>(stream), p);
}

}  // namespace cuda
}  // namespace skv
