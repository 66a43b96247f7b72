// The race checker.  Kernels are compiled with -fsanitize=thread but linked without its runtime: the compiler
// then calls __tsan_readN and __tsan_writeN at every access, and this file supplies those functions.
//
// Happens-before is tracked with one vector clock per thread over the threads of its CTA, and with snapshots
// of other CTAs' clocks that arrive through memory, so a race is reported whatever order the scheduler chose.
//  - Within a CTA, barriers and __syncwarp order; shuffles, votes, mma and ldmatrix do not.
//  - Between CTAs, only this does: fence, then strong store or atomic, by one thread; strong load or atomic
//  that
//    follows it, then fence, by another (barriers carry the knowledge on to the rest of a CTA).
//  - Strong accesses do not race with each other; a strong and a plain one do.
//  - An mbarrier's phase passes on what its arrivals knew, and that its bulk copies have landed.
//  - What ordinary stores wrote to shared memory, bulk copies and wgmma see only if a fence.proxy.async lies
//    between: clocks up to which that is so travel beside the others.
// Shared memory is also checked for reads of bytes never written and for use before an async copy was
// awaited, global memory for what grids that overlap must not do (overlap.cpp).
#if defined(SIMT_RACE)
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <unordered_map>

#include "machine.h"

namespace simt {

using Clocks = std::shared_ptr<const Vec<u32>>;
struct Known {  // clocks of CTAs as somebody once knew them; never changes once made
  std::map<u32, Clocks> ctas;
};
using KnownPtr = std::shared_ptr<const Known>;

// What several threads know together.  Threads that met at a barrier share one `peers`, so it is joined once.
struct RaceClock {
  Vec<u32> clocks;
  std::vector<Clocks> joined;
  KnownPtr known;
  Clocks proxied;
  Clocks result;  // of the release under way
};

struct Location {  // what the last releases through this address passed on
  KnownPtr device, cta;
  u32 cta_linear = ~0u;
};

struct RaceThread {
  u32 clock = 1;
  Clocks peers;                     // clocks of its CTA's threads as it knows them, all 0 if null
  KnownPtr known;                   // of other CTAs
  Clocks proxied;                   // writes up to here are visible to the asynchronous proxy
  KnownPtr release, release_cta;    // snapshot of the last fence
  KnownPtr observed, observed_cta;  // read by strong accesses, not yet fenced
};

struct RaceCta {
  int n = 0;  // threads, and one more that stands for the bulk copies
  u32 copies = 0;
  std::vector<RaceThread> threads;
  std::unordered_map<const void*, Location> locations;  // in this CTA's shared memory
};

namespace {

constexpr u32 kNobody = ~0u;
constexpr u32 kThreadBits = 11, kThreadMask = (1u << kThreadBits) - 1;
constexpr int kReaders = 3;

struct Epoch {
  u32 who = kNobody;                                  // CTA << kThreadBits | thread
  u32 clock : 29, strong : 1, pending : 1, bulk : 1;  // bulk: written by a bulk copy
  const void* place = nullptr;                        // program counter, or an index into places
  Epoch() : clock(0), strong(0), pending(0), bulk(0) {}
};
struct Cell {
  Epoch write, reads[kReaders];
};
struct Page {
  u64 generation = 0;
  Cell cells[kPage];
};

std::unordered_map<u64, Page*> pages;
u64 last_page_number = ~0ull, generation = 0;
Page* last_page = nullptr;
std::unordered_map<const void*, Location> locations;
Vec<Where> places;

void join_row(u32* a, const u32* b, int n) {
  for (int i = 0; i < n; ++i) a[i] = a[i] > b[i] ? a[i] : b[i];
}

// into = what it was and what thread t knows; `joined` remembers the peers that are in already.
void join_thread(Vec<u32>& into, std::vector<Clocks>& joined, const RaceCta& c, int t) {
  into.resize(c.n);
  const RaceThread& thread = c.threads[t];
  bool seen = !thread.peers;
  for (const Clocks& j : joined) seen = seen || j == thread.peers;
  if (!seen) {
    join_row(into.data(), thread.peers->data(), c.n);
    joined.push_back(thread.peers);
  }
  if (into[t] < thread.clock) into[t] = thread.clock;
}

Clocks clocks_of(const RaceCta& c, int t) {
  auto clocks = std::make_shared<Vec<u32>>();
  std::vector<Clocks> joined;
  join_thread(*clocks, joined, c, t);
  return clocks;
}

KnownPtr join(const KnownPtr& a, const KnownPtr& b) {
  if (!b || a == b) return a;
  if (!a) return b;
  auto out = std::make_shared<Known>(*a);
  for (const auto& [cta, clocks] : b->ctas) {
    Clocks& mine = out->ctas[cta];
    if (!mine) {
      mine = clocks;
    } else if (mine != clocks) {
      auto both = std::make_shared<Vec<u32>>(*mine);
      join_row(both->data(), clocks->data(), int(both->size()));
      mine = both;
    }
  }
  return out;
}

Clocks join_clocks(const Clocks& a, const Clocks& b) {
  if (!b || a == b) return a;
  if (!a) return b;
  auto out = std::make_shared<Vec<u32>>(*a);
  join_row(out->data(), b->data(), int(b->size()));
  return out;
}

Cell* cell_of(const u8* p) {
  const u64 number = reinterpret_cast<u64>(p) / kPage;
  if (number != last_page_number) {
    Page*& page = pages[number];
    if (!page) page = new Page;
    last_page = page;
    last_page_number = number;
  }
  if (last_page->generation != generation) {
    for (Cell& c : last_page->cells) c = Cell{};
    last_page->generation = generation;
  }
  return &last_page->cells[reinterpret_cast<u64>(p) % kPage];
}

void forget(const u8* begin, size_t bytes) {
  for (u64 n = reinterpret_cast<u64>(begin) / kPage; n <= reinterpret_cast<u64>(begin + bytes - 1) / kPage;
       ++n) {
    auto it = pages.find(n);
    if (it != pages.end()) it->second->generation = 0;
  }
}

bool within(const u8* p, const u8* begin, size_t bytes) { return begin && size_t(p - begin) < bytes; }
bool in_shared(const Cta& c, const u8* p) {
  return within(p, c.smem_area, kSmemArea) || within(p, c.static_area, kStaticArea);
}

bool ordered(const Epoch& e, int t) {
  const u32 cta = e.who >> kThreadBits, thread = e.who & kThreadMask;
  RaceCta& rc = *M.cta->race;
  if (cta == M.cta->linear) {
    const Clocks& peers = rc.threads[t].peers;
    return int(thread) == t || (peers && e.clock <= (*peers)[thread]);
  }
  const KnownPtr& known = rc.threads[t].known;
  if (!known) return false;
  const auto it = known->ctas.find(cta);
  return it != known->ctas.end() && e.clock <= (*it->second)[thread];
}

void describe_place(char* out, size_t size, const void* place) {
  const size_t index = reinterpret_cast<size_t>(place);
  if (index < places.size()) {
    std::snprintf(out, size, "%s:%d", places[index].file, places[index].line);
    return;
  }
  char exe[512], command[1200];
  Dl_info info{};
  std::snprintf(out, size, "pc %p", place);
  const ssize_t k = readlink("/proc/self/exe", exe, sizeof exe - 1);
  if (k <= 0 || !dladdr(place, &info)) return;
  exe[k] = 0;
  if (std::strstr(info.dli_fname, ".so")) std::snprintf(exe, sizeof exe, "%s", info.dli_fname);
  const size_t offset = reinterpret_cast<size_t>(place) - reinterpret_cast<size_t>(info.dli_fbase) - 1;
  std::snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", exe, offset);
  if (FILE* f = popen(command, "r")) {
    if (std::fgets(out, int(size), f)) out[std::strcspn(out, "\n")] = 0;
    pclose(f);
  }
}

const void* place_of(Where where) {
  if (places.empty()) places.push_back({});
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i].line == where.line && places[i].file == where.file) return reinterpret_cast<const void*>(i);
  }
  places.push_back(where);
  return reinterpret_cast<const void*>(places.size() - 1);
}

