// Fibers: one stack per CUDA thread and a switch between them.  Stacks lie in one reservation, each ending at
// a guard page, so the race checker can tell a thread's own variables from memory that others may see.
#include <sys/mman.h>

#include <cstdio>

#include "machine.h"

#if SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
// Stacks and CTAs are kept for the next launch, never freed.
extern "C" const char* __asan_default_options() { return "detect_leaks=0:detect_stack_use_after_return=0"; }
#endif

extern "C" void simt_switch(void** save_sp, void* next_sp);
asm(R"(
.text
.hidden simt_switch
.globl simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch,.-simt_switch
)");

namespace simt {
namespace {

constexpr size_t kStackStride = kStackBytes + kPage;  // the guard page is below the stack

u8* stack_of(const Cta& cta, int id) {
  if (!M.stacks) {
    const size_t bytes = size_t(kMaxSlots) * kMaxThreads * kStackStride;
    void* p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail(false, "no address space for thread stacks");
    M.stacks = static_cast<u8*>(p);
  }
  u8* stack = M.stacks + (size_t(cta.slot) * kMaxThreads + id) * kStackStride + kPage;
  if (mprotect(stack, kStackBytes, PROT_READ | PROT_WRITE)) fail(false, "no memory for thread stacks");
  return stack;
}

// Tells the address sanitizer which stack comes next; fake null: the current one is finished.
void announce([[maybe_unused]] void** fake, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t n) {
#if SIMT_ASAN
  __sanitizer_start_switch_fiber(fake, stack, n);
#endif
}

void lane_main() {
#if SIMT_ASAN
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!M.main_stack) M.main_stack = bottom, M.main_stack_bytes = size;  // the first lane comes from main
#endif
  M.entry(M.entry_arg);
  lane_returned();
  __builtin_unreachable();
}

}  // namespace

void prepare_lane(Cta& cta, int id) {
  Lane& lane = cta.lanes[id];
  if (!lane.stack) lane.stack = stack_of(cta, id);
#if SIMT_ASAN
  __asan_unpoison_memory_region(lane.stack, kStackBytes);
#endif
  // Staggered starts keep the hot ends of the stacks out of one another's cache sets.
  void** sp = reinterpret_cast<void**>(lane.stack + kStackBytes - (id & 63) * 64 - 64);
  *--sp = nullptr;
  *--sp = reinterpret_cast<void*>(lane_main);
  for (int k = 0; k < 6; ++k) *--sp = nullptr;
  lane.sp = sp;
}

void resume_lane(Cta& cta, int id, void** save_sp, void** save_fake) {
  M.cta = &cta;
  M.lane = id;
  Lane& next = cta.lanes[id];
  builtin.thread_idx = next.tid;
  builtin.block_idx = cta.idx;
  ++M.stats.switches;
  announce(save_fake, next.stack, kStackBytes);
  simt_switch(save_sp, next.sp);
#if SIMT_ASAN
  if (save_fake) __sanitizer_finish_switch_fiber(*save_fake, nullptr, nullptr);
#endif
}

void leave_to_main(bool lane_is_finished) {
  Lane& lane = me();
  announce(lane_is_finished ? nullptr : &lane.asan_fake, M.main_stack, M.main_stack_bytes);
  simt_switch(&lane.sp, M.main_sp);
}

bool run_until_a_cta_ends() {
  Cta* cta;
  int lane;
  if (!pick_next(&cta, &lane)) return false;
  resume_lane(*cta, lane, &M.main_sp, &M.main_fake);
  M.lane = -1;
  return true;
}

void* map_guarded(size_t bytes) {
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  void* p = mmap(nullptr, size + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED || mprotect(static_cast<u8*>(p) + kPage, size, PROT_READ | PROT_WRITE)) {
    throw Error("no memory for a guarded buffer");
  }
  u8* begin = static_cast<u8*>(p) + kPage;
  __builtin_memset(begin, 0xff, size);
  u8* buffer = begin + (size - (bytes + 15) / 16 * 16);
  poison(begin, size_t(buffer - begin));
  poison(buffer + bytes, size_t(begin + size - buffer) - bytes);
  return buffer;
}

void unmap_guarded(void* p, size_t bytes) {
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  u8* begin = static_cast<u8*>(p) - (size - (bytes + 15) / 16 * 16);
  unpoison(begin, size);
  munmap(begin - kPage, size + 2 * kPage);
}

}  // namespace simt
