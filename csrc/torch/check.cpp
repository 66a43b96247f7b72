#include "check.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace skv::entry {

std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float8_e4m3fn:
      return "float8_e4m3fn";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "dtype#" + std::to_string(static_cast<int>(type));
  }
}

std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

static std::string device_name(const Tensor& t) {
  return t.is_cpu() ? "cpu" : "cuda:" + std::to_string(t.get_device_index());
}

DType to_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Float8_e4m3fn:
      return DType::kFloat8E4M3;
    default:
      return DType::kFloat32;
  }
}

void Check::fail(const char* kind, const std::string& text) const {
  throw std::runtime_error(std::string("[") + kind + "] " + op_ + ": " + text);
}

void Check::dtype(const Tensor& t, const char* arg, std::initializer_list<ScalarType> allowed) const {
  const ScalarType got = t.scalar_type();
  if (std::find(allowed.begin(), allowed.end(), got) != allowed.end()) return;
  std::string names;
  for (ScalarType type : allowed) names += (names.empty() ? "" : " or ") + dtype_name(type);
  type_error(std::string(arg) + " has dtype " + dtype_name(got) + ", expected " + names);
}

void Check::same_dtype(const Tensor& t, const char* arg, const Tensor& ref, const char* ref_arg) const {
  if (t.scalar_type() == ref.scalar_type()) return;
  type_error(std::string(arg) + " has dtype " + dtype_name(t.scalar_type()) + ", expected " +
             dtype_name(ref.scalar_type()) + ", the dtype of " + ref_arg);
}

void Check::same_device(const Tensor& t, const char* arg, const Tensor& ref, const char* ref_arg) const {
  if (t.is_cpu() == ref.is_cpu() && (t.is_cpu() || t.get_device_index() == ref.get_device_index())) return;
  value_error(std::string(arg) + " is on device " + device_name(t) + ", expected " + device_name(ref) +
              ", the device of " + ref_arg);
}

void Check::shape(const Tensor& t, const char* arg, std::initializer_list<int64_t> dims,
                  const char* names) const {
  bool ok = t.dim() == static_cast<int64_t>(dims.size());
  int64_t i = 0;
  for (auto d = dims.begin(); ok && d != dims.end(); ++d, ++i) ok = *d < 0 || t.size(i) == *d;
  if (ok) return;
  std::string wanted;
  for (int64_t d : dims)
    wanted += (wanted.empty() ? "[" : ", ") + (d < 0 ? std::string("*") : std::to_string(d));
  value_error(std::string(arg) + " has shape " + shape_of(t) + ", expected " + names + " = " +
              (wanted.empty() ? "[" : wanted) + "]");
}

void Check::last_dim_contiguous(const Tensor& t, const char* arg) const {
  if (t.numel() == 0 || t.dim() == 0 || t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1) return;
  value_error(std::string(arg) + " has stride " + std::to_string(t.stride(t.dim() - 1)) +
              " in its last dimension, expected 1");
}

void Check::contiguous(const Tensor& t, const char* arg) const {
  if (!t.is_contiguous()) value_error(std::string(arg) + " is not contiguous, expected a contiguous tensor");
}

void Check::range(int64_t value, const char* arg, int64_t low, int64_t high) const {
  if (value >= low && value <= high) return;
  value_error(std::string(arg) + " is " + std::to_string(value) + ", expected " + std::to_string(low) +
              " to " + std::to_string(high));
}

void Check::no_self_overlap(const Tensor& t, const char* arg) const {
  std::vector<std::pair<int64_t, int64_t>>
      dims;  // stride, size: sorted, each must step past all smaller ones
  for (int64_t i = 0; i < t.dim(); ++i) {
    if (t.size(i) == 0) return;
    if (t.size(i) > 1) dims.emplace_back(t.stride(i), t.size(i));
  }
  std::sort(dims.begin(), dims.end());
  int64_t extent = 1;
  for (auto [stride, size] : dims) {
    if (stride < extent) {
      value_error(std::string(arg) + " has elements that share memory (shape " + shape_of(t) + ", stride " +
                  std::to_string(stride) + "), expected an output that does not overlap itself");
    }
    extent = stride * (size - 1) + extent;
  }
}

// Whether `distance` (in elements) is a sum of stride * i with |i| < size over the dims from `d` on, largest
// stride first: then two views of these dims that lie so far apart share an element. Exact for views that do
// not overlap themselves.
static bool reaches(int64_t distance, const std::vector<std::pair<int64_t, int64_t>>& dims, size_t d) {
  if (d == dims.size()) return distance == 0;
  const auto [stride, size] = dims[d];
  const int64_t nearest = distance / stride;
  for (int64_t i = nearest - 1; i <= nearest + 1; ++i) {
    if (i > -size && i < size && reaches(distance - i * stride, dims, d + 1)) return true;
  }
  return false;
}

