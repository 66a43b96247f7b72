// One work item of delta_prefill: a range of rows of some KV heads over a range of KV tiles, into the output
// or into partial states.
//
// Many rows: a tile of keys and values is packed once and used by all of them, kBlockRows at a time: scores,
// softmax, weighted values. Few rows take keys and values a few at a time, all heads in turn, in the order in
// which they lie in the usual pools (attention_rows.h). Both give the same bits: a row's arithmetic is the
// same however many rows there are.
#pragma once
#include "delta_prefill_memory.h"

namespace skv::cpu::SKV_ISA {

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
    heads = item.head_end - item.head_begin;
    streams = rows <= kStreamRows && shape.head_dim % RowLoad<Steps>::kElements == 0;
    const bool folds = item.fold_tiles > 0;
    const int64_t bytes = Carver<Steps>::carve(nullptr, rows, heads, folds, streams, shape, m);
    Carver<Steps>::carve(static_cast<char*>(thread_scratch(kItemScratch, bytes)), rows, heads, folds, streams,
                         shape, m);
  }

  void run() {
    const typename Steps::Session session(streams ? rows : 32, streams);
    find_ranges();
    for (int64_t h = 0; h < heads; ++h) load_query(h);
    clear_state(m.acc, m.state);
    const bool folds = item.fold_tiles > 0;
    if (folds) clear_state(m.folded, m.folded_state);
    if (streams) std::memset(m.zeros, 0, sizeof(uint32_t) * static_cast<size_t>(shape.row_steps));
    RowPrefetch prefetch(heads, row_bytes());
    Tile next = item.tiles.begin < item.tiles.end ? locate(item.tiles.begin) : Tile{};
    for (int64_t tile = item.tiles.begin; tile < item.tiles.end; ++tile) {
      if (folds && tile != item.tiles.begin && tile % item.fold_tiles == 0) {
        fold_state();
        clear_state(m.acc, m.state);
      }
      const Tile now = next;
      next = tile + 1 < item.tiles.end ? locate(tile + 1) : Tile{};
      if (streams) {
        stream_tile(now, next, tile == item.tiles.begin, prefetch);
        continue;
      }
      for (int64_t h = 0; h < heads; ++h)
        run_head(now, h, h + 1 < heads ? now : next, h + 1 < heads ? h + 1 : 0);
    }
    if (folds) fold_state();
    store_rows(folds ? m.folded : m.acc, folds ? m.folded_state : m.state);
  }

  // Merges the parts of split items (rows of this item) in key order and writes the output.
  void merge(const AttentionItem* splits, int64_t num_splits) {
    clear_state(m.acc, m.state);
    for (int64_t s = 0; s < num_splits; ++s) {
      for (int64_t r = 0; r < heads * rows; ++r) {
        const float* part = part_row(splits[s].part + r);
        merge_row(m.acc + r * shape.width, m.state[r], part, {part[shape.width], part[shape.width + 1]},
                  shape.width);
      }
    }
    write_output(m.acc, m.state);
  }

  static int64_t part_stride(int head_dim) { return PackShape<Steps>(head_dim).width + kLanes; }

 private:
  // Keys [first, first + count) of a tile: where they and their values lie for KV head 0, null where no row
  // looks or where the block id is negative (a hole).
  struct Tile {
    int64_t first, count;
    const char **keys, **values;
    bool has_holes;
  };

  float scale_at(const ScaleView& s, int64_t h) const {
    return s.data ? s.data[item.sequence * s.batch_stride + (item.head_begin + h) * s.head_stride] : 1.0f;
  }
  float* part_row(int64_t row) const { return parts + row * part_stride(shape.head_dim); }
  int64_t token_of(int64_t r) const { return (item.row_begin + r) / group; }
  int64_t head_of(int64_t h, int64_t r) const {
    return (item.head_begin + h) * group + (item.row_begin + r) % group;
  }

  void find_ranges() {
    all = {INT64_MAX, 0};
    KeyRange keys{0, 0};
    int64_t seen_token = -1;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = token_of(r);
      if (token != seen_token) keys = visible_keys(p, item.sequence, token);
      seen_token = token;
      m.begin[r] = static_cast<int32_t>(keys.begin);
      m.end[r] = static_cast<int32_t>(keys.end);
      if (keys.begin >= keys.end) continue;
      all.begin = keys.begin < all.begin ? keys.begin : all.begin;
      all.end = keys.end > all.end ? keys.end : all.end;
    }
  }

  void load_query(int64_t h) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t offset =
          (first_token + token_of(r)) * p.query.token_stride + head_of(h, r) * p.query.head_stride;
      uint32_t* row = Steps::kTiles && streams ? m.staging : m.q + (h * rows + r) * shape.row_steps;
      stage_row(reinterpret_cast<E*>(row),
                static_cast<const char*>(p.query.data) + offset * element_size(p.dtype), p.dtype,
                shape.head_dim, shape.row_elements());
      if constexpr (Steps::kTiles) {
        if (streams) transpose_row(row, shape.row_steps, rows, m.q + h * rows * shape.row_steps + r);
      }
    }
  }

  void clear_state(float* acc, RowState* state) {
    std::memset(acc, 0, sizeof(float) * static_cast<size_t>(heads * rows * shape.width));
    for (int64_t r = 0; r < heads * rows; ++r) state[r] = {minus_infinity(), 0.0f};
  }

  void fold_state() {
    for (int64_t r = 0; r < heads * rows; ++r) {
      merge_row(m.folded + r * shape.width, m.folded_state[r], m.acc + r * shape.width, m.state[r],
                shape.width);
    }
  }

  Tile locate(int64_t tile) {
    const int64_t size = p.cache.block_size, bytes = element_size(p.cache.dtype);
    const int32_t* blocks = p.block_table + item.sequence * p.block_table_stride;
    const int64_t first = tile * kTileKeys, set = tile % 2 * kTileKeys;
    const int64_t begin = all.begin > first ? all.begin : first;
    const int64_t end = all.end < first + kTileKeys ? all.end : first + kTileKeys;
    Tile t{first, end - first, m.keys + set, m.values + set, false};
    for (int64_t key = first; key < begin; ++key) t.keys[key - first] = t.values[key - first] = nullptr;
    for (int64_t key = begin; key < end;) {
      const int64_t block = blocks[key / size], offset = key % size;
      const int64_t stop = key - offset + size < end ? key - offset + size : end;
      const char* k = static_cast<const char*>(p.k_cache.data) +
                      (block * p.k_cache.block_stride + offset * p.k_cache.token_stride) * bytes;
      const char* v = static_cast<const char*>(p.v_cache.data) +
                      (block * p.v_cache.block_stride + offset * p.v_cache.token_stride) * bytes;
      t.has_holes |= block < 0;
      for (; key < stop; ++key, k += p.k_cache.token_stride * bytes, v += p.v_cache.token_stride * bytes) {
        t.keys[key - first] = block < 0 ? nullptr : k;
        t.values[key - first] = block < 0 ? nullptr : v;
      }
    }
    for (int64_t i = t.count < 0 ? 0 : t.count; i % kPackKeys != 0; ++i) t.keys[i] = t.values[i] = nullptr;
    return t;
  }

  int64_t row_bytes() const { return shape.head_dim * element_size(p.cache.dtype); }
  int64_t k_offset(int64_t h) const {
    return (item.head_begin + h) * p.k_cache.head_stride * element_size(p.cache.dtype);
  }
  int64_t v_offset(int64_t h) const {
    return (item.head_begin + h) * p.v_cache.head_stride * element_size(p.cache.dtype);
  }

  // All rows of all heads over one tile.
  void stream_tile(const Tile& t, const Tile& next, bool is_first, RowPrefetch& prefetch) {
    const int64_t bytes = element_size(p.cache.dtype);
    const int64_t k_stride = p.k_cache.head_stride * bytes, v_stride = p.v_cache.head_stride * bytes;
    prefetch.start({t.keys, t.count, k_offset(0), k_stride}, {t.values, t.count, v_offset(0), v_stride},
                   {next.keys, next.count, k_offset(0), k_stride}, is_first);
    const KeyRange seen = seen_keys(t.first, 0, t.count, 0, rows);
    if (seen.begin >= seen.end) return;
    const int64_t first = seen.begin / kMicroColumns * kMicroColumns;
    const int64_t last = (seen.end + kMicroColumns - 1) / kMicroColumns * kMicroColumns;
    for (int64_t key = first; key < last; key += kMicroColumns) {
      if constexpr (Steps::kTiles) {
        tile_keys(t, key, prefetch);
      } else {
        stream_keys(t, key, prefetch);
      }
    }
    for (int64_t h = 0; h < heads; ++h) weigh_rows(t, h, 0, rows, first, last, seen.end, h * rows);
    if constexpr (Steps::kTiles) {
      for (int64_t key = first; key < last; key += kMicroColumns) tile_values(t, key, seen, prefetch);
    } else {
      with_cache_element([&](auto zero) {
        for (int64_t key = first; key < last; key += kMicroColumns)
          stream_values<decltype(zero)>(t, key, seen, prefetch);
        for (int64_t r = 0; r < heads * rows; ++r)
          RowLoad<Steps>::in_order(static_cast<decltype(zero)*>(nullptr), m.sums + r * shape.width,
                                   shape.width);
      });
    }
    add_sums(m.acc, heads * rows);
  }

  // acc[count][width] = acc * shrink + sums.
  void add_sums(float* acc, int64_t count) {
    const float* sums = m.sums;
    for (int64_t r = 0; r < count; ++r, acc += shape.width, sums += shape.width) {
      const Vec shrink = splat(m.shrink[r]);
      for (int64_t j = 0; j < shape.width; j += kLanes)
        store(acc + j, fma(load(acc + j), shrink, load(sums + j)));
    }
  }

  template <class F>
  void with_cache_element(F&& f) {
    if constexpr (Steps::kPerStep == 1) {
      if (p.cache.dtype == DType::kFloat32) return f(float{});
      if (p.cache.dtype == DType::kFloat16) return f(Half{});
    }
    if (p.cache.dtype == DType::kBFloat16) return f(BFloat16{});
    f(Fp8{});
  }

  // Scores of kMicroColumns keys.
  void stream_keys(const Tile& t, int64_t key, RowPrefetch& prefetch) {
    const int64_t bytes = kPackKeys * row_bytes() / (shape.row_steps / 16);
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < kMicroColumns; i += kPackKeys) {
        pack_key_group(shape, {t.keys, k_offset(h)}, p.cache.dtype, key + i, t.count, m.k + i, m.staging,
                       [&](int64_t) { prefetch.fetch(bytes); });
      }
      score_panel<Steps>(rows, m.q + h * rows * shape.row_steps, shape.row_steps, m.k, shape.steps,
                         m.scores + h * rows * kTileKeys + key, kTileKeys);
    }
  }

  // Weighted values of kMicroColumns keys.
  template <class T>
  void stream_values(const Tile& t, int64_t key, const KeyRange& seen, RowPrefetch& prefetch) {
    constexpr int64_t kWeightSteps = kTileKeys / Steps::kPerStep;
    const int64_t bytes = kPackKeys * row_bytes() / (shape.width / kLanes);
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t offset = v_offset(h), row = h * rows;
      for (int64_t first = key; first < key + kMicroColumns; first += kPackKeys) {
        if (first >= seen.end || first + kPackKeys <= seen.begin) continue;
        const int64_t count = seen.end - first < kPackKeys ? seen.end - first : kPackKeys;
        const T* values[kPackKeys];
        for (int i = 0; i < kPackKeys; ++i) {
          const char* value = i < count ? t.values[first + i] : nullptr;
          values[i] =
              static_cast<const T*>(value == nullptr ? m.zeros : static_cast<const void*>(value + offset));
        }
        add_values<Steps, T>(rows, m.weights + row * kWeightSteps + first / Steps::kPerStep, kWeightSteps,
                             values, (count + Steps::kPerStep - 1) / Steps::kPerStep, shape.width,
                             m.sums + row * shape.width, shape.width, first <= seen.begin,
                             [&](int64_t, int64_t some) { prefetch.fetch(some * bytes); });
      }
    }
  }

