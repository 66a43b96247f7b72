// Which thread runs next.  Within a CTA a warp is chosen, then a lane of it; the CTA changes when it has
// nothing to run or when a thread passed a point at which other CTAs can observe it.
#include "machine.h"

namespace simt {
namespace {

constexpr u64 kIdleLimit = 20000;  // pauses per live thread without progress before a deadlock is reported

int pick_bit(u32 mask, bool random) {
  if (!random) return __builtin_ctz(mask);
  const u32 r = random_bits() & 31;
  const u32 rotated = (mask >> r) | (r ? mask << (32 - r) : 0);
  return (__builtin_ctz(rotated) + r) & 31;
}

int pick_warp(Cta& cta) {
  const int current = cta.current_warp;
  const bool current_ready = cta.ready_warps >> current & 1;
  if (M.seed == 0) {  // in order
    if (current_ready) return current;
    const u32 above = u32(cta.ready_warps & ~((2ull << current) - 1));
    return __builtin_ctz(above ? above : cta.ready_warps);
  }
  if (M.seed & 1) {  // random, in bursts
    return current_ready && (random_bits() & 63) ? current : pick_bit(cta.ready_warps, true);
  }
  int best = -1;  // one warp as far ahead as it can
  for (u32 m = cta.ready_warps; m; m &= m - 1) {
    const int w = __builtin_ctz(m);
    if (best < 0 || cta.warps[w].priority < cta.warps[best].priority) best = w;
  }
  return best;
}

Cta* pick_cta() {
  if (M.cta && M.cta->ready_warps && !M.change_cta) return M.cta;
  M.change_cta = false;
  const int n = M.num_slots;
  const int from = M.seed ? int(random_bits() % u32(n)) : (M.cta ? M.cta->slot + 1 : 0);
  for (int i = 0; i < n; ++i) {
    Cta* c = M.slots[(from + i) % n];
    if (c->running && c->ready_warps) {
      M.stats.cta_changes += c != M.cta;
      return c;
    }
  }
  return nullptr;
}

}  // namespace

void make_ready(Cta& cta, int id) {
  cta.warps[id >> 5].ready |= 1u << (id & 31);
  cta.ready_warps |= 1u << (id >> 5);
}

bool pick_next(Cta** out_cta, int* out_lane) {
  Cta* cta = pick_cta();
  if (!cta) return false;
  const int w = pick_warp(*cta);
  cta->current_warp = w;
  Warp& warp = cta->warps[w];
  const u32 turn = warp.ready & ~((1u << warp.polled) - 1);
  const int l = pick_bit(M.seed == 0 && turn ? turn : warp.ready, M.seed != 0);
  warp.ready &= ~(1u << l);
  if (!warp.ready) cta->ready_warps &= ~(1u << w);
  *out_cta = cta;
  *out_lane = w * 32 + l;
  return true;
}

void yield_blocked() {
  Cta* self_cta = M.cta;
  const int self = M.lane;
  Lane& lane = me();
  Cta* cta;
  int next;
  if (!pick_next(&cta, &next)) fail(true, "deadlock: no thread of the resident CTAs can run");
  if (cta == self_cta && next == self) return;
  resume_lane(*cta, next, &lane.sp, &lane.asan_fake);
}

void progress() { M.idle_pauses = 0; }

void maybe_change_cta() {
  const u32 r = random_bits();
  M.change_cta |= M.seed == 0 ? (r & 3) == 0 : M.seed & 1 ? (r & 1) == 0 : (r & 7) == 0;
}

void preempt() {
  maybe_change_cta();
  if (!M.change_cta && (M.seed == 0 || (random_bits() & 3))) return;
  make_ready(*M.cta, M.lane);
  yield_blocked();
}

void pause() {
  if (M.lane < 0) return;
  u64 live = 0;
  for (int s = 0; s < M.num_slots; ++s) live += M.slots[s]->running ? M.slots[s]->live : 0;
  if (++M.idle_pauses > kIdleLimit * (live < 64 ? live : 64)) {
    fail(true, "deadlock: threads poll and nothing changes");
  }
  me().wait.what = "poll";
  M.cta->warps[warp_id()].priority = ++M.next_priority;  // a polling warp lets every other one go first
  M.cta->warps[warp_id()].polled = u32(lane_id() + 1) & 31;
  M.cta->current_warp = (warp_id() + 1) % M.num_warps;
  M.change_cta |= (random_bits() & 3) != 0;
  make_ready(*M.cta, M.lane);
  yield_blocked();
}

}  // namespace simt
