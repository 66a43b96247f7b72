// The cases of prim_kernels.cuh for the functions of prim.cuh.
#pragma once

#include "prim_cases.h"

namespace skv {
namespace prim_cases {

// ---- shared memory: addresses, cp.async, ldmatrix ----

__global__ void smem_u32_kernel(const __grid_constant__ Words w) {
  SKV_DYNAMIC_SMEM(smem);
  SKV_SHARED(own, uint32_t[64]);
  // Distances, and the alignment that the dynamic part promises.
  w.out[2 * threadIdx.x] = prim::smem_u32(smem + 4 * threadIdx.x) % 1024;
  w.out[2 * threadIdx.x + 1] = prim::smem_u32(own + threadIdx.x) - prim::smem_u32(own);
}
inline void expect_smem_u32(const uint32_t*, uint32_t* want) {
  for (uint32_t t = 0; t < 64; ++t) want[2 * t] = want[2 * t + 1] = 4 * t;
}

// Three groups are under way; each thread reads what its neighbour copied.
__global__ void cp_async_kernel(const __grid_constant__ Words w) {
  SKV_DYNAMIC_SMEM(smem);
  const int t = int(threadIdx.x), other = (t + 33) % 64;
  for (int group = 0; group < 3; ++group) {
    const uint32_t to = prim::smem_u32(smem + (group * 64 + t) * 16);
    prim::cp_async16(to, w.in + (group * 64 + t) * 4, (t + group) % 5 != 0);
    prim::cp_async_commit();
  }
  const uint32_t* words = reinterpret_cast<const uint32_t*>(smem);
  prim::cp_async_wait<1>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) w.out[t * 8 + i] = words[other * 4 + i] + words[(64 + other) * 4 + i];
  prim::cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) w.out[t * 8 + 4 + i] = words[(128 + other) * 4 + i];
}
inline void expect_cp_async(const uint32_t* in, uint32_t* want) {
  const auto copied = [&](int group, int t, int i) {
    return (t + group) % 5 ? in[(group * 64 + t) * 4 + i] : 0;
  };
  for (int t = 0; t < 64; ++t) {
    const int other = (t + 33) % 64;
    for (int i = 0; i < 4; ++i) {
      want[t * 8 + i] = copied(0, other, i) + copied(1, other, i);
      want[t * 8 + 4 + i] = copied(2, other, i);
    }
  }
}

// Four 8x8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8, rows lie in a scrambled
// order.
template <bool kTrans>
__global__ void ldmatrix_kernel(const __grid_constant__ Words w) {
  SKV_DYNAMIC_SMEM(smem);
  const int lane = int(threadIdx.x);
  uint32_t* words = reinterpret_cast<uint32_t*>(smem);
  for (int i = 0; i < 4; ++i) words[lane * 4 + i] = w.in[lane * 4 + i];
  __syncwarp();
  uint32_t r[4];
  const uint32_t address = prim::smem_u32(smem + (lane * 5 + 3) % 32 * 16);
  if (kTrans) {
    prim::ldmatrix_x4_trans(r, address);
  } else {
    prim::ldmatrix_x4(r, address);
  }
  for (int j = 0; j < 4; ++j) w.out[lane * 4 + j] = r[j];
}
template <bool kTrans>
void expect_ldmatrix(const uint32_t* in, uint32_t* want) {
  const auto element = [&](int matrix, int row, int column) -> uint32_t {
    const uint32_t word = in[((matrix * 8 + row) * 5 + 3) % 32 * 4 + column / 2];
    return column % 2 ? word >> 16 : word & 0xffff;
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int j = 0; j < 4; ++j) {
      const int r = lane / 4, c = lane % 4 * 2;
      want[lane * 4 + j] = kTrans ? element(j, c, r) | element(j, c + 1, r) << 16
                                  : element(j, r, c) | element(j, r, c + 1) << 16;
    }
  }
}

// ---- mma: in is A [16][16], B transposed [8][16] of T, then D [16][8] of float ----

