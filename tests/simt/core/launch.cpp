// Running a grid: a few CTAs resident at once, the next one starting when one ends; and how errors leave it.
#include <signal.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "machine.h"

namespace simt {

Builtin builtin;
Machine M;

namespace {

int capability = 0;  // 0: not asked for yet

const char* base_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

void describe_cta(std::string& out, const Cta& cta) {
  char line[256];
  for (int w = 0; w < M.num_warps; ++w) {
    u32 reported = 0;
    for (int l = 0; l < 32 && w * 32 + l < M.num_threads; ++l) {
      if (reported >> l & 1) continue;
      const Lane& lane = cta.lanes[w * 32 + l];
      u32 same = 0;
      for (int k = l; k < 32 && w * 32 + k < M.num_threads; ++k) {
        const Lane& other = cta.lanes[w * 32 + k];
        const bool alike = other.done == lane.done && !std::strcmp(other.wait.what, lane.wait.what) &&
                           other.wait.where.line == lane.wait.where.line;
        if (alike) same |= 1u << k;
      }
      reported |= same;
      std::snprintf(line, sizeof line, "  CTA (%u,%u,%u) warp %2d lanes %08x at %s (%s:%d)\n", cta.idx.x,
                    cta.idx.y, cta.idx.z, w, same, lane.wait.what, base_name(lane.wait.where.file),
                    lane.wait.where.line);
      out += line;
    }
  }
}

void start_cta(Cta& cta) {
  const u32 linear = M.order[M.next_cta++];
  const dim3 grid = builtin.grid_dim, block = builtin.block_dim;
  cta.linear = linear;
  cta.idx = {linear % grid.x, linear / grid.x % grid.y, linear / (grid.x * grid.y)};
  cta.live = M.num_threads;
  cta.ready_warps = 0;
  cta.current_warp = 0;
  cta.running = true;
  cta.waited = false;
  if (int(cta.lanes.size()) < M.num_threads) cta.lanes.resize(M.num_threads);
  start_shared(cta);
  start_wgmma(cta);
  for (Barrier& b : cta.barriers) {
    b.waiting.clear();
    b.arrived = b.expected = b.pred_count = 0;
    b.warps_seen = 0;
  }
  for (Warp& w : cta.warps) {
    w.ready = w.alive = w.polled = 0;
    w.priority = random_bits() & 0xffff;
    w.groups.clear();
  }
  for (int i = 0; i < M.num_threads; ++i) {
    Lane& lane = cta.lanes[i];
    lane.id = i;
    lane.done = false;
    lane.wait = Wait{};
    lane.open_copies.clear();
    lane.copy_groups.clear();
    lane.store_groups.clear();
    lane.stores = lane.uncommitted_stores = 0;
    const unsigned t = unsigned(i);
    lane.tid = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
    prepare_lane(cta, i);
    cta.warps[i >> 5].alive |= 1u << (i & 31);
    make_ready(cta, i);
  }
  for (Warp& w : cta.warps) w.full = w.alive;
  ++M.stats.ctas;
  race_cta_start(cta);
  start_mbarriers(cta);
  progress();
}

int choose_resident(const LaunchOptions& options, size_t num_ctas) {
  size_t n = options.resident ? size_t(options.resident) : M.seed ? 2 + random_bits() % 5 : 3;
  if (n > num_ctas) n = num_ctas;
  if (n > size_t(kMaxSlots))
    fail(false, "%zu resident CTAs asked for, at most %d are emulated", n, kMaxSlots);
  return int(n);
}

void order_ctas(size_t num_ctas) {
  M.order.resize(num_ctas);
  for (size_t i = 0; i < num_ctas; ++i) M.order[i] = u32(i);
  if (M.seed == 0) return;  // hardware promises no order of CTAs
  for (size_t i = num_ctas; i > 1; --i) std::swap(M.order[i - 1], M.order[random_bits() % i]);
}

void check_launch(dim3 grid, dim3 block, size_t smem) {
  const size_t threads = size_t(block.x) * block.y * block.z;
  const size_t ctas = size_t(grid.x) * grid.y * grid.z;
  if (!threads || threads > kMaxThreads || smem > kSmemMax || !ctas || grid.x > 0x7fffffffu ||
      grid.y > 65535 || grid.z > 65535 || ctas >= (1u << 21)) {
    fail(false, "invalid launch: grid %u,%u,%u block %u,%u,%u shared memory %zu", grid.x, grid.y, grid.z,
         block.x, block.y, block.z, smem);
  }
}

void run_ctas() {
  for (;;) {
    for (int s = 0; s < M.num_slots; ++s) {
      if (!M.slots[s]->running && M.next_cta < M.order.size()) start_cta(*M.slots[s]);
    }
    if (!run_until_a_cta_ends() || M.error) return;
  }
}

void on_fault(int, siginfo_t* info, void*) {
  const u8* a = static_cast<const u8*>(info->si_addr);
  const Wait w = M.lane >= 0 ? me().wait : Wait{};
  const u8* end = M.cta && M.cta->smem_area ? M.cta->smem_area + kSmemArea : nullptr;
  if (end && a >= end && a < end + kPage) {
    std::fprintf(stderr, "SIMT ERROR: access %zu bytes past the end of shared memory", size_t(a - end));
  } else {
    std::fprintf(stderr, "SIMT ERROR: invalid access to address %p", static_cast<const void*>(a));
  }
  std::fprintf(stderr, ", thread %d, after %s (%s:%d)\n", M.lane, w.what, base_name(w.where.file),
               w.where.line);
  std::_Exit(99);
}

}  // namespace

const Stats& stats() { return M.stats; }

void set_seed(u64 seed) {
  M.seed = seed;
  M.seed_set = true;
}

void set_compute_capability(int value) { capability = value; }

int compute_capability() {
  if (capability == 0) {
    const char* value = std::getenv("SIMT_CAPABILITY");
    capability = value ? std::atoi(value) : 80;
  }
  return capability;
}

void report_faults() {
  if (SIMT_ASAN) return;
  static u8 stack[64 << 10];
  stack_t ss{};
  ss.ss_sp = stack;
  ss.ss_size = sizeof stack;
  sigaltstack(&ss, nullptr);
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

void fail(bool with_threads, const char* format, ...) {
  char text[2048];
  M.is_failing = true;
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  std::string message = std::string("SIMT ERROR: ") + text;
  if (M.lane < 0) {
    M.is_failing = false;
    throw Error(message);
  }
  char place[160];
  const uint3 b = M.cta->idx;
  std::snprintf(place, sizeof place,
                "\n  CTA (%u,%u,%u), thread %d (warp %d lane %d), seed %llu, last at %s (%s:%d)\n", b.x, b.y,
                b.z, M.lane, M.lane >> 5, M.lane & 31, static_cast<unsigned long long>(M.seed),
                me().wait.what, base_name(me().wait.where.file), me().wait.where.line);
  message += place;
  for (int s = 0; with_threads && s < M.num_slots; ++s) {
    if (M.slots[s]->running) describe_cta(message, *M.slots[s]);
  }
  M.error = new std::string(message);
  leave_to_main(false);  // no lane of this launch runs again
  __builtin_unreachable();
}

void launch(dim3 grid, dim3 block, size_t dynamic_bytes, EntryFn entry, void* arg, LaunchOptions options) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  check_launch(grid, block, dynamic_bytes);
  if (!M.seed_set) {
    const char* seed = std::getenv("SIMT_SEED");
    set_seed(seed ? std::strtoull(seed, nullptr, 0) : 0);
  }
  M.rng = (M.rng ^ (M.seed * 0x9e3779b97f4a7c15ull)) | 1;
  builtin.grid_dim = grid;
  builtin.block_dim = block;
  M.num_threads = int(block.x * block.y * block.z);
  M.num_warps = (M.num_threads + 31) / 32;
  M.smem_bytes = dynamic_bytes;
  M.shared_variables.clear();
  M.static_bytes = 0;
  M.overlapped = options.overlapped;
  M.overlapping = options.overlapping;
  M.entry = entry;
  M.entry_arg = arg;
  M.next_cta = 0;
  M.main_stack = nullptr;
  order_ctas(size_t(grid.x) * grid.y * grid.z);
  M.num_slots = choose_resident(options, M.order.size());
  while (int(M.slots.size()) < M.num_slots) {
    M.slots.push_back(new Cta);
    M.slots.back()->slot = int(M.slots.size()) - 1;
  }
  race_launch();
  run_ctas();
  for (Cta* c : M.slots) c->running = false;
  M.cta = nullptr;
  M.lane = -1;
  if (M.error) {
    const std::string message = *M.error;
    delete M.error;
    M.error = nullptr;
    M.is_failing = false;
    throw Error(message);
  }
}

}  // namespace simt
