// Chooses the instruction set once per process and forwards every op to it.
// STATEFUL_KV_CPU_ISA=portable|avx2|avx512|avx512_bf16|amx lowers the choice (tests and comparisons); it
// never raises it.
#include <cstdlib>
#include <cstring>

#include "../core/backend.h"

#if defined(SKV_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace skv::cpu {

#define SKV_DECLARE(op, Params) void op(const Params& params, const Parallel& pool);
namespace portable {
SKV_FOR_EACH_OP(SKV_DECLARE)
}
#ifdef SKV_X86
namespace avx2 {
SKV_FOR_EACH_OP(SKV_DECLARE)
}
namespace avx512 {
SKV_FOR_EACH_OP(SKV_DECLARE)
}
namespace avx512_bf16 {
SKV_FOR_EACH_OP(SKV_DECLARE)
}
namespace amx {  // what uses the matrix unit; everything else is as without
using namespace avx512_bf16;
#ifdef SKV_AMX
SKV_DECLARE(delta_prefill, DeltaPrefillParams)
SKV_DECLARE(row_linear, RowLinearParams)
#endif
}  // namespace amx
#endif
#undef SKV_DECLARE

namespace {

enum Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };
constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx"};

#ifdef SKV_X86
// The processor's matrix unit, for which a process asks the kernel once: tile registers are large.
bool may_use_tiles() {
#if defined(SKV_AMX) && defined(__linux__) && defined(SYS_arch_prctl)
  constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;
  constexpr int kAskForPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kTile) && (edx & kBf16) &&
         syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

Isa detect() {
  Isa best = kPortable;
#ifdef SKV_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    best = kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      best = __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
      if (best == kAvx512Bf16 && may_use_tiles()) best = kAmx;
    }
  }
#endif
  if (const char* wanted = std::getenv("STATEFUL_KV_CPU_ISA")) {
    for (int i = 0; i <= best; ++i) {
      if (std::strcmp(wanted, kIsaNames[i]) == 0) return static_cast<Isa>(i);
    }
  }
  return best;
}

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

}  // namespace

const char* isa_name() { return kIsaNames[isa()]; }

#ifdef SKV_X86
#define SKV_DEFINE(op, Params)                          \
  void op(const Params& params, const Parallel& pool) { \
    switch (isa()) {                                    \
      case kAmx:                                        \
        return amx::op(params, pool);                   \
      case kAvx512Bf16:                                 \
        return avx512_bf16::op(params, pool);           \
      case kAvx512:                                     \
        return avx512::op(params, pool);                \
      case kAvx2:                                       \
        return avx2::op(params, pool);                  \
      case kPortable:                                   \
        return portable::op(params, pool);              \
    }                                                   \
  }
#else
#define SKV_DEFINE(op, Params) \
  void op(const Params& params, const Parallel& pool) { portable::op(params, pool); }
#endif
SKV_FOR_EACH_OP(SKV_DEFINE)

}  // namespace skv::cpu