void Check::same_or_apart(const Tensor& out, const char* out_arg, const Tensor& in,
                          const char* in_arg) const {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size of dimensions that move
  bool same_strides = true;
  int64_t out_extent = 1, in_extent = 1;
  for (int64_t i = 0; i < out.dim(); ++i) {
    if (out.size(i) == 0) return;
    if (out.size(i) == 1) continue;
    same_strides = same_strides && out.stride(i) == in.stride(i);
    out_extent += out.stride(i) * (out.size(i) - 1);
    in_extent += in.stride(i) * (in.size(i) - 1);
    dims.emplace_back(out.stride(i), out.size(i));
  }
  const auto to = reinterpret_cast<intptr_t>(out.data_ptr()),
             from = reinterpret_cast<intptr_t>(in.data_ptr());
  const int64_t element = element_size(to_dtype(out.scalar_type()));
  if (to + out_extent * element <= from || from + in_extent * element <= to) return;
  if (same_strides) {
    if (to == from) return;
    std::sort(dims.rbegin(), dims.rend());
    // Neither a shared element nor (distance not a multiple of the element) a shared byte.
    if ((to - from) % element == 0 && !reaches((to - from) / element, dims, 0)) return;
  }
  value_error(std::string(out_arg) + " overlaps " + in_arg +
              " in part, expected the same memory or none of it");
}

void Check::apart(const Tensor& out, const char* out_arg, const Tensor& in, const char* in_arg) const {
  if (out.numel() == 0 || in.numel() == 0) return;
  struct Rows {
    int64_t at, stride, width, extent;  // in bytes
  };
  const auto rows_of = [](const Tensor& t) {
    const int64_t element = element_size(to_dtype(t.scalar_type()));
    const int64_t stride = t.size(0) > 1 ? t.stride(0) * element : 0, width = t.size(1) * element;
    return Rows{reinterpret_cast<int64_t>(t.data_ptr()), stride, width, stride * (t.size(0) - 1) + width};
  };
  const Rows to = rows_of(out), from = rows_of(in);
  if (to.at + to.extent <= from.at || from.at + from.extent <= to.at) return;
  if (to.stride == from.stride && to.stride > 0) {
    const int64_t shift = ((to.at - from.at) % to.stride + to.stride) % to.stride;
    if (shift >= from.width && shift + to.width <= to.stride) return;
  }
  value_error(std::string(out_arg) + " overlaps " + in_arg + ", expected memory of its own");
}

CacheShape Check::caches(const Tensor& k_cache, const Tensor& v_cache, const char* k_arg,
                         const char* v_arg) const {
  const char* names = "[num_blocks, block_size, num_kv_heads, head_dim]";
  dtype(k_cache, k_arg,
        {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Float8_e4m3fn});
  same_dtype(v_cache, v_arg, k_cache, k_arg);
  same_device(v_cache, v_arg, k_cache, k_arg);
  shape(k_cache, k_arg, {-1, -1, -1, -1}, names);
  if (v_cache.dim() == 4 && v_cache.size(3) != k_cache.size(3)) {
    not_implemented(std::string(v_arg) + " has head_dim " + std::to_string(v_cache.size(3)) + ", " + k_arg +
                    " " + std::to_string(k_cache.size(3)) + "; a separate value head size is not supported");
  }
  shape(v_cache, v_arg, {k_cache.size(0), k_cache.size(1), k_cache.size(2), k_cache.size(3)}, names);
  last_dim_contiguous(k_cache, k_arg);
  last_dim_contiguous(v_cache, v_arg);
  range(k_cache.size(1), "block_size", 1, 256);
  if (k_cache.size(2) < 1)
    value_error(std::string(k_arg) + " has shape " + shape_of(k_cache) + ", expected at least one KV head");
  const int64_t head_dim = k_cache.size(3);
  if (head_dim < 8 || head_dim % 8 != 0 || head_dim > 1024) {
    not_implemented("head_dim is " + std::to_string(head_dim) + ", expected a multiple of 8 up to 1024");
  }
  return {k_cache.size(0), static_cast<int32_t>(k_cache.size(1)), static_cast<int32_t>(k_cache.size(2)),
          static_cast<int32_t>(head_dim), to_dtype(k_cache.scalar_type())};
}

void Check::heads_dtype(const Tensor& t, const char* arg, const CacheShape& cache) const {
  dtype(t, arg, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  if (cache.dtype == DType::kFloat8E4M3 || to_dtype(t.scalar_type()) == cache.dtype) return;
  type_error(std::string(arg) + " has dtype " + dtype_name(t.scalar_type()) + ", expected " +
             (cache.dtype == DType::kFloat32   ? "float32"
              : cache.dtype == DType::kFloat16 ? "float16"
                                               : "bfloat16") +
             ", the dtype of k_cache (any floating dtype beside an fp8 cache)");
}

ScaleView Check::scale(const std::optional<Tensor>& t, const char* arg, const CacheShape& cache,
                       const Tensor& device_of, int64_t batch) const {
  if (!t) return {nullptr, 0, 0};
  if (cache.dtype != DType::kFloat8E4M3) {
    value_error(std::string(arg) + " is given, expected None: the cache is not float8_e4m3fn");
  }
  dtype(*t, arg, {ScalarType::Float});
  same_device(*t, arg, device_of, "k_cache");
  const auto* data = static_cast<const float*>(t->data_ptr());
  const int64_t heads = cache.num_kv_heads;
  if (t->dim() == 0) return {data, 0, 0};
  if (t->dim() == 1 && t->size(0) == heads) return {data, 0, t->stride(0)};
  if (batch >= 0 && t->dim() == 2 && t->size(0) == batch && t->size(1) == heads) {
    return {data, t->stride(0), t->stride(1)};
  }
  value_error(std::string(arg) + " has shape " + shape_of(*t) + ", expected [] or [num_kv_heads]" +
              (batch >= 0 ? " or [batch, num_kv_heads]" : "") +
              " with num_kv_heads = " + std::to_string(heads));
}

CacheView cache_view(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

HeadsView heads_view(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1)}; }

}  // namespace skv::entry
