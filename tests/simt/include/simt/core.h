// What kernels compiled for emulation see of the machine: CUDA keywords, the built-in variables and the calls
// behind which threads meet, fence, poll and touch shared memory.
//
// One fiber per CUDA thread, all on one OS thread; a fiber runs until it reaches a synchronising operation.
// Several CTAs are resident at once and the scheduler changes between them at atomics, fences, polls and
// barriers, in an order drawn from a seed.  The implementation (tests/simt/core) is never instrumented, so
// the race build, which compiles only kernels with -fsanitize=thread, sees the kernels' own accesses and no
// others.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#if !defined(__x86_64__)
#error "the emulator has a context switch for x86-64 only"
#endif

#undef __global__
#undef __shared__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#ifndef __grid_constant__
#define __grid_constant__
#endif
// CTAs interleave, so a shared variable needs an address per CTA: kernels declare it with SKV_SHARED.
#define __shared__ static_assert(false, "declare shared variables with SKV_SHARED")

#define SIMT_LOC const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define SIMT_HERE \
  simt::Where { file, line }

namespace simt {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Where {
  const char* file = "";
  int line = 0;
};

struct Builtin {
  uint3 thread_idx, block_idx;
  dim3 block_dim, grid_dim;
};
extern Builtin builtin;

// ---- threads meeting ----
// Barrier `id` of the CTA; count 0 means all live threads.  Returns how many arrived with `pred` (waiters
// only).
int barrier(int id, int count, bool wait, bool pred, const char* what, Where where);

// Every lane of `mask` calls with its operands; the last one to come runs fn over all of them, so operands
// and results stay on the lanes' own stacks.  kAligned: all lanes must be at one source line (PTX .aligned).
// Only fn null (__syncwarp) orders memory.
using CollectiveFn = void (*)(void** args, u32 mask);
enum CollectiveFlags { kPlain = 0, kAligned = 1 };
void collective(u32 mask, void* arg, CollectiveFn fn, int flags, const char* what, Where where);

// ---- memory order ----
enum class Scope { kCta, kDevice };
void fence(Scope scope);
void fence_proxy();  // fence.proxy.async
enum class Strong { kLoad, kStore, kUpdate };
// Before a strong access the scheduler may run others; after it the checker learns what was read or written.
// changed: the access made progress another thread may wait for (a failing compare-and-swap did not).
void strong_begin();
void strong_end(const void* p, int bytes, Strong kind, bool changed, Where where);
void load_raw(void* to, const void* p, int bytes);  // invisible to the checker
void store_raw(void* p, const void* from, int bytes);
void pause();  // lets others run; many in a row without progress anywhere are reported as a deadlock

// ---- shared memory ----
u8* dynamic_shared();
void* static_shared(const void* key, size_t bytes, size_t align);  // same key, same CTA: same address
u32 shared_address(const void* p);

// ---- instructions ----
int lane_id();
void cp_async(u32 dst, const void* src, int bytes, bool pred, Where where);
void cp_async_commit();
void cp_async_wait(int pending);
void ldmatrix_x4(u32 (&r)[4], u32 address, bool transposed, Where where);
enum class MmaType { kF16, kBf16 };
void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, MmaType type, Where where);

// ---- Hopper's asynchronous instructions ----
void mbarrier_init(u32 bar, int count, Where where);
void mbarrier_arrive(u32 bar, int expected_bytes, Where where);
bool mbarrier_try_wait(u32 bar, int parity, Where where);
struct TensorMap {  // what a tensor map holds here
  u8* base;
  int rank, element_bytes, swizzle_bits;
  u64 size[5], stride[5];  // stride in bytes
  u32 box[5];
};
void check_tensor_map(const TensorMap& map);
void bulk_load(u32 dst, const void* src, int bytes, u32 bar, Where where);
void bulk_store(void* dst, u32 src, int bytes, Where where);
void tensor_load(u32 dst, const TensorMap& map, u32 bar, const int* at, int rank, Where where);
void tensor_store(const TensorMap& map, u32 src, const int* at, int rank, Where where);
void bulk_commit();
void bulk_wait(int pending, Where where);
// Address bits 4 and up XOR bits 7 and up, `bits` of them.
inline u32 swizzled(u32 address, int bits) { return address ^ (address >> 3 & ((1u << bits) - 1) << 4); }
bool elect_one(Where where);
struct Wgmma {
  float* d;
  const u32* a_registers;  // null: A is behind `a`
  u64 a, b;                // matrix descriptors
  int n;
  bool accumulate, transposed_a, transposed_b, bf16;
};
void wgmma(const Wgmma& operands, Where where);
void wgmma_fence(Where where);
void wgmma_commit(Where where);
void wgmma_wait(int pending, Where where);

// ---- running ----
struct LaunchOptions {
  int resident =
      0;  // CTAs resident at once; 0: drawn from the seed.  A grid whose CTAs wait for each other needs all
  // The grid may begin before those ahead have ended: every CTA has to wait for them, and, which the race
  // checker sees, writes nothing to global memory before.
  bool overlapped = false;
  // Launches overlap at all: what grids write is remembered, and, from the first to the last one that
  // overlaps the one ahead, must not be read by a CTA that has not waited; the race checker again.
  bool overlapping = false;
};
using EntryFn = void (*)(void* arg);
// Throws Error for an invalid launch, a deadlock, divergence, a race or anything else a GPU would not report.
void launch(dim3 grid, dim3 block, size_t dynamic_bytes, EntryFn entry, void* arg,
            LaunchOptions options = {});
[[noreturn]] void fail(bool with_threads, const char* format, ...) __attribute__((format(printf, 2, 3)));

void wait_for_grids();

void set_seed(
    u64 seed);  // 0: in order; odd: random; even: one warp as far ahead as it can.  Default: $SIMT_SEED
void report_faults();  // turns SIGSEGV and SIGBUS into a report and exit code 99; for test programs

// What the emulated device says it is, 10 * major + minor; all instructions are there whatever that is.
// Default: $SIMT_CAPABILITY, or 80.
void set_compute_capability(int capability);
int compute_capability();

struct Stats {
  u64 switches, collectives, ctas, cta_changes, ldmatrix_phases, bank_conflicts;
};
const Stats& stats();

// Device memory for tests: ends at an inaccessible page and starts filled with 0xff (NaN, -1); under ASan
// what lies beside it is poisoned.
void* map_guarded(size_t bytes);
void unmap_guarded(void* p, size_t bytes);

}  // namespace simt

#define threadIdx simt::builtin.thread_idx
#define blockIdx simt::builtin.block_idx
#define blockDim simt::builtin.block_dim
#define gridDim simt::builtin.grid_dim
static constexpr int warpSize = 32;
