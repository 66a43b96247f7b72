// Barriers of the CTA and the warp's shuffles, votes, reductions and matches.
#pragma once

#include <simt/core.h>

#include <cstring>
#include <type_traits>

inline void __syncthreads(SIMT_LOC) { simt::barrier(0, 0, true, false, "__syncthreads", SIMT_HERE); }
inline int __syncthreads_count(int p, SIMT_LOC) {
  return simt::barrier(0, 0, true, p, "__syncthreads_count", SIMT_HERE);
}
inline int __syncthreads_or(int p, SIMT_LOC) {
  return simt::barrier(0, 0, true, p, "__syncthreads_or", SIMT_HERE) != 0;
}
inline int __syncthreads_and(int p, SIMT_LOC) {
  return simt::barrier(0, 0, true, !p, "__syncthreads_and", SIMT_HERE) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, SIMT_LOC) {
  simt::collective(mask, nullptr, nullptr, simt::kPlain, "__syncwarp", SIMT_HERE);
}
inline unsigned __activemask() = delete;  // what it returns depends on the compiler; pass masks on instead

namespace simt {

template <class T>
struct ShuffleArg {
  T in, out;
  int source;
};

template <class T>
void shuffle_all(void** args, u32 mask) {
  for (u32 m = mask; m; m &= m - 1) {
    auto& x = *static_cast<ShuffleArg<T>*>(args[__builtin_ctz(m)]);
    if (mask >> x.source & 1) {
      x.out = static_cast<ShuffleArg<T>*>(args[x.source])->in;
    } else {
      std::memset(static_cast<void*>(&x.out), 0xff, sizeof(T));  // undefined on a GPU
    }
  }
}

template <class T>
T shuffle(u32 mask, T value, int source, const char* what, Where where) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "shuffles take up to 8 bytes");
  ShuffleArg<T> arg{value, value, source};
  collective(mask, &arg, shuffle_all<T>, kPlain, what, where);
  return arg.out;
}

enum class Vote { kBallot, kAny, kAll, kMatchAny };
struct VoteArg {
  u64 in;
  u32 out;
};

template <Vote kVote>
void vote_all(void** args, u32 mask) {
  u32 ballot = 0;
  for (u32 m = mask; m; m &= m - 1) {
    const int l = __builtin_ctz(m);
    ballot |= u32(static_cast<VoteArg*>(args[l])->in != 0) << l;
  }
  for (u32 m = mask; m; m &= m - 1) {
    VoteArg& x = *static_cast<VoteArg*>(args[__builtin_ctz(m)]);
    if (kVote == Vote::kBallot) x.out = ballot;
    if (kVote == Vote::kAny) x.out = ballot != 0;
    if (kVote == Vote::kAll) x.out = ballot == mask;
    if (kVote != Vote::kMatchAny) continue;
    x.out = 0;
    for (u32 k = mask; k; k &= k - 1) {
      const int o = __builtin_ctz(k);
      x.out |= u32(static_cast<VoteArg*>(args[o])->in == x.in) << o;
    }
  }
}

template <Vote kVote>
unsigned vote(u32 mask, u64 value, const char* what, Where where) {
  VoteArg arg{value, 0};
  collective(mask, &arg, vote_all<kVote>, kPlain, what, where);
  return arg.out;
}

template <class T, class Op>
T reduce(u32 mask, T value, Op, const char* what, Where where) {
  struct Arg {
    T in, out;
  } arg{value, value};
  collective(
      mask, &arg,
      [](void** args, u32 lanes) {
        T r = static_cast<Arg*>(args[__builtin_ctz(lanes)])->in;
        for (u32 m = lanes & (lanes - 1); m; m &= m - 1)
          r = Op()(r, static_cast<Arg*>(args[__builtin_ctz(m)])->in);
        for (u32 m = lanes; m; m &= m - 1) static_cast<Arg*>(args[__builtin_ctz(m)])->out = r;
      },
      kPlain, what, where);
  return arg.out;
}

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return T(unsigned(a) + unsigned(b));
  }
};
struct Min {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Max {
  template <class T>
  T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};
struct And {
  template <class T>
  T operator()(T a, T b) const {
    return a & b;
  }
};
struct Or {
  template <class T>
  T operator()(T a, T b) const {
    return a | b;
  }
};
struct Xor {
  template <class T>
  T operator()(T a, T b) const {
    return a ^ b;
  }
};

}  // namespace simt

template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, SIMT_LOC) {
  const int l = simt::lane_id();
  return simt::shuffle(mask, v, (l & ~(width - 1)) | (source & (width - 1)), "__shfl_sync", SIMT_HERE);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, SIMT_LOC) {
  const int l = simt::lane_id(), s = l ^ lanes;
  return simt::shuffle(mask, v, (s & ~(width - 1)) > (l & ~(width - 1)) ? l : s, "__shfl_xor_sync",
                       SIMT_HERE);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned d, int width = 32, SIMT_LOC) {
  const int l = simt::lane_id();
  return simt::shuffle(mask, v, (l & (width - 1)) < int(d) ? l : l - int(d), "__shfl_up_sync", SIMT_HERE);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned d, int width = 32, SIMT_LOC) {
  const int l = simt::lane_id();
  return simt::shuffle(mask, v, (l & (width - 1)) + int(d) >= width ? l : l + int(d), "__shfl_down_sync",
                       SIMT_HERE);
}
inline unsigned __ballot_sync(unsigned mask, int p, SIMT_LOC) {
  return simt::vote<simt::Vote::kBallot>(mask, p != 0, "__ballot_sync", SIMT_HERE);
}
inline int __any_sync(unsigned mask, int p, SIMT_LOC) {
  return int(simt::vote<simt::Vote::kAny>(mask, p != 0, "__any_sync", SIMT_HERE));
}
inline int __all_sync(unsigned mask, int p, SIMT_LOC) {
  return int(simt::vote<simt::Vote::kAll>(mask, p != 0, "__all_sync", SIMT_HERE));
}
template <class T>
unsigned __match_any_sync(unsigned mask, T v, SIMT_LOC) {
  simt::u64 bits = 0;
  std::memcpy(&bits, &v, sizeof v);
  return simt::vote<simt::Vote::kMatchAny>(mask, bits, "__match_any_sync", SIMT_HERE);
}
#define SIMT_REDUCE(name, T, op) \
  inline T name(unsigned mask, T v, SIMT_LOC) { return simt::reduce(mask, v, simt::op(), #name, SIMT_HERE); }
SIMT_REDUCE(__reduce_add_sync, int, Add)
SIMT_REDUCE(__reduce_min_sync, int, Min)
SIMT_REDUCE(__reduce_max_sync, int, Max)
SIMT_REDUCE(__reduce_add_sync, unsigned, Add)
SIMT_REDUCE(__reduce_min_sync, unsigned, Min)
SIMT_REDUCE(__reduce_max_sync, unsigned, Max)
SIMT_REDUCE(__reduce_and_sync, unsigned, And)
SIMT_REDUCE(__reduce_or_sync, unsigned, Or)
SIMT_REDUCE(__reduce_xor_sync, unsigned, Xor)
#undef SIMT_REDUCE
