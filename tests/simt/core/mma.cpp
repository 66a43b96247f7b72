// ldmatrix and mma.m16n8k16: the fragment layouts of the PTX manual, products accumulated in float.
#include <cstring>

#include "machine.h"

namespace simt {
namespace {

struct LdmatrixArg {
  u32* r;
  u32 address;
};

template <bool kTrans>
void ldmatrix_all(void** args, u32) {
  for (int j = 0; j < 4; ++j) {
    u16 m[8][8];
    int banks[8] = {}, worst = 0;
    for (int i = 0; i < 8; ++i) {
      const int lane = j * 8 + i;
      const u32 a = static_cast<LdmatrixArg*>(args[lane])->address;
      if (a & 15) fail(false, "ldmatrix: the row address of lane %d is not 16-byte aligned", lane);
      const u8* row = shared_pointer(a, 16, "ldmatrix");
      race_touch(row, 16, Access::kRead, warp_id() * 32 + lane);
      std::memcpy(m[i], row, 16);
      const int n = ++banks[a >> 4 & 7];  // rows that share four banks
      worst = n > worst ? n : worst;
    }
    ++M.stats.ldmatrix_phases;
    M.stats.bank_conflicts += worst - 1;
    for (int l = 0; l < 32; ++l) {
      const int r = l >> 2, c = (l & 3) * 2;
      const u32 lo = kTrans ? m[c][r] : m[r][c];
      const u32 hi = kTrans ? m[c + 1][r] : m[r][c + 1];
      static_cast<LdmatrixArg*>(args[l])->r[j] = lo | hi << 16;
    }
  }
}

struct MmaArg {
  float* d;
  const u32* a;
  u32 b0, b1;
};

template <MmaType kType>
float to_float(u16 bits) {
  if (kType == MmaType::kF16) {
    _Float16 h;
    std::memcpy(&h, &bits, 2);
    return float(h);
  }
  const u32 wide = u32(bits) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return f;
}

template <MmaType kType>
void mma_all(void** args, u32) {
  typedef float Row __attribute__((vector_size(32)));
  float a[16][16];
  Row b[16], d[16];
  for (int l = 0; l < 32; ++l) {
    const MmaArg& x = *static_cast<MmaArg*>(args[l]);
    const int g = l >> 2, t = (l & 3) * 2;
    for (int i = 0; i < 4; ++i) {
      for (int h = 0; h < 2; ++h) {
        a[g + (i & 1) * 8][t + (i >> 1) * 8 + h] = to_float<kType>(u16(x.a[i] >> (16 * h)));
      }
    }
    for (int h = 0; h < 2; ++h) {
      b[t + h][g] = to_float<kType>(u16(x.b0 >> (16 * h)));
      b[t + 8 + h][g] = to_float<kType>(u16(x.b1 >> (16 * h)));
    }
    for (int e = 0; e < 4; ++e) d[g + (e >> 1) * 8][t + (e & 1)] = x.d[e];
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) d[m] += a[m][k] * b[k];
  }
  for (int l = 0; l < 32; ++l) {
    const MmaArg& x = *static_cast<MmaArg*>(args[l]);
    const int g = l >> 2, t = (l & 3) * 2;
    for (int e = 0; e < 4; ++e) x.d[e] = d[g + (e >> 1) * 8][t + (e & 1)];
  }
}

}  // namespace

void ldmatrix_x4(u32 (&r)[4], u32 address, bool transposed, Where where) {
  LdmatrixArg arg{r, address};
  collective(~0u, &arg, transposed ? ldmatrix_all<true> : ldmatrix_all<false>, kAligned, "ldmatrix", where);
}

void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, MmaType type, Where where) {
  MmaArg arg{d, a, b0, b1};
  const CollectiveFn fn = type == MmaType::kF16 ? mma_all<MmaType::kF16> : mma_all<MmaType::kBf16>;
  collective(~0u, &arg, fn, kAligned, "mma.m16n8k16", where);
}

}  // namespace simt
