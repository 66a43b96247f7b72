// Reference-counted ids of the KV cache's blocks. Knows nothing of tokens: a block is free when nobody refers
// to it.
#pragma once

#include <cstdint>
#include <vector>

namespace skv {

class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks);

  // All or nothing: writes n distinct ids with one reference each to out, or returns false and changes
  // nothing.
  bool alloc(int64_t n, int32_t* out);
  void ref(int32_t block);
  // Drops one reference; true when that freed the block.
  bool unref(int32_t block);

  int32_t ref_count(int32_t block) const;
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_blocks() const { return static_cast<int64_t>(refs_.size()); }

 private:
  void require_live(int32_t block) const;

  std::vector<int32_t> refs_;
  std::vector<int32_t> free_;  // last freed is handed out first: its memory is the likeliest to be cached
};

}  // namespace skv
