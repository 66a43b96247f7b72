// Kernels with one bug each.  Run one per process: `test_emulator NAME`.
#include <cstring>

#include "test_emulator.h"

namespace {

namespace prim = skv::prim;

using P = PlantedParams;

// ---- caught in every build ----

__global__ void divergent_barrier(P p) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  p.data[threadIdx.x] = 1;
}
__global__ void barrier_against_shuffle(P p) {
  if (threadIdx.x % 32 < 16) {
    __syncthreads();
  } else {
    p.data[threadIdx.x] = __shfl_sync(~0u, 1, 0);
  }
}
__global__ void mismatched_collectives(P p) {
  p.data[threadIdx.x] = threadIdx.x < 16 ? __shfl_sync(~0u, 1, 0) : int(__ballot_sync(~0u, 1));
}
__global__ void uneven_barrier_counts(P p) {
  const unsigned n = 2 + (threadIdx.x < 32);
  for (unsigned i = 0; i < n; ++i) prim::named_barrier_sync(1, 64);
  p.data[threadIdx.x] = 1;
}
__global__ void wait_for_nobody(P p) {
  while (prim::load_acquire(p.flag) == 0) {
  }
  p.data[threadIdx.x] = 1;
}
__global__ void copy_never_awaited(P p) {
  SKV_DYNAMIC_SMEM(smem);
  prim::cp_async16(prim::smem_u32(smem + threadIdx.x * 16), p.data + threadIdx.x % 8 * 4);
  prim::cp_async_commit();
}
__global__ void misaligned_copy(P p) {
  SKV_DYNAMIC_SMEM(smem);
  prim::cp_async16(prim::smem_u32(smem + threadIdx.x * 4), p.data);
  prim::cp_async_commit();
  prim::cp_async_wait<0>();
}
__global__ void copy_past_shared(P p) {
  SKV_DYNAMIC_SMEM(smem);
  prim::cp_async16(prim::smem_u32(smem + threadIdx.x * 16) + 32, p.data);
  prim::cp_async_commit();
  prim::cp_async_wait<0>();
}
__global__ void shared_overrun(P p) {
  SKV_DYNAMIC_SMEM(smem);
  int* s = reinterpret_cast<int*>(smem);
  s[threadIdx.x + 1] = 1;
  __syncthreads();
  p.data[threadIdx.x % 128] = s[threadIdx.x];
}
__global__ void static_overrun(P p) {  // into the gap before the next variable
  SKV_SHARED(s, int[32]);
  s[threadIdx.x + 1] = 0;
  __syncthreads();
  p.data[threadIdx.x] = s[threadIdx.x] == 12345;
}
__global__ void dynamic_overrun(P p) {  // by less than the alignment, so no guard page is reached
  SKV_DYNAMIC_SMEM(smem);
  int* s = reinterpret_cast<int*>(smem);
  s[threadIdx.x + 1] = 0;
  __syncthreads();
  p.data[threadIdx.x] = s[threadIdx.x] == 12345;
}
__global__ void global_overrun(P p) { p.data[threadIdx.x + 1] = 1; }

// ---- wrong answers under some schedule, and races ----

