// A runtime as Python holds it: with the caller's arrays that it is bound to, and refusing other threads
// while a call works without the GIL.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "../runtime/runtime.h"
#include "arrays.h"

namespace skv::python {

inline py::dtype dtype_of(BufferSpec::Type type) {
  switch (type) {
    case BufferSpec::Type::kInt32:
      return py::dtype::of<int32_t>();
    case BufferSpec::Type::kInt64:
      return py::dtype::of<int64_t>();
    default:
      return py::dtype::of<float>();
  }
}

struct PyRuntime {
  explicit PyRuntime(const RuntimeOptions& options) : runtime(options) {}

  void bind(const py::dict& arrays) {
    std::vector<std::pair<std::string, void*>> pointers;
    std::vector<BufferSpec> specs = get().buffer_specs();
    for (auto& [key, value] : arrays) {
      if (!py::isinstance<py::str>(key)) {
        throw wrong_type(py::reinterpret_borrow<py::object>(key), "bind", "a key of arrays", "str");
      }
      const auto name = key.cast<std::string>();
      if (!py::isinstance<py::array>(value)) throw py::type_error("bind: " + name + " is not a numpy array");
      auto array = py::reinterpret_borrow<py::array>(value);
      for (const BufferSpec& spec : specs) {
        if (spec.name == name) require_fits(array, spec);
      }
      pointers.emplace_back(name, array.mutable_data());
    }
    get().bind(pointers);
    for (auto& [key, value] : arrays) {
      if (runtime.owns(py::reinterpret_borrow<py::array>(value).data())) {
        bound.attr("pop")(key, py::none());  // such a view keeps the runtime alive, which would never go
      } else {
        bound[key] = value;
      }
    }
  }

  static void require_fits(const py::array& array, const BufferSpec& spec) {
    const bool same_shape =
        std::equal(spec.shape.begin(), spec.shape.end(), array.shape(), array.shape() + array.ndim());
    if (!array.dtype().equal(dtype_of(spec.type)) || !same_shape || !(array.flags() & py::array::c_style) ||
        !array.writeable()) {
      std::string shape;
      for (int64_t extent : spec.shape) shape += (shape.empty() ? "" : ", ") + std::to_string(extent);
      throw py::value_error("bind: " + spec.name + " must be a writable C-contiguous " +
                            py::str(dtype_of(spec.type)).cast<std::string>() + " array of shape (" + shape +
                            ")");
    }
    if (!(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) {
      throw py::value_error("bind: " + spec.name + " is not aligned to the " +
                            std::to_string(array.itemsize()) + " bytes of its dtype");
    }
  }

  // For everything but a call in progress that has released the GIL: another thread would read what it
  // changes.
  Runtime& get() {
    if (in_call) {
      throw std::runtime_error(
          "Runtime: another thread is inside submit, plan, commit, plan_ahead, commit_ahead or index_drafts; "
          "one thread owns a runtime");
    }
    return runtime;
  }

  // Calls fn(runtime) without the GIL, and adds up how long it takes. `in_call` changes while the GIL is held
  // only.
  template <class Fn>
  auto without_gil(Fn fn) {
    using Clock = std::chrono::steady_clock;
    struct Call {
      explicit Call(PyRuntime* self) : self(self) { self->in_call = true; }
      ~Call() {
        self->busy += end - begin;
        self->in_call = false;
      }
      PyRuntime* self;
      Clock::time_point begin, end;
    };
    struct Timed {
      explicit Timed(Call* call) : call(call) { call->begin = Clock::now(); }
      ~Timed() { call->end = Clock::now(); }
      Call* call;
    };
    Runtime& mine = get();
    Call call(this);
    py::gil_scoped_release release;
    Timed timed(&call);
    return fn(mine);
  }

  py::dict bound;   // keeps the caller's arrays alive; views of them do so themselves
  py::object step;  // the StepInfo that plan() returned last
  StepInfo* step_info = nullptr;
  std::chrono::steady_clock::duration busy{};  // inside calls that release the GIL

 private:
  Runtime runtime;
  bool in_call = false;
};

}  // namespace skv::python
