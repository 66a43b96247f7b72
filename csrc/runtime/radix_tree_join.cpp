// Joining nodes of a locked path that nothing keeps apart any more. Part of RadixTree.
#include "radix_tree.h"

#include "reserve.h"

namespace skv {

// Whether nobody can tell the upper node from its only child. Both are locked.
bool RadixTree::can_join(const Node* upper, const Node* lower) const {
  if (upper->attached || upper->num_locks != lower->num_locks || upper->children.size() != 1) return false;
  if (upper->storage == lower->storage) return true;
  // The lower node's tokens are copied. Sizes of what stays apart double from node to node, so depth is
  // logarithmic, and a token that is copied ends up in a node half as large again: so seldom.
  if (lower->size() > 2 * upper->size()) return false;
  // The lower node's first block takes the place of the upper one's last in the upper one's storage, unless a
  // node further up refers to that entry as well.
  const int64_t idx = upper->end / block_size_;
  const bool overrides = upper->end % block_size_ != 0 && upper->block(idx) != lower->block(idx);
  return !overrides || upper->start <= idx * block_size_ || upper->parent->storage != upper->storage;
}

// The lower node becomes both, as whoever rests on it or locks it does so at its end.
void RadixTree::join(Node* upper, Node* lower) {
  if (upper->storage != lower->storage) {
    reserve_more(&upper->storage->tokens, lower->size());
    reserve_more(&upper->storage->blocks, blocks_for(lower->end) - lower->start / block_size_);
  }
  num_protected_ -= num_counted_blocks(upper) + num_counted_blocks(lower);
  if (upper->end % block_size_ != 0) pool_->unref(upper->block(upper->end / block_size_));
  if (upper->storage != lower->storage) {
    NodeStorage& storage = *upper->storage;
    storage.tokens.insert(storage.tokens.end(), lower->tokens(), lower->tokens() + lower->size());
    const int64_t first = lower->start / block_size_;
    const int32_t* blocks = lower->storage->blocks.data() + (first - lower->storage->first_block);
    storage.blocks.resize(first - storage.first_block);
    storage.blocks.insert(storage.blocks.end(), blocks, blocks + (blocks_for(lower->end) - first));
    lower->storage = upper->storage;
  }
  lower->parent = upper->parent;
  lower->start = upper->start;
  lower->first_token = upper->first_token;
  lower->parent->children.set(lower->first_token, lower);
  num_protected_ += num_counted_blocks(lower);
  --num_nodes_;
  delete upper;
}

// From the top, so that a long chain of short nodes is copied once.
void RadixTree::join_path(Node* node) {
  std::vector<Node*> path;
  for (; !node->is_root(); node = node->parent) path.push_back(node);
  for (size_t i = path.size(); i-- > 1;) {
    if (can_join(path[i], path[i - 1])) join(path[i], path[i - 1]);
  }
}

}  // namespace skv
