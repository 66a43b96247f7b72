// Barriers and warp collectives, and what happens to both when a thread returns.
#include <cstring>

#include "machine.h"

namespace simt {
namespace {

bool same_place(const Where& a, const Where& b) {
  return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file));
}

void release(Cta& cta, Barrier& b) {
  for (int id : b.waiting) {
    make_ready(cta, id);
    race_release(cta, b, id);
  }
  b.waiting.clear();
  b.warps_seen = 0;
  b.last_count = b.pred_count;
  b.arrived = b.pred_count = b.expected = 0;
  race_release(cta, b, -1);
  progress();
}

void run_group(Cta& cta, int w, size_t index) {
  Warp& warp = cta.warps[w];
  const Group g = warp.groups[index];
  warp.groups.erase(warp.groups.begin() + index);
  void* args[32];
  for (u32 m = g.arrived; m; m &= m - 1) {
    const int l = __builtin_ctz(m);
    args[l] = cta.lanes[w * 32 + l].arg;
  }
  ++M.stats.collectives;
  if (g.fn) g.fn(args, g.arrived);
  warp.ready |= g.arrived;
  cta.ready_warps |= 1u << w;
  progress();
  if (!g.fn) race_warp_sync(cta, w, g.arrived);  // __syncwarp; the other collectives order no memory
}

}  // namespace

int lane_id() { return M.lane & 31; }

int barrier(int id, int count, bool wait, bool pred, const char* what, Where where) {
  Cta& cta = *M.cta;
  const int w = warp_id();
  me().wait = {what, where, 0};
  if (id < 0 || id > 15) fail(false, "barrier %d does not exist", id);
  Barrier& b = cta.barriers[id];
  const int expected = count ? count : -1;
  if (b.arrived && b.expected != expected) {
    fail(true, "barrier %d used with two thread counts (%d and %d)", id, b.expected, expected);
  }
  if (count % 32) fail(false, "barrier %d: thread count %d is no multiple of 32", id, count);
  b.expected = expected;
  ++b.arrived;
  b.pred_count += pred;
  race_arrive(b);
  if (wait) {
    if (!(b.warps_seen >> w & 1)) {
      b.warps_seen |= 1u << w;
      b.warp_where[w] = where;
    } else if (!same_place(b.warp_where[w], where)) {
      fail(true, "barrier divergence: lanes of one warp wait at different %s", what);
    }
    b.waiting.push_back(M.lane);
  }
  if (b.arrived == (count ? count : cta.live)) release(cta, b);
  if (!wait) return preempt(), 0;
  if (M.seed && (random_bits() & 7) == 0) M.change_cta = true;
  yield_blocked();
  return b.last_count;
}

void collective(u32 mask, void* arg, CollectiveFn fn, int flags, const char* what, Where where) {
  Cta& cta = *M.cta;
  const int w = warp_id(), l = lane_id();
  Lane& lane = me();
  const bool aligned = flags & kAligned;
  lane.wait = {what, where, mask};
  lane.arg = arg;
  if (!(mask >> l & 1)) fail(true, "%s: the calling lane is not in its mask %08x", what, mask);
  Warp& warp = cta.warps[w];
  size_t i = warp.groups.size();
  for (size_t k = 0; k < warp.groups.size(); ++k) {
    const Group& g = warp.groups[k];
    if (g.mask == mask) i = k;
    // Different masks may be under way at once, unless each of the two waits for a lane that is in the other.
    const bool mutual = g.mask != mask && (g.mask >> l & 1) && (g.arrived & mask);
    const bool other_call = g.mask == mask && (g.fn != fn || (aligned && !same_place(g.where, where)));
    if (mutual || other_call) {
      fail(true, "warp divergence: lane %d is at %s mask %08x while others wait at %s mask %08x", l, what,
           mask, g.what, g.mask);
    }
  }
  if (i == warp.groups.size()) warp.groups.push_back({fn, mask, 0, what, where});
  Group& g = warp.groups[i];
  g.arrived |= 1u << l;
  const u32 needed = mask & warp.alive;
  if (aligned && needed != (mask & warp.full)) {
    fail(true, "%s: lanes %08x of the warp have returned", what, mask & warp.full & ~needed);
  }
  if (g.arrived == needed) run_group(cta, w, i);
  yield_blocked();
}

void lane_returned() {
  Cta& cta = *M.cta;
  Lane& lane = me();
  const int w = warp_id();
  Warp& warp = cta.warps[w];
  if (!lane.open_copies.empty() || !lane.copy_groups.empty()) {
    fail(false, "thread returned with cp.async in flight");
  }
  lane.done = true;
  --cta.live;
  warp.alive &= ~(1u << lane_id());
  progress();
  for (Barrier& b : cta.barriers) {  // returned threads are not waited for at __syncthreads
    if (b.expected == -1 && b.arrived && b.arrived == cta.live) release(cta, b);
  }
  for (size_t i = warp.groups.size(); i-- > 0;) {
    if (warp.groups[i].arrived == (warp.groups[i].mask & warp.alive)) run_group(cta, w, i);
  }
  lane.wait = {"return", {}, 0};
  if (!cta.live) {
    for (Barrier& b : cta.barriers) {
      if (b.arrived) fail(false, "CTA ended with arrivals pending at a named barrier");
    }
    if (!cta.in_flight.empty()) fail(false, "CTA ended with %zu bulk copies in flight", cta.in_flight.size());
    check_wgmma_done(cta);
    if (M.overlapped && !cta.waited)
      fail(false, "CTA of an overlapped grid ended without waiting for those ahead");
    race_cta_end(cta);
    cta.running = false;
    leave_to_main(true);  // which starts the slot's next CTA: this stack is about to be reused
  }
  Cta* next_cta;
  int next;
  if (!pick_next(&next_cta, &next)) fail(true, "deadlock: threads wait for one that has returned");
  void* unused_sp;
  resume_lane(*next_cta, next, &unused_sp, nullptr);
}

}  // namespace simt
