// The functions that code compiled with -fsanitize=thread calls at every access; see race.cpp.
#if defined(SIMT_RACE)
#include "machine.h"

namespace simt {
namespace {

bool is_private(const void* p) {  // a thread's own stack, or threadIdx and the like
  return M.lane < 0 || M.is_failing || in_stacks(p) ||
         size_t(static_cast<const u8*>(p) - reinterpret_cast<const u8*>(&builtin)) < sizeof builtin;
}

void hook(const void* p, int bytes, Access kind, void* pc) {
  if (!is_private(p)) race_access(p, bytes, kind, pc);
}

void volatile_hook(const void* p, int bytes, Strong kind) {
  if (is_private(p)) return;
  pause();
  race_strong(p, bytes, kind, {"volatile access", 0});
}

}  // namespace
}  // namespace simt

#define SIMT_HOOKS(name, bytes)                                              \
  extern "C" void __tsan_read##name(void* p) {                               \
    simt::hook(p, bytes, simt::Access::kRead, __builtin_return_address(0));  \
  }                                                                          \
  extern "C" void __tsan_write##name(void* p) {                              \
    simt::hook(p, bytes, simt::Access::kWrite, __builtin_return_address(0)); \
  }                                                                          \
  extern "C" void __tsan_volatile_read##name(void* p) {                      \
    simt::volatile_hook(p, bytes, simt::Strong::kLoad);                      \
  }                                                                          \
  extern "C" void __tsan_volatile_write##name(void* p) {                     \
    simt::volatile_hook(p, bytes, simt::Strong::kStore);                     \
  }                                                                          \
  extern "C" void __tsan_unaligned_read##name(void* p) {                     \
    simt::hook(p, bytes, simt::Access::kRead, __builtin_return_address(0));  \
  }                                                                          \
  extern "C" void __tsan_unaligned_write##name(void* p) {                    \
    simt::hook(p, bytes, simt::Access::kWrite, __builtin_return_address(0)); \
  }
SIMT_HOOKS(1, 1)
SIMT_HOOKS(2, 2)
SIMT_HOOKS(4, 4)
SIMT_HOOKS(8, 8)
SIMT_HOOKS(16, 16)
extern "C" {
void __tsan_read_range(void* p, size_t n) {
  simt::hook(p, int(n), simt::Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) {
  simt::hook(p, int(n), simt::Access::kWrite, __builtin_return_address(0));
}
char __tsan_atomic8_load(const volatile char* p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
#endif  // SIMT_RACE
