// Errors of the runtime. Every other misuse is std::invalid_argument; a broken invariant is std::logic_error.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace skv {

// A session or request that was closed, finished or never existed.
struct StaleHandle : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// The pool cannot hold the request even with everything idle evicted. Nothing was changed.
struct OutOfBlocks : std::runtime_error {
  OutOfBlocks(int64_t needed_, int64_t free_, int64_t evictable_, int64_t pinned_)
      : std::runtime_error("out of KV blocks: " + std::to_string(needed_) + " needed, " +
                           std::to_string(free_) + " free, " + std::to_string(evictable_) + " evictable, " +
                           std::to_string(pinned_) + " pinned by running turns"),
        needed(needed_),
        free(free_),
        evictable(evictable_),
        pinned(pinned_) {}

  int64_t needed, free, evictable, pinned;
};

}  // namespace skv
