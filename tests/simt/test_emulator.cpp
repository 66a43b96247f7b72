// Self-test of the emulator: correct kernels give the right answer under every schedule.  With the name of a
// planted bug as argument it runs that one instead (planted_bugs.cpp); exit code 99 and a report mean caught.
#include "test_emulator.h"

#include <cmath>
#include <random>
#include <vector>

namespace {

using simt::Buffer;
namespace prim = skv::prim;

int failures = 0;
#define CHECK(condition)                                                                              \
  do {                                                                                                \
    if (!(condition)) std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition), ++failures; \
  } while (0)

// ---- one CTA: collectives, barriers, shared variables ----

struct SumParams {
  const float* x;
  int n;
  float* out;
};
template <int kThreads>
__global__ void block_sum(SumParams p) {
  SKV_SHARED(partial, float[kThreads / 32]);
  float s = 0.f;
  for (int i = threadIdx.x; i < p.n; i += kThreads) s += __ldg(p.x + i);
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = s;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  s = threadIdx.x < kThreads / 32 ? partial[threadIdx.x] : 0.f;
  for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
  if (threadIdx.x == 0) atomicAdd(p.out, s);
}

struct IntParams {
  int* out;
  int n;
};
__global__ void collectives(IntParams p) {
  const int l = threadIdx.x % 32;
  int* o = p.out + threadIdx.x * 12;
  o[0] = __shfl_sync(~0u, l * 10, 3, 8);
  o[1] = __shfl_up_sync(~0u, l, 1);
  o[2] = __shfl_down_sync(~0u, l, 2, 16);
  o[3] = int(__ballot_sync(~0u, l % 3 == 0));
  o[4] = __any_sync(~0u, l == 31) * 2 + __all_sync(~0u, l < 31);
  o[5] = int(__match_any_sync(~0u, l / 8));
  o[6] = __reduce_max_sync(~0u, (l * 7) % 32);
  if (l < 10) {
    o[7] = __shfl_sync(0x3ffu, l, 9);
  } else {
    o[7] = __shfl_xor_sync(0xfffffc00u, l, 1);
  }
  o[8] = __reduce_add_sync(~0u, l);
  o[9] = int(__reduce_or_sync(~0u, 1u << l));
  o[10] = int(__shfl_xor_sync(~0u, 1ull << (l + 20), 1) >> 20);
  o[11] = __syncthreads_count(l == 5);
}
void test_collectives() {
  Buffer<int> out(64 * 12);
  prim::launch(collectives, 1, 64, 0, nullptr, {out.data(), 0});
  for (int t = 0; t < 64; ++t) {
    const int l = t % 32;
    const int* o = &out[t * 12];
    CHECK(o[0] == (l / 8 * 8 + 3) * 10);
    CHECK(o[1] == (l ? l - 1 : 0));
    CHECK(o[2] == (l % 16 + 2 < 16 ? l + 2 : l));
    CHECK(unsigned(o[3]) == 0x49249249u);
    CHECK(o[4] == 2);
    CHECK(unsigned(o[5]) == 0xffu << (l / 8 * 8));
    CHECK(o[6] == 31);
    CHECK(o[7] == (l < 10 ? 9 : l ^ 1));
    CHECK(o[8] == 31 * 16);
    CHECK(o[9] == -1);
    CHECK(unsigned(o[10]) == 1u << (l ^ 1));
    CHECK(o[11] == 2);
  }
}

__global__ void early_return(IntParams p) {  // 40 threads, one of which leaves
  if (threadIdx.x == 5) return;
  __syncthreads();
  const unsigned mask = threadIdx.x < 32 ? ~(1u << 5) : 0xff;
  p.out[threadIdx.x] = __popc(__ballot_sync(mask, 1));
}

__global__ void producer_consumer(IntParams p) {  // warp 0 produces, warp 1 consumes
  SKV_SHARED(slot, int[32]);
  const int l = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    for (int i = 0; i < p.n; ++i) {
      prim::named_barrier_sync(2, 64);
      slot[l] = i * 100 + l;
      prim::named_barrier_arrive(1, 64);
    }
    return;
  }
  prim::named_barrier_arrive(2, 64);
  for (int i = 0; i < p.n; ++i) {
    prim::named_barrier_sync(1, 64);
    p.out[i * 32 + l] = slot[31 - l];
    if (i + 1 < p.n) prim::named_barrier_arrive(2, 64);
  }
}

