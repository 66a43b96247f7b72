// One work item of delta_prefill: a range of rows over a range of KV tiles, into the output or a partial
// state.
//
// A tile of keys and values is packed once and used by all rows of the item, kBlockRows at a time: scores,
// softmax, weighted values. Every row's arithmetic is the same however many rows there are.
#pragma once
#include "attention_pack.h"
#include "attention_softmax.h"
#include "delta_prefill_plan.h"

namespace skv::cpu::SKV_ISA {

constexpr int64_t kBlockRows = 48;
static_assert(kBlockRows % kMicroRows == 0 && kTileKeys % kMicroColumns == 0 && kTileKeys % kPackKeys == 0);

// The memory of one item, carved out of the thread's scratch.
struct ItemMemory {
  uint32_t *q, *k, *v, *staging;
  float *acc, *folded, *scores, *shrink;
  uint32_t* weights;
  RowState *state, *folded_state;
  int32_t *begin, *end;  // visible keys of every row
  const void **keys, **values;
};

template <class Steps>
class Carver {
 public:
  // With base == nullptr it only counts.
  static int64_t carve(char* base, int64_t rows, const PackShape<Steps>& shape, ItemMemory& memory) {
    Carver c{base, 0};
    c.take(memory.q, rows * shape.row_steps);
    c.take(memory.k, kTileKeys * shape.row_steps);
    c.take(memory.v, kTileKeys / Steps::kPerStep * shape.width);
    c.take(memory.staging, kPackKeys * shape.row_steps);
    c.take(memory.acc, rows * shape.width);
    c.take(memory.folded, rows * shape.width);
    c.take(memory.scores, kBlockRows * kTileKeys);
    c.take(memory.weights, kBlockRows * kTileKeys / Steps::kPerStep);
    c.take(memory.shrink, kBlockRows);
    c.take(memory.state, rows);
    c.take(memory.folded_state, rows);
    c.take(memory.begin, rows);
    c.take(memory.end, rows);
    c.take(memory.keys, kTileKeys);
    c.take(memory.values, kTileKeys);
    return c.used_;
  }