#if defined(__AMX_BF16__)
  // Scores of kMicroColumns keys on the matrix unit.
  void tile_keys(const Tile& t, int64_t key, RowPrefetch& prefetch) {
    const int64_t stride = tall_stride(rows);
    for (const int64_t end = key + kMicroColumns; key < end; key += 2 * kPackKeys) {
      const int64_t count = t.count - key;
      const TileRow16 in_cache[2] = {even_rows(t.keys + key, count),
                                     even_rows(t.keys + key + kPackKeys, count - kPackKeys)};
      for (int64_t h = 0; h < heads; ++h) {
        TileRow16 keys[2];
        for (int i = 0; i < 2; ++i) {
          if (in_cache[i].first == nullptr || p.cache.dtype != p.dtype) {
            keys[i] = stage_keys(t, h, key + i * kPackKeys, i * kPackKeys);
          } else {
            keys[i] = {static_cast<const char*>(in_cache[i].first) + k_offset(h), in_cache[i].stride};
          }
        }
        float* scores = m.scores + h * rows * kTileKeys + key;
        float* const tall[2] = {rows == 1 ? scores : m.tall,
                                rows == 1 ? scores + kPackKeys : m.tall + kTallScores};
        tile_fence();
        tall_product(keys, m.q + h * rows * shape.row_steps, 4 * rows, shape.row_steps, tall, 4 * stride,
                     [&] { prefetch.fetch(kPackKeys * 64); });
        tile_fence();
        for (int i = 0; i < 2; ++i) {
          prefetch.fetch(kPackKeys * row_bytes() / 2);
          if (rows > 1) transpose_scores(tall[i], rows, scores + i * kPackKeys, kTileKeys);
        }
      }
    }
  }
  TileRow16 stage_keys(const Tile& t, int64_t h, int64_t key, int64_t place) {
    const TileRows rows_of_head{t.keys, k_offset(h)};
    uint32_t* staged = m.staging + place * shape.row_steps;
    for (int64_t i = 0; i < kPackKeys; ++i) {
      stage_row(reinterpret_cast<E*>(staged + i * shape.row_steps),
                key + i < t.count ? rows_of_head.at(key + i) : nullptr, p.cache.dtype, shape.head_dim,
                shape.row_elements());
    }
    return {staged, 4 * shape.row_steps};
  }

  // The same on the matrix unit, from an interleaved copy.
  void tile_values(const Tile& t, int64_t key, const KeyRange& seen, RowPrefetch& prefetch) {
    constexpr int64_t kWeightSteps = kTileKeys / Steps::kPerStep;
    const int64_t count = seen.end - key < kMicroColumns ? seen.end - key : kMicroColumns;
    const int64_t padded = (count + 2 * kTileSteps - 1) / (2 * kTileSteps) * kTileSteps;
    for (int64_t h = 0; h < heads; ++h) {
      pack_values(shape, {t.values + key, v_offset(h)}, p.cache.dtype, count, m.v, m.staging,
                  [&] { prefetch.fetch(3 * row_bytes()); });
      const int64_t row = h * rows;
      tile_products(rows, m.weights + row * kWeightSteps + key / Steps::kPerStep, kWeightSteps, m.v,
                    shape.width, shape.width, padded, m.sums + row * shape.width, shape.width,
                    key <= seen.begin, [&] { prefetch.fetch(512); });
    }
  }
