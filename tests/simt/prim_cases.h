// What a case of prim_kernels.cuh is, and helpers of the cases.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "prim.cuh"

namespace skv {
namespace prim_cases {

enum class Needs { kAmpere, kHopper, kOnlyHopper };  // sm_80 and newer, sm_90 and newer, sm_90a alone

struct PrimCase {
  const char* name;  // of the function, and what is special
  Needs needs;
  size_t in_words, out_words;
  void (*fill)(uint32_t* in);                                              // host memory
  void (*launch)(const uint32_t* in, uint32_t* out, cudaStream_t stream);  // device memory, out all ones
  void (*expect)(const uint32_t* in, uint32_t* want);                      // host memory, want all ones
  float relative_error;  // 0: the words of out are equal; otherwise they are floats this close
};

struct Words {
  const uint32_t* in;
  uint32_t* out;
};

// ---- host helpers ----

inline uint32_t hash(uint32_t i) {
  i = (i ^ 61) ^ (i >> 16);
  i *= 9;
  i ^= i >> 4;
  i *= 0x27d4eb2d;
  return i ^ (i >> 15);
}
template <int kWords>
void fill_hash(uint32_t* in) {
  for (uint32_t i = 0; i < kWords; ++i) in[i] = hash(i + 1);
}
template <class T>
T small(uint32_t i) {  // -4 .. 4
  return T(float(int(hash(i + 77) % 9) - 4));
}
template <class T, int kWords>
void fill_small(uint32_t* in) {
  for (uint32_t i = 0; i < 2 * kWords; ++i) {
    const T x = small<T>(i);
    std::memcpy(reinterpret_cast<char*>(in) + 2 * i, &x, 2);
  }
}
template <class T>
float half_at(const uint32_t* words, size_t i) {
  T x;
  std::memcpy(&x, reinterpret_cast<const char*>(words) + 2 * i, 2);
  return float(x);
}
inline uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

// ---- launches ----

template <void (*kKernel)(Words), int kCtas, int kThreads, int kSmem = 0>
void launch_words(const uint32_t* in, uint32_t* out, cudaStream_t stream) {
  prim::launch(kKernel, dim3(kCtas), kThreads, kSmem, stream, {in, out});
}
template <void (*kKernel)(Words), int kCtas, int kThreads>
void launch_with_flag(const uint32_t* in, uint32_t* out, cudaStream_t stream) {
  prim::zero_async(out + 32, 4, stream);
  prim::launch(kKernel, dim3(kCtas), kThreads, 0, stream, {in, out});
}

}  // namespace prim_cases
}  // namespace skv