void test_barriers() {
  Buffer<float> x(1000), out(1, 0.f);
  double want = 0;
  for (int i = 0; i < 1000; ++i) want += x[i] = float(i % 13);
  prim::launch(block_sum<256>, 3, 256, 0, nullptr, {x.data(), 1000, out.data()});
  CHECK(out[0] == 3 * want);
  Buffer<int> left(40);
  prim::launch(early_return, 1, 40, 0, nullptr, {left.data(), 0});
  for (int t = 0; t < 40; ++t) CHECK(left[t] == (t == 5 ? -1 : t < 32 ? 31 : 8));
  Buffer<int> taken(320);
  prim::launch(producer_consumer, 1, 64, 0, nullptr, {taken.data(), 10});
  for (int i = 0; i < 320; ++i) CHECK(taken[i] == i / 32 * 100 + 31 - i % 32);
}

// ---- instructions: ldmatrix, mma, cp.async, vectors, conversions ----

template <class T>
struct MmaParams {
  const T *a, *bt, *b;  // [16][16], [8][16], [16][8]
  float *d, *d_trans;   // [16][8]
};
template <class T>
__global__ void mma_tile(MmaParams<T> p) {
  SKV_DYNAMIC_SMEM(smem);
  T* sa = reinterpret_cast<T*>(smem);
  T *sb = sa + 256, *sbk = sb + 128;
  const int l = threadIdx.x;
  for (int i = l; i < 256; i += 32) sa[i] = p.a[i];
  for (int i = l; i < 128; i += 32) sb[i] = p.bt[i], sbk[i] = p.b[i];
  __syncwarp();
  uint32_t fa[4], fb[4], ft[4];
  float c[4] = {}, c_trans[4] = {};
  prim::ldmatrix_x4(fa, prim::smem_u32(sa + (l % 16) * 16 + (l / 16) * 8));
  prim::ldmatrix_x4(fb, prim::smem_u32(sb + (l % 8) * 16 + (l / 8 % 2) * 8));  // matrices 2, 3 repeat 0, 1
  prim::ldmatrix_x4_trans(ft, prim::smem_u32(sbk + (l % 16) * 8));
  prim::mma_m16n8k16<T>(c, fa, fb[0], fb[1]);
  prim::mma_m16n8k16<T>(c_trans, fa, ft[0], ft[1]);
  for (int e = 0; e < 4; ++e) {
    const int at = (l / 4 + 8 * (e / 2)) * 8 + (l % 4) * 2 + e % 2;
    p.d[at] = c[e];
    p.d_trans[at] = c_trans[e];
  }
}
template <class T>
void test_mma() {
  Buffer<T> a(256), bt(128), b(128);
  Buffer<float> d(128), d_trans(128);
  std::mt19937 random(3);
  const auto draw = [&] { return T(float(int(random() % 17) - 8)); };
  for (int i = 0; i < 256; ++i) a[i] = draw();
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < 8; ++n) b[k * 8 + n] = bt[n * 16 + k] = draw();
  }
  prim::launch(mma_tile<T>, 1, 32, 1024, nullptr, {a.data(), bt.data(), b.data(), d.data(), d_trans.data()});
  for (int i = 0; i < 128; ++i) {
    float want = 0;
    for (int k = 0; k < 16; ++k) want += float(a[i / 8 * 16 + k]) * float(b[k * 8 + i % 8]);
    CHECK(d[i] == want);
    CHECK(d_trans[i] == want);
  }
}