#endif

  // Keys of [begin, end) of the tile at `first` that some row of [row, row + count) sees.
  KeyRange seen_keys(int64_t first, int64_t begin, int64_t end, int64_t row, int64_t count) const {
    KeyRange seen{end, begin};
    for (int64_t r = row; r < row + count; ++r) {
      const int64_t from = m.begin[r] - first, to = m.end[r] - first;
      if (from >= to || to <= begin || from >= end) continue;
      seen.begin = from < seen.begin ? from : seen.begin;
      seen.end = to > seen.end ? to : seen.end;
    }
    seen.begin = seen.begin < begin ? begin : seen.begin;
    seen.end = seen.end > end ? end : seen.end;
    return seen;
  }

  // Products [first, last) of rows [row, row + count) -> their weights and the factors by which what was
  // accumulated before shrinks. Keys from `seen_end` on are seen by none of them. `at`: their place in
  // scores, weights and shrink.
  void weigh_rows(const Tile& t, int64_t h, int64_t row, int64_t count, int64_t first, int64_t last,
                  int64_t seen_end, int64_t at) {
    const ScoreScale score_scale{p.softmax_scale * scale_at(p.k_scale, h), p.softcap};
    constexpr int64_t kWeightSteps = kTileKeys / Steps::kPerStep;
    const auto from = static_cast<int>(first), to = static_cast<int>(last);
    for (int64_t begin = 0; begin < count; begin += kLanes) {
      const int64_t some = count - begin < kLanes ? count - begin : kLanes;
      float* scores = m.scores + (at + begin) * kTileKeys;
      Vec maxima[kLanes];
      for (int64_t i = 0; i < some; ++i) {
        const int64_t r = row + begin + i, end = m.end[r] - t.first;
        float* s = scores + i * kTileKeys;
        maxima[i] = mask_scores<E>(s, from, to, static_cast<int>(clamp(m.begin[r] - t.first)),
                                   static_cast<int>(clamp(end < seen_end ? end : seen_end)), score_scale);
        if (hide_keys(s, r, t, seen_end)) maxima[i] = maxima_of(s, from, to);
      }
      for (int64_t i = some; i < kLanes; ++i) maxima[i] = zero();
      softmax_rows(scores, reinterpret_cast<E*>(m.weights + (at + begin) * kWeightSteps), kTileKeys, some,
                   from, to, maxima, score_scale, m.state + h * rows + row + begin, m.shrink + at + begin);
    }
  }

  // All rows of head h over one tile, while the rows of next_h in `next` are fetched.
  void run_head(const Tile& t, int64_t h, const Tile& next, int64_t next_h) {
    TilePrefetch prefetch(next.keys, k_offset(next_h), next.values, v_offset(next_h), next.count,
                          row_bytes());
    pack_keys(shape, {t.keys, k_offset(h)}, p.cache.dtype, t.count, m.k, m.staging, prefetch);
    pack_values(shape, {t.values, v_offset(h)}, p.cache.dtype, t.count, m.v, m.staging,
                [&] { prefetch.issue(4); });
    constexpr int64_t kRows = Steps::kBlockRows;
    for (int64_t r = 0; r < rows; r += kRows)
      run_block(t, h, r, rows - r < kRows ? rows - r : kRows, prefetch);
  }

  void run_block(const Tile& t, int64_t h, int64_t row, int64_t block_rows, TilePrefetch& prefetch) {
    const int64_t state_row = h * rows + row;
    const KeyRange seen = seen_keys(t.first, 0, t.count, row, block_rows);
    if (seen.begin >= seen.end) return;
    const int64_t first_panel = seen.begin / kMicroColumns;
    const int64_t panels = (seen.end + kMicroColumns - 1) / kMicroColumns;
    score_panels<Steps>(block_rows, m.q + state_row * shape.row_steps, shape.row_steps, m.k, shape.row_steps,
                        shape.steps, first_panel, panels, m.scores, kTileKeys, prefetch);
    weigh_rows(t, h, row, block_rows, first_panel * kMicroColumns, panels * kMicroColumns, seen.end, 0);
    constexpr int64_t kWeightSteps = kTileKeys / Steps::kPerStep;
    const int64_t first_step = first_panel * kMicroColumns / Steps::kPerStep;
    const int64_t last_step = (seen.end + Steps::kPerStep - 1) / Steps::kPerStep;
#if defined(__AMX_BF16__)
    if constexpr (Steps::kTiles) {
      const int64_t steps = (last_step - first_step + kTileSteps - 1) / kTileSteps * kTileSteps;
      prefetch.issue(64);
      tile_products(block_rows, m.weights + first_step, kWeightSteps, m.v + first_step * shape.width,
                    shape.width, shape.width, steps, m.sums, shape.width, true, [] {});
      add_sums(m.acc + state_row * shape.width, block_rows);
      return;
    }
#endif
    accumulate_values<Steps>(block_rows, m.weights + first_step, kWeightSteps, m.v + first_step * shape.width,
                             shape.width, last_step - first_step, m.acc + state_row * shape.width,
                             shape.width, m.shrink, prefetch);
  }

  static int64_t clamp(int64_t key) { return key < 0 ? 0 : key > kTileKeys ? kTileKeys : key; }

  static Vec maxima_of(const float* s, int first, int last) {
    Vec x = splat(minus_infinity());
    for (int j = first; j < last; j += kLanes) x = max(x, load(s + j));
    return x;
  }

  // What a range cannot say: skipped blocks and the tree's bits. Returns whether anything may have changed.
  bool hide_keys(float* s, int64_t r, const Tile& t, int64_t high) {
    const int64_t prefix = length - num_tokens, first = t.first;
    const bool in_tree = p.tree_mask != nullptr && first + high > prefix;
    if (t.has_holes) {
      for (int64_t j = 0; j < high; ++j) {
        if (t.keys[j] == nullptr) s[j] = minus_infinity();
      }
    }
    if (in_tree) {
      const int32_t* mask = p.tree_mask + (first_token + token_of(r)) * p.tree_mask_stride;
      for (int64_t j = prefix > first ? prefix - first : 0; j < high; ++j) {
        const int64_t token = first + j - prefix;
        if (!((mask[token / 32] >> (token % 32)) & 1)) s[j] = minus_infinity();
      }
    }
    return t.has_holes || in_tree;
  }

  void store_rows(float* acc, RowState* state) {
    if (item.part < 0) return write_output(acc, state);
    for (int64_t r = 0; r < heads * rows; ++r) {
      float* part = part_row(item.part + r);
      std::memcpy(part, acc + r * shape.width, sizeof(float) * static_cast<size_t>(shape.width));
      part[shape.width] = state[r].maximum;
      part[shape.width + 1] = state[r].sum;
    }
  }

  void write_output(float* acc, const RowState* state) {
    for (int64_t r = 0; r < heads * rows; ++r) {
      const int64_t h = r / rows, token = first_token + token_of(r % rows), head = head_of(h, r % rows);
      RowState s = state[r];
      float shrink = 1.0f;
      if (p.sinks != nullptr) {
        const float sink = p.sinks[head];
        const float now = s.maximum > sink ? s.maximum : sink;
        shrink = exp_of(s.maximum - finite_maximum(now));
        s = {now, __builtin_fmaf(s.sum, shrink, exp_of(sink - finite_maximum(now)))};
      }
      const bool nothing = s.maximum == minus_infinity();
      const Vec factor = splat(nothing ? 0.0f : shrink / s.sum * scale_at(p.v_scale, h));
      float* row = acc + r * shape.width;
      for (int64_t j = 0; j < shape.width; j += kLanes) store(row + j, mul(load(row + j), factor));
      Steps::order_columns(row, shape.width);
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
  int64_t group, first_token, num_tokens, length, rows, heads;
  bool streams;  // few rows
  KeyRange all;  // keys that some row of the item sees
};

}  // namespace skv::cpu::SKV_ISA
