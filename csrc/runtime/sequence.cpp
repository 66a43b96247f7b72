// Sequence bookkeeping; contract in sequence.h.
#include "sequence.h"

namespace skv {

// Where the surviving prefix ends inside a block, that block is the surviving node's: the one in the table
// may have been the evicted child's copy.
void Sequence::on_shrunk() {
  const int64_t block_size = tree->block_size();
  resident = node->end;
  resize_table((resident + block_size - 1) / block_size);
  own_begin = static_cast<int64_t>(table.size());
  if (resident % block_size != 0) set_block(own_begin - 1, node->block(own_begin - 1));
}

int64_t Sequence::num_new_blocks(int64_t end, int64_t block_size) const {
  if (end <= resident) return 0;
  const int64_t missing = (end + block_size - 1) / block_size - static_cast<int64_t>(table.size());
  return std::max<int64_t>(missing, 0) + (tail_is_shared(block_size) ? 1 : 0);
}

bool Sequence::tail_is_shared(int64_t block_size) const {
  return resident % block_size != 0 && resident / block_size < own_begin;
}

}  // namespace skv