__global__ void missing_barrier(P p) {
  SKV_SHARED(s, int[64]);
  s[threadIdx.x] = int(threadIdx.x);
  p.data[threadIdx.x] = s[63 - threadIdx.x] - (63 - int(threadIdx.x));
}
__global__ void missing_wait(P p) {
  SKV_DYNAMIC_SMEM(smem);
  int* s = reinterpret_cast<int*>(smem);
  prim::cp_async16(prim::smem_u32(s + threadIdx.x * 4), p.data + threadIdx.x * 4);
  prim::cp_async_commit();
  __syncthreads();
  p.data[threadIdx.x * 4] = s[threadIdx.x * 4];
  prim::cp_async_wait<0>();
}
__global__ void wait_after_barrier(P p) {  // each thread waits for its own copy only
  SKV_DYNAMIC_SMEM(smem);
  int* s = reinterpret_cast<int*>(smem);
  prim::cp_async16(prim::smem_u32(s + threadIdx.x * 4), p.data + threadIdx.x * 4);
  prim::cp_async_commit();
  __syncthreads();
  prim::cp_async_wait<0>();
  p.data[threadIdx.x * 4] = s[((threadIdx.x + 1) % 32) * 4];
}
__global__ void lost_update(P p) {  // CTAs read, then write, one counter
  for (int i = 0; i < 10; ++i) {
    const uint32_t seen = prim::load_acquire(p.flag);
    prim::store_release(p.flag, seen + 1);
  }
  if (atomicAdd(p.data + 1, 1) == 3) {
    __threadfence();
    p.data[0] = prim::load_acquire(p.flag) != 40;
  }
}
__global__ void assumes_cta_order(P p) {  // CTA 0 need not have run before CTA 1
  if (threadIdx.x) return;
  if (blockIdx.x == 0) prim::store_release(p.flag, 1);
  if (blockIdx.x == 1) p.data[0] = prim::load_acquire(p.flag) == 0;
}

// ---- races only ----

__global__ void shared_race(P p) {
  SKV_SHARED(s, int[64]);
  s[threadIdx.x] = 0;
  __syncthreads();
  s[threadIdx.x] += s[(threadIdx.x + 32) % 64];
  p.data[threadIdx.x] = s[threadIdx.x];
}
__global__ void shuffle_as_barrier(P p) {
  SKV_SHARED(s, int[32]);
  s[threadIdx.x] = 0;
  __shfl_sync(~0u, 1, 0);
  p.data[threadIdx.x] = s[threadIdx.x ^ 1];
}
__global__ void uninitialised_shared(P p) {
  SKV_SHARED(s, int[64]);
  if (threadIdx.x < 63) s[threadIdx.x] = 0;
  __syncthreads();
  p.data[threadIdx.x] = s[63 - threadIdx.x] == 12345;
}
__global__ void early_buffer_reuse(P p) {
  SKV_SHARED(s, int[64]);
  for (int i = 0; i < 2; ++i) {
    s[threadIdx.x] = i;
    __syncthreads();
    p.data[threadIdx.x] = s[63 - threadIdx.x] == 12345;
  }
}
__global__ void global_race(P p) { p.data[threadIdx.x] = 0; }  // every CTA writes the same words
__global__ void global_race_with_atomic(P p) {
  if (blockIdx.x == 0) atomicAdd(p.data + threadIdx.x, 0);
  if (blockIdx.x == 1) p.data[64 + threadIdx.x] = p.data[threadIdx.x];
}
enum class Drop { kNothing, kReleaseFence, kAcquireFence, kFenceBeforeBarrier };
template <Drop kDrop>
__global__ void handoff(P p) {  // the last of the CTAs sums what all have written
  SKV_SHARED(is_last, bool);
  p.data[blockIdx.x * 32 + threadIdx.x] = 0;
  if (kDrop == Drop::kFenceBeforeBarrier) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (kDrop != Drop::kReleaseFence && kDrop != Drop::kFenceBeforeBarrier) __threadfence();
    is_last = atomicAdd(p.flag, 1u) == gridDim.x - 1;
    if (kDrop != Drop::kAcquireFence) __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  int sum = 0;
  for (unsigned c = 0; c < gridDim.x; ++c) sum += p.data[c * 32 + threadIdx.x];
  p.data[threadIdx.x] = sum;
}
__global__ void plain_flag(P p) {
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    p.data[0] = 0;
    __threadfence();
    *p.flag = 1;
  } else if (prim::load_acquire(p.flag)) {
    p.data[1] = p.data[0];
  }
}

// ---- grids that may begin before those ahead have ended ----

enum class Early { kNothing, kReturn, kWrite };