constexpr int kMmaA = 128, kMmaB = 64, kMmaD = 128;  // words
template <class T>
__global__ void mma_kernel(const __grid_constant__ Words w) {
  const int g = int(threadIdx.x) / 4, t = int(threadIdx.x) % 4;
  const uint32_t *a_words = w.in, *b_words = w.in + kMmaA, *d_words = b_words + kMmaB;
  const uint32_t a[4] = {a_words[g * 8 + t], a_words[(g + 8) * 8 + t], a_words[g * 8 + t + 4],
                         a_words[(g + 8) * 8 + t + 4]};
  float d[4];
  for (int e = 0; e < 4; ++e) d[e] = __uint_as_float(d_words[(g + 8 * (e / 2)) * 8 + t * 2 + e % 2]);
  prim::mma_m16n8k16<T>(d, a, b_words[g * 8 + t], b_words[g * 8 + t + 4]);
  for (int e = 0; e < 4; ++e) w.out[(g + 8 * (e / 2)) * 8 + t * 2 + e % 2] = __float_as_uint(d[e]);
}
template <class T>
void fill_mma(uint32_t* in) {
  fill_small<T, kMmaA + kMmaB>(in);
  for (uint32_t i = 0; i < kMmaD; ++i) in[kMmaA + kMmaB + i] = bits_of(float(int(hash(i) % 201) - 100));
}
template <class T>
void expect_mma(const uint32_t* in, uint32_t* want) {
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      float d;
      std::memcpy(&d, in + kMmaA + kMmaB + m * 8 + n, 4);
      for (int k = 0; k < 16; ++k) d += half_at<T>(in, m * 16 + k) * half_at<T>(in + kMmaA, n * 16 + k);
      want[m * 8 + n] = bits_of(d);
    }
  }
}

// ---- threads meeting ----

// Warp 0 hands ten values to warp 1 through one slot and two barriers; warp 2 is no part of it.
constexpr int kHandovers = 10;
__global__ void named_barrier_kernel(const __grid_constant__ Words w) {
  SKV_SHARED(slot, uint32_t[32]);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  if (warp == 0) {
    for (int i = 0; i < kHandovers; ++i) {
      prim::named_barrier_sync(2, 64);
      slot[lane] = w.in[i * 32 + lane];
      prim::named_barrier_arrive(1, 64);
    }
  } else if (warp == 1) {
    prim::named_barrier_arrive(2, 64);
    for (int i = 0; i < kHandovers; ++i) {
      prim::named_barrier_sync(1, 64);
      w.out[i * 32 + lane] = slot[31 - lane];
      if (i + 1 < kHandovers) prim::named_barrier_arrive(2, 64);
    }
  }
}
inline void expect_named_barrier(const uint32_t* in, uint32_t* want) {
  for (int i = 0; i < kHandovers * 32; ++i) want[i] = in[i / 32 * 32 + 31 - i % 32];
}

// ---- memory shared by CTAs.  out: 32 words of results, then flags that `launch` sets to zero ----

// Two CTAs pass one mailbox back and forth; what it holds is written and read by ordinary accesses.
constexpr uint32_t kRounds = 16;
__global__ void acquire_release_kernel(const __grid_constant__ Words w) {
  uint32_t *flag = w.out + 32, *mailbox = w.out + 33;
  if (blockIdx.x == 0) *mailbox = w.in[0];
  for (uint32_t round = blockIdx.x; round < kRounds; round += 2) {
    while (prim::load_acquire(flag) != round) {
    }
    w.out[round] = *mailbox;
    *mailbox = *mailbox * 3 + w.in[round];
    prim::store_release(flag, round + 1);
  }
}
inline void expect_acquire_release(const uint32_t* in, uint32_t* want) {
  uint32_t mailbox = in[0];
  for (uint32_t round = 0; round < kRounds; ++round) {
    want[round] = mailbox;
    mailbox = mailbox * 3 + in[round];
  }
  want[32] = kRounds;
  want[33] = mailbox;
}

// Every CTA leaves a word; the one that draws the last ticket adds them up.
__global__ void ticket_kernel(const __grid_constant__ Words w) {
  uint32_t *ticket = w.out + 32, *parts = w.out + 33;
  parts[blockIdx.x] = w.in[blockIdx.x];
  if (prim::atomic_add_acq_rel(ticket, 2) != 2 * (gridDim.x - 1)) return;
  uint32_t sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += parts[i];
  w.out[0] = sum;
}
constexpr int kTicketCtas = 7;
inline void expect_ticket(const uint32_t* in, uint32_t* want) {
  want[0] = 0;
  for (int i = 0; i < kTicketCtas; ++i) want[0] += want[33 + i] = in[i];
  want[32] = 2 * kTicketCtas;
}

// ---- one thread's instructions ----

