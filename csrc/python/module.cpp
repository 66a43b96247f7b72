// Python's view of csrc/runtime: module stateful_kv._runtime. Arrays cross without a copy where they are
// outputs or buffers; the GIL is released while the runtime works. What is documented for users stands in
// stateful_kv/runtime.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../core/step.h"
#include "arrays.h"
#include "parts.h"
#include "py_runtime.h"

namespace py = pybind11;
using skv::BufferSpec;
using skv::python::copy_of;
using skv::python::dtype_of;
using skv::python::Object;
using skv::python::PyRuntime;
using skv::python::salt_of;
using skv::python::to_float;
using skv::python::to_int;
using skv::python::to_tokens;
using skv::python::Tokens;
using skv::python::wrong_type;

namespace {

py::dict views_of(Object self) {
  py::dict views;
  auto& runtime = self.cast<PyRuntime&>();
  for (BufferSpec& spec : runtime.get().buffer_specs()) {
    const char* name = spec.name.c_str();
    const py::object owner = runtime.bound.contains(name) ? py::object(runtime.bound[name]) : self;
    views[name] = py::array(dtype_of(spec.type), spec.shape, spec.get(), owner);
  }
  return views;
}

uint64_t submit(PyRuntime& self, Object session, Object object, Object max_tokens, Object temperature,
                Object top_k, Object top_p, Object min_p, Object seed, Object stop_token_ids,
                Object num_drafts, Object priority) {
  const auto id = to_int<uint64_t>(session, "submit", "session");
  const Tokens tokens = to_tokens(object, "submit");
  const Tokens stops = to_tokens(stop_token_ids, "submit", "stop_token_ids");
  skv::RequestParams params;
  params.max_tokens = to_int<int64_t>(max_tokens, "submit", "max_tokens");
  params.temperature = static_cast<float>(to_float(temperature, "submit", "temperature"));
  params.top_k = to_int<int32_t>(top_k, "submit", "top_k");
  params.top_p = static_cast<float>(to_float(top_p, "submit", "top_p"));
  params.min_p = static_cast<float>(to_float(min_p, "submit", "min_p"));
  params.seed = to_int<int64_t>(seed, "submit", "seed");
  params.num_drafts = to_int<int>(num_drafts, "submit", "num_drafts");
  params.priority = to_int<int>(priority, "submit", "priority");
  params.stop_token_ids.assign(stops.data(), stops.data() + stops.size());
  const int32_t* data = tokens.data();
  return self.without_gil(
      [&](skv::Runtime& runtime) { return runtime.submit(id, data, tokens.size(), params); });
}

// A string of Python made once and kept for good.
#define SKV_STRING(text)                                              \
  ([] {                                                               \
    static PyObject* const string = PyUnicode_InternFromString(text); \
    return py::handle(string);                                        \
  }())

py::object plan(PyRuntime& self) {
  const std::optional<skv::StepInfo> info =
      self.without_gil([](skv::Runtime& runtime) { return runtime.plan(); });
  if (!info) return py::none();
  // The object of the step before serves again where nobody else keeps it.
  if (self.step && self.step.ref_count() == 1) {
    *self.step_info = *info;
  } else {
    self.step = py::cast(*info);
    self.step_info = self.step.cast<skv::StepInfo*>();
  }
  return self.step;
}

py::list list_of(const std::vector<skv::Event>& events) {
  py::list list(events.size());
  for (size_t i = 0; i < events.size(); ++i) {
    const skv::Event& event = events[i];
    py::handle reason = Py_None;
    if (event.finish_reason == skv::FinishReason::kStop) reason = SKV_STRING("stop");
    if (event.finish_reason == skv::FinishReason::kLength) reason = SKV_STRING("length");
    py::list tokens(event.tokens.size());
    for (size_t t = 0; t < event.tokens.size(); ++t) tokens[t] = py::int_(event.tokens[t]);
    list[i] = py::make_tuple(event.request_id, std::move(tokens), reason);
  }
  return list;
}

py::list commit(PyRuntime& self, Object time) {
  const double seconds = to_float(time, "commit", "seconds");
  return list_of(self.without_gil([=](skv::Runtime& runtime) { return runtime.commit(seconds); }));
}

py::object plan_ahead(PyRuntime& self, Object max_rows, Object max_stops) {
  const auto rows = to_int<int64_t>(max_rows, "plan_ahead", "max_rows");
  const auto stops = to_int<int64_t>(max_stops, "plan_ahead", "max_stops");
  const std::optional<skv::AheadInfo> info =
      self.without_gil([=](skv::Runtime& runtime) { return runtime.plan_ahead(rows, stops); });
  return info ? py::cast(*info) : py::none();
}

// Of commit_ahead: what converts to T without loss.
template <class T>
py::array_t<T, py::array::c_style> to_array(Object object, const char* argument) {
  auto array = py::array_t<T, py::array::c_style>::ensure(object);
  if (array) return array;
  const auto expected = py::str(py::dtype::of<T>()).template cast<std::string>();
  if (!py::isinstance<py::array>(object)) throw wrong_type(object, "commit_ahead", argument, expected + "s");
  throw py::type_error(std::string("commit_ahead: ") + argument + " has dtype " +
                       py::str(object.attr("dtype")).template cast<std::string>() + ", expected " + expected);
}

py::list commit_ahead(PyRuntime& self, Object ids_of_rows, Object results_of_rows, Object time) {
  const auto request_ids = to_array<int64_t>(ids_of_rows, "request_ids");
  const auto results = to_array<int32_t>(results_of_rows, "results");
  const double seconds = to_float(time, "commit_ahead", "seconds");
  const skv::StepSizes& sizes = self.get().sizes();
  if (request_ids.size() != sizes.max_seqs ||
      results.size() != sizes.max_seqs * (skv::kResultHeader + sizes.max_rows_per_seq)) {
    throw py::value_error("commit_ahead: request_ids or results do not have a row for each of max_seqs");
  }
  const int64_t* ids = request_ids.data();
  const int32_t* data = results.data();
  return list_of(
      self.without_gil([=](skv::Runtime& runtime) { return runtime.commit_ahead(ids, data, seconds); }));
}

void set_spans(PyRuntime& self, Object session, Object spans) {
  const auto id = to_int<uint64_t>(session, "set_spans", "session");
  if (!py::isinstance<py::iterable>(spans)) throw wrong_type(spans, "set_spans", "spans", "a list of tokens");
  std::vector<std::vector<int32_t>> texts;
  for (const py::handle& span : spans) {
    const Tokens tokens = to_tokens(py::reinterpret_borrow<py::object>(span), "set_spans", "spans");
    texts.emplace_back(tokens.data(), tokens.data() + tokens.size());
  }
  self.get().set_spans(id, texts);
}

py::array_t<int32_t> tokens_of(PyRuntime& self, Object session, Object from) {
  const auto id = to_int<uint64_t>(session, "tokens", "session");
  const auto start = to_int<int64_t>(from, "tokens", "start");
  const int64_t length = self.get().length(id);
  if (start < 0 || start > length) {
    throw py::value_error("tokens: start is " + std::to_string(start) + ", the session has " +
                          std::to_string(length) + " tokens");
  }
  return copy_of(self.get().tokens(id) + start, length - start);
}

py::array_t<int32_t> known_tokens(PyRuntime& self, Object request_id, Object from) {
  const auto id = to_int<uint64_t>(request_id, "known_tokens", "request_id");
  const auto start = to_int<int64_t>(from, "known_tokens", "start");
  const std::vector<int32_t>& tokens = self.get().known_tokens(id);
  const int64_t size = static_cast<int64_t>(tokens.size());
  const int64_t begin = std::clamp<int64_t>(start, 0, size);
  return copy_of(tokens.data() + begin, size - begin);
}

py::dict stats_of(PyRuntime& self, Object request_id) {
  const auto id = to_int<uint64_t>(request_id, "stats_of", "request_id");
  const skv::RequestStats s = self.get().take_stats(id);
  py::dict d;
  d[SKV_STRING("prompt_tokens")] = s.prompt_tokens;
  d[SKV_STRING("delta_tokens")] = s.delta_tokens;
  d[SKV_STRING("reused_tokens")] = s.reused_tokens;
  d[SKV_STRING("recomputed_tokens")] = s.recomputed_tokens;
  d[SKV_STRING("fed_tokens")] = s.fed_tokens;
  d[SKV_STRING("drafted")] = s.drafted;
  d[SKV_STRING("accepted")] = s.accepted;
  const auto spans = static_cast<int>(skv::DraftSource::kSpans);
  const auto relatives = static_cast<int>(skv::DraftSource::kRelatives);
  d[SKV_STRING("drafted_spans")] = s.drafted_from[spans];
  d[SKV_STRING("accepted_spans")] = s.accepted_from[spans];
  d[SKV_STRING("drafted_relatives")] = s.drafted_from[relatives];
  d[SKV_STRING("accepted_relatives")] = s.accepted_from[relatives];
  const auto branches = static_cast<int>(skv::DraftSource::kBranches);
  d[SKV_STRING("drafted_branches")] = s.drafted_from[branches];
  d[SKV_STRING("accepted_branches")] = s.accepted_from[branches];
  d[SKV_STRING("preemptions")] = s.preemptions;
  return d;
}

py::dict stats(PyRuntime& self) {
  const skv::RuntimeStats s = self.get().stats();
  py::dict d;
  d[SKV_STRING("num_blocks")] = s.num_blocks;
  d[SKV_STRING("free")] = s.free;
  d[SKV_STRING("evictable")] = s.evictable;
  d[SKV_STRING("protected")] = s.protected_blocks;
  d[SKV_STRING("session_held")] = s.session_held;
  d[SKV_STRING("nodes")] = s.nodes;
  d[SKV_STRING("namespaces")] = s.namespaces;
  d[SKV_STRING("sessions")] = s.sessions;
  d[SKV_STRING("running")] = s.running;
  d[SKV_STRING("waiting")] = s.waiting;
  d[SKV_STRING("evicted_blocks")] = s.evicted_blocks;
  d[SKV_STRING("preemptions")] = s.preemptions;
  d[SKV_STRING("steps")] = s.steps;
  return d;
}

void define_errors(py::module_& m) {
  py::register_exception<skv::StaleHandle>(m, "StaleHandle", PyExc_ValueError);
  static PyObject* out_of_blocks =
      PyErr_NewException("stateful_kv._runtime.OutOfBlocks", PyExc_RuntimeError, nullptr);
  m.attr("OutOfBlocks") = py::handle(out_of_blocks);
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const skv::OutOfBlocks& e) {
      py::object instance = py::reinterpret_borrow<py::object>(out_of_blocks)(e.what());
      instance.attr("needed") = e.needed;
      instance.attr("free") = e.free;
      instance.attr("evictable") = e.evictable;
      instance.attr("pinned") = e.pinned;
      PyErr_SetObject(out_of_blocks, instance.ptr());
    }
  });
}