template <Early kEarly>
__global__ void overlapped(PlantedParams p) {
  prim::launch_dependents();
  if (kEarly == Early::kReturn && blockIdx.x == 1) return;
  if (kEarly == Early::kWrite) p.data[blockIdx.x * 32 + threadIdx.x] = 0;
  prim::wait_for_grids();
  p.data[blockIdx.x * 32 + threadIdx.x] = 0;
}

const PlantedBug kBugs[] = {
    {"overlapped", overlapped<Early::kNothing>, 3, 32, 0, true},
    {"overlapped_returns_early", overlapped<Early::kReturn>, 3, 32, 0, true},
    {"overlapped_writes_early", overlapped<Early::kWrite>, 3, 32, 0, true},
    {"divergent_barrier", divergent_barrier, 1, 32, 0},
    {"barrier_against_shuffle", barrier_against_shuffle, 1, 64, 0},
    {"mismatched_collectives", mismatched_collectives, 1, 32, 0},
    {"uneven_barrier_counts", uneven_barrier_counts, 1, 64, 0},
    {"wait_for_nobody", wait_for_nobody, 2, 32, 0},
    {"copy_never_awaited", copy_never_awaited, 1, 32, 512},
    {"misaligned_copy", misaligned_copy, 1, 32, 512},
    {"copy_past_shared", copy_past_shared, 1, 32, 512},
    {"shared_overrun", shared_overrun, 1, 256, 1024},
    {"static_overrun", static_overrun, 1, 32, 0},
    {"dynamic_overrun", dynamic_overrun, 1, 32, 128},
    {"global_overrun", global_overrun, 1, 128, 0},
    {"missing_barrier", missing_barrier, 1, 64, 0},
    {"missing_wait", missing_wait, 1, 32, 512},
    {"wait_after_barrier", wait_after_barrier, 1, 32, 512},
    {"lost_update", lost_update, 4, 1, 0},
    {"assumes_cta_order", assumes_cta_order, 2, 32, 0},
    {"shared_race", shared_race, 1, 64, 0},
    {"shuffle_as_barrier", shuffle_as_barrier, 1, 32, 0},
    {"uninitialised_shared", uninitialised_shared, 1, 64, 0},
    {"early_buffer_reuse", early_buffer_reuse, 1, 64, 0},
    {"global_race", global_race, 2, 32, 0},
    {"global_race_with_atomic", global_race_with_atomic, 2, 32, 0},
    {"handoff", handoff<Drop::kNothing>, 4, 32, 0},
    {"no_release_fence", handoff<Drop::kReleaseFence>, 4, 32, 0},
    {"no_acquire_fence", handoff<Drop::kAcquireFence>, 4, 32, 0},
    {"fence_before_barrier", handoff<Drop::kFenceBeforeBarrier>, 4, 32, 0},
    {"plain_flag", plain_flag, 2, 32, 0},
};

}  // namespace

int run_planted_bug(const char* name) {
  std::vector<PlantedBug> bugs(std::begin(kBugs), std::end(kBugs));
  for (const PlantedBug& bug : planted_bugs_hopper()) bugs.push_back(bug);
  for (const PlantedBug& bug : bugs) {
    if (std::strcmp(bug.name, name)) continue;
    for (int seed = 0; seed < 30; ++seed) {
      simt::set_seed(seed);
      simt::Buffer<int> data(128, 0);
      simt::Buffer<uint32_t> flag(4, 0);
      const auto launch =
          bug.overlapped ? prim::launch_overlapped<PlantedParams> : prim::launch<PlantedParams>;
      launch(bug.kernel, bug.ctas, bug.threads, bug.smem, nullptr, {data.data(), flag.data()});
      for (size_t i = 2; i < 128; ++i) data[0] |= data[i];  // every kernel leaves zeros when it goes well
      if (data[0]) {
        std::printf("wrong answer under seed %d\n", seed);
        return 98;
      }
    }
    std::printf("%s: nothing noticed\n", name);
    return 1;
  }
  std::printf("no planted bug is called %s\n", name);
  return 2;
}