[[noreturn]] void report(const char* kind, const u8* p, const Epoch& a, const char* a_did, const Epoch& b,
                         const char* b_did) {
  char where_a[600], where_b[600], memory[64];
  describe_place(where_a, sizeof where_a, a.place);
  describe_place(where_b, sizeof where_b, b.place);
  const Cta& c = *M.cta;
  if (within(p, c.static_area, kStaticArea)) {
    std::snprintf(memory, sizeof memory, "static shared memory + %zu", size_t(p - c.static_area));
  } else if (within(p, c.smem_area, kSmemArea)) {
    std::snprintf(memory, sizeof memory, "dynamic shared memory + %zu", size_t(p - c.smem));
  } else {
    std::snprintf(memory, sizeof memory, "global memory %p", static_cast<const void*>(p));
  }
  fail(false, "%s at %s\n  CTA %u thread %u %s at %s\n  CTA %u thread %u %s at %s", kind, memory,
       a.who >> kThreadBits, a.who & kThreadMask, a_did, where_a, b.who >> kThreadBits, b.who & kThreadMask,
       b_did, where_b);
}

void note_read(Cell& cell, const Epoch& me, int t) {
  Epoch* slot = nullptr;
  for (Epoch& r : cell.reads) {
    if (r.who == me.who || r.who == kNobody || (!slot && ordered(r, t))) slot = &r;
    if (r.who == me.who) break;
  }
  *(slot ? slot : &cell.reads[random_bits() % kReaders]) = me;
}

