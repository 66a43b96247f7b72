// Eviction policies; contract in eviction_policy.h.
#include "eviction_policy.h"

#include <stdexcept>

#include "radix_tree.h"

namespace skv {
namespace {

// One intrusive list of ALL evictable nodes, oldest first. Using a node means locking and unlocking its whole
// path, children reported first, so a child always stands before its parent and the oldest node is always a
// leaf: no search, no heap, O(1) for everything.
class LruPolicy final : public EvictionPolicy {
 public:
  void on_insert(Node& node) override { link_before(node, nullptr); }

  void on_remove(Node& node) override {
    (node.older ? node.older->newer : oldest_) = node.newer;
    (node.newer ? node.newer->older : newest_) = node.older;
    node.older = node.newer = nullptr;
  }

  void on_split(Node& upper, Node& lower) override { link_before(upper, lower.newer); }

  Node* victim() override { return oldest_; }

 private:
  void link_before(Node& node, Node* next) {
    node.newer = next;
    node.older = next ? next->older : newest_;
    (node.older ? node.older->newer : oldest_) = &node;
    (next ? next->older : newest_) = &node;
  }

  Node* oldest_ = nullptr;
  Node* newest_ = nullptr;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_eviction_policy(const std::string& name) {
  if (name == "lru") return std::make_unique<LruPolicy>();
  throw std::invalid_argument("eviction policy '" + name + "' is unknown, expected 'lru'");
}

}  // namespace skv
