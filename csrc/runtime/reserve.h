// Room in a vector before anything changes: what follows cannot fail for want of memory.
#pragma once

#include <algorithm>
#include <cstddef>

namespace skv {

// For n more elements; at least twice what it has, as adding one by one would get.
template <class Vector>
void reserve_more(Vector* vector, std::size_t n) {
  if (vector->capacity() - vector->size() >= n) return;
  vector->reserve(std::max(vector->size() + n, 2 * vector->capacity()));
}

}  // namespace skv
