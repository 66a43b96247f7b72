// Arguments that plan_step and commit_step share: small tensors of one entry a sequence.
#pragma once

#include "check.h"

namespace skv::entry {

class StepCheck {
 public:
  StepCheck(const char* op, const Tensor& on, const char* on_arg) : check(op), on_(on), on_arg_(on_arg) {}

  // A contiguous tensor of this size.
  template <class T>
  T* flat(const Tensor& t, const char* arg, int64_t size, const char* names) const {
    check.dtype(t, arg, {sizeof(T) == 8 ? ScalarType::Long : ScalarType::Int});
    check.shape(t, arg, {size}, names);
    check.contiguous(t, arg);
    check.same_device(t, arg, on_, on_arg_);
    return static_cast<T*>(t.data_ptr());
  }
  // int32 rows that may lie apart.
  int32_t* rows(const Tensor& t, const char* arg, int64_t count, const char* names) const {
    check.dtype(t, arg, {ScalarType::Int});
    check.shape(t, arg, {count, -1}, names);
    check.last_dim_contiguous(t, arg);
    check.same_device(t, arg, on_, on_arg_);
    return static_cast<int32_t*>(t.data_ptr());
  }

  const Check check;

 private:
  const Tensor& on_;
  const char* on_arg_;
};

}  // namespace skv::entry
