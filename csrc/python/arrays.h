// What crosses the Python boundary: tokens come in as int32 or are refused, other arguments as what they are
// documented to be, results go out as copies. Refusals name the call and the argument: pybind11's own show
// signatures.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

namespace skv::python {

namespace py = pybind11;

using Object = const py::object&;
using Tokens = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

inline py::type_error wrong_type(Object object, const char* call, const char* argument,
                                 const std::string& expected) {
  return py::type_error(std::string(call) + ": " + argument + " has type " + Py_TYPE(object.ptr())->tp_name +
                        ", expected " + expected);
}

// An int or what stands for one, as numpy's integers do, within T's range.
template <class T>
T to_int(Object object, const char* call, const char* argument) {
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!index) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
    PyErr_Clear();
    throw wrong_type(object, call, argument, "int");
  }
  using Limits = std::numeric_limits<T>;
  if constexpr (std::is_unsigned_v<T>) {
    static_assert(sizeof(T) == sizeof(unsigned long long));
    const unsigned long long value = PyLong_AsUnsignedLongLong(index.ptr());
    if (!PyErr_Occurred()) return value;
    PyErr_Clear();
  } else {
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
    if (overflow == 0 && value >= Limits::min() && value <= Limits::max()) return static_cast<T>(value);
  }
  throw py::value_error(std::string(call) + ": " + argument + " is " + py::str(index).cast<std::string>() +
                        ", expected " + std::to_string(Limits::min()) + " to " +
                        std::to_string(Limits::max()));
}

inline double to_float(Object object, const char* call, const char* argument) {
  const double value = PyFloat_AsDouble(object.ptr());
  if (value != -1.0 || !PyErr_Occurred()) return value;
  const bool is_number = PyErr_ExceptionMatches(PyExc_OverflowError);
  if (!is_number && !PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
  PyErr_Clear();
  if (!is_number) throw wrong_type(object, call, argument, "float");
  throw py::value_error(std::string(call) + ": " + argument + " is out of the range of float");
}

// Refuses what is no token, before a conversion to int32 could wrap it.
template <class T>
void require_tokens(const T* data, py::ssize_t size, const char* call, const char* argument) {
  using Bits = std::make_unsigned_t<std::common_type_t<T, int32_t>>;
  Bits bits = 0;  // of all of them, in one pass that vectorises: nearly always all are fine
  for (py::ssize_t i = 0; i < size; ++i) bits |= static_cast<Bits>(data[i]);
  if (bits <= static_cast<Bits>(INT32_MAX)) return;
  const T* bad = std::find_if(data, data + size, [](T t) { return !(t >= 0 && t <= T(INT32_MAX)); });
  throw py::value_error(std::string(call) + ": " + argument + "[" + std::to_string(bad - data) + "] is " +
                        std::to_string(*bad) + ", expected a token from 0 to " + std::to_string(INT32_MAX));
}

template <class T>
void require_tokens(const py::array& array, const char* call, const char* argument) {
  const auto values = py::array_t<T, py::array::c_style | py::array::forcecast>(array);
  require_tokens(values.data(), values.size(), call, argument);
}

// An int32 array of one dimension in one piece, which needs no conversion. Reads numpy's structs only: its
// functions are rarely in the cache when a turn begins.
inline bool is_plain(Object object) {
  if (!py::isinstance<py::array>(object)) return false;
  const auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype dtype = array.dtype();
  return array.ndim() == 1 && dtype.num() == py::detail::npy_format_descriptor<int32_t>::value &&
         dtype.byteorder() == '=' && (array.flags() & py::array::c_style);
}

// Integers only: a silently truncated float or an unflattened batch is a caller's bug.
inline Tokens to_tokens(Object object, const char* call, const char* argument = "tokens") {
  if (is_plain(object)) {
    const auto tokens = py::reinterpret_borrow<Tokens>(object);
    require_tokens(tokens.data(), tokens.size(), call, argument);
    return tokens;
  }
  auto what = [&] { return std::string(call) + ": " + argument; };
  py::array array = py::array::ensure(object);
  if (!array) throw py::type_error(what() + " is not an array of integers");
  const bool is_scalar = array.ndim() == 0 && !py::isinstance<py::array>(object);
  if (is_scalar) throw wrong_type(object, call, argument, "an array of integers");
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u' && array.size() > 0) {
    throw py::type_error(what() + " has dtype " + py::str(array.dtype()).cast<std::string>() +
                         ", expected int32");
  }
  if (array.ndim() != 1) {
    throw py::value_error(what() + " must have one dimension, has shape " +
                          py::str(array.attr("shape")).cast<std::string>());
  }
  if (array.size() == 0) return Tokens(0);  // numpy makes an empty list a float64 array
  if (array.dtype().equal(py::dtype::of<int32_t>())) {
    require_tokens<int32_t>(array, call, argument);
  } else if (kind == 'i') {
    require_tokens<int64_t>(array, call, argument);
  } else {
    require_tokens<uint64_t>(array, call, argument);
  }
  return Tokens(array);
}

template <class T>
py::array_t<T> copy_of(const T* data, int64_t n) {
  py::array_t<T> array(n);
  std::copy_n(data, n, array.mutable_data());
  return array;
}

// Namespaces are bytes or str; both name the same tenant when their bytes agree.
inline std::string salt_of(Object salt, const char* call) {
  if (py::isinstance<py::bytes>(salt)) return salt.cast<py::bytes>();
  if (!py::isinstance<py::str>(salt)) throw wrong_type(salt, call, "namespace", "str or bytes");
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(salt.ptr(), &size);
  if (!text) throw py::error_already_set();
  return {text, static_cast<size_t>(size)};
}

}  // namespace skv::python
