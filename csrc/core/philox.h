// The noise of verify_drafts: a counter-based function of (seed, position, token id) and of nothing else.
// Plain inline functions for the CPU and for CUDA; static, so that each instruction set of the CPU keeps its
// own (isa.h).
//
// Recipe. Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with
//     key     = (low, high) 32-bit halves of the seed
//     counter = (token_id / 4, low half of position, high half of position, 0)
// gives four words; word token_id % 4 is the token's. With w that word,
//     u     = (w + 0.5) / 2^32, in (0, 1)
//     noise = -log(-log(u)), standard Gumbel, from -3.13 to 22.87
// and the draw is the first argmax over the kept tokens of logit / temperature + noise: the Gumbel-max trick
// draws from the softmax exactly. position is the absolute index of the token that is drawn.
//
// In float32, u next to 1 would round to 1: -log(u) is then taken as -log1p(-(1 - u)) of an exact 1 - u.
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SKV_HOST_DEVICE __host__ __device__
#else
#define SKV_HOST_DEVICE
#endif

namespace skv {

constexpr uint32_t kPhiloxM0 = 0xd2511f53u, kPhiloxM1 = 0xcd9e8d57u;  // multipliers
constexpr uint32_t kPhiloxW0 = 0x9e3779b9u, kPhiloxW1 = 0xbb67ae85u;  // key increments
constexpr int kPhiloxRounds = 10;
constexpr float kMaxGumbel = 22.9f;  // no noise is larger: what cannot win with it needs no noise

struct PhiloxWords {
  uint32_t x, y, z, w;
};

SKV_HOST_DEVICE static inline PhiloxWords philox(uint64_t seed, uint32_t token_group, uint64_t position) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  PhiloxWords c = {token_group, static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0};
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t a = static_cast<uint64_t>(kPhiloxM0) * c.x, b = static_cast<uint64_t>(kPhiloxM1) * c.z;
    c = {static_cast<uint32_t>(b >> 32) ^ c.y ^ k0, static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c.w ^ k1, static_cast<uint32_t>(a)};
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return c;
}

// -log(-log(u)) of one word; the vectorised CPU kernel computes the same to rounding.
SKV_HOST_DEVICE static inline float gumbel_of_word(uint32_t word) {
  constexpr float kUnit = 2.3283064365386963e-10f;  // 2^-32
  const float u = (static_cast<float>(word) + 0.5f) * kUnit;
  const float rest = (static_cast<float>(~word) + 0.5f) * kUnit;  // 1 - u
  const float exponential = word >> 31 ? -log1pf(-rest) : -logf(u);
  return -logf(exponential);
}

}  // namespace skv
