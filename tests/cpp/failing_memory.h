// Memory that runs out at a chosen allocation: replaces the global operator new of the test that includes it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace memory {

int64_t countdown = 0;  // the allocation at which this arrives at 0 fails; 0: none does
bool lasting = false;   // and all after it
bool* failed = nullptr;

struct OutAt {
  OutAt(int64_t allocation, bool lasts, bool* has_failed) {
    countdown = allocation;
    lasting = lasts;
    failed = has_failed;
  }
  ~OutAt() { countdown = 0; }
};

}  // namespace memory

// Not inlined: GCC would take malloc's memory for what an unreplaced delete gets.
__attribute__((noinline)) void* operator new(std::size_t size) {
  if (memory::countdown > 0 && (*memory::failed || --memory::countdown == 0)) {
    memory::countdown = memory::lasting ? 1 : 0;
    *memory::failed = true;
    throw std::bad_alloc();
  }
  if (void* p = std::malloc(size > 0 ? size : 1)) return p;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* p) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, std::size_t) noexcept { std::free(p); }
