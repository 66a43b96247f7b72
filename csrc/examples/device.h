// Where the example's ops run: memory of the CPU or of a GPU, and each op of the library called there.
#pragma once

#include <core/backend.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef SKV_CUDA
#include <cuda_runtime_api.h>
#endif

class Device {
 public:
  explicit Device(bool is_cuda) : is_cuda_(is_cuda) {
#ifndef SKV_CUDA
    if (is_cuda) throw std::runtime_error("this build of stateful_kv has no CUDA");
#endif
  }
  ~Device() {
    for (void* memory : owned_) release(memory);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  bool is_cuda() const { return is_cuda_; }

  // Zeroed memory that lives as long as the device.
  template <class T>
  T* alloc(int64_t n) {
    void* memory = nullptr;
    const size_t bytes = sizeof(T) * static_cast<size_t>(n > 0 ? n : 1);
#ifdef SKV_CUDA
    if (is_cuda_) {
      check(cudaMalloc(&memory, bytes));
      check(cudaMemset(memory, 0, bytes));
      owned_.push_back(memory);
      return static_cast<T*>(memory);
    }
#endif
    memory = ::operator new(bytes, std::align_val_t{64});
    std::memset(memory, 0, bytes);
    owned_.push_back(memory);
    return static_cast<T*>(memory);
  }

  template <class T>
  void upload(T* to, const T* from, int64_t n) const {
    copy(to, from, sizeof(T) * static_cast<size_t>(n));
  }
  // Waits for what was enqueued before.
  template <class T>
  void download(T* to, const T* from, int64_t n) const {
    copy(to, from, sizeof(T) * static_cast<size_t>(n));
  }

 private:
  void copy(void* to, const void* from, size_t bytes) const {
#ifdef SKV_CUDA
    if (is_cuda_) return check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
#endif
    std::memcpy(to, from, bytes);
  }

  void release(void* memory) const {
#ifdef SKV_CUDA
    if (is_cuda_) {
      cudaFree(memory);
      return;
    }
#endif
    ::operator delete(memory, std::align_val_t{64});
  }

#ifdef SKV_CUDA
  static void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  }
#endif

  bool is_cuda_;
  std::vector<void*> owned_;
};

// call::OP(device, params): the op on that device. A server with a thread pool of its own passes it in the
// place of Serial (core/parallel.h), and a stream in the place of the default one.
namespace call {
#ifdef SKV_CUDA
#define SKV_CALL(op, Params)                                                                 \
  inline void op(const Device& device, const skv::Params& params) {                          \
    device.is_cuda() ? skv::cuda::op(params, nullptr) : skv::cpu::op(params, skv::Serial()); \
  }
#else
#define SKV_CALL(op, Params) \
  inline void op(const Device&, const skv::Params& params) { skv::cpu::op(params, skv::Serial()); }
#endif
SKV_FOR_EACH_OP(SKV_CALL)
#undef SKV_CALL
}  // namespace call
