// Chooses the instruction set once per process and forwards every op to it.
// STATEFUL_KV_CPU_ISA=portable|avx2|avx512|avx512_bf16 lowers the choice (tests and comparisons); it never
// raises it.
#include <cstdlib>
#include <cstring>

#include "../core/backend.h"

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
#endif
#undef SKV_DECLARE

namespace {

enum Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };
constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

Isa detect() {
  Isa best = kPortable;
#ifdef SKV_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    best = kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      best = __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
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
