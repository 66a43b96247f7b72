// rope_append_kv: optional RMSNorm of query and key per head, rotary embedding, append; one pass.
//
// A CTA works on one token; a group of `width` lanes of it on one head, of the query heads first, then the
// key heads, then the value heads (which are only stored).  A lane holds kVectors vectors of its head and,
// for the rotation, their partners, which it loads itself instead of shuffling them over.  Every load comes
// before the CTA's only barrier and every store after it, so query_out may be query.
#pragma once

#include "common.cuh"

namespace skv {
namespace cuda {

constexpr int kRopeWarps = 8;
constexpr int kRopeMaxHeadDim = 256;

struct RopeAppendLaunch {
  RopeAppendKvParams p;
  int width;  // lanes per head, a power of two
};

// cos, then sin of the token's position as floats; rotary_dim values in all.
SKV_DEVICE void load_cos_sin(float* to, const RopeAppendKvParams& p, int64_t position) {
  for (int i = int(threadIdx.x); i < p.rotary_dim; i += kRopeWarps * kWarpSize) {
    const int64_t at = position * p.cos_sin_stride + i;
    if (p.cos_sin_dtype == DType::kFloat32) {
      to[i] = static_cast<const float*>(p.cos_sin_cache)[at];
    } else if (p.cos_sin_dtype == DType::kFloat16) {
      to[i] = to_float(static_cast<const __half*>(p.cos_sin_cache)[at]);
    } else {
      to[i] = to_float(static_cast<const __nv_bfloat16*>(p.cos_sin_cache)[at]);
    }
  }
}

// The elements that those at row[at ...] are rotated with: of the same vector if interleaved, else half of
// rotary_dim away.  Past rotary_dim nothing reads them.
template <class T, int kCount>
SKV_DEVICE Vector<T, kCount> load_partner(const RopeAppendKvParams& p, const T* row, int at,
                                          const Vector<T, kCount>& own) {
  const int half = p.rotary_dim / 2;
  if (p.interleaved && kCount > 1) {
    Vector<T, kCount> v = own;
#pragma unroll
    for (int e = 0; e + 1 < kCount; e += 2) {
      v.at[e] = own.at[e + 1];
      v.at[e + 1] = own.at[e];
    }
    return v;
  }
  const int partner = p.interleaved ? at ^ 1 : at < half ? at + half : at - half;
  return load_vector<T, kCount>(row + (at < p.rotary_dim ? partner : at));
}

// x and its partner, normalised: the rotated x.
SKV_DEVICE float rotate(const RopeAppendKvParams& p, const float* cos_sin, int i, float x, float partner) {
  if (i >= p.rotary_dim) return x;
  const int half = p.rotary_dim / 2;
  const int pair = p.interleaved ? i / 2 : i < half ? i : i - half;
  const bool first = p.interleaved ? i % 2 == 0 : i < half;
  const float c = cos_sin[pair], s = cos_sin[half + pair];
  return first ? x * c - partner * s : x * c + partner * s;
}

// T is the type of the rows, Cell that of the cache (T or fp8).  With kCount > 1 rotary_dim, and half of it
// unless interleaved, are multiples of kCount, so a vector's partners are one vector too.
template <class T, class Cell, int kCount, int kVectors>
__global__ void __launch_bounds__(kRopeWarps* kWarpSize, 4)
    rope_append_kv_kernel(const __grid_constant__ RopeAppendLaunch launch) {
  const RopeAppendKvParams& p = launch.p;
  const AppendKvParams& a = p.append;
  SKV_SHARED(cos_sin, float[kRopeMaxHeadDim]);
  const int64_t token = blockIdx.x;
  const int group = (int(blockIdx.y) * kRopeWarps * kWarpSize + int(threadIdx.x)) / launch.width;
  const int lane = int(threadIdx.x) % launch.width;
  const int head_dim = a.cache.head_dim, kv_heads = a.cache.num_kv_heads;

  prim::launch_dependents();
  const int64_t position = p.positions_are_int64 ? static_cast<const int64_t*>(p.positions)[token]
                                                 : static_cast<const int32_t*>(p.positions)[token];
  const int64_t slot = a.slot_mapping[token];
  const bool slot_ok = in_range(slot, a.cache.num_blocks * a.cache.block_size);
  const bool position_ok = in_range(position, p.max_position);
  if (position_ok) load_cos_sin(cos_sin, p, position);
  prim::wait_for_grids();
  if (!position_ok) return;  // the whole CTA

  const bool is_query = group < p.num_heads;
  const bool is_key = !is_query && group < p.num_heads + kv_heads;
  const bool active = is_query || (slot_ok && group < p.num_heads + 2 * kv_heads);
  const int head = is_query ? group : is_key ? group - p.num_heads : group - p.num_heads - kv_heads;
  const void* base = is_query ? p.query.data : is_key ? a.key.data : a.value.data;
  const int64_t token_stride = is_query ? p.query.token_stride
                               : is_key ? a.key.token_stride
                                        : a.value.token_stride;
  const int64_t head_stride = is_query ? p.query.head_stride
                              : is_key ? a.key.head_stride
                                       : a.value.head_stride;
  const T* row = static_cast<const T*>(base) + token * token_stride + head * head_stride;
  const T* weight = static_cast<const T*>(is_query ? p.q_norm_weight : is_key ? p.k_norm_weight : nullptr);

  Vector<T, kCount> x[kVectors], partner[kVectors];
  float sum = 0.f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int at = (v * launch.width + lane) * kCount;
    if (!active || at >= head_dim) continue;
    x[v] = load_vector<T, kCount>(row + at);
    partner[v] = load_partner<T, kCount>(p, row, at, x[v]);
#pragma unroll
    for (int e = 0; e < kCount; ++e) sum += to_float(x[v].at[e]) * to_float(x[v].at[e]);
  }
  __syncthreads();