struct PipelineParams {
  const float4* in;
  float4* out;
  int tiles;
};
__global__ void pipeline(
    PipelineParams p) {  // double-buffered cp.async; each thread reads another's 16 bytes
  SKV_DYNAMIC_SMEM(smem);
  float4* buffer = reinterpret_cast<float4*>(smem);
  const int t = threadIdx.x, n = blockDim.x;
  const float4* in = p.in + blockIdx.x * p.tiles * n;
  float4* out = p.out + blockIdx.x * p.tiles * n;
  prim::cp_async16(prim::smem_u32(buffer + t), in + t);
  prim::cp_async_commit();
  for (int i = 0; i < p.tiles; ++i) {
    if (i + 1 < p.tiles) {
      prim::cp_async16(prim::smem_u32(buffer + ((i + 1) & 1) * n + t), in + (i + 1) * n + t, t != 7);
    }
    prim::cp_async_commit();
    prim::cp_async_wait<1>();
    __syncthreads();
    out[i * n + t] = buffer[(i & 1) * n + (n - 1 - t)];
    __syncthreads();
  }
  prim::cp_async_wait<0>();
}
void test_pipeline() {
  constexpr int kTiles = 5, kThreads = 64, kCtas = 5;
  Buffer<float4> in(kCtas * kTiles * kThreads), out(in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = make_float4(float(i), 1.f, 2.f, 3.f);
  prim::launch(pipeline, kCtas, kThreads, 2 * kThreads * 16, nullptr, {in.data(), out.data(), kTiles});
  for (size_t i = 0; i < in.size(); ++i) {
    const size_t tile = i / kThreads, from = kThreads - 1 - i % kThreads;
    const bool zeroed = from == 7 && tile % kTiles;
    CHECK(out[i].x == (zeroed ? 0.f : float(tile * kThreads + from)));
    CHECK(out[i].w == (zeroed ? 0.f : 3.f));
  }
}

struct ConvertParams {
  const float* in;
  float* out;  // [n][3]: through fp16, bf16, fp8
  int n;
};
__global__ void convert(ConvertParams p) {
  const int i = threadIdx.x;
  if (i >= p.n) return;
  p.out[i * 3] = __half2float(__float2half_rn(p.in[i]));
  p.out[i * 3 + 1] = __bfloat162float(__float2bfloat16_rn(p.in[i]));
  __nv_fp8_e4m3 q;
  q.__x = __nv_cvt_float_to_fp8(p.in[i], __NV_SATFINITE, __NV_E4M3);
  p.out[i * 3 + 2] = float(q);
}
void test_conversions() {
  const float in[] = {0.f, 1.f, -1.5f, 3.14159f, 500.f, -1e6f, 1e-3f, INFINITY, NAN};
  const float want[][3] = {{0.f, 0.f, 0.f},
                           {1.f, 1.f, 1.f},
                           {-1.5f, -1.5f, -1.5f},
                           {3.140625f, 3.140625f, 3.25f},
                           {500.f, 500.f, 448.f},
                           {-INFINITY, -999424.f, -448.f},
                           {0.00100040436f, 0.00099945068f, 0.001953125f},
                           {INFINITY, INFINITY, 448.f}};
  Buffer<float> x(9), out(27);
  for (int i = 0; i < 9; ++i) x[i] = in[i];
  prim::launch(convert, 1, 32, 0, nullptr, {x.data(), out.data(), 9});
  for (int i = 0; i < 24; ++i) CHECK(out[i] == want[i / 3][i % 3]);
  for (int i = 24; i < 27; ++i) CHECK(std::isnan(out[i]));
}

// ---- several CTAs ----

struct AtomicsParams {
  int* i;
  unsigned* u;
  unsigned long long* w;
  float* f;
};
__global__ void atomics(AtomicsParams p) {
  const int t = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(p.i, t);
  atomicMax(p.i + 1, t);
  atomicMin(p.i + 2, -t);
  atomicAdd(p.u, 1u);
  atomicOr(p.u + 1, 1u << (t % 32));
  atomicMax(p.w, (1ull << 40) + t);
  atomicAdd(p.f, 0.5f);
  unsigned seen = p.u[2] * 0, old;
  do {
    old = seen;
    seen = atomicCAS(p.u + 2, old, old + 2);
  } while (seen != old);
}
void test_atomics() {
  Buffer<int> i(3, 0);
  Buffer<unsigned> u(4, 0);
  Buffer<unsigned long long> w(1, 0);
  Buffer<float> f(1, 0.f);
  prim::launch(atomics, 4, 64, 0, nullptr, {i.data(), u.data(), w.data(), f.data()});
  CHECK(i[0] == 255 * 128 && i[1] == 255 && i[2] == -255);
  CHECK(u[0] == 256 && u[1] == ~0u && u[2] == 512);
  CHECK(w[0] == (1ull << 40) + 255);
  CHECK(f[0] == 128.f);
}

struct TicketParams {
  const int* in;
  int* partial;
  uint32_t* ticket;
  int* out;
};
__global__ void last_cta_sums(TicketParams p) {  // the last CTA to finish adds up what all have written
  SKV_SHARED(is_last, bool);
  p.partial[blockIdx.x * 32 + threadIdx.x] = p.in[blockIdx.x * 32 + threadIdx.x] * 3;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(p.ticket, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  int sum = 0;
  for (unsigned c = 0; c < gridDim.x; ++c) sum += p.partial[c * 32 + threadIdx.x];
  p.out[threadIdx.x] = sum;
}
__global__ void chain(TicketParams p) {  // CTA i adds to what CTA i - 1 left
  if (threadIdx.x == 0) {
    while (prim::load_acquire(p.ticket) != blockIdx.x) {
    }
  }
  __syncthreads();
  p.out[threadIdx.x] += p.in[blockIdx.x * 32 + threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) prim::store_release(p.ticket, blockIdx.x + 1);
}
void test_handoffs() {
  constexpr int kCtas = 9;
  Buffer<int> in(kCtas * 32), partial(kCtas * 32), out(32);
  Buffer<uint32_t> ticket(1, 0);
  for (int i = 0; i < kCtas * 32; ++i) in[i] = i;
  const TicketParams p{in.data(), partial.data(), ticket.data(), out.data()};
  prim::launch(last_cta_sums, kCtas, 32, 0, nullptr, p);
  const auto want = [](int t) { return kCtas * t + 32 * (kCtas - 1) * kCtas / 2; };
  for (int t = 0; t < 32; ++t) CHECK(out[t] == 3 * want(t));
  for (int t = 0; t < 32; ++t) out[t] = 0;
  ticket[0] = 0;
  simt::LaunchOptions all;
  all.resident = kCtas;
  simt::launch(
      kCtas, 32, 0, [](void* q) { chain(*static_cast<TicketParams*>(q)); }, const_cast<TicketParams*>(&p),
      all);
  for (int t = 0; t < 32; ++t) CHECK(out[t] == want(t));
}

struct LogParams {
  uint32_t* count;
  uint32_t* log;
  uint32_t* lost;
};
__global__ void write_log(LogParams p) {  // also counts in a way that loses updates when CTAs interleave
  for (int i = 0; i < 20; ++i) {
    p.log[atomicAdd(p.count, 1u)] = blockIdx.x;
    const uint32_t seen = prim::load_acquire(p.lost);
    prim::store_release(p.lost, seen + 1);
  }
}
int test_interleaving() {  // returns how many updates were lost
  Buffer<uint32_t> count(1, 0), log(80), lost(1, 0);
  prim::launch(write_log, 4, 1, 0, nullptr, {count.data(), log.data(), lost.data()});
  CHECK(count[0] == 80);
  int per_cta[4] = {}, changes = 0;
  for (int i = 0; i < 80; ++i) {
    CHECK(log[i] < 4);
    ++per_cta[log[i] & 3];
    changes += i && log[i] != log[i - 1];
  }
  for (int c : per_cta) CHECK(c == 20);
  CHECK(changes > 3);
  return 80 - int(lost[0]);
}

struct GridParams {
  unsigned* out;
};
__global__ void grid_cells(GridParams p) {
  SKV_SHARED(mine, unsigned[2]);  // of this CTA alone, though others run in between
  if (threadIdx.x == 0) mine[0] = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  __threadfence();
  __syncthreads();
  p.out[mine[0] * blockDim.x + threadIdx.x] = mine[0] * 1000 + threadIdx.x;
}

}  // namespace

int main(int argc, char** argv) {
  simt::report_faults();
  try {
    if (argc > 1) return run_planted_bug(argv[1]);
    int lost = 0;
    for (int seed = 0; seed < 12; ++seed) {
      simt::set_seed(seed);
      test_collectives();
      test_barriers();
      test_mma<__half>();
      test_mma<__nv_bfloat16>();
      test_pipeline();
      test_conversions();
      test_atomics();
      test_handoffs();
      lost += test_interleaving();
      Buffer<unsigned> cells(3 * 4 * 2 * 64);
      prim::launch(grid_cells, dim3(3, 4, 2), 64, 0, nullptr, {cells.data()});
      for (unsigned i = 0; i < cells.size(); ++i) CHECK(cells[i] == i / 64 * 1000 + i % 64);
    }
    CHECK(lost > 0);
  } catch (const simt::Error& e) {
    std::printf("%s\n", e.what());
    return 99;
  }
  std::printf("%d failed checks, %llu CTA changes\n", failures,
              static_cast<unsigned long long>(simt::stats().cta_changes));
  return failures != 0;
}
