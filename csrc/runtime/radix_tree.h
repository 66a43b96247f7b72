// Token-granular radix tree over cache blocks: which token prefixes have their KV in which blocks.
//
// A node covers positions [start, end) of its path and refers to the blocks of block indices
// start / block_size .. ceil(end / block_size) - 1. A split may fall inside a block: both nodes then refer to
// it. Where a node starts inside a block, its first block overrides the parent's last one in a table composed
// along the path: it is the same block (after a split) or a copy that also holds the block's earlier tokens
// (after copy-on-write).
//
// One root per namespace. A running turn LOCKS its node: the lock counts on every node up to the root, so a
// parent's count is never below a child's. An idle sequence only ATTACHES: the node may be evicted, and the
// sequence is told. Nothing here walks the history: every operation costs what it adds, matches or removes,
// plus the depth for locks. Locking a path joins its nodes that nothing needs apart any more (nobody rests on
// them, one child), so that the depth follows the branches there are, not those there once were.
//
// Where memory runs out, open_root, open_private_root, descend and insert throw std::bad_alloc and have
// changed nothing, but for a node that may be split now. Whatever else changes the tree needs none.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "block_pool.h"
#include "eviction_policy.h"

namespace skv {

// Tokens and blocks of a vertical chain of nodes that were split from one: ranges of the same storage, so a
// split copies nothing. The storage always ends where the chain's deepest node ends. It may begin with tokens
// of a node that was joined to its parent, which has them in its own storage.
struct NodeStorage {
  int64_t base = 0;         // position of tokens[0]
  int64_t first_block = 0;  // block index of blocks[0]
  std::vector<int32_t> tokens;
  std::vector<int32_t> blocks;
};

// Children by their first token: a short list scanned in order, a hash map once there are many.
class ChildMap {
 public:
  Node* find(int32_t token) const;
  Node* any() const;  // nullptr: none
  void set(int32_t token, Node* child);
  void erase(int32_t token);
  bool empty() const { return few_.empty() && many_.empty(); }
  size_t size() const { return few_.size() + many_.size(); }
  template <class Fn>
  void for_each(Fn fn) const {
    for (auto& entry : few_) fn(entry.second);
    for (auto& entry : many_) fn(entry.second);
  }

 private:
  static constexpr size_t kFew = 16;
  std::vector<std::pair<int32_t, Node*>> few_;
  std::unordered_map<int32_t, Node*> many_;
};

// Base of whoever rests on a node without locking it. The node's end is where its cached tokens end.
struct Attachment {
  virtual ~Attachment() = default;
  // Eviction moved this to a shorter prefix: `node` is the new one (the same node trimmed, or its parent).
  // Told once for all blocks that a node loses in one call of evict().
  virtual void on_shrunk() = 0;

  Node* node = nullptr;
  Attachment* next = nullptr;
  Attachment* prev = nullptr;
};

struct Node {
  Node* parent = nullptr;  // nullptr: a root, which covers nothing
  int64_t start = 0;
  int64_t end = 0;  // grows and shrinks at leaves only
  int64_t num_locks = 0;
  int32_t first_token = 0;  // the key among the parent's children
  std::shared_ptr<NodeStorage> storage;
  ChildMap children;
  Attachment* attached = nullptr;
  // The eviction policy's own.
  Node* older = nullptr;
  Node* newer = nullptr;
  int64_t last_turn = -1;
  int64_t last_end = -1;
  int64_t period = 0;
  int64_t expected_turn = 0;
  int64_t overdue_turn = 0;
  int queue = 0;

  bool is_root() const { return parent == nullptr; }
  int64_t size() const { return end - start; }
  const int32_t* tokens() const { return storage->tokens.data() + (start - storage->base); }
  int32_t block(int64_t block_idx) const { return storage->blocks[block_idx - storage->first_block]; }
};

struct Root : Node {
  std::string salt;
  bool is_private = false;
  int64_t num_users = 0;
  std::vector<uint64_t> recent;  // the runtime's own: sessions that took turns here lately, latest last
};

class RadixTree {
 public:
  RadixTree(BlockPool* pool, int64_t block_size, std::unique_ptr<EvictionPolicy> policy);
  ~RadixTree();
  RadixTree(const RadixTree&) = delete;
  RadixTree& operator=(const RadixTree&) = delete;