  for (int o = launch.width / 2; o; o >>= 1) sum += __shfl_xor_sync(kFullMask, sum, o);
  const float inverse = weight ? rsqrtf(sum / float(head_dim) + p.norm_eps) : 1.f;
  if (!active) return;
  T* query_out = nullptr;
  Cell* cell = nullptr;
  float scale = 1.f;
  if (is_query) {
    query_out =
        static_cast<T*>(p.query_out.data) + token * p.query_out.token_stride + head * p.query_out.head_stride;
  } else if (is_key) {
    cell = static_cast<Cell*>(a.k_cache.data) + slot_offset(a.k_cache, a.cache, slot) +
           head * a.k_cache.head_stride;
    scale = scale_of(a.k_scale, 0, head);
  } else {
    cell = static_cast<Cell*>(a.v_cache.data) + slot_offset(a.v_cache, a.cache, slot) +
           head * a.v_cache.head_stride;
    scale = scale_of(a.v_scale, 0, head);
  }

#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int at = (v * launch.width + lane) * kCount;
    if (at >= head_dim) continue;
    if (!is_query && !is_key && std::is_same<T, Cell>::value) {  // value: bitwise
      store_vector<T, kCount>(reinterpret_cast<T*>(cell) + at, x[v]);
      continue;
    }
    float y[kCount];
#pragma unroll
    for (int e = 0; e < kCount; ++e) y[e] = to_float(x[v].at[e]);
    if (is_query || is_key) {
      float other[kCount];
#pragma unroll
      for (int e = 0; e < kCount; ++e) other[e] = to_float(partner[v].at[e]);
      if (weight) {
        const Vector<T, kCount> w = load_vector<T, kCount>(weight + at);
        const Vector<T, kCount> w_other = load_partner<T, kCount>(p, weight, at, w);
#pragma unroll
        for (int e = 0; e < kCount; ++e) {
          y[e] = y[e] * inverse * to_float(w.at[e]);
          other[e] = other[e] * inverse * to_float(w_other.at[e]);
        }
      }
#pragma unroll
      for (int e = 0; e < kCount; ++e) y[e] = rotate(p, cos_sin, at + e, y[e], other[e]);
    }
    if (is_query) {
      Vector<T, kCount> out;
#pragma unroll
      for (int e = 0; e < kCount; ++e) out.at[e] = from_float<T>(y[e]);
      store_vector<T, kCount>(query_out + at, out);
    } else {
      Vector<Cell, kCount> out;
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        out.at[e] = from_float<Cell>(std::is_same<T, Cell>::value ? y[e] : y[e] / scale);
      }
      store_vector<Cell, kCount>(cell + at, out);
    }
  }
}

}  // namespace cuda
}  // namespace skv
