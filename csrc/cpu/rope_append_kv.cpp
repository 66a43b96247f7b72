// rope_append_kv on the CPU: one pass over the new tokens. Query rows are cut into ranges of tokens; key and
// value rows belong to the worker that owns their slot (append_row.h).
//
// A head's row lives in a float32 buffer between its load and its store: RMSNorm (rounded to the row's dtype
// before the weight, as transformers does), rotation, one rounding at the end.
#include "append_row.h"

namespace skv::cpu::SKV_ISA {

namespace {

// What a worker needs of one position and one head: cos and sin [rotary_dim / 2], a row [head_dim], and a row
// rounded to its dtype.
class Scratch {
 public:
  explicit Scratch(int head_dim) : cos(new float[3 * padded(head_dim)]) {
    sin = cos + padded(head_dim) / 2;
    x = sin + padded(head_dim) / 2;
    rounded_ = x + padded(head_dim);
  }
  ~Scratch() { delete[] cos; }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void load_rotation(const RopeAppendKvParams& p, int64_t token) {
    const int64_t position = p.positions_are_int64 ? static_cast<const int64_t*>(p.positions)[token]
                                                   : static_cast<const int32_t*>(p.positions)[token];
    const int half = p.rotary_dim / 2;
    with_float_type(p.cos_sin_dtype, [&](auto zero) {
      using T = decltype(zero);
      const T* row = static_cast<const T*>(p.cos_sin_cache) + position * p.cos_sin_stride;
      load_row(cos, row, half);
      load_row(sin, row + half, half);
    });
  }

  template <class T>
  T* rounded() const {
    return reinterpret_cast<T*>(rounded_);
  }

  float *cos, *sin, *x;

 private:
  static size_t padded(int head_dim) { return (static_cast<size_t>(head_dim) + 31) / 32 * 32; }
  float* rounded_;
};

void check_positions(const RopeAppendKvParams& p) {
  for (int64_t t = 0; t < p.append.num_tokens; ++t) {
    const int64_t position = p.positions_are_int64 ? static_cast<const int64_t*>(p.positions)[t]
                                                   : static_cast<const int32_t*>(p.positions)[t];
    if (position < 0 || position >= p.max_position) {
      throw_index_error("positions", t, position, "0 or more and below", p.max_position);
    }
  }
}

template <class T>
void rms_norm(float* x, const T* weight, float eps, int n) {
  Vec squares = zero();
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
  float total = sum(squares);
  for (; i < n; ++i) total += x[i] * x[i];
  const float inverse = 1.0f / __builtin_sqrtf(total / static_cast<float>(n) + eps);
  alignas(64) T rounded[kLanes];
  for (i = 0; i + kLanes <= n; i += kLanes) {
    store(rounded, mul(load(x + i), splat(inverse)));
    store(x + i, mul(load(rounded), load(weight + i)));
  }
  for (; i < n; ++i) x[i] = to_float(from_float<T>(x[i] * inverse)) * to_float(weight[i]);
}

void rotate_halves(float* x, const Scratch& r, int half) {  // pairs (i, i + half): GPT-NeoX
  int i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(x + i), b = load(x + half + i), cos = load(r.cos + i), sin = load(r.sin + i);
    store(x + i, sub(mul(a, cos), mul(b, sin)));
    store(x + half + i, fma(b, cos, mul(a, sin)));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * r.cos[i] - b * r.sin[i];
    x[half + i] = b * r.cos[i] + a * r.sin[i];
  }
}

void rotate_pairs(float* x, const Scratch& r, int half) {  // pairs (2i, 2i + 1): GPT-J
  for (int i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * r.cos[i] - b * r.sin[i];
    x[2 * i + 1] = b * r.cos[i] + a * r.sin[i];
  }
}

template <class T>
void norm_and_rotate(const Scratch& scratch, const T* row, const void* weight, const RopeAppendKvParams& p) {
  const int head_dim = p.append.cache.head_dim;
  float* x = scratch.x;
  load_row(x, row, head_dim);
  if (weight) rms_norm(x, static_cast<const T*>(weight), p.norm_eps, head_dim);
  if (p.interleaved) {
    rotate_pairs(x, scratch, p.rotary_dim / 2);
  } else {
    rotate_halves(x, scratch, p.rotary_dim / 2);
  }
}

template <class C, class T>
void append_token(const RopeAppendKvParams& p, int64_t token, int64_t slot, const Scratch& scratch) {
  const AppendKvParams& a = p.append;
  for (int32_t h = 0; h < a.cache.num_kv_heads; ++h) {
    norm_and_rotate(scratch, head_row<const T>(a.key, token, h), p.k_norm_weight, p);
    C* k_slot = slot_row<C>(a.cache, a.k_cache, slot, h);
    if constexpr (sizeof(C) == sizeof(T)) {
      store_row(k_slot, scratch.x, a.cache.head_dim);
    } else {  // an fp8 cache holds what a cache of the row's dtype would, quantised
      T* rounded = scratch.template rounded<T>();
      store_row(rounded, scratch.x, a.cache.head_dim);
      append_row(k_slot, rounded, a.cache.head_dim, scale_of(a.k_scale, h));
    }
    append_row(slot_row<C>(a.cache, a.v_cache, slot, h), head_row<const T>(a.value, token, h),
               a.cache.head_dim, scale_of(a.v_scale, h));
  }
}

}  // namespace

void rope_append_kv(const RopeAppendKvParams& p, const Parallel& pool) {
  const AppendKvParams& a = p.append;
  check_slots(a);
  check_positions(p);
  const int64_t heads = p.num_heads + 2 * a.cache.num_kv_heads;
  const int64_t num_workers = num_append_workers(a.num_tokens * heads * a.cache.head_dim, pool);
  with_cache_type(a.cache.dtype, a.dtype, [&](auto cache_zero, auto row_zero) {
    using C = decltype(cache_zero);
    using T = decltype(row_zero);
    pool.for_each(num_workers, 1, [&](int64_t begin, int64_t end) {
      const int64_t first = a.num_tokens * begin / num_workers, last = a.num_tokens * end / num_workers;
      Scratch scratch(a.cache.head_dim);
      for (int64_t t = 0; t < a.num_tokens; ++t) {
        const int64_t slot = a.slot_mapping[t];
        const int64_t worker = slot < 0 ? -1 : worker_of_slot(slot, num_workers);
        const bool owns_query = t >= first && t < last, owns_slot = worker >= begin && worker < end;
        if (!owns_query && !owns_slot) continue;
        scratch.load_rotation(p, t);
        if (owns_slot) append_token<C, T>(p, t, slot, scratch);
        if (!owns_query) continue;
        for (int32_t h = 0; h < p.num_heads; ++h) {
          norm_and_rotate(scratch, head_row<const T>(p.query, t, h), p.q_norm_weight, p);
          store_row(head_row<T>(p.query_out, t, h), scratch.x, a.cache.head_dim);
        }
      }
    });
  });
}

}  // namespace skv::cpu::SKV_ISA
