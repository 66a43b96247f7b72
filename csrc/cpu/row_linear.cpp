// row_linear on the CPU: out = x @ weight^T with one reduction order for every number of rows.
//
// The order of one output element: k is cut at multiples of kChunk (512 elements, of float32 128: a longer
// chain rounds worse than torch's); within a chunk one chain of fused multiply-adds from zero in ascending k;
// the chunks' sums are added in ascending order (the matrix unit has an order of its own, linear_tiles.h);
// then the bias; then one rounding. Nothing else that a call brings (rows, threads, strides, packed or plain)
// has a part in it: registers hold several rows and columns, but each element keeps its own chain.
//
// Threads over panels of 32 columns. A thread takes the chunks of its panels one by one (at most 32 KB,
// first-level cache) and multiplies each by all rows, at most kMaxRows together, so a weight is read from
// memory once for those.
#include "linear_scratch.h"
#include "linear_tiles.h"

namespace skv::cpu::SKV_ISA {

namespace {

constexpr int64_t kMaxRows = 288;
constexpr int64_t kFewRows = 32;         // up to here a thread goes through the weights in memory order
constexpr int64_t kGroup = 8;            // past it, panels that share a pass over a chunk of x
constexpr int64_t kSerialBytes = 16384;  // of weights: less is not worth another thread

template <class W>
struct Linear {
  using Unit = typename Step<W>::Unit;
  using Product = PanelProduct<W>;
  static constexpr int kUnits = Step<W>::kUnits;
  static constexpr int kPair = Layout<W>::kPair;
  static constexpr int kChunk = Layout<W>::kChunk;

  const RowLinearParams& p;
  Weight<W> weight;
  int64_t padded_k, chunks;

  explicit Linear(const RowLinearParams& params)
      : p(params),
        weight{static_cast<const W*>(p.weight), p.weight_stride, p.n, p.k},
        padded_k(div_up(p.k, kPair) * kPair),
        chunks(div_up(p.k, kChunk)) {}

  int chunk_size(int64_t chunk) const {
    const int64_t left = p.k - chunk * kChunk;
    return static_cast<int>(left < kChunk ? left : kChunk);
  }

  // x rows [begin, begin + count) -> [chunks][padded][kRowUnits], by all threads when that pays.
  const Unit* pack_x(int64_t begin, int64_t count, const Parallel& pool) const {
    const int64_t padded = Product::padded_rows(count);
    Unit* packed = static_cast<Unit*>(
        linear_scratch(kLinearRows, chunks * padded * kRowUnits<W> * static_cast<int64_t>(sizeof(Unit))));
    pool.for_each(padded, 1 + 65536 / (p.k + 1), [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; ++r) {
        for (int64_t c = 0; c < chunks; ++c) {
          Unit* row = packed + (c * padded + r) * kRowUnits<W>;
          const int64_t steps = div_up(chunk_size(c), kPair), there = r < count ? steps : 0;
          if (r < count) {
            pack_row(static_cast<const W*>(p.x) + (begin + r) * p.x_stride + c * kChunk, chunk_size(c), row);
          }
          std::memset(row + there * kUnits, 0,
                      static_cast<size_t>((Product::padded_steps(steps) - there) * kUnits) * sizeof(Unit));
        }
      }
    });
    return packed;
  }

  // One chunk of a panel as [steps][kPanel][kPair]: in place, or widened or packed into `stage`.
  const W* panel_chunk(int64_t panel, int64_t chunk, W* stage) const {
    const int columns = weight.columns(panel);
    if (!p.packed) {
      pack_panel(weight, panel * kPanel, columns, chunk * kChunk, chunk_size(chunk), kPanel, stage);
      return stage;
    }
    const W* at = weight.data + panel * kPanel * padded_k + chunk * kChunk * columns;
    if (columns == kPanel) return at;
    widen_panel(at, columns, div_up(chunk_size(chunk), kPair), stage);
    return stage;
  }

  // Panels [begin, end) by the packed rows x.
  void multiply(const Unit* x, int64_t first_row, int64_t rows, int64_t begin, int64_t end) const {
    const int64_t group = rows <= kFewRows ? 1 : kGroup, padded = Product::padded_rows(rows);
    char* scratch = static_cast<char*>(linear_scratch(
        kLinearPrivate, kChunk * kPanel * 4 + group * padded * kPanel * static_cast<int64_t>(sizeof(float))));
    W* stage = reinterpret_cast<W*>(scratch);
    float* sums = reinterpret_cast<float*>(scratch + kChunk * kPanel * 4);
    Product product(rows);
    for (int64_t from = begin; from < end; from += group) {
      const int64_t to = from + group < end ? from + group : end;
      for (int64_t c = 0; c < chunks; ++c) {
        for (int64_t panel = from; panel < to; ++panel) {
          const W* w = panel_chunk(panel, c, stage);
          // In a group the next panel's chunk, otherwise (and as a guess at the group's end) what follows in
          // memory.
          const W* next = w + (panel + 1 < to ? kPanel * padded_k : kPanel * kChunk);
          product(w, next, x + c * padded * kRowUnits<W>, div_up(chunk_size(c), kPair),
                  sums + (panel - from) * padded * kPanel, c == 0);
        }
      }
      for (int64_t panel = from; panel < to; ++panel) {
        write(panel, sums + (panel - from) * padded * kPanel, first_row, rows);
      }
    }
  }

  void write(int64_t panel, float* sums, int64_t first_row, int64_t rows) const {
    const int columns = weight.columns(panel);
    if (chunks == 0) std::memset(sums, 0, static_cast<size_t>(rows * kPanel) * sizeof(float));
    if (p.bias != nullptr) {
      float bias[kPanel] = {};
      for (int j = 0; j < columns; ++j) bias[j] = to_float(static_cast<const W*>(p.bias)[panel * kPanel + j]);
      for (int64_t r = 0; r < rows; ++r) {
        for (int j = 0; j < kPanel; ++j) sums[r * kPanel + j] += bias[j];
      }
    }
    if (p.out_dtype == DType::kFloat32) {
      write_rows<float>(panel, columns, sums, first_row, rows);
    } else {
      write_rows<W>(panel, columns, sums, first_row, rows);
    }
  }

  template <class O>
  void write_rows(int64_t panel, int columns, const float* sums, int64_t first_row, int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r) {
      O* out = static_cast<O*>(p.out) + (first_row + r) * p.out_stride + panel * kPanel;
      O line[kPanel];
      O* to = columns == kPanel ? out : line;
      for (int j = 0; j < kPanel; j += kLanes) store(to + j, load(sums + r * kPanel + j));
      if (to == line) std::memcpy(out, line, static_cast<size_t>(columns) * sizeof(O));
    }
  }
};

}  // namespace

void row_linear(const RowLinearParams& p, const Parallel& pool) {
  with_float_type(p.dtype, [&](auto zero) {
    using W = decltype(zero);
    const Linear<W> linear(p);
    const int64_t batches = div_up(p.rows, kMaxRows);
    const int64_t panel_work = (p.k + 1) * kPanel * static_cast<int64_t>(sizeof(W));
    for (int64_t b = 0, row = 0; b < batches; ++b) {
      const int64_t count = div_up(p.rows - row, batches - b);
      const auto* x = linear.pack_x(row, count, pool);
      const int64_t grain = 1 + kSerialBytes / (panel_work * (count < 16 ? 1 : count / 8));
      pool.for_each(div_up(p.n, kPanel), grain,
                    [&](int64_t begin, int64_t end) { linear.multiply(x, row, count, begin, end); });
      row += count;
    }
  });
}

}  // namespace skv::cpu::SKV_ISA
