// The thread pool of the caller: in Python torch's own (two pools would fight over the cores), in a C++
// server its own.
#pragma once
#include <cstdint>
#include <type_traits>

namespace skv {

class Parallel {
 public:
  // Calls body(context, begin, end) on disjoint ranges that cover [0, n); a range has at least `grain` items
  // unless it is the last one. Returns when all are done. An exception of a body is rethrown.
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  virtual ~Parallel() = default;
  virtual void run(int64_t n, int64_t grain, Body body, void* context) const = 0;
  virtual int num_threads() const = 0;

  template <class F>
  void for_each(int64_t n, int64_t grain, F&& f) const {
    if (n <= 0) return;
    if (n <= grain || num_threads() == 1) {
      f(int64_t{0}, n);
      return;
    }
    run(
        n, grain,
        [](void* context, int64_t begin, int64_t end) {
          (*static_cast<std::remove_reference_t<F>*>(context))(begin, end);
        },
        const_cast<void*>(static_cast<const void*>(&f)));
  }
};

// Runs everything on the calling thread.
class Serial final : public Parallel {
 public:
  void run(int64_t n, int64_t, Body body, void* context) const override { body(context, 0, n); }
  int num_threads() const override { return 1; }
};

}  // namespace skv
