// Asynchronous copies from global to shared memory (cp.async).  The destination holds NaN from the issue
// until the issuing thread waits for the group, so a missing wait and a copy into a buffer still being read
// both show.
#include <cstring>

#include "machine.h"

namespace simt {

void cp_async(u32 dst, const void* src, int bytes, bool pred, Where where) {
  Lane& lane = me();
  lane.wait = {"cp.async", where, 0};
  const u32 low = u32(bytes - 1);
  if ((dst & low) || (reinterpret_cast<uintptr_t>(src) & low)) {
    fail(false, "cp.async: an operand is not aligned to %d bytes (%s:%d)", bytes, where.file, where.line);
  }
  u8* to = shared_pointer(dst, bytes, "cp.async");
  const u8* from = static_cast<const u8*>(src);
  if (pred) {
    volatile u8 probe = from[0];  // faults here, at the issue, when the source is out of bounds
    probe = from[bytes - 1];
    (void)probe;
    race_touch(from, bytes, Access::kRead, lane.id);
  }
  race_touch(to, bytes, Access::kAsyncIssue, lane.id);
  std::memset(to, 0xff, bytes);
  lane.open_copies.push_back({to, from, bytes, pred ? bytes : 0});
}

void cp_async_commit() {
  Lane& lane = me();
  lane.copy_groups.emplace_back(std::move(lane.open_copies));
  lane.open_copies.clear();
  preempt();
}

void cp_async_wait(int pending) {
  Lane& lane = me();
  const size_t have = lane.copy_groups.size();
  const size_t done = have > size_t(pending) ? have - pending : 0;
  for (size_t g = 0; g < done; ++g) {
    for (const CopyOp& c : lane.copy_groups[g]) {
      race_touch(c.dst, c.bytes, Access::kAsyncDone, lane.id);
      std::memset(c.dst, 0, c.bytes);
      if (c.copy) std::memcpy(c.dst, c.src, c.copy);
    }
  }
  lane.copy_groups.erase(lane.copy_groups.begin(), lane.copy_groups.begin() + done);
}

}  // namespace simt
