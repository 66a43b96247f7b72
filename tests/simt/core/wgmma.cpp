// wgmma.m64nNk16: each warp of a warpgroup computes its 16 rows.  A product is computed when its group is
// waited for, so results used and operands overwritten before that show as what they are.
#include <cstring>

#include "machine.h"

namespace simt {
namespace {

constexpr int kMaxN = 256, kK = 16;

struct Descriptor {
  u32 address, leading, stride;
  int swizzle_bits;

  explicit Descriptor(u64 d)
      : address(u32(d & 0x3fff) << 4),
        leading(u32(d >> 16 & 0x3fff) << 4),
        stride(u32(d >> 32 & 0x3fff) << 4) {
    if (d >> 49 & 7) fail(false, "wgmma: a matrix that starts within a swizzle pattern is not emulated");
    const int mode = int(d >> 62);  // 128, 64, 32 bytes
    swizzle_bits = mode == 0 ? 0 : 4 - mode;
  }

  // Where the eight elements begin that are contiguous: along k for a fixed row, or, transposed, along rows
  // for a fixed k.
  u32 at(int row, int k, bool transposed) const {
    const u32 width = 16u << swizzle_bits;  // of an atom, in bytes
    u32 offset;
    if (!transposed) {
      const u32 across = u32(k) * 2;
      offset = u32(row / 8) * stride + u32(row % 8) * width + (swizzle_bits ? across : across / 16 * leading);
    } else if (swizzle_bits) {
      const u32 along = u32(row) * 2;
      offset = along / width * leading + along % width + u32(k / 8) * stride + u32(k % 8) * width;
    } else {
      offset = u32(row / 8) * stride + u32(k / 8) * leading + u32(k % 8) * 16;
    }
    return swizzled(address + offset, swizzle_bits);
  }
};

// Calls f(row, k, row step, k step, address of eight elements) for the rows begin .. end - 1 of an operand.
template <class F>
void for_each_piece(u64 descriptor, int begin, int end, bool transposed, F f) {
  const Descriptor d(descriptor);
  if (transposed) {
    for (int row = begin; row < end; row += 8) {
      for (int k = 0; k < kK; ++k) f(row, k, 1, 0, shared_pointer(d.at(row, k, true), 16, "wgmma"));
    }
  } else {
    for (int row = begin; row < end; ++row) {
      for (int k = 0; k < kK; k += 8) f(row, k, 0, 1, shared_pointer(d.at(row, k, false), 16, "wgmma"));
    }
  }
}

float to_float(u16 bits, bool bf16) {
  if (!bf16) {
    _Float16 h;
    std::memcpy(&h, &bits, 2);
    return float(h);
  }
  const u32 wide = u32(bits) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return f;
}

void touch_operands(const WgmmaOp& op, int first_row) {
  const auto touch = [](int, int, int, int, const u8* p) { race_touch(p, 16, Access::kBulkRead, M.lane); };
  if (!op.a_in_registers) for_each_piece(op.a, first_row, first_row + 16, op.transposed_a, touch);
  for_each_piece(op.b, 0, op.n, op.transposed_b, touch);
}

void execute(const WgmmaOp& op, int first_row) {
  static float a[16][kK], b[kK][kMaxN], d[16][kMaxN];
  touch_operands(op, first_row);  // once more: nobody may have overwritten them
  const auto read = [&](auto&& put) {
    return [&op, put](int row, int k, int row_step, int k_step, const u8* p) {
      u16 bits[8];
      std::memcpy(bits, p, 16);
      for (int i = 0; i < 8; ++i) put(row + i * row_step, k + i * k_step, to_float(bits[i], op.bf16));
    };
  };
  for_each_piece(op.b, 0, op.n, op.transposed_b, read([](int row, int k, float x) { b[k][row] = x; }));
  if (!op.a_in_registers) {
    for_each_piece(op.a, first_row, first_row + 16, op.transposed_a,
                   read([first_row](int row, int k, float x) { a[row - first_row][k] = x; }));
  }
  const auto place = [](int lane, int e, int& row, int& column) {
    row = lane / 4 + 8 * (e / 2 % 2);
    column = e / 4 * 8 + lane % 4 * 2 + e % 2;
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; op.a_in_registers && i < 4; ++i) {
      for (int h = 0; h < 2; ++h) {
        a[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8 + h] =
            to_float(u16(op.a_registers[lane][i] >> (16 * h)), op.bf16);
      }
    }
    for (int e = 0; e < op.n / 2; ++e) {
      int row, column;
      place(lane, e, row, column);
      d[row][column] = op.accumulate ? op.d[lane][e] : 0.f;
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < kK; ++k) {
      for (int n = 0; n < op.n; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < op.n / 2; ++e) {
      int row, column;
      place(lane, e, row, column);
      op.d[lane][e] = d[row][column];
    }
  }
}

int first_row() { return warp_id() % 4 * 16; }

void issue_all(void** args, u32) {
  const Wgmma& x = *static_cast<const Wgmma*>(args[0]);
  Warp& warp = M.cta->warps[warp_id()];
  if (!warp.wgmma_fenced) fail(true, "wgmma without wgmma.fence before it");
  WgmmaOp op{};
  op.a_in_registers = x.a_registers != nullptr;
  op.accumulate = x.accumulate;
  op.transposed_a = x.transposed_a;
  op.transposed_b = x.transposed_b;
  op.bf16 = x.bf16;
  op.n = x.n;
  op.a = x.a;
  op.b = x.b;
  for (int lane = 0; lane < 32; ++lane) {
    const Wgmma& y = *static_cast<const Wgmma*>(args[lane]);
    if (y.a != x.a || y.b != x.b || y.accumulate != x.accumulate) {
      fail(true, "wgmma: lanes 0 and %d of the warp give different matrices", lane);
    }
    op.d[lane] = y.d;
    if (op.a_in_registers) std::memcpy(op.a_registers[lane], y.a_registers, 16);
  }
  touch_operands(op, first_row());
  warp.open_wgmma.push_back(op);
  ++warp.wgmma_issued;
}

void commit_all(void**, u32) {
  Warp& warp = M.cta->warps[warp_id()];
  warp.wgmma_groups.push_back(std::move(warp.open_wgmma));
  warp.open_wgmma.clear();
}

void wait_all(void** args, u32) {
  Warp& warp = M.cta->warps[warp_id()];
  const size_t pending = size_t(*static_cast<int*>(args[0]));
  while (warp.wgmma_groups.size() > pending) {
    for (const WgmmaOp& op : warp.wgmma_groups.front()) execute(op, first_row());
    warp.wgmma_groups.erase(warp.wgmma_groups.begin());
  }
  if (pending == 0)
    warp.wgmma_fenced = false;  // what was waited for may be changed: the next one needs a fence
}

void fence_all(void**, u32) { M.cta->warps[warp_id()].wgmma_fenced = true; }

}  // namespace

void start_wgmma(Cta& cta) {
  for (Warp& w : cta.warps) {
    w.open_wgmma.clear();
    w.wgmma_groups.clear();
    w.wgmma_issued = 0;
    w.wgmma_fenced = false;
  }
}

void check_wgmma_done(Cta& cta) {
  for (int w = 0; w < M.num_warps; ++w) {
    const Warp& warp = cta.warps[w];
    if (!warp.open_wgmma.empty() || !warp.wgmma_groups.empty()) fail(false, "CTA ended with wgmma in flight");
    if (warp.wgmma_issued != cta.warps[w / 4 * 4].wgmma_issued) {
      fail(false, "wgmma: warps %d and %d of a warpgroup issued %u and %u", w / 4 * 4, w,
           cta.warps[w / 4 * 4].wgmma_issued, warp.wgmma_issued);
    }
  }
}

void wgmma(const Wgmma& operands, Where where) {
  Wgmma arg = operands;
  collective(~0u, &arg, issue_all, kAligned, "wgmma.mma_async", where);
}
void wgmma_fence(Where where) { collective(~0u, nullptr, fence_all, kAligned, "wgmma.fence", where); }
void wgmma_commit(Where where) {
  collective(~0u, nullptr, commit_all, kAligned, "wgmma.commit_group", where);
}
void wgmma_wait(int pending, Where where) {
  collective(~0u, &pending, wait_all, kAligned, "wgmma.wait_group", where);
}

}  // namespace simt