// Whether thread t knows that the asynchronous proxy sees this write of its CTA.
bool proxied(const Epoch& e, int t) {
  const Clocks& clocks = M.cta->race->threads[t].proxied;
  return e.bulk || (clocks && e.clock <= (*clocks)[e.who & kThreadMask]);
}

void access(const u8* p, int bytes, Access kind, int t, const void* place, bool strong) {
  const bool shared = in_shared(*M.cta, p);
  for (int s = 0; !shared && s < M.num_slots; ++s) {
    if (in_shared(*M.slots[s], p)) fail(false, "access to the shared memory of another CTA");
  }
  Epoch me;
  me.who = M.cta->linear << kThreadBits | u32(t);
  me.clock = M.cta->race->threads[t].clock & 0x1fffffff;
  me.strong = strong;
  me.place = place;
  const bool is_read = kind == Access::kRead || kind == Access::kBulkRead;
  const char* did = kind == Access::kRead       ? "reads"
                    : kind == Access::kBulkRead ? "reads through the asynchronous proxy"
                    : kind == Access::kWrite    ? "writes"
                                                : "starts an async copy";
  if (!shared) overlap_access(p, bytes, !is_read);
  for (int i = 0; i < bytes; ++i) {
    Cell& cell = *cell_of(p + i);
    Epoch& w = cell.write;
    if (kind == Access::kAsyncDone) {  // written as of the wait: a barrier before it makes nothing visible
      me.place = w.place;
      w = me;
      continue;
    }
    if (kind == Access::kBulkDone) {  // by the copies' own clock, which waiting for the mbarrier makes known
      w.who = M.cta->linear << kThreadBits | u32(M.cta->race->n - 1);
      w.clock = M.cta->race->copies & 0x1fffffff;
      w.pending = 0;
      w.bulk = 1;
      continue;
    }
    if (w.pending)
      report("access to the target of an unfinished async copy", p + i, me, did, w, "started it");
    if (w.who != kNobody && !(strong && w.strong) && !ordered(w, t)) {
      report(is_read ? "race (read after write)" : "race (write after write)", p + i, me, did, w,
             w.strong ? "wrote atomically" : "wrote");
    }
    if (shared && w.who != kNobody && (kind == Access::kBulkRead || kind == Access::kBulkIssue) &&
        !proxied(w, t)) {
      report("no fence.proxy.async between an ordinary write and the asynchronous proxy", p + i, me, did, w,
             "wrote");
    }
    if (is_read) {
      if (shared && w.who == kNobody) report("read of uninitialised shared memory", p + i, me, did, me, "");
      note_read(cell, me, t);
      continue;
    }
    for (Epoch& r : cell.reads) {
      if (r.who != kNobody && !(strong && r.strong) && !ordered(r, t)) {
        report("race (write after read)", p + i, me, did, r, "read");
      }
      r = Epoch{};
    }
    w = me;
    w.pending = kind == Access::kAsyncIssue || kind == Access::kBulkIssue;
    w.bulk = kind == Access::kBulkIssue;
  }
}

