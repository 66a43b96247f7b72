// Argument checks with one voice: "append_kv: slot_mapping has dtype int32, expected int64".
//
// A failed check throws before anything is written. The message carries the Python exception it stands for in
// square brackets, "[TypeError] ..."; stateful_kv/ops.py turns it into that exception, torch.ops raises
// RuntimeError with it.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "../core/params.h"

namespace skv::entry {

using torch::headeronly::ScalarType;
using Tensor = torch::stable::Tensor;

constexpr int64_t kMaxHeadDim = 65536;  // of the CPU; a CUDA kernel says which it takes

std::string dtype_name(ScalarType type);
std::string shape_of(const Tensor& t);
DType to_dtype(ScalarType type);  // of a type that a check has admitted

class Check {
 public:
  explicit Check(const char* op) : op_(op) {}

  [[noreturn]] void value_error(const std::string& text) const { fail("ValueError", text); }
  [[noreturn]] void type_error(const std::string& text) const { fail("TypeError", text); }
  [[noreturn]] void not_implemented(const std::string& text) const { fail("NotImplementedError", text); }

  void that(bool ok, const std::string& text) const {  // for rare checks whose text is cheap
    if (!ok) value_error(text);
  }
  void given(const Tensor& t, const char* arg) const;
  void dtype(const Tensor& t, const char* arg, std::initializer_list<ScalarType> allowed) const;
  void same_dtype(const Tensor& t, const char* arg, const Tensor& ref, const char* ref_arg) const;
  void same_device(const Tensor& t, const char* arg, const Tensor& ref, const char* ref_arg) const;
  // dims: expected sizes, -1 = any. `names` is the shape in words: "[num_tokens, num_kv_heads, head_dim]".
  void shape(const Tensor& t, const char* arg, std::initializer_list<int64_t> dims, const char* names) const;
  void last_dim_contiguous(const Tensor& t, const char* arg) const;
  void contiguous(const Tensor& t, const char* arg) const;                      // for small index tensors
  void range(int64_t value, const char* arg, int64_t low, int64_t high) const;  // both ends included
  // An output must not have two indices that name the same memory (an expanded dimension, say).
  void no_self_overlap(const Tensor& t, const char* arg) const;
  // An output must share no byte with an input, whatever their shapes; columns of one fused buffer are apart.
  void apart(const Tensor& out, const char* out_arg, const Tensor& in, const char* in_arg) const;
  // The same, but an output of an input's shape may be that very input (in place).
  void same_or_apart(const Tensor& out, const char* out_arg, const Tensor& in, const char* in_arg) const;

  // Checks one cache pair and returns what both have in common.
  CacheShape caches(const Tensor& k_cache, const Tensor& v_cache, const char* k_arg = "k_cache",
                    const char* v_arg = "v_cache") const;
  // key/value or query against the cache: the cache's own dtype, or any floating type beside an fp8 cache.
  void heads_dtype(const Tensor& t, const char* arg, const CacheShape& cache) const;
  // k_scale or v_scale: [], [num_kv_heads] or, with batch >= 0, [batch, num_kv_heads]; only beside an fp8
  // cache.
  ScaleView scale(const std::optional<Tensor>& t, const char* arg, const CacheShape& cache,
                  const Tensor& device_of, int64_t batch = -1) const;

 private:
  [[noreturn]] void fail(const char* kind, const std::string& text) const;
  const char* op_;
};

CacheView cache_view(const Tensor& t);
HeadsView heads_view(const Tensor& t);

template <class T>
T* optional_data(const std::optional<Tensor>& t) {
  return t ? static_cast<T*>(t->data_ptr()) : nullptr;
}

}  // namespace skv::entry