__global__ void load_streaming_kernel(const __grid_constant__ Words w) {
  const uint4 v = prim::load_streaming(reinterpret_cast<const uint4*>(w.in) + (threadIdx.x ^ 21));
  w.out[threadIdx.x * 4] = v.x;
  w.out[threadIdx.x * 4 + 1] = v.y;
  w.out[threadIdx.x * 4 + 2] = v.z;
  w.out[threadIdx.x * 4 + 3] = v.w;
}
inline void expect_load_streaming(const uint32_t* in, uint32_t* want) {
  for (int i = 0; i < 128; ++i) want[i] = in[(i / 4 ^ 21) * 4 + i % 4];
}

__global__ void opaque_kernel(const __grid_constant__ Words w) {
  w.out[threadIdx.x] = uint32_t(prim::opaque<1>(int(w.in[prim::opaque(int(threadIdx.x))])));
}
inline void expect_opaque(const uint32_t* in, uint32_t* want) { std::memcpy(want, in, 64 * 4); }

__global__ void exp2_kernel(const __grid_constant__ Words w) {
  w.out[threadIdx.x] = __float_as_uint(prim::exp2_approx(__uint_as_float(w.in[threadIdx.x])));
}
inline void fill_exp2(uint32_t* in) {
  for (int i = 0; i < 256; ++i) in[i] = bits_of(float(i - 200) * 0.63f);
  in[0] = bits_of(-INFINITY);
  in[1] = bits_of(INFINITY);
  in[2] = bits_of(0.f);
}
inline void expect_exp2(const uint32_t* in, uint32_t* want) {
  for (int i = 0; i < 256; ++i) {
    float x;
    std::memcpy(&x, in + i, 4);
    const float y = std::exp2(x);
    want[i] = bits_of(y < 1.17549435e-38f ? 0.f : y);  // .ftz
  }
}

// ---- the list ----

inline std::vector<PrimCase> ampere_cases() {
  using H = __half;
  using B = __nv_bfloat16;
  constexpr Needs k80 = Needs::kAmpere;
  constexpr int kMma = kMmaA + kMmaB + kMmaD;
  return {
      {"smem_u32", k80, 1, 128, fill_hash<1>, launch_words<smem_u32_kernel, 1, 64, 256>, expect_smem_u32, 0},
      {"cp_async16", k80, 768, 512, fill_hash<768>, launch_words<cp_async_kernel, 1, 64, 3072>,
       expect_cp_async, 0},
      {"ldmatrix_x4", k80, 128, 128, fill_hash<128>, launch_words<ldmatrix_kernel<false>, 1, 32, 512>,
       expect_ldmatrix<false>, 0},
      {"ldmatrix_x4_trans", k80, 128, 128, fill_hash<128>, launch_words<ldmatrix_kernel<true>, 1, 32, 512>,
       expect_ldmatrix<true>, 0},
      {"mma_m16n8k16 f16", k80, kMma, kMmaD, fill_mma<H>, launch_words<mma_kernel<H>, 1, 32>, expect_mma<H>,
       0},
      {"mma_m16n8k16 bf16", k80, kMma, kMmaD, fill_mma<B>, launch_words<mma_kernel<B>, 1, 32>, expect_mma<B>,
       0},
      {"named_barrier", k80, 32 * kHandovers, 32 * kHandovers, fill_hash<32 * kHandovers>,
       launch_words<named_barrier_kernel, 1, 96>, expect_named_barrier, 0},
      {"load_acquire store_release", k80, kRounds, 34, fill_hash<kRounds>,
       launch_with_flag<acquire_release_kernel, 2, 1>, expect_acquire_release, 0},
      {"atomic_add_acq_rel", k80, kTicketCtas, 33 + kTicketCtas, fill_hash<kTicketCtas>,
       launch_with_flag<ticket_kernel, kTicketCtas, 1>, expect_ticket, 0},
      {"load_streaming", k80, 128, 128, fill_hash<128>, launch_words<load_streaming_kernel, 1, 32>,
       expect_load_streaming, 0},
      {"opaque", k80, 64, 64, fill_hash<64>, launch_words<opaque_kernel, 1, 64>, expect_opaque, 0},
      {"exp2_approx", k80, 256, 256, fill_exp2, launch_words<exp2_kernel, 1, 256>, expect_exp2, 1e-6f},
  };
}

}  // namespace prim_cases
}  // namespace skv
