// The matrix unit (AMX): products of bfloat16 rows, 16 rows by 16 columns by 32 elements an instruction.
//
// A tile register holds 16 rows of 64 bytes. c[rows][columns] (+)= a[rows][steps] b[steps][columns], where a
// step is a pair of bfloat16 as in vdpbf16ps and columns are interleaved in pairs. An instruction adds 16
// steps to each sum in an order of its own, which is the same for any number of rows and columns.
#pragma once
#include "simd.h"

#if defined(__AMX_BF16__)
namespace skv::cpu::SKV_ISA {

constexpr int kTileSteps = 16;
constexpr int kTileSums = 16;  // rows or columns

// Configures the registers of this thread for `rows` rows at a time, up to 32: 0 to 3 are sums (two of rows
// by two of columns), 4 and 5 rows, 6 and 7 columns. kFewRows, up to 16 rows: 0, 1, 4, 6 and 7 as before;
// tall_product() has 2 and 3 for its sums and 5 for the rows.
class TileSession {
 public:
  enum Use { kAnyRows, kFewRows };
  explicit TileSession(int64_t rows, Use use = kAnyRows) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    const int64_t first = rows < kTileSums ? rows : kTileSums, rest = rows - first;
    const int64_t second = rest == 0 ? first : rest < kTileSums ? rest : kTileSums;
    const int64_t counts[] = {first, first, second, second, first, second, kTileSteps, kTileSteps};
    for (int i = 0; i < 8; ++i) {
      const bool is_tall = use == kFewRows && (i == 2 || i == 3 || i == 5);
      shapes.row_bytes[i] = is_tall ? static_cast<uint16_t>(4 * first) : 64;
      shapes.rows[i] = is_tall ? 16 : static_cast<uint8_t>(counts[i]);
    }
    asm volatile("" ::"r"(&shapes) : "memory");  // to the compiler the next line reads 8 bytes of them
    _tile_loadconfig(&shapes);
  }
  ~TileSession() { _tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

// One or two tiles of rows by one or two of columns. Strides in steps (a, b) and floats (c). fresh: c is not
// looked at. between() is called once every kTileSteps steps.
//
// The compiler does not know what tile loads read: what is stored just before needs tile_fence().
template <int kRowTiles, int kColumnTiles, class F>
inline void tile_product(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
                         int64_t steps, float* c, int64_t c_stride, bool fresh, F&& between) {
  constexpr bool kTwoRows = kRowTiles == 2, kTwoColumns = kColumnTiles == 2;
  const int64_t a_bytes = a_stride * 4, b_bytes = b_stride * 4, c_bytes = c_stride * 4;
  float* lower = c + kTileSums * c_stride;
  if (fresh) {
    _tile_zero(0);
    if constexpr (kTwoColumns) _tile_zero(1);
    if constexpr (kTwoRows) _tile_zero(2);
    if constexpr (kTwoRows && kTwoColumns) _tile_zero(3);
  } else {
    _tile_loadd(0, c, c_bytes);
    if constexpr (kTwoColumns) _tile_loadd(1, c + kTileSums, c_bytes);
    if constexpr (kTwoRows) _tile_loadd(2, lower, c_bytes);
    if constexpr (kTwoRows && kTwoColumns) _tile_loadd(3, lower + kTileSums, c_bytes);
  }
  for (int64_t s = 0; s < steps; s += kTileSteps) {
    between();
    const uint32_t* columns = b + s * b_stride;
    _tile_loadd(4, a + s, a_bytes);
    _tile_loadd(6, columns, b_bytes);
    if constexpr (kTwoColumns) _tile_loadd(7, columns + kTileSums, b_bytes);
    if constexpr (kTwoRows) _tile_loadd(5, a + kTileSums * a_stride + s, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoColumns) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwoRows) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kTwoRows && kTwoColumns) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (kTwoColumns) _tile_stored(1, c + kTileSums, c_bytes);
  if constexpr (kTwoRows) _tile_stored(2, lower, c_bytes);
  if constexpr (kTwoRows && kTwoColumns) _tile_stored(3, lower + kTileSums, c_bytes);
}

// The transposes of few rows: c[32][rows] = a[32][steps] b[steps][rows], a 16 by 16 from two places. Steps in
// whole tiles; strides in bytes. between() is called once every kTileSteps steps.
struct TileRow16 {
  const void* first;
  int64_t stride;
};
template <class F>
inline void tall_product(const TileRow16 (&a)[2], const uint32_t* b, int64_t b_stride, int64_t steps,
                         float* const (&c)[2], int64_t c_stride, F&& between) {
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t s = 0; s < steps; s += kTileSteps) {
    _tile_loadd(5, static_cast<const char*>(static_cast<const void*>(b)) + s * b_stride, b_stride);
    _tile_loadd(6, static_cast<const char*>(a[0].first) + 4 * s, a[0].stride);
    _tile_loadd(7, static_cast<const char*>(a[1].first) + 4 * s, a[1].stride);
    between();
    _tile_dpbf16ps(2, 6, 5);
    _tile_dpbf16ps(3, 7, 5);
  }
  _tile_stored(2, c[0], c_stride);
  _tile_stored(3, c[1], c_stride);
}

inline void tile_fence() { asm volatile("" ::: "memory"); }

}  // namespace skv::cpu::SKV_ISA
#endif
