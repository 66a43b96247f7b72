// Radix tree: matching, publishing, splitting, locking, eviction. Contract in radix_tree.h.
#include "radix_tree.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "reserve.h"

namespace skv {
namespace {

// memcmp is ten times as fast as looking for where two texts part: only the last chunk is looked through.
int64_t common_prefix(const int32_t* a, const int32_t* b, int64_t n) {
  constexpr int64_t kChunk = 256;
  int64_t at = 0;
  while (n - at >= kChunk && std::memcmp(a + at, b + at, kChunk * sizeof(int32_t)) == 0) at += kChunk;
  return std::mismatch(a + at, a + std::min(n, at + kChunk), b + at).first - a;
}

}  // namespace

Node* ChildMap::find(int32_t token) const {
  if (many_.empty()) {
    for (auto& entry : few_) {
      if (entry.first == token) return entry.second;
    }
    return nullptr;
  }
  auto it = many_.find(token);
  return it == many_.end() ? nullptr : it->second;
}

Node* ChildMap::any() const {
  if (many_.empty()) return few_.empty() ? nullptr : few_.back().second;
  return many_.begin()->second;
}

void ChildMap::set(int32_t token, Node* child) {
  if (!many_.empty()) {
    many_[token] = child;
    return;
  }
  for (auto& entry : few_) {
    if (entry.first == token) {
      entry.second = child;
      return;
    }
  }
  if (few_.size() < kFew) {
    few_.emplace_back(token, child);
    return;
  }
  std::unordered_map<int32_t, Node*> many(few_.begin(), few_.end());
  many.emplace(token, child);
  many_.swap(many);
  few_.clear();
}

void ChildMap::erase(int32_t token) {
  if (!many_.empty()) {
    many_.erase(token);
    return;
  }
  few_.erase(std::find_if(few_.begin(), few_.end(), [&](auto& entry) { return entry.first == token; }));
}

RadixTree::RadixTree(BlockPool* pool, int64_t block_size, std::unique_ptr<EvictionPolicy> policy)
    : pool_(pool), block_size_(block_size), policy_(std::move(policy)) {
  if (block_size < 1 || block_size > INT32_MAX) {
    throw std::invalid_argument("RadixTree: block_size is " + std::to_string(block_size) +
                                ", expected 1 to " + std::to_string(INT32_MAX));
  }
}

RadixTree::~RadixTree() {
  for (auto& entry : roots_) drop_children(entry.second.get());
  for (auto& entry : private_roots_) drop_children(entry.second.get());
}

// ---- namespaces

Root* RadixTree::open_root(const std::string& salt) {
  auto it = roots_.find(salt);
  if (it == roots_.end()) {
    auto root = std::make_unique<Root>();
    root->salt = salt;
    it = roots_.emplace(salt, std::move(root)).first;
  }
  ++it->second->num_users;
  return it->second.get();
}

Root* RadixTree::open_private_root() {
  auto root = std::make_unique<Root>();
  root->is_private = true;
  root->num_users = 1;
  Root* raw = root.get();
  private_roots_.emplace(raw, std::move(root));
  return raw;
}

Root* RadixTree::find_root(const std::string& salt) const {
  auto it = roots_.find(salt);
  return it == roots_.end() ? nullptr : it->second.get();
}

void RadixTree::close_root(Root* root) {
  if (--root->num_users > 0) return;
  if (root->is_private) {
    drop_children(root);
    private_roots_.erase(root);
  } else if (root->children.empty()) {
    erase_root(root);
  }
}

void RadixTree::erase_root(Root* root) { roots_.erase(roots_.find(root->salt)); }

// Children before parents, neither recursive nor off a list: a deep chain of forks must not exhaust the
// stack, and closing must not ask for memory.
void RadixTree::drop_children(Root* root) {
  for (Node* node = root; !node->is_root() || !node->children.empty();) {
    if (Node* child = node->children.any()) {
      node = child;
      continue;
    }
    if (node->num_locks == 0) policy_->on_remove(*node);
    (node->num_locks == 0 ? num_evictable_ : num_protected_) -= num_counted_blocks(node);
    for (int64_t i = node->start / block_size_; i < blocks_for(node->end); ++i) pool_->unref(node->block(i));
    --num_nodes_;
    Node* parent = node->parent;
    parent->children.erase(node->first_token);
    delete node;
    node = parent;
  }
}

// ---- matching

int64_t RadixTree::match_length(const Node* root, const int32_t* tokens, int64_t num_tokens,
                                int64_t* num_blocks) const {
  const Node* node = root;
  if (num_blocks) *num_blocks = 0;
  while (node->end < num_tokens) {
    const Node* child = node->children.find(tokens[node->end]);
    if (!child) break;
    const int64_t n = std::min(child->size(), num_tokens - child->start);
    const int64_t matched = common_prefix(child->tokens(), tokens + child->start, n);
    if (num_blocks) {
      *num_blocks += blocks_for(child->start + matched) - child->start / block_size_ -
                     (shares_first_block(child) ? 1 : 0);
    }
    if (matched < child->size()) return child->start + matched;
    node = child;
  }
  return node->end;
}

Node* RadixTree::descend(Node* from, const int32_t* tokens, int64_t num_tokens, std::vector<int32_t>* table) {
  Node* node = from;
  while (node->end < num_tokens) {
    Node* child = node->children.find(tokens[node->end]);
    if (!child) break;
    const int64_t n = std::min(child->size(), num_tokens - child->start);
    const int64_t matched = common_prefix(child->tokens(), tokens + child->start, n);
    node = matched < child->size() ? split(child, child->start + matched) : child;
  }
  if (node == from) return from;
  int64_t last = blocks_for(node->end);
  table->resize(last);
  for (const Node* n = node; n != from; n = n->parent) {  // deeper nodes override those above
    const int64_t first = n->start / block_size_;
    const int32_t* blocks = n->storage->blocks.data() + (first - n->storage->first_block);
    std::copy_n(blocks, last - first, table->data() + first);
    last = first;
  }
  return node;
}

// The node keeps its identity as the LOWER part, so whoever rests on its end stays where it is.
Node* RadixTree::split(Node* node, int64_t at) {
  policy_->reserve(num_nodes_ + 1);
  auto upper = std::make_unique<Node>();
  upper->children.set(node->tokens()[at - node->start], node);
  upper->parent = node->parent;
  upper->start = node->start;
  upper->end = at;
  upper->num_locks = node->num_locks;
  upper->storage = node->storage;
  if (at % block_size_ != 0) pool_->ref(node->block(at / block_size_));
  upper->first_token = node->first_token;
  node->parent->children.set(node->first_token, upper.get());
  node->start = at;
  node->first_token = node->tokens()[0];
  node->parent = upper.get();
  if (node->num_locks == 0) policy_->on_split(*upper, *node);
  ++num_nodes_;
  return upper.release();
}

Node* RadixTree::ancestor_at(Node* node, int64_t length) {
  while (node->start >= length && !node->is_root()) node = node->parent;
  if (node->end <= length) return node;
  try {
    return split(node, length);
  } catch (const std::bad_alloc&) {
    return node->parent;
  }
}

// ---- publishing

Node* RadixTree::insert(Node* held, const int32_t* tokens, int64_t end, int32_t* table, int64_t* own_begin,
                        int64_t* first_changed) {
  if (held->end >= end) return held;
  // The path as it will be comes first: it may lack memory. What follows cannot.
  Node* node = held;
  while (node->end < end) {
    const int64_t at = node->end;
    Node* child = node->children.find(tokens[at]);
    if (!child) break;
    const int64_t matched = common_prefix(child->tokens(), tokens + at, std::min(child->size(), end - at));
    node = matched < child->size() ? split(child, at + matched) : child;
  }
  const int64_t known = node->end;
  Node* deepest = known < end ? grow(node, node == held, tokens, end, table) : node;
  for (; node != held; node = node->parent) {
    lock_one(node);
    // A block is adopted once the tree's covers all that the caller has published of it. Of a block that the
    // match leaves half-way the caller's copy stays: it is what the rest overrides the tree's block with.
    const int64_t node_end = std::min(node->end, known);
    int64_t idx = node->start / block_size_;
    for (; idx * block_size_ < node_end && std::min((idx + 1) * block_size_, end) <= node_end; ++idx) {
      pool_->unref(table[idx]);
      table[idx] = node->block(idx);
      *first_changed = std::min(*first_changed, idx);
    }
  }
  *own_begin = blocks_for(end);
  return deepest;
}

// Adds tokens that no child of the last known node begins: in place where nobody else can tell, else as a new
// child. The caller's lock is on the child, and on `last` where that is held; else it is still to come.
Node* RadixTree::grow(Node* last, bool is_held, const int32_t* tokens, int64_t end, const int32_t* table) {
  const int64_t at = last->end;
  const int64_t first = at / block_size_;
  const int64_t num_blocks = blocks_for(end) - first;
  const bool alone =
      !last->is_root() && last->children.empty() && last->num_locks == (is_held ? 1 : 0) && !last->attached;
  if (alone && at % block_size_ == 0) {
    NodeStorage& storage = *last->storage;
    reserve_more(&storage.tokens, end - at);
    reserve_more(&storage.blocks, num_blocks);
    storage.tokens.insert(storage.tokens.end(), tokens + at, tokens + end);
    storage.blocks.insert(storage.blocks.end(), table + first, table + first + num_blocks);
    last->end = end;
    (is_held ? num_protected_ : num_evictable_) += num_blocks;
    return last;
  }
  policy_->reserve(num_nodes_ + 1);
  auto child = std::make_unique<Node>();
  child->parent = last;
  child->start = at;
  child->end = end;
  child->num_locks = 1;
  child->first_token = tokens[at];
  child->storage = std::make_shared<NodeStorage>();
  child->storage->base = at;
  child->storage->first_block = first;
  child->storage->tokens.assign(tokens + at, tokens + end);
  child->storage->blocks.assign(table + first, table + first + num_blocks);
  last->children.set(tokens[at], child.get());
  num_protected_ += num_blocks;
  ++num_nodes_;
  return child.release();
}

bool RadixTree::can_claim_tail(const Node* held) const {
  return !held->is_root() && held->end % block_size_ != 0 && held->children.empty() && held->num_locks == 1 &&
         !held->attached && pool_->ref_count(held->block(held->end / block_size_)) == 1;
}

Node* RadixTree::claim_tail(Node* held) {
  const int64_t end = std::max(held->start, held->end / block_size_ * block_size_);
  --num_protected_;
  truncate_storage(held, end);
  if (end > held->start) return held;
  Node* parent = held->parent;
  held->num_locks = 0;
  remove_leaf(held);
  return parent;
}

// ---- locks

void RadixTree::lock_one(Node* node) {
  policy_->on_access(*node);
  if (node->num_locks++ > 0) return;
  const int64_t n = num_counted_blocks(node);
  num_evictable_ -= n;
  num_protected_ += n;
  policy_->on_remove(*node);
}

void RadixTree::lock(Node* node) {
  Node* const lowest = node;
  const Node* below = nullptr;
  bool joinable = false;
  for (; !node->is_root(); below = node, node = node->parent) {
    lock_one(node);
    joinable = joinable || (below && can_join(node, below));
  }
  ++node->num_locks;
  if (!joinable) return;
  try {
    join_path(lowest);
  } catch (const std::bad_alloc&) {  // another time
  }
}

void RadixTree::unlock(Node* node) {
  for (; !node->is_root(); node = node->parent) {
    if (--node->num_locks > 0) continue;
    const int64_t n = num_counted_blocks(node);
    num_protected_ -= n;
    num_evictable_ += n;
    policy_->on_insert(*node);
  }
  --node->num_locks;
}

void RadixTree::attach(Attachment* who, Node* node) {
  who->node = node;
  who->prev = nullptr;
  who->next = node->attached;
  if (who->next) who->next->prev = who;
  node->attached = who;
  if (!who->next && node->num_locks == 0) policy_->on_attached(*node);
}

void RadixTree::detach(Attachment* who) {
  Node* node = who->node;
  (who->prev ? who->prev->next : who->node->attached) = who->next;
  if (who->next) who->next->prev = who->prev;
  who->node = nullptr;
  who->next = who->prev = nullptr;
  if (!node->attached && node->num_locks == 0) policy_->on_attached(*node);
}

// ---- eviction

int64_t RadixTree::evict(int64_t num_blocks) {
  const int64_t before = pool_->num_free();
  while (pool_->num_free() - before < num_blocks) {
    Node* leaf = policy_->victim();
    if (!leaf) break;
    trim_tail(leaf, num_blocks - (pool_->num_free() - before));
  }
  return pool_->num_free() - before;
}

// Until `most` blocks are free or the leaf is gone. Who rests on it is told once, not once per block: a
// pool's worth of blocks times thousands of forks would be a step of seconds.
void RadixTree::trim_tail(Node* leaf, int64_t most) {
  int64_t end = leaf->end;
  while (end > leaf->start && most > 0) {
    const int64_t idx = (end - 1) / block_size_;
    end = std::max(leaf->start, idx * block_size_);
    const bool shared = idx == leaf->start / block_size_ && shares_first_block(leaf);
    most -= pool_->unref(leaf->block(idx)) ? 1 : 0;
    num_evictable_ -= shared ? 0 : 1;
  }
  truncate_storage(leaf, end);
  if (end > leaf->start) {
    shrink_attached(leaf, leaf);
    return;
  }
  policy_->on_remove(*leaf);
  shrink_attached(leaf, leaf->parent);
  remove_leaf(leaf);
}

// Only a leaf may be cut, and a leaf is the deepest node of its storage: nobody else's tokens lie behind
// `end`.
void RadixTree::truncate_storage(Node* leaf, int64_t end) {
  leaf->end = end;
  NodeStorage& storage = *leaf->storage;
  storage.tokens.resize(end - storage.base);
  storage.blocks.resize(blocks_for(end) - storage.first_block);
}

void RadixTree::shrink_attached(Node* node, Node* target) {
  Attachment* who = node->attached;
  while (who) {
    Attachment* next = who->next;
    if (target != node) {
      detach(who);
      attach(who, target);
    }
    who->on_shrunk();
    who = next;
  }
}

void RadixTree::remove_leaf(Node* leaf) {
  Node* parent = leaf->parent;
  parent->children.erase(leaf->first_token);
  --num_nodes_;
  delete leaf;
  if (!parent->children.empty()) return;
  if (!parent->is_root()) {
    if (parent->num_locks == 0) policy_->on_leaf(*parent);
  } else if (static_cast<Root*>(parent)->num_users == 0) {
    erase_root(static_cast<Root*>(parent));
  }
}

// ---- counting

bool RadixTree::shares_first_block(const Node* node) const {
  if (node->start % block_size_ == 0) return false;
  const int64_t idx = node->start / block_size_;
  return node->parent->block(idx) == node->block(idx);
}

int64_t RadixTree::num_counted_blocks(const Node* node) const {
  return blocks_for(node->end) - node->start / block_size_ - (shares_first_block(node) ? 1 : 0);
}

}  // namespace skv