  // A namespace lives while it has users or cached nodes; a private one is never found by salt and goes with
  // its last user.
  Root* open_root(const std::string& salt);
  Root* open_private_root();
  void share_root(Root* root) { ++root->num_users; }
  void close_root(Root* root);
  Root* find_root(const std::string& salt) const;

  // Longest cached prefix in tokens; changes nothing. num_blocks: how many blocks hold it, those included
  // that deeper nodes override.
  int64_t match_length(const Node* root, const int32_t* tokens, int64_t num_tokens,
                       int64_t* num_blocks = nullptr) const;

  // Follows tokens[from->end, num_tokens) down, splitting where the match ends inside a node, and extends the
  // block table accordingly. Returns the deepest node; its end is the number of matched tokens.
  Node* descend(Node* from, const int32_t* tokens, int64_t num_tokens, std::vector<int32_t>* table);

  // Publishes tokens[held->end, end), whose KV stands in table entries from *own_begin on that belong to the
  // caller alone. The caller's lock moves along and the node ending at `end` is returned. What the tree
  // already has is adopted: the caller's blocks are freed and replaced in the table. *own_begin becomes the
  // first entry that still belongs to the caller; *first_changed drops to the first entry replaced.
  Node* insert(Node* held, const int32_t* tokens, int64_t end, int32_t* table, int64_t* own_begin,
               int64_t* first_changed);

  // Whether the caller, who locks `held`, is alone with its partly filled last block and may write on in it.
  bool can_claim_tail(const Node* held) const;
  // Takes that block out of the tree (its reference passes to the caller); returns the node the lock is on
  // now.
  Node* claim_tail(Node* held);

  // The node on the path of `node` that ends exactly at length <= node->end; where there is no memory to
  // split one, the last that ends before.
  Node* ancestor_at(Node* node, int64_t length);

  // Of the path, only nodes that nobody rests on or locks for themselves may go; `node` stays.
  void lock(Node* node);
  void unlock(Node* node);
  void attach(Attachment* who, Node* node);
  void detach(Attachment* who);

  // Frees up to num_blocks blocks, leaf tails first. Returns how many were freed.
  int64_t evict(int64_t num_blocks);

  int64_t block_size() const { return block_size_; }
  int64_t num_nodes() const { return num_nodes_; }
  int64_t num_namespaces() const { return static_cast<int64_t>(roots_.size() + private_roots_.size()); }
  int64_t num_evictable_blocks() const { return num_evictable_; }
  int64_t num_protected_blocks() const { return num_protected_; }

  // Recomputes every count and structural rule; throws std::logic_error. Adds the tree's references to
  // refs[block].
  void check(std::vector<int32_t>* refs) const;

 private:
  struct Census;

  Node* split(Node* node, int64_t at);
  Node* grow(Node* last, bool is_held, const int32_t* tokens, int64_t end, const int32_t* table);
  void truncate_storage(Node* leaf, int64_t end);
  void remove_leaf(Node* leaf);
  void shrink_attached(Node* node, Node* target);
  void trim_tail(Node* leaf, int64_t most);
  void drop_children(Root* root);
  void erase_root(Root* root);
  void lock_one(Node* node);
  bool can_join(const Node* upper, const Node* lower) const;
  void join(Node* upper, Node* lower);
  void join_path(Node* node);
  bool shares_first_block(const Node* node) const;
  int64_t num_counted_blocks(const Node* node) const;
  int64_t blocks_for(int64_t length) const { return (length + block_size_ - 1) / block_size_; }
  void check_node(const Node* node, Census* census) const;

  BlockPool* pool_;
  int64_t block_size_;
  std::unique_ptr<EvictionPolicy> policy_;
  std::map<std::string, std::unique_ptr<Root>> roots_;
  std::unordered_map<Root*, std::unique_ptr<Root>> private_roots_;
  int64_t num_nodes_ = 0;
  // A block that several nodes refer to counts once, at its topmost node.
  int64_t num_evictable_ = 0;
  int64_t num_protected_ = 0;
};

}  // namespace skv
