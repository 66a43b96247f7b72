// The radix tree's invariants, recomputed from scratch. Used by tests and debugging, never on a turn's path.
#include <set>
#include <stdexcept>

#include "radix_tree.h"

namespace skv {

struct RadixTree::Census {
  std::vector<int32_t>* refs;
  std::set<int32_t> counted;
  int64_t nodes = 0;
  int64_t evictable = 0;
  int64_t protected_blocks = 0;
};

namespace {

void require(bool condition, const char* what) {
  if (!condition) throw std::logic_error(std::string("RadixTree: ") + what);
}

}  // namespace

void RadixTree::check_node(const Node* node, Census* census) const {
  require(node->start == node->parent->end, "a node does not start where its parent ends");
  require(node->end > node->start, "an empty node");
  require(node->tokens()[0] == node->first_token, "a node stands under the wrong first token");
  require(node->parent->children.find(node->first_token) == node, "a node is not its parent's child");
  const NodeStorage& storage = *node->storage;
  const int64_t stored = storage.base + static_cast<int64_t>(storage.tokens.size());
  require(node->start >= storage.base && node->end <= stored, "a node reaches outside its storage");
  require(static_cast<int64_t>(storage.blocks.size()) == blocks_for(stored) - storage.first_block,
          "a storage has the wrong number of blocks");
  require(!node->children.empty() || node->end == stored, "a leaf is not the end of its storage");
  ++census->nodes;
  for (int64_t idx = node->start / block_size_; idx < blocks_for(node->end); ++idx) {
    const int32_t block = node->block(idx);
    ++census->refs->at(block);
    if (census->counted.insert(block).second) {
      ++(node->num_locks > 0 ? census->protected_blocks : census->evictable);
    } else {
      require(idx == node->start / block_size_ && shares_first_block(node), "unrelated nodes share a block");
    }
  }
  int64_t child_locks = 0;
  node->children.for_each([&](const Node* child) { child_locks += child->num_locks; });
  require(node->num_locks >= child_locks, "a node has fewer locks than its children");
  for (const Attachment* who = node->attached; who; who = who->next) {
    require(who->node == node, "an attachment points at another node");
    require(!who->next || who->next->prev == who, "the list of attachments is broken");
  }
}

void RadixTree::check(std::vector<int32_t>* refs) const {
  Census census;
  census.refs = refs;
  std::vector<const Node*> order;
  auto add = [&](const Node* child) { order.push_back(child); };
  for (auto& entry : roots_) {
    entry.second->children.for_each(add);
    require(entry.second->num_users > 0 || !entry.second->children.empty(), "an unused namespace was kept");
  }
  for (auto& entry : private_roots_) {
    entry.second->children.for_each(add);
    require(entry.second->num_users > 0, "a private namespace outlived its users");
  }
  // Parents come before their children, so a shared block is counted at its topmost node.
  for (size_t i = 0; i < order.size(); ++i) {
    check_node(order[i], &census);
    order[i]->children.for_each(add);
  }
  require(census.nodes == num_nodes_, "the number of nodes is wrong");
  require(census.evictable == num_evictable_, "the number of evictable blocks is wrong");
  require(census.protected_blocks == num_protected_, "the number of protected blocks is wrong");
}

}  // namespace skv
