// Block pool; contract in block_pool.h.
#include "block_pool.h"

#include <stdexcept>
#include <string>

namespace skv {

BlockPool::BlockPool(int32_t num_blocks) {
  if (num_blocks < 1) {
    throw std::invalid_argument("BlockPool: num_blocks is " + std::to_string(num_blocks) +
                                ", expected at least 1");
  }
  refs_.assign(num_blocks, 0);
  free_.reserve(num_blocks);
  for (int32_t b = num_blocks - 1; b >= 0; --b) free_.push_back(b);
}

bool BlockPool::alloc(int64_t n, int32_t* out) {
  if (n < 0) throw std::invalid_argument("BlockPool: alloc of a negative number of blocks");
  if (n > num_free()) return false;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = free_.back();
    free_.pop_back();
    refs_[out[i]] = 1;
  }
  return true;
}

void BlockPool::ref(int32_t block) {
  require_live(block);
  ++refs_[block];
}

bool BlockPool::unref(int32_t block) {
  require_live(block);
  if (--refs_[block] > 0) return false;
  free_.push_back(block);
  return true;
}

int32_t BlockPool::ref_count(int32_t block) const {
  if (block < 0 || block >= num_blocks()) {
    throw std::invalid_argument("BlockPool: block " + std::to_string(block) + " is outside the pool");
  }
  return refs_[block];
}

void BlockPool::require_live(int32_t block) const {
  if (ref_count(block) == 0) {
    throw std::logic_error("BlockPool: block " + std::to_string(block) +
                           " is free and cannot be (un)referenced");
  }
}

}  // namespace skv