KnownPtr snapshot(int t, const KnownPtr& base) {
  auto out = base ? std::make_shared<Known>(*base) : std::make_shared<Known>();
  out->ctas[M.cta->linear] = clocks_of(*M.cta->race, t);
  return out;
}

void learn(int t, const KnownPtr& news) {
  if (!news) return;
  RaceCta& rc = *M.cta->race;
  const auto own = news->ctas.find(M.cta->linear);
  if (own != news->ctas.end()) {
    auto peers = std::make_shared<Vec<u32>>(*own->second);
    if (rc.threads[t].peers) join_row(peers->data(), rc.threads[t].peers->data(), rc.n);
    rc.threads[t].peers = peers;
  }
  rc.threads[t].known = join(rc.threads[t].known, news);
}

}  // namespace

bool race_enabled() { return true; }

void race_launch() {
  overlap_launch();
  ++generation;
  locations.clear();
}

void race_cta_start(Cta& cta) {
  if (!cta.race) cta.race = new RaceCta;
  RaceCta& rc = *cta.race;
  rc.n = M.num_threads + 1;
  rc.copies = 0;
  rc.threads.assign(rc.n, RaceThread{});
  rc.locations.clear();
  for (Barrier& b : cta.barriers) {
    delete b.clock;
    b.clock = nullptr;
  }
  for (Mbarrier& b : cta.mbarriers) {
    delete b.arriving;
    delete b.completed;
  }
  forget(cta.smem_area, kSmemArea);
  forget(cta.static_area, kStaticArea);
}

void race_cta_end(Cta&) {}

namespace {
void arrive(RaceClock& c) {
  RaceCta& rc = *M.cta->race;
  join_thread(c.clocks, c.joined, rc, M.lane);
  c.known = join(c.known, rc.threads[M.lane].known);
  c.proxied = join_clocks(c.proxied, rc.threads[M.lane].proxied);
  ++rc.threads[M.lane].clock;
}
}  // namespace

void race_arrive(Barrier& barrier) {
  if (!barrier.clock) barrier.clock = new RaceClock;
  arrive(*barrier.clock);
}

void race_mbarrier_arrive(Mbarrier& barrier) {
  if (!barrier.arriving) barrier.arriving = new RaceClock;
  arrive(*barrier.arriving);
}

u32 race_bulk_issued() { return M.cta->race->threads[M.lane].clock++; }

void race_mbarrier_copied(Mbarrier& barrier, int lane, u32 clock) {
  if (!barrier.arriving) barrier.arriving = new RaceClock;
  RaceCta& rc = *M.cta->race;
  Vec<u32>& clocks = barrier.arriving->clocks;
  clocks.resize(rc.n);
  clocks[rc.n - 1] = rc.copies;
  if (clocks[lane] < clock) clocks[lane] = clock;  // what it read is free again
}

void race_mbarrier_completed(Mbarrier& barrier) {
  delete barrier.completed;
  barrier.completed = barrier.arriving;
  barrier.arriving = nullptr;
  if (barrier.completed) barrier.completed->result = std::make_shared<Vec<u32>>(barrier.completed->clocks);
}

