// Memory for large tables that are read and written at random: in huge pages where the system gives them, so
// that a cache miss is not a miss of the address translation too.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace skv {

template <class T>
struct HugePageAllocator {
  using value_type = T;
  static constexpr std::size_t kPage = std::size_t{2} << 20;

  HugePageAllocator() = default;
  template <class U>
  HugePageAllocator(const HugePageAllocator<U>&) {}

  // Below half a page it would mostly be waste.
  static bool is_large(std::size_t n) { return n * sizeof(T) >= kPage / 2; }

  T* allocate(std::size_t n) {
    if (!is_large(n)) return static_cast<T*>(::operator new(n * sizeof(T)));
    const std::size_t size = (n * sizeof(T) + kPage - 1) / kPage * kPage;
    void* p = std::aligned_alloc(kPage, size);
    if (!p) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(p, size, MADV_HUGEPAGE);  // a wish; small pages are as right
#endif
    return static_cast<T*>(p);
  }
  void deallocate(T* p, std::size_t n) { is_large(n) ? std::free(p) : ::operator delete(p); }
  template <class U>
  bool operator==(const HugePageAllocator<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const HugePageAllocator<U>&) const {
    return false;
  }
};

}  // namespace skv
