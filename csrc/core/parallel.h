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

  // f(i) for i in [0, count), of items that differ in length or threads that differ in speed: every thread
  // takes the next one when it is done with its own.
  template <class F>
  void for_each_item(int64_t count, F&& f) const {
    const int64_t threads = num_threads() < count ? num_threads() : count;
    int64_t next = 0;
    for_each(threads, 1, [&](int64_t, int64_t) {
      for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < count;) f(i);
    });
  }
};

// Runs everything on the calling thread.
class Serial final : public Parallel {
 public:
  void run(int64_t n, int64_t, Body body, void* context) const override { body(context, 0, n); }
  int num_threads() const override { return 1; }
};

}  // namespace skv
