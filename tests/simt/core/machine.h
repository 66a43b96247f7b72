// The emulated machine's own state: lanes (one CUDA thread each), CTAs and the scheduler's choices.  Only
// tests/simt/core includes this.
#pragma once

#include <simt/core.h>

#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#else
#define SIMT_ASAN 0
#endif

namespace simt {

// Its own allocator makes these vectors' code distinct from any instantiation in instrumented kernel files:
// the linker would otherwise be free to keep the instrumented copy and the race checker would watch the
// emulator.
template <class T>
struct CoreAllocator {
  using value_type = T;
  CoreAllocator() = default;
  template <class U>
  CoreAllocator(const CoreAllocator<U>&) {}
  T* allocate(size_t n) {
    if (void* p = std::malloc(n * sizeof(T))) return static_cast<T*>(p);
    std::abort();
  }
  void deallocate(T* p, size_t) { std::free(p); }
  friend bool operator==(CoreAllocator, CoreAllocator) { return true; }
  friend bool operator!=(CoreAllocator, CoreAllocator) { return false; }
};
template <class T>
using Vec = std::vector<T, CoreAllocator<T>>;

constexpr size_t kPage = 4096;
constexpr size_t kStackBytes = SIMT_ASAN ? 512 << 10 : 128 << 10;
constexpr size_t kSmemMax = 227 << 10;   // what one CTA may use on sm_90
constexpr size_t kSmemArea = 232 << 10;  // the mapped area: kSmemMax rounded up for alignment
constexpr size_t kStaticArea = 64 << 10;
constexpr u32 kStaticBase = 0x80000000u;  // static shared variables in the 32-bit shared window
constexpr int kMaxThreads = 1024;
constexpr int kMaxSlots = 192;

struct Wait {
  const char* what = "start";
  Where where;
  u32 mask = 0;
};

struct CopyOp {
  u8* dst;
  const u8* src;
  int bytes, copy;
};

struct BulkCopy {  // one bulk copy in flight, as the pieces it moves
  struct Piece {
    u8* dst;
    const u8* src;  // null: zeros
    int bytes;
  };
  Vec<Piece> pieces;
  bool to_shared;
  u32 mbarrier;  // address, of loads
  int bytes;     // counted there
  int lane;
  u32 clock;   // of that thread at the issue, for the race checker
  u32 number;  // of stores: those of a group are waited for together
};

struct RaceClock;  // race.cpp: what the arrivals at a barrier know

struct Mbarrier {
  u32 address;
  int count, pending;
  int64_t bytes;  // expected and not yet arrived
  u32 phase;
  RaceClock *arriving, *completed;  // of this phase and of the last one
};

struct WgmmaOp {
  bool a_in_registers, accumulate, transposed_a, transposed_b, bf16;
  int n;
  u64 a, b;
  float* d[32];
  u32 a_registers[32][4];
};

struct Lane {
  void* sp = nullptr;
  u8* stack = nullptr;
  void* asan_fake = nullptr;
  uint3 tid{};
  int id = 0;
  bool done = false;
  Wait wait;
  void* arg = nullptr;  // operands of the pending collective
  Vec<CopyOp> open_copies;
  Vec<Vec<CopyOp>> copy_groups;
  Vec<u32> store_groups;  // last bulk store of each committed group
  u32 stores = 0, uncommitted_stores = 0;
};

struct Group {  // lanes of a warp waiting for each other
  CollectiveFn fn;
  u32 mask, arrived;
  const char* what;
  Where where;
};

struct Warp {
  u32 ready = 0, alive = 0, full = 0;
  u32 priority = 0;
  u32 polled = 0;  // the lane after the one that polled last: without a seed it is its turn
  Vec<Group> groups;
  Vec<WgmmaOp> open_wgmma;
  Vec<Vec<WgmmaOp>> wgmma_groups;
  u32 wgmma_issued = 0;
  bool wgmma_fenced = false;
};

struct Barrier {
  int arrived = 0, expected = 0, pred_count = 0, last_count = 0;
  Vec<int> waiting;
  u32 warps_seen = 0;
  Where warp_where[32];
  RaceClock* clock = nullptr;
};

struct RaceCta;  // race.cpp: clocks of the CTA's threads

struct Cta {
  uint3 idx{};
  u32 linear = 0;
  int slot = 0, live = 0, current_warp = 0;
  u32 ready_warps = 0;
  bool running = false;
  bool waited = false;  // for the grids ahead
  Vec<Lane> lanes;
  Warp warps[32];
  Barrier barriers[16];
  u8* smem_area = nullptr;    // kSmemArea bytes before a guard page
  u8* smem = nullptr;         // dynamic shared memory, right-aligned against that page
  u8* static_area = nullptr;  // kStaticArea bytes
  Vec<Mbarrier> mbarriers;
  Vec<BulkCopy> in_flight;
  RaceCta* race = nullptr;
};

struct SharedVariable {
  const void* key;
  u32 offset, bytes;
};

struct Machine {
  Vec<Cta*> slots;  // every slot ever made; the first num_slots take part in the current launch
  int num_slots = 0, num_threads = 0, num_warps = 0;
  size_t smem_bytes = 0;
  Vec<SharedVariable> shared_variables;  // of the current launch
  size_t static_bytes = 0;
  Cta* cta = nullptr;  // the running lane's, null outside a launch
  int lane = -1;
  EntryFn entry = nullptr;
  void* entry_arg = nullptr;
  Vec<u32> order;  // CTAs in the order they start
  size_t next_cta = 0;
  void* main_sp = nullptr;
  void* main_fake = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
  u8* stacks = nullptr;  // one reservation for all lanes of all slots
  u64 seed = 0, rng = 1;
  bool seed_set = false, change_cta = false, overlapped = false, overlapping = false;
  u64 idle_pauses = 0;
  u32 next_priority = 0;
  std::string* error = nullptr;
  bool is_failing = false;  // what makes up the message may be compiled with hooks, and is not checked
  Stats stats{};
};
extern Machine M;

inline Lane& me() { return M.cta->lanes[M.lane]; }
inline int warp_id() { return M.lane >> 5; }
inline u32 random_bits() {
  M.rng ^= M.rng << 13;
  M.rng ^= M.rng >> 7;
  M.rng ^= M.rng << 17;
  return u32(M.rng >> 16);
}
inline bool in_stacks(const void* p) {
  const size_t bytes = size_t(kMaxSlots) * kMaxThreads * (kStackBytes + kPage);
  return size_t(static_cast<const u8*>(p) - M.stacks) < bytes;
}

// fiber.cpp
void prepare_lane(Cta& cta, int id);
void resume_lane(Cta& cta, int id, void** save_sp, void** save_fake);
void leave_to_main(bool lane_is_finished);
bool run_until_a_cta_ends();  // or fails; false: nothing can run
// sched.cpp
void make_ready(Cta& cta, int id);
bool pick_next(Cta** cta, int* lane);
void yield_blocked();
void progress();
void preempt();
void maybe_change_cta();
// sync.cpp
void lane_returned();
// mbarrier.cpp
void start_mbarriers(Cta& cta);
Mbarrier& mbarrier_at(u32 address, const char* what);
void mbarrier_bytes_arrived(Mbarrier& barrier, const BulkCopy& copy);
// bulk.cpp
bool land_a_copy(Cta& cta);
// wgmma.cpp
void start_wgmma(Cta& cta);
void check_wgmma_done(Cta& cta);
// shared.cpp
void start_shared(Cta& cta);
u8* shared_pointer(u32 address, int bytes, const char* what);
void poison(u8* p, size_t n);  // under ASan, an access to these bytes is reported
void unpoison(u8* p, size_t n);

// kAsync...: cp.async, in the name of its thread.  kBulk...: the asynchronous proxy, which sees what ordinary
// stores wrote only across a fence.proxy.async.
enum class Access { kRead, kWrite, kAsyncIssue, kAsyncDone, kBulkIssue, kBulkDone, kBulkRead };
// race.cpp; each does nothing unless the program was built with the race hooks linked in.
bool race_enabled();
void race_launch();
void race_cta_start(Cta& cta);
void race_cta_end(Cta& cta);
void race_arrive(Barrier& barrier);
void race_release(Cta& cta, Barrier& barrier, int lane);
void race_warp_sync(Cta& cta, int warp, u32 lanes);
void race_fence(Scope scope);
void race_fence_proxy();
void race_mbarrier_arrive(Mbarrier& barrier);
u32 race_bulk_issued();
void race_mbarrier_copied(Mbarrier& barrier, int lane, u32 clock);  // a bulk copy of that lane has landed
void race_mbarrier_completed(Mbarrier& barrier);                    // the phase is over
void race_mbarrier_passed(const Mbarrier& barrier);

void race_strong(const void* p, int bytes, Strong kind, Where where);
void race_touch(const void* p, int bytes, Access access, int lane);
void race_access(const void* p, int bytes, Access access, void* pc);
void overlap_launch();  // overlap.cpp
void overlap_access(const u8* p, int bytes, bool writes);

}  // namespace simt