 private:
  Carver(char* base, int64_t used) : base_(base), used_(used) {}
  template <class T>
  void take(T*& pointer, int64_t count) {
    if (base_ != nullptr) pointer = reinterpret_cast<T*>(base_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
  char* base_;
  int64_t used_;
};

template <class Steps>
class ItemRunner {
  using E = typename Steps::Element;

 public:
  ItemRunner(const DeltaPrefillParams& params, const AttentionItem& work, float* part_rows)
      : p(params), item(work), parts(part_rows), shape(params.cache.head_dim) {
    group = p.num_heads / p.cache.num_kv_heads;
    first_token = p.cu_seqlens_q[item.sequence];
    num_tokens = p.cu_seqlens_q[item.sequence + 1] - first_token;
    length = p.seqused_k[item.sequence];
    rows = item.row_end - item.row_begin;
    score_scale = {p.softmax_scale * scale_at(p.k_scale), p.softcap};
    const int64_t bytes = Carver<Steps>::carve(nullptr, rows, shape, m);
    Carver<Steps>::carve(static_cast<char*>(thread_scratch(kItemScratch, bytes)), rows, shape, m);
  }

  void run() {
    load_rows();
    clear_state(m.acc, m.state);
    const bool fold = item.fold_tiles > 0;
    if (fold) clear_state(m.folded, m.folded_state);
    for (int64_t tile = item.tiles.begin; tile < item.tiles.end; ++tile) {
      if (fold && tile != item.tiles.begin && tile % item.fold_tiles == 0) {
        fold_state();
        clear_state(m.acc, m.state);
      }
      run_tile(tile * kTileKeys);
    }
    if (fold) fold_state();
    store_rows(fold ? m.folded : m.acc, fold ? m.folded_state : m.state);
  }

  // Merges the parts of split items (rows of this item) in key order and writes the output.
  void merge(const AttentionItem* splits, int64_t num_splits) {
    clear_state(m.acc, m.state);
    for (int64_t s = 0; s < num_splits; ++s) {
      for (int64_t r = 0; r < rows; ++r) {
        const float* part = part_row(splits[s].part + r);
        merge_row(m.acc + r * shape.width, m.state[r], part, {part[shape.width], part[shape.width + 1]},
                  shape.width);
      }
    }
    write_output(m.acc, m.state);
  }

  static int64_t part_stride(int head_dim) { return PackShape<Steps>(head_dim).width + kLanes; }

 private:
  float scale_at(const ScaleView& s) const {
    return s.data ? s.data[item.sequence * s.batch_stride + item.kv_head * s.head_stride] : 1.0f;
  }
  float* part_row(int64_t row) const { return parts + row * part_stride(shape.head_dim); }
  int64_t token_of(int64_t r) const { return (item.row_begin + r) / group; }
  int64_t head_of(int64_t r) const { return item.kv_head * group + (item.row_begin + r) % group; }

  void load_rows() {
    all = {INT64_MAX, 0};
    KeyRange keys{0, 0};
    int64_t seen_token = -1;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = token_of(r);
      if (token != seen_token) keys = visible_keys(p, item.sequence, token);
      seen_token = token;
      m.begin[r] = static_cast<int32_t>(keys.begin);
      m.end[r] = static_cast<int32_t>(keys.end);
      if (keys.begin < keys.end) {
        all.begin = keys.begin < all.begin ? keys.begin : all.begin;
        all.end = keys.end > all.end ? keys.end : all.end;
      }
      const char* row = static_cast<const char*>(p.query.data) +
                        ((first_token + token) * p.query.token_stride + head_of(r) * p.query.head_stride) *
                            element_size(p.dtype);
      stage_row(reinterpret_cast<E*>(m.q + r * shape.row_steps), row, p.dtype, shape.head_dim,
                shape.row_elements());
    }
  }

  void clear_state(float* acc, RowState* state) {
    std::memset(acc, 0, sizeof(float) * static_cast<size_t>(rows * shape.width));
    for (int64_t r = 0; r < rows; ++r) state[r] = {minus_infinity(), 0.0f};
  }

  void fold_state() {
    for (int64_t r = 0; r < rows; ++r) {
      merge_row(m.folded + r * shape.width, m.folded_state[r], m.acc + r * shape.width, m.state[r],
                shape.width);
    }
  }

  // Where keys [first, first + kTileKeys) and their values lie; null where no row looks or the block id is
  // negative. Returns how many to pack.
  int64_t locate(int64_t first) {
    const int64_t size = p.cache.block_size, bytes = element_size(p.cache.dtype);
    const int32_t* blocks = p.block_table + item.sequence * p.block_table_stride;
    const int64_t begin = all.begin > first ? all.begin : first;
    const int64_t end = all.end < first + kTileKeys ? all.end : first + kTileKeys;
    has_holes = false;
    for (int64_t key = first; key < begin; ++key) m.keys[key - first] = m.values[key - first] = nullptr;
    for (int64_t key = begin; key < end;) {
      const int64_t block = blocks[key / size];
      const int64_t stop = (key / size + 1) * size < end ? (key / size + 1) * size : end;
      const char* k = static_cast<const char*>(p.k_cache.data) +
                      (block * p.k_cache.block_stride + item.kv_head * p.k_cache.head_stride) * bytes;
      const char* v = static_cast<const char*>(p.v_cache.data) +
                      (block * p.v_cache.block_stride + item.kv_head * p.v_cache.head_stride) * bytes;
      has_holes |= block < 0;
      for (; key < stop; ++key) {
        m.keys[key - first] = block < 0 ? nullptr : k + key % size * p.k_cache.token_stride * bytes;
        m.values[key - first] = block < 0 ? nullptr : v + key % size * p.v_cache.token_stride * bytes;
      }
    }
    return end - first;
  }

  void run_tile(int64_t first) {
    const int64_t count = locate(first);
    pack_keys(shape, m.keys, p.cache.dtype, count, m.k, m.staging);
    pack_values(shape, m.values, p.cache.dtype, count, m.v, m.staging);
    for (int64_t r = 0; r < rows; r += kBlockRows) {
      run_block(first, count, r, rows - r < kBlockRows ? rows - r : kBlockRows);
    }
  }

  void run_block(int64_t first, int64_t count, int64_t row, int64_t block_rows) {
    int64_t low = kTileKeys, high = 0;  // keys of the tile that some row of the block sees
    for (int64_t r = row; r < row + block_rows; ++r) {
      const int64_t begin = m.begin[r] - first, end = m.end[r] - first;
      if (begin >= end || end <= 0 || begin >= count) continue;
      low = begin < low ? begin : low;
      high = end > high ? end : high;
    }
    low = low < 0 ? 0 : low;
    high = high > count ? count : high;
    if (low >= high) return;
    const int64_t first_panel = low / kMicroColumns, panels = (high + kMicroColumns - 1) / kMicroColumns;
    const auto column = static_cast<int>(first_panel * kMicroColumns);
    score_panels<Steps>(block_rows, m.q + row * shape.row_steps, shape.row_steps, m.k, shape.row_steps,
                        shape.steps, first_panel, panels, m.scores, kTileKeys);
    constexpr int64_t kWeightSteps = kTileKeys / Steps::kPerStep;
    for (int64_t r = 0; r < block_rows; ++r) {
      float* s = m.scores + r * kTileKeys;
      const auto last = static_cast<int>(panels * kMicroColumns);
      float maximum = mask_scores(s, column, last, static_cast<int>(clamp(m.begin[row + r] - first)),
                                  static_cast<int>(clamp(m.end[row + r] - first)), score_scale);
      if (hide_keys(s, row + r, first, high)) maximum = maximum_of(s, column, last);
      m.shrink[r] = softmax_row(s, reinterpret_cast<E*>(m.weights + r * kWeightSteps), column, last, maximum,
                                m.state[row + r]);
    }
    const int64_t first_step = column / Steps::kPerStep;
    const int64_t last_step = (high + Steps::kPerStep - 1) / Steps::kPerStep;
    accumulate_values<Steps>(block_rows, m.weights + first_step, kWeightSteps, m.v + first_step * shape.width,
                             shape.width, last_step - first_step, m.acc + row * shape.width, shape.width,
                             m.shrink);
  }

  static int64_t clamp(int64_t key) { return key < 0 ? 0 : key > kTileKeys ? kTileKeys : key; }

  static float maximum_of(const float* s, int first, int last) {
    Vec x = splat(minus_infinity());
    for (int j = first; j < last; j += kLanes) x = max(x, load(s + j));
    return max_of(x);
  }

  // What a range cannot say: skipped blocks and the tree's bits. Returns whether anything may have changed.
  bool hide_keys(float* s, int64_t r, int64_t first, int64_t high) {
    const int64_t prefix = length - num_tokens;
    const bool in_tree = p.tree_mask != nullptr && first + high > prefix;
    if (has_holes) {
      for (int64_t j = 0; j < high; ++j) {
        if (m.keys[j] == nullptr) s[j] = minus_infinity();
      }
    }
    if (in_tree) {
      const int32_t* mask = p.tree_mask + (first_token + token_of(r)) * p.tree_mask_stride;
      for (int64_t j = prefix > first ? prefix - first : 0; j < high; ++j) {
        const int64_t token = first + j - prefix;
        if (!((mask[token / 32] >> (token % 32)) & 1)) s[j] = minus_infinity();
      }
    }
    return has_holes || in_tree;
  }

  void store_rows(float* acc, RowState* state) {
    if (item.part < 0) return write_output(acc, state);
    for (int64_t r = 0; r < rows; ++r) {
      float* part = part_row(item.part + r);
      std::memcpy(part, acc + r * shape.width, sizeof(float) * static_cast<size_t>(shape.width));
      part[shape.width] = state[r].maximum;
      part[shape.width + 1] = state[r].sum;
    }
  }

  void write_output(float* acc, const RowState* state) {
    const float v_scale = scale_at(p.v_scale);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = first_token + token_of(r), head = head_of(r);
      RowState s = state[r];
      float shrink = 1.0f;
      if (p.sinks != nullptr) {
        const float sink = p.sinks[head];
        const float now = s.maximum > sink ? s.maximum : sink;
        shrink = exp_of(s.maximum - finite_maximum(now));
        s = {now, __builtin_fmaf(s.sum, shrink, exp_of(sink - finite_maximum(now)))};
      }
      const bool nothing = s.maximum == minus_infinity();
      const Vec factor = splat(nothing ? 0.0f : shrink / s.sum * v_scale);
      float* row = acc + r * shape.width;
      for (int64_t j = 0; j < shape.width; j += kLanes) store(row + j, mul(load(row + j), factor));
      store_head(row, token, head);
      if (p.lse != nullptr) {
        p.lse[head * p.lse_head_stride + token] = nothing ? minus_infinity() : s.maximum + ::logf(s.sum);
      }
    }
  }

  void store_head(const float* row, int64_t token, int64_t head) {
    char* out = static_cast<char*>(p.out.data) +
                (token * p.out.token_stride + head * p.out.head_stride) * element_size(p.dtype);
    if (p.dtype == DType::kFloat32) {
      convert(reinterpret_cast<float*>(out), row, shape.head_dim);
    } else if (p.dtype == DType::kFloat16) {
      convert(reinterpret_cast<Half*>(out), row, shape.head_dim);
    } else {
      convert(reinterpret_cast<BFloat16*>(out), row, shape.head_dim);
    }
  }

  const DeltaPrefillParams& p;
  const AttentionItem& item;
  float* parts;
  PackShape<Steps> shape;
  ItemMemory m{};
  int64_t group, first_token, num_tokens, length, rows;
  ScoreScale score_scale;
  KeyRange all;  // keys that some row of the item sees
  bool has_holes;
};

}  // namespace skv::cpu::SKV_ISA