using RuntimeClass = py::class_<PyRuntime>;

template <class>
using Argument = Object;  // in place of a parameter of that type

// A method of skv::Runtime that takes integers.
template <class... Ints, class Method, class... Names>
void define(RuntimeClass* c, const char* call, Method method, Names... names) {
  // get() comes after conversions: they may run Python, and another thread may begin a call meanwhile.
  auto run = [=](PyRuntime& r, Ints... ints) { return (r.get().*method)(ints...); };
  auto checked = [=](PyRuntime& r, Argument<Ints>... objects) {
    return run(r, to_int<Ints>(objects, call, names)...);
  };
  c->def(call, checked, py::arg(names)...);
}

void define_runtime(py::module_& m) {
  py::class_<skv::StepInfo>(m, "StepInfo")
      .def_readonly("num_tokens", &skv::StepInfo::num_tokens)
      .def_readonly("num_seqs", &skv::StepInfo::num_seqs)
      .def_readonly("num_copies", &skv::StepInfo::num_copies)
      .def_readonly("num_logit_rows", &skv::StepInfo::num_logit_rows)
      .def_readonly("max_seqlen_q", &skv::StepInfo::max_seqlen_q)
      .def_readonly("max_seqlen_k", &skv::StepInfo::max_seqlen_k)
      .def_readonly("max_rows_per_seq", &skv::StepInfo::max_rows_per_seq)
      .def_readonly("num_blocks_used_in_table", &skv::StepInfo::num_blocks_used_in_table)
      .def_readonly("any_sampled", &skv::StepInfo::any_sampled)
      .def_readonly("has_trees", &skv::StepInfo::has_trees);
  py::class_<skv::AheadInfo>(m, "AheadInfo")
      .def_readonly("num_rows", &skv::AheadInfo::num_rows)
      .def_readonly("num_logit_rows", &skv::AheadInfo::num_logit_rows)
      .def_readonly("max_rows", &skv::AheadInfo::max_rows)
      .def_readonly("num_copies", &skv::AheadInfo::num_copies)
      .def_readonly("any_sampled", &skv::AheadInfo::any_sampled);
  RuntimeClass c(m, "Runtime");
  c.def(py::init([](Object num_blocks, Object block_size, Object max_batch_tokens, Object max_seqs,
                    Object max_blocks_per_seq, Object max_ngram, Object min_ngram, Object num_drafts,
                    bool latest, bool prefix_cache, const std::string& policy, Object num_relatives,
                    Object num_branches) {
          skv::RuntimeOptions o;
          o.num_blocks = to_int<int32_t>(num_blocks, "Runtime", "num_blocks");
          o.block_size = to_int<int64_t>(block_size, "Runtime", "block_size");
          o.max_batch_tokens = to_int<int64_t>(max_batch_tokens, "Runtime", "max_batch_tokens");
          o.max_seqs = to_int<int64_t>(max_seqs, "Runtime", "max_seqs");
          o.max_blocks_per_seq = to_int<int64_t>(max_blocks_per_seq, "Runtime", "max_blocks_per_seq");
          o.max_ngram = to_int<int>(max_ngram, "Runtime", "max_ngram");
          o.min_ngram = to_int<int>(min_ngram, "Runtime", "min_ngram");
          o.num_drafts = to_int<int>(num_drafts, "Runtime", "num_drafts");
          o.latest = latest;
          o.num_relatives = to_int<int>(num_relatives, "Runtime", "num_relatives");
          o.num_branches = to_int<int>(num_branches, "Runtime", "num_branches");
          o.prefix_cache = prefix_cache;
          o.policy = policy;
          return std::make_unique<PyRuntime>(o);
        }),
        py::arg("num_blocks"), py::arg("block_size") = 16, py::arg("max_batch_tokens") = 2048,
        py::arg("max_seqs") = 64, py::arg("max_blocks_per_seq") = 0, py::arg("max_ngram") = 4,
        py::arg("min_ngram") = 1, py::arg("num_drafts") = 8, py::arg("latest") = true,
        py::arg("prefix_cache") = true, py::arg("policy") = "lru", py::arg("num_relatives") = 0,
        py::arg("num_branches") = 0)
      .def_property_readonly("buffers", &views_of)
      .def("bind", &PyRuntime::bind, py::arg("arrays"))
      .def(
          "open", [](PyRuntime& r, Object ns) { return r.get().open(salt_of(ns, "open")); },
          py::arg("namespace") = "")
      .def("set_spans", &set_spans, py::arg("session"), py::arg("spans"))
      .def("tokens", &tokens_of, py::arg("session"), py::arg("start") = 0)
      .def("submit", &submit, py::arg("session"), py::arg("tokens"), py::arg("max_tokens"),
           py::arg("temperature") = 0.0f, py::arg("top_k") = 0, py::arg("top_p") = 1.0f,
           py::arg("min_p") = 0.0f, py::arg("seed") = 0, py::arg("stop_token_ids") = py::tuple(),
           py::arg("num_drafts") = -1, py::arg("priority") = 0)
      .def(
          "append",
          [](PyRuntime& r, Object session, Object object) {
            const auto id = to_int<uint64_t>(session, "append", "session");
            const Tokens tokens = to_tokens(object, "append");
            return r.get().append(id, tokens.data(), tokens.size());
          },
          py::arg("session"), py::arg("tokens"))
      .def("plan", &plan)
      .def("plan_moves", [](PyRuntime& r) { return r.get().plan_moves(); })
      .def("commit", &commit, py::arg("seconds") = 0.0)
      .def("plan_ahead", &plan_ahead, py::arg("max_rows"), py::arg("max_stops"))
      .def("commit_ahead", &commit_ahead, py::arg("request_ids"), py::arg("results"),
           py::arg("seconds") = 0.0)
      .def("forget_ahead", [](PyRuntime& r) { r.get().forget_ahead(); })
      .def("known_tokens", &known_tokens, py::arg("request_id"), py::arg("start") = 0)
      .def(
          "stop_tokens",
          [](PyRuntime& r, Object request_id) {
            const auto id = to_int<uint64_t>(request_id, "stop_tokens", "request_id");
            const std::vector<int32_t>& tokens = r.get().stop_tokens(id);
            return copy_of(tokens.data(), static_cast<int64_t>(tokens.size()));
          },
          py::arg("request_id"))
      .def_property_readonly("step_cost",
                             [](PyRuntime& r) {
                               const skv::DraftLength& cost = r.get().draft_length();
                               return py::make_tuple(cost.step_seconds(), cost.row_seconds());
                             })
      .def("cancel_step", [](PyRuntime& r) { r.get().cancel_step(); })
      .def_property_readonly("is_step_planned", [](PyRuntime& r) { return r.get().is_step_planned(); })
      .def("index_drafts",
           [](PyRuntime& r) { r.without_gil([](skv::Runtime& runtime) { runtime.index_drafts(); }); })
      .def("stats_of", &stats_of, py::arg("request_id"))
      .def("stats", &stats)
      .def_property_readonly("busy_seconds",
                             [](PyRuntime& r) { return std::chrono::duration<double>(r.busy).count(); })
      .def(
          "match",
          [](PyRuntime& r, Object ns, Object object) {
            const std::string salt = salt_of(ns, "match");
            const Tokens tokens = to_tokens(object, "match");
            return r.get().match(salt, tokens.data(), tokens.size());
          },
          py::arg("namespace"), py::arg("tokens"))
      .def("check", [](PyRuntime& r) { r.get().check(); });
  using skv::Runtime;
  define<uint64_t>(&c, "fork", &Runtime::fork, "session");
  define<uint64_t, int64_t>(&c, "rollback", &Runtime::rollback, "session", "length");
  define<uint64_t>(&c, "close", &Runtime::close, "session");
  define<uint64_t>(&c, "length", &Runtime::length, "session");
  define<uint64_t>(&c, "resident", &Runtime::resident, "session");
  define<uint64_t>(&c, "is_running", &Runtime::is_running, "session");
  define<uint64_t>(&c, "request_of", &Runtime::request_of, "session");
  define<uint64_t, int64_t>(&c, "finish", &Runtime::finish, "request_id", "num_keep");
  define<uint64_t>(&c, "abort", &Runtime::abort, "request_id");
  define<int64_t>(&c, "evict", &Runtime::evict, "num_blocks");
}

}  // namespace

PYBIND11_MODULE(_runtime, m) {
  m.doc() = "C++ runtime of stateful_kv; documented in stateful_kv.runtime.";
  define_errors(m);
  skv::python::define_parts(m);
  define_runtime(m);
}
