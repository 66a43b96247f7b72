// Atomics and fences.  Fibers change only inside the emulator, so plain code is atomic by itself; what these
// add are the points at which others run, and what the race checker knows.
#pragma once

#include <simt/core.h>

#include <type_traits>

namespace simt {

template <class T, class F>
T update(T* p, F f, Where where) {
  T old, now;
  strong_begin();
  load_raw(&old, p, sizeof(T));
  now = f(old);
  store_raw(p, &now, sizeof(T));
  strong_end(p, sizeof(T), Strong::kUpdate, __builtin_memcmp(&old, &now, sizeof(T)) != 0, where);
  return old;
}

template <class T>
T strong_load(const T* p, Where where) {
  T v;
  pause();
  load_raw(&v, p, sizeof(T));
  strong_end(p, sizeof(T), Strong::kLoad, false, where);
  return v;
}

template <class T>
void strong_store(T* p, T v, Where where) {
  strong_begin();
  store_raw(p, &v, sizeof(T));
  strong_end(p, sizeof(T), Strong::kStore, true, where);
}

template <class T>
using Same = std::common_type_t<T>;  // keeps the second argument out of deduction

}  // namespace simt

inline void __threadfence() { simt::fence(simt::Scope::kDevice); }
inline void __threadfence_block() { simt::fence(simt::Scope::kCta); }
inline void __nanosleep(unsigned) { simt::pause(); }

#define SIMT_ATOMIC(name, expression)                                        \
  template <class T>                                                         \
  T name(T* p, simt::Same<T> v, SIMT_LOC) {                                  \
    return simt::update(p, [&](T old) { return T(expression); }, SIMT_HERE); \
  }
SIMT_ATOMIC(atomicAdd, old + v)
SIMT_ATOMIC(atomicSub, old - v)
SIMT_ATOMIC(atomicMin, v < old ? v : old)
SIMT_ATOMIC(atomicMax, v > old ? v : old)
SIMT_ATOMIC(atomicAnd, old& v)
SIMT_ATOMIC(atomicOr, old | v)
SIMT_ATOMIC(atomicXor, old ^ v)
SIMT_ATOMIC(atomicExch, v)
SIMT_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
#undef SIMT_ATOMIC
template <class T>
T atomicCAS(T* p, simt::Same<T> expected, simt::Same<T> v, SIMT_LOC) {
  return simt::update(p, [&](T old) { return old == expected ? T(v) : old; }, SIMT_HERE);
}
