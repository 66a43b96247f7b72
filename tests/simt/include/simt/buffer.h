// Device memory for test programs: ends at an inaccessible page, starts as 0xff bytes (NaN, -1).
#pragma once

#include <simt/core.h>

namespace simt {

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n) : n_(n), p_(static_cast<T*>(map_guarded(n * sizeof(T)))) {}
  Buffer(size_t n, T value) : Buffer(n) {
    for (size_t i = 0; i < n; ++i) p_[i] = value;
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { unmap_guarded(p_, n_ * sizeof(T)); }
  T& operator[](size_t i) { return p_[i]; }
  T* data() { return p_; }
  size_t size() const { return n_; }

 private:
  size_t n_;
  T* p_;
};

}  // namespace simt
