// mbarrier: counts arrivals and bytes of bulk copies, phase after phase.  Its eight bytes of shared memory
// hold a mark, so that overwriting a barrier, or using one that was never initialised, shows.
#include <cstring>

#include "machine.h"

namespace simt {
namespace {

constexpr u64 kMark = 0x7261626d00000000ull;  // and the barrier's number

void complete_if_all_arrived(Mbarrier& b) {
  if (b.pending || b.bytes) return;
  race_mbarrier_completed(b);
  ++b.phase;
  b.pending = b.count;
  progress();
}

}  // namespace

void start_mbarriers(Cta& cta) {
  cta.mbarriers.clear();
  cta.in_flight.clear();
}

Mbarrier& mbarrier_at(u32 address, const char* what) {
  Cta& cta = *M.cta;
  u64 mark;
  if (address & 7) fail(false, "%s: mbarrier at %u, not aligned to 8 bytes", what, address);
  std::memcpy(&mark, shared_pointer(address, 8, what), 8);
  const u64 number = mark ^ kMark;
  if (number >= cta.mbarriers.size() || cta.mbarriers[number].address != address) {
    fail(true, "%s: no initialised mbarrier at shared address %u", what, address);
  }
  return cta.mbarriers[number];
}

void mbarrier_init(u32 bar, int count, Where where) {
  me().wait = {"mbarrier.init", where, 0};
  if (count < 1 || count > (1 << 20) - 1) fail(false, "mbarrier.init: count %d", count);
  u8* p = shared_pointer(bar, 8, "mbarrier.init");
  const u64 mark = kMark ^ M.cta->mbarriers.size();
  race_touch(p, 8, Access::kWrite, M.lane);
  std::memcpy(p, &mark, 8);
  M.cta->mbarriers.push_back({bar, count, count, 0, 0, nullptr, nullptr});
}

void mbarrier_arrive(u32 bar, int expected_bytes, Where where) {
  me().wait = {"mbarrier.arrive", where, 0};
  Mbarrier& b = mbarrier_at(bar, "mbarrier.arrive");
  race_touch(shared_pointer(bar, 8, ""), 8, Access::kRead, M.lane);  // the initialisation has to be visible
  race_mbarrier_arrive(b);
  b.bytes += expected_bytes;
  if (--b.pending < 0) fail(true, "mbarrier.arrive: more arrivals than its count %d", b.count);
  complete_if_all_arrived(b);
  preempt();
}

void mbarrier_bytes_arrived(Mbarrier& b, const BulkCopy& copy) {
  b.bytes -= copy.bytes;
  race_mbarrier_copied(b, copy.lane, copy.clock);
  complete_if_all_arrived(b);
}

bool mbarrier_try_wait(u32 bar, int parity, Where where) {
  Mbarrier* b = &mbarrier_at(bar, "mbarrier.try_wait");
  me().wait = {"mbarrier.try_wait", where, 0};
  race_touch(shared_pointer(bar, 8, ""), 8, Access::kRead, M.lane);
  const auto passed = [&] { return int(b->phase & 1) != parity; };
  if (!passed()) {
    if (M.seed == 0 || random_bits() & 1) land_a_copy(*M.cta);
    b = &mbarrier_at(bar, "mbarrier.try_wait");
  }
  if (passed()) {
    race_mbarrier_passed(*b);
    return true;
  }
  pause();
  me().wait.where = where;
  return false;
}

}  // namespace simt
