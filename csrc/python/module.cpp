// Python's view of csrc/runtime: module stateful_kv._runtime. Arrays cross without a copy where they are
// outputs or buffers; the GIL is released while the runtime works. What is documented for users stands in
// stateful_kv/runtime.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>

#include "../core/step.h"
#include "../runtime/runtime.h"
#include "arrays.h"
#include "parts.h"

namespace py = pybind11;
using skv::BufferSpec;
using skv::python::copy_of;
using skv::python::salt_of;
using skv::python::to_tokens;
using skv::python::Tokens;

namespace {

py::dtype dtype_of(BufferSpec::Type type) {
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
  explicit PyRuntime(const skv::RuntimeOptions& options) : runtime(options) {}

  void bind(const py::dict& arrays) {
    std::vector<std::pair<std::string, void*>> pointers;
    std::vector<BufferSpec> specs = get().buffer_specs();
    for (auto& [key, value] : arrays) {
      const auto name = key.cast<std::string>();
      if (!py::isinstance<py::array>(value)) throw py::type_error("bind: " + name + " is not a numpy array");
      auto array = py::reinterpret_borrow<py::array>(value);
      for (const BufferSpec& spec : specs) {
        if (spec.name == name) require_fits(array, spec);
      }
      pointers.emplace_back(name, array.mutable_data());
    }
    get().bind(pointers);
    for (auto& [key, value] : arrays) bound[key] = value;
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
  }

  // For everything but a call in progress that has released the GIL: another thread would read what it
  // changes.
  skv::Runtime& get() {
    if (in_call) {
      throw std::runtime_error(
          "Runtime: another thread is inside submit, plan, commit or index_drafts; one thread owns a "
          "runtime");
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
    skv::Runtime& mine = get();
    Call call(this);
    py::gil_scoped_release release;
    Timed timed(&call);
    return fn(mine);
  }

  py::dict bound;   // keeps the caller's arrays alive; views of them do so themselves
  py::object step;  // the StepInfo that plan() returned last
  skv::StepInfo* step_info = nullptr;
  std::chrono::steady_clock::duration busy{};  // inside submit, plan, commit and index_drafts

 private:
  skv::Runtime runtime;
  bool in_call = false;
};

py::dict views_of(const py::object& self) {
  py::dict views;
  auto& runtime = self.cast<PyRuntime&>();
  for (BufferSpec& spec : runtime.get().buffer_specs()) {
    const char* name = spec.name.c_str();
    const py::object owner = runtime.bound.contains(name) ? py::object(runtime.bound[name]) : self;
    views[name] = py::array(dtype_of(spec.type), spec.shape, spec.get(), owner);
  }
  return views;
}

uint64_t submit(PyRuntime& self, uint64_t session, const py::object& object, int64_t max_tokens,
                float temperature, int32_t top_k, float top_p, float min_p, int64_t seed,
                const py::object& stop_token_ids, int num_drafts, int priority) {
  const Tokens tokens = to_tokens(object, "submit");
  const Tokens stops = to_tokens(stop_token_ids, "submit", "stop_token_ids");
  skv::RequestParams params{max_tokens, temperature, top_k, top_p, min_p, seed, {}, num_drafts, priority};
  params.stop_token_ids.assign(stops.data(), stops.data() + stops.size());
  const int32_t* data = tokens.data();
  return self.without_gil(
      [&](skv::Runtime& runtime) { return runtime.submit(session, data, tokens.size(), params); });
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

py::list commit(PyRuntime& self, double seconds) {
  return list_of(self.without_gil([=](skv::Runtime& runtime) { return runtime.commit(seconds); }));
}

py::object plan_ahead(PyRuntime& self, int64_t max_rows, int64_t max_stops) {
  const std::optional<skv::AheadInfo> info =
      self.without_gil([=](skv::Runtime& runtime) { return runtime.plan_ahead(max_rows, max_stops); });
  return info ? py::cast(*info) : py::none();
}

py::list commit_ahead(PyRuntime& self, const py::array_t<int64_t, py::array::c_style>& request_ids,
                      const py::array_t<int32_t, py::array::c_style>& results, double seconds) {
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

void set_spans(PyRuntime& self, uint64_t session, const py::iterable& spans) {
  std::vector<std::vector<int32_t>> texts;
  for (const py::handle& span : spans) {
    const Tokens tokens = to_tokens(py::reinterpret_borrow<py::object>(span), "set_spans", "spans");
    texts.emplace_back(tokens.data(), tokens.data() + tokens.size());
  }
  self.get().set_spans(session, texts);
}

py::array_t<int32_t> tokens_of(PyRuntime& self, uint64_t session, int64_t start) {
  const int64_t length = self.get().length(session);
  if (start < 0 || start > length) {
    throw py::value_error("tokens: start is " + std::to_string(start) + ", the session has " +
                          std::to_string(length) + " tokens");
  }
  return copy_of(self.get().tokens(session) + start, length - start);
}

py::dict stats_of(PyRuntime& self, uint64_t request_id) {
  const skv::RequestStats s = self.get().take_stats(request_id);
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
  py::class_<PyRuntime>(m, "Runtime")
      .def(py::init([](int32_t num_blocks, int64_t block_size, int64_t max_batch_tokens, int64_t max_seqs,
                       int64_t max_blocks_per_seq, int max_ngram, int min_ngram, int num_drafts, bool latest,
                       bool prefix_cache, const std::string& policy, int num_relatives, int num_branches) {
             return std::make_unique<PyRuntime>(skv::RuntimeOptions{
                 num_blocks, block_size, max_batch_tokens, max_seqs, max_blocks_per_seq, max_ngram, min_ngram,
                 num_drafts, latest, num_relatives, num_branches, prefix_cache, policy});
           }),
           py::arg("num_blocks"), py::arg("block_size") = 16, py::arg("max_batch_tokens") = 2048,
           py::arg("max_seqs") = 64, py::arg("max_blocks_per_seq") = 0, py::arg("max_ngram") = 4,
           py::arg("min_ngram") = 1, py::arg("num_drafts") = 8, py::arg("latest") = true,
           py::arg("prefix_cache") = true, py::arg("policy") = "lru", py::arg("num_relatives") = 0,
           py::arg("num_branches") = 0)
      .def_property_readonly("buffers", &views_of)
      .def("bind", &PyRuntime::bind, py::arg("arrays"))
      .def(
          "open", [](PyRuntime& r, const py::object& ns) { return r.get().open(salt_of(ns)); },
          py::arg("namespace") = "")
      .def(
          "fork", [](PyRuntime& r, uint64_t session) { return r.get().fork(session); }, py::arg("session"))
      .def(
          "rollback",
          [](PyRuntime& r, uint64_t session, int64_t length) { r.get().rollback(session, length); },
          py::arg("session"), py::arg("length"))
      .def(
          "close", [](PyRuntime& r, uint64_t session) { r.get().close(session); }, py::arg("session"))
      .def(
          "length", [](PyRuntime& r, uint64_t session) { return r.get().length(session); },
          py::arg("session"))
      .def(
          "resident", [](PyRuntime& r, uint64_t session) { return r.get().resident(session); },
          py::arg("session"))
      .def("set_spans", &set_spans, py::arg("session"), py::arg("spans"))
      .def("tokens", &tokens_of, py::arg("session"), py::arg("start") = 0)
      .def(
          "is_running", [](PyRuntime& r, uint64_t session) { return r.get().is_running(session); },
          py::arg("session"))
      .def(
          "request_of", [](PyRuntime& r, uint64_t session) { return r.get().request_of(session); },
          py::arg("session"))
      .def("submit", &submit, py::arg("session"), py::arg("tokens"), py::arg("max_tokens"),
           py::arg("temperature") = 0.0f, py::arg("top_k") = 0, py::arg("top_p") = 1.0f,
           py::arg("min_p") = 0.0f, py::arg("seed") = 0, py::arg("stop_token_ids") = py::tuple(),
           py::arg("num_drafts") = -1, py::arg("priority") = 0)
      .def(
          "append",
          [](PyRuntime& r, uint64_t session, const py::object& object) {
            const Tokens tokens = to_tokens(object, "append");
            return r.get().append(session, tokens.data(), tokens.size());
          },
          py::arg("session"), py::arg("tokens"))
      .def("plan", &plan)
      .def("plan_moves", [](PyRuntime& r) { return r.get().plan_moves(); })
      .def("commit", &commit, py::arg("seconds") = 0.0)
      .def("plan_ahead", &plan_ahead, py::arg("max_rows"), py::arg("max_stops"))
      .def("commit_ahead", &commit_ahead, py::arg("request_ids"), py::arg("results"),
           py::arg("seconds") = 0.0)
      .def("forget_ahead", [](PyRuntime& r) { r.get().forget_ahead(); })
      .def(
          "known_tokens",
          [](PyRuntime& r, uint64_t id, int64_t start) {
            const std::vector<int32_t>& tokens = r.get().known_tokens(id);
            const int64_t size = static_cast<int64_t>(tokens.size());
            const int64_t begin = std::clamp<int64_t>(start, 0, size);
            return copy_of(tokens.data() + begin, size - begin);
          },
          py::arg("request_id"), py::arg("start") = 0)
      .def(
          "stop_tokens",
          [](PyRuntime& r, uint64_t id) {
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
      .def(
          "finish", [](PyRuntime& r, uint64_t id, int64_t n) { r.get().finish(id, n); },
          py::arg("request_id"), py::arg("num_keep"))
      .def(
          "abort", [](PyRuntime& r, uint64_t id) { r.get().abort(id); }, py::arg("request_id"))
      .def("index_drafts",
           [](PyRuntime& r) { r.without_gil([](skv::Runtime& runtime) { runtime.index_drafts(); }); })
      .def("stats_of", &stats_of, py::arg("request_id"))
      .def("stats", &stats)
      .def_property_readonly("busy_seconds",
                             [](PyRuntime& r) { return std::chrono::duration<double>(r.busy).count(); })
      .def(
          "evict", [](PyRuntime& r, int64_t n) { return r.get().evict(n); }, py::arg("num_blocks"))
      .def(
          "match",
          [](PyRuntime& r, const py::object& ns, const py::object& object) {
            const Tokens tokens = to_tokens(object, "match");
            return r.get().match(salt_of(ns), tokens.data(), tokens.size());
          },
          py::arg("namespace"), py::arg("tokens"))
      .def("check", [](PyRuntime& r) { r.get().check(); });
}

}  // namespace

PYBIND11_MODULE(_runtime, m) {
  m.doc() = "C++ runtime of stateful_kv; documented in stateful_kv.runtime.";
  define_errors(m);
  skv::python::define_parts(m);
  define_runtime(m);
}
