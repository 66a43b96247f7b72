// Hands filled params to the backend of the tensors' device: torch's thread pool on the CPU, torch's current
// stream on CUDA.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <exception>
#include <stdexcept>
#include <string>

#include "../core/backend.h"

#if defined(SKV_CUDA) && !defined(SKV_SIMT)
// Weak, so that one shared object with CUDA code also loads beside a torch that has none.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** stream);
#endif

namespace skv::cuda {  // weak: null in a build that has no CUDA kernel for an op
#define SKV_WEAK(op, Params) __attribute__((weak)) void op(const Params& params, void* stream);
SKV_FOR_EACH_OP(SKV_WEAK)
#undef SKV_WEAK
__attribute__((weak)) int64_t delta_prefill_workspace(const DeltaPrefillParams& params);
__attribute__((weak)) int64_t verify_drafts_workspace(int64_t total_rows, int64_t batch);
__attribute__((weak)) int64_t fused_row_linear_workspace(const FusedRowLinearParams& params);
__attribute__((weak)) bool overlap_launches(bool enabled);
}  // namespace skv::cuda

namespace skv::entry {

class TorchPool final : public Parallel {
 public:
  void run(int64_t n, int64_t grain, Body body, void* context) const override {
    std::exception_ptr error;  // an exception must not cross torch's C interface
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
      try {
        body(context, begin, end);
      } catch (...) {
        if (!failed.test_and_set()) error = std::current_exception();  // the first one
      }
    });
    if (error) std::rethrow_exception(error);
  }
  int num_threads() const override { return static_cast<int>(torch::stable::get_num_threads()); }
};

inline void* current_stream([[maybe_unused]] const torch::stable::Tensor& t) {
#if defined(SKV_CUDA) && !defined(SKV_SIMT)
  void* stream = nullptr;
  if (!&aoti_torch_get_current_cuda_stream ||
      aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) != 0) {
    throw std::runtime_error("this torch build has no CUDA");
  }
  return stream;
#else
  return nullptr;
#endif
}

inline bool runs_cuda_kernels([[maybe_unused]] const torch::stable::Tensor& t) {
#ifdef SKV_SIMT
  return true;
#else
  return !t.is_cpu();
#endif
}

// size() of a CUDA op's workspace, asked on the tensor's device.
template <class Size>
int64_t workspace_size_on([[maybe_unused]] const torch::stable::Tensor& t, const Size& size) {
#ifndef SKV_SIMT
  torch::stable::accelerator::DeviceGuard guard(t.get_device_index());
#endif
  return size();
}

template <class Params>
void call_backend(const char* op, const torch::stable::Tensor& on, const Params& params,
                  [[maybe_unused]] void (*cpu_op)(const Params&, const Parallel&),
                  void (*cuda_op)(const Params&, void*)) {
#ifndef SKV_SIMT  // the emulated CUDA kernels of the tests run on CPU tensors
  if (on.is_cpu()) {
    try {
      cpu_op(params, TorchPool());
    } catch (const IndexError& e) {
      throw std::runtime_error(std::string("[IndexError] ") + op + ": " + e.what());
    }
    return;
  }
#endif
  if (cuda_op == nullptr) {
    throw std::runtime_error(std::string("[NotImplementedError] ") + op +
                             ": this build of stateful_kv has no CUDA kernel for it");
  }
#ifdef SKV_SIMT
  cuda_op(params, nullptr);
#else
  torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  cuda_op(params, current_stream(on));
#endif
}

}  // namespace skv::entry

#ifdef SKV_SIMT
#define SKV_CPU_OP(op) static_cast<decltype(&::skv::cpu::op)>(nullptr)
#else
#define SKV_CPU_OP(op) &::skv::cpu::op
#endif
#define SKV_CALL(op, on, params) ::skv::entry::call_backend(#op, on, params, SKV_CPU_OP(op), &::skv::cuda::op)
