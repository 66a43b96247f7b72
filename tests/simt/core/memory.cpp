// Fences and strong accesses (atomics, volatile, acquire and release): where CTAs may be changed, and what
// the race checker learns of them.
#include <cstring>

#include "machine.h"

namespace simt {

void fence(Scope scope) {
  if (M.lane < 0) return;
  race_fence(scope);
  if (scope == Scope::kDevice) preempt();
}

void fence_proxy() {
  race_fence_proxy();
  preempt();
}

void strong_begin() {
  if (M.lane >= 0) preempt();
}

void strong_end(const void* p, int bytes, Strong kind, bool changed, Where where) {
  if (M.lane < 0) return;
  me().wait.where = where;
  race_strong(p, bytes, kind, where);
  if (changed) progress();
  if (!changed && kind == Strong::kUpdate) pause();
}

void wait_for_grids() { M.cta->waited = true; }

void load_raw(void* to, const void* p, int bytes) { std::memcpy(to, p, bytes); }
void store_raw(void* p, const void* from, int bytes) { std::memcpy(p, from, bytes); }

#if !defined(SIMT_RACE)
bool race_enabled() { return false; }
void race_launch() {}
void race_cta_start(Cta&) {}
void race_cta_end(Cta&) {}
void race_arrive(Barrier&) {}
void race_release(Cta&, Barrier&, int) {}
void race_warp_sync(Cta&, int, u32) {}
void race_fence(Scope) {}
void race_fence_proxy() {}
void race_mbarrier_arrive(Mbarrier&) {}
u32 race_bulk_issued() { return 0; }
void race_mbarrier_copied(Mbarrier&, int, u32) {}
void race_mbarrier_completed(Mbarrier&) {}
void race_mbarrier_passed(const Mbarrier&) {}

void race_strong(const void*, int, Strong, Where) {}
void race_touch(const void*, int, Access, int) {}
#endif

}  // namespace simt
