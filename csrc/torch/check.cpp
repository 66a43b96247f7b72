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
    case ScalarType::Float8_e5m2:
      return "float8_e5m2";
    case ScalarType::Float8_e4m3fnuz:
      return "float8_e4m3fnuz";
    case ScalarType::Float8_e5m2fnuz:
      return "float8_e5m2fnuz";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    case ScalarType::UInt16:
      return "uint16";
    case ScalarType::UInt32:
      return "uint32";
    case ScalarType::UInt64:
      return "uint64";
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

void Check::given(const Tensor& t, const char* arg) const {  // torch makes a tensor of None that is none
  if (!t.defined()) type_error(std::string(arg) + " is None, expected a tensor");
}

void Check::dtype(const Tensor& t, const char* arg, std::initializer_list<ScalarType> allowed) const {
  given(t, arg);
  const ScalarType got = t.scalar_type();
  if (std::find(allowed.begin(), allowed.end(), got) != allowed.end()) return;
  std::string names;
  for (ScalarType type : allowed) names += (names.empty() ? "" : " or ") + dtype_name(type);
  type_error(std::string(arg) + " has dtype " + dtype_name(got) + ", expected " + names);
}

void Check::same_dtype(const Tensor& t, const char* arg, const Tensor& ref, const char* ref_arg) const {
  given(t, arg);
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
  given(t, arg);
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

namespace {

int64_t element_bytes(const Tensor& t) {
  return t.scalar_type() == ScalarType::Long ? 8 : element_size(to_dtype(t.scalar_type()));
}

// What tells two views apart: the distance between an element of one and one of the other is that of their
// first bytes plus stride * i over the dimensions of both, low <= i <= high; a run of bytes is one of
// stride 1.
class Distances {
 public:
  Distances(const Tensor& a, const Tensor& b) {
    add(a, 1);
    add(b, -1);
    std::sort(dims_, dims_ + count_, [](const Dim& x, const Dim& y) { return x.stride > y.stride; });
    for (int d = count_ - 1; d > 0; --d) {
      dims_[d - 1].least = dims_[d].least + dims_[d].stride * dims_[d].low;
      dims_[d - 1].most = dims_[d].most + dims_[d].stride * dims_[d].high;
    }
  }

  // Whether one of them is `distance`. Views that would take long to tell apart count as if they were not.
  bool contain(int64_t distance, int d = 0) {
    if (d == count_) return distance == 0;
    const Dim& dim = dims_[d];
    const int64_t first = std::max(dim.low, ceil_div(distance - dim.most, dim.stride));
    const int64_t last = std::min(dim.high, -ceil_div(dim.least - distance, dim.stride));
    for (int64_t i = first; i <= last; ++i) {
      if (--patience_ < 0 || contain(distance - i * dim.stride, d + 1)) return true;
    }
    return false;
  }

 private:
  struct Dim {
    int64_t stride, low, high;    // in bytes
    int64_t least = 0, most = 0;  // sum over the dimensions after this one
  };

  static int64_t ceil_div(int64_t x, int64_t by) { return x / by + (x % by > 0); }

  void add(const Tensor& t, int sign) {
    const int64_t element = element_bytes(t);
    add(1, element, sign);
    for (int64_t i = 0; i < t.dim(); ++i) add(t.stride(i) * element, t.size(i), sign);
  }

  void add(int64_t stride, int64_t size, int sign) {
    if (size <= 1 || stride == 0) return;
    const int64_t last = size - 1;
    for (int d = 0; d < count_; ++d) {
      if (dims_[d].stride != stride) continue;
      (sign > 0 ? dims_[d].high : dims_[d].low) += sign * last;
      return;
    }
    dims_[count_++] = sign > 0 ? Dim{stride, 0, last} : Dim{stride, -last, 0};
  }

  Dim dims_[16];
  int count_ = 0;
  int patience_ = 4096;
};

// One past the last byte of a view that is not empty, from its first one.
int64_t extent(const Tensor& t) {
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += t.stride(i) * (t.size(i) - 1);
  return (last + 1) * element_bytes(t);
}

bool share_memory(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto at = reinterpret_cast<intptr_t>(a.data_ptr()), bt = reinterpret_cast<intptr_t>(b.data_ptr());
  if (at + extent(a) <= bt || bt + extent(b) <= at) return false;
  return a.dim() + b.dim() > 12 || Distances(a, b).contain(bt - at);
}

bool is_same_view(const Tensor& a, const Tensor& b) {
  if (a.data_ptr() != b.data_ptr()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) > 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

}  // namespace

void Check::apart(const Tensor& out, const char* out_arg, const Tensor& in, const char* in_arg) const {
  if (share_memory(out, in)) {
    value_error(std::string(out_arg) + " overlaps " + in_arg + ", expected memory of its own");
  }
}

void Check::same_or_apart(const Tensor& out, const char* out_arg, const Tensor& in,
                          const char* in_arg) const {
  if (!is_same_view(out, in) && share_memory(out, in)) {
    value_error(std::string(out_arg) + " overlaps " + in_arg +
                " in part, expected the same memory or none of it");
  }
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
  if (head_dim < 8 || head_dim % 8 != 0 || head_dim > kMaxHeadDim) {
    not_implemented("head_dim is " + std::to_string(head_dim) + ", expected a multiple of 8 up to " +
                    std::to_string(kMaxHeadDim));
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