void race_mbarrier_passed(const Mbarrier& barrier) {
  if (!barrier.completed) return;
  RaceThread& thread = M.cta->race->threads[M.lane];
  thread.peers = join_clocks(thread.peers, barrier.completed->result);
  thread.known = join(thread.known, barrier.completed->known);
  thread.proxied = join_clocks(thread.proxied, barrier.completed->proxied);
}

void race_fence_proxy() {
  RaceThread& thread = M.cta->race->threads[M.lane];
  thread.proxied = join_clocks(thread.proxied, clocks_of(*M.cta->race, M.lane));
  ++thread.clock;
}

void race_release(Cta& cta, Barrier& barrier, int lane) {
  if (!barrier.clock) return;
  RaceClock& c = *barrier.clock;
  if (lane < 0) {
    c = RaceClock{};
    return;
  }
  if (!c.result) c.result = std::make_shared<Vec<u32>>(std::move(c.clocks));
  RaceThread& thread = cta.race->threads[lane];
  thread.peers = c.result;  // the lane arrived, so this holds all it knew
  thread.known = join(thread.known, c.known);
  thread.proxied = join_clocks(thread.proxied, c.proxied);
}

void race_warp_sync(Cta& cta, int warp, u32 lanes) {
  RaceCta& rc = *cta.race;
  auto all = std::make_shared<Vec<u32>>();
  std::vector<Clocks> joined;
  KnownPtr known;
  Clocks proxied;
  for (u32 m = lanes; m; m &= m - 1) {
    const int t = warp * 32 + __builtin_ctz(m);
    join_thread(*all, joined, rc, t);
    known = join(known, rc.threads[t].known);
    proxied = join_clocks(proxied, rc.threads[t].proxied);
  }
  for (u32 m = lanes; m; m &= m - 1) {
    RaceThread& thread = rc.threads[warp * 32 + __builtin_ctz(m)];
    thread.peers = all;
    thread.known = known;
    thread.proxied = proxied;
    ++thread.clock;
  }
}

void race_fence(Scope scope) {
  const int t = M.lane;
  RaceCta& rc = *M.cta->race;
  RaceThread& thread = rc.threads[t];
  learn(t, thread.observed_cta);
  thread.observed_cta.reset();
  thread.release_cta = snapshot(t, nullptr);
  if (scope == Scope::kDevice) {
    learn(t, thread.observed);
    thread.observed.reset();
    thread.release = thread.release_cta = snapshot(t, thread.known);
  }
  ++thread.clock;
}

void race_strong(const void* p, int bytes, Strong kind, Where where) {
  if (in_stacks(p)) return;
  const u8* at = static_cast<const u8*>(p);
  RaceCta& rc = *M.cta->race;
  RaceThread& thread = rc.threads[M.lane];
  const bool shared = in_shared(*M.cta, at);
  Location& location = (shared ? rc.locations : locations)[p];
  if (location.cta_linear != M.cta->linear) location.cta.reset();
  location.cta_linear = M.cta->linear;
  if (kind != Strong::kStore) {
    thread.observed = join(thread.observed, location.device);
    thread.observed_cta = join(thread.observed_cta, location.cta);
  }
  if (kind == Strong::kStore) {
    location.device = thread.release;
    location.cta = thread.release_cta;
  } else if (kind == Strong::kUpdate) {
    location.device = join(location.device, thread.release);
    location.cta = join(location.cta, thread.release_cta);
  }
  const void* place = place_of(where);
  if (kind != Strong::kStore) access(at, bytes, Access::kRead, M.lane, place, true);
  if (kind != Strong::kLoad) access(at, bytes, Access::kWrite, M.lane, place, true);
}

void race_touch(const void* p, int bytes, Access kind, int lane) {
  if (kind == Access::kBulkDone) ++M.cta->race->copies;
  access(static_cast<const u8*>(p), bytes, kind, lane, place_of(me().wait.where), false);
}

void race_access(const void* p, int bytes, Access kind, void* pc) {
  access(static_cast<const u8*>(p), bytes, kind, M.lane, pc, false);
}

}  // namespace simt
#endif  // SIMT_RACE
