#include "linear_scratch.h"

#include <cstdlib>
#include <new>

namespace skv::cpu {

void* linear_scratch(LinearScratch slot, int64_t bytes) {
  struct Buffer {
    void* data = nullptr;
    int64_t bytes = 0;
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffers[kNumLinearScratch];
  Buffer& buffer = buffers[slot];
  if (buffer.bytes < bytes) {
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    std::free(buffer.data);
    buffer.bytes = 0;
    buffer.data = std::aligned_alloc(64, static_cast<size_t>(rounded));
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.bytes = rounded;
  }
  return buffer.data;
}

}  // namespace skv::cpu
