// row_linear on the CPU: out = x @ weight^T with one reduction order for every number of rows.
//
// The order of one output element: k is cut at multiples of kChunk (512 elements, of float32 128: a longer
// chain rounds worse than torch's); within a chunk one chain of fused multiply-adds from zero in ascending k;
// the chunks' sums are added in ascending order (the matrix unit has an order of its own, linear_tiles.h);
// then the bias; then one rounding. Nothing else that a call brings (rows, threads, strides, packed or plain)
// has a part in it: registers hold several rows and columns, but each element keeps its own chain.
//
// Threads over panels of 32 columns. A thread takes the chunks of its panels one by one (at most 32 KB,
// first-level cache) and multiplies each by a batch of at most kMaxRows rows, so a weight is read from memory
// once for those; more batches take the same panels one after another, while those are in the second-level
// cache. Past few rows threads take the next panels when they are done with theirs.
#include "linear_scratch.h"
#include "linear_tiles.h"

namespace skv::cpu::SKV_ISA {

namespace {

constexpr int64_t kMaxRows = 96;
constexpr int64_t kFewRows = 32;           // up to here a thread goes through the weights in memory order
constexpr int64_t kGroup = 16;             // past it, at most as many panels share a pass over a chunk of x
constexpr int64_t kItems = 4;              // and a thread gets as many groups of panels, if there are enough
constexpr int64_t kMaxBatches = 32;        // of rows, packed at a time
constexpr int64_t kPackedBytes = 8 << 20;  // or as many as fit into this, and at least one
constexpr int64_t kSerialBytes = 16384;    // of weights: less is not worth another thread

template <class W>
struct Linear {
  using Unit = typename Step<W>::Unit;
  using Product = PanelProduct<W>;
  static constexpr int kUnits = Step<W>::kUnits;
  static constexpr int kPair = Layout<W>::kPair;
  static constexpr int kChunk = Layout<W>::kChunk;

  struct Batch {
    int64_t first_row, rows;
    Unit* x;  // packed
  };

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

  int64_t packed_bytes(int64_t padded) const {
    return chunks * padded * kRowUnits<W> * static_cast<int64_t>(sizeof(Unit));
  }

  // Rows of x -> for each batch [chunks][padded][kRowUnits], by all threads when that pays.
  void pack_x(Batch* batches, int64_t num_batches, const Parallel& pool) const {
    const int64_t padded = Product::padded_rows(batches[0].rows);  // the first one is the longest
    auto* packed = static_cast<Unit*>(linear_scratch(kLinearRows, num_batches * packed_bytes(padded)));
    for (int64_t b = 0; b < num_batches; ++b) {
      batches[b].x = packed + b * chunks * padded * kRowUnits<W>;
    }
    pool.for_each(num_batches * padded, 1 + 65536 / (p.k + 1), [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) pack_row_of(batches[i / padded], i % padded);
    });
  }

  void pack_row_of(const Batch& batch, int64_t r) const {
    const int64_t padded = Product::padded_rows(batch.rows);
    if (r >= padded) return;
    for (int64_t c = 0; c < chunks; ++c) {
      Unit* row = batch.x + (c * padded + r) * kRowUnits<W>;
      const int64_t steps = div_up(chunk_size(c), kPair), there = r < batch.rows ? steps : 0;
      if (r < batch.rows) {
        pack_row(static_cast<const W*>(p.x) + (batch.first_row + r) * p.x_stride + c * kChunk, chunk_size(c),
                 row);
      }
      std::memset(row + there * kUnits, 0,
                  static_cast<size_t>((Product::padded_steps(steps) - there) * kUnits) * sizeof(Unit));
    }
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

  // Panels [begin, end), `group` at a time, by a batch of rows.
  void multiply(const Batch& batch, int64_t begin, int64_t end, int64_t group) const {
    const int64_t padded = Product::padded_rows(batch.rows);
    char* scratch = static_cast<char*>(linear_scratch(
        kLinearPrivate, kChunk * kPanel * 4 + group * padded * kPanel * static_cast<int64_t>(sizeof(float))));
    W* stage = reinterpret_cast<W*>(scratch);
    float* sums = reinterpret_cast<float*>(scratch + kChunk * kPanel * 4);
    Product product(batch.rows);
    for (int64_t from = begin; from < end; from += group) {
      const int64_t to = from + group < end ? from + group : end;
      for (int64_t c = 0; c < chunks; ++c) {
        for (int64_t panel = from; panel < to; ++panel) {
          const W* w = panel_chunk(panel, c, stage);
          // In a group the next panel's chunk, otherwise (and as a guess at the group's end) what follows in
          // memory.
          const W* next = w + (panel + 1 < to ? kPanel * padded_k : kPanel * kChunk);
          product(w, next, batch.x + c * padded * kRowUnits<W>, div_up(chunk_size(c), kPair),
                  sums + (panel - from) * padded * kPanel, c == 0);
        }
      }
      for (int64_t panel = from; panel < to; ++panel) {
        write(panel, sums + (panel - from) * padded * kPanel, batch.first_row, batch.rows);
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
    const int64_t panels = div_up(p.n, kPanel);
    const int64_t fitting = kPackedBytes / (linear.packed_bytes(kMaxRows) + 1);
    const int64_t at_once = fitting < 1 ? 1 : fitting < kMaxBatches ? fitting : kMaxBatches;
    typename Linear<W>::Batch batches[kMaxBatches];
    for (int64_t row = 0, left = div_up(p.rows, kMaxRows); left > 0;) {
      const int64_t count = left < at_once ? left : at_once;
      for (int64_t b = 0; b < count; ++b, --left) {
        batches[b] = {row, div_up(p.rows - row, left), nullptr};
        row += batches[b].rows;
      }
      linear.pack_x(batches, count, pool);
      const int64_t rows = batches[0].rows;
      if (rows <= kFewRows) {
        const int64_t panel_work = (p.k + 1) * kPanel * static_cast<int64_t>(sizeof(W));
        const int64_t grain = 1 + kSerialBytes / (panel_work * (rows < 16 ? 1 : rows / 8));
        pool.for_each(panels, grain,
                      [&](int64_t begin, int64_t end) { linear.multiply(batches[0], begin, end, 1); });
        continue;
      }
      // All batches by the same panels, one after another, while those are in the second-level cache.
      const int64_t share = panels * count / (kItems * pool.num_threads());
      const int64_t group = share < 1 ? 1 : share < kGroup ? share : kGroup;
      pool.for_each_item(div_up(panels, group) * count, [&](int64_t i) {
        const int64_t begin = i / count * group, end = begin + group < panels ? begin + group : panels;
        linear.multiply(batches[i % count], begin, end, group);
      });
    }
  });
}

}  // namespace skv::cpu::SKV_ISA
