// Eviction policies; contract in eviction_policy.h.
#include "eviction_policy.h"

#include <algorithm>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "radix_tree.h"
#include "reserve.h"

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

// Queues of leaves only, ordered by when they were used or are expected again, in turns taken by anybody.
class TurnsPolicy final : public EvictionPolicy {
 public:
  // Entries of queues come from here and go back: two for each node that may be a leaf.
  void reserve(int64_t num_nodes) override {
    const int64_t needed = 2 * num_nodes;
    if (needed <= num_entries_) return;
    reserve_more(&spare_, needed - spare_.size());
    for (; num_entries_ < needed; ++num_entries_) {
      Order entry{{0, nullptr}};
      spare_.push_back(entry.extract(entry.begin()));
    }
  }
  void on_insert(Node& node) override {
    note_turn(node);
    if (node.children.empty()) enqueue(node);
  }
  void on_remove(Node& node) override { dequeue(node); }
  void on_leaf(Node& node) override { enqueue(node); }
  void on_attached(Node& node) override {
    if (node.queue == kNone) return;
    dequeue(node);
    enqueue(node);
  }
  // The upper part is no leaf, the lower one stays what it was.
  void on_split(Node& upper, Node& lower) override {
    upper.last_turn = lower.last_turn;
    upper.period = lower.period;
  }

  Node* victim() override {
    if (!abandoned_.empty()) return abandoned_.begin()->second;
    if (expected_.empty()) return nullptr;
    if (overdue_.begin()->first < now_) return overdue_.begin()->second;
    return expected_.rbegin()->second;
  }

 private:
  enum Queue { kNone, kAbandoned, kLive };
  static constexpr int64_t kMissedTurns = 4;
  using Order = std::set<std::pair<int64_t, Node*>>;

  // The end of a turn moves the node's end; being locked and let go again without progress is none.
  void note_turn(Node& node) {
    if (node.end == node.last_end) return;
    node.last_end = node.end;
    ++now_;
    if (node.last_turn >= 0) {
      const int64_t interval = now_ - node.last_turn;
      node.period = node.period > 0 ? (node.period + interval + 1) / 2 : interval;
      usual_period_ += (interval - usual_period_) / 8;
    }
    node.last_turn = now_;
  }

  int64_t period_of(const Node& node) const {
    return std::max<int64_t>(1, node.period ? node.period : usual_period_);
  }

  void put(Order* queue, int64_t turn, Node& node) {
    spare_.back().value() = {turn, &node};
    queue->insert(std::move(spare_.back()));
    spare_.pop_back();
  }
  void take(Order* queue, int64_t turn, Node& node) { spare_.push_back(queue->extract({turn, &node})); }

  void enqueue(Node& node) {
    if (!node.attached) {
      node.queue = kAbandoned;
      put(&abandoned_, node.last_turn, node);
      return;
    }
    node.queue = kLive;
    node.expected_turn = node.last_turn + period_of(node);
    node.overdue_turn = node.last_turn + kMissedTurns * period_of(node);
    put(&expected_, node.expected_turn, node);
    put(&overdue_, node.overdue_turn, node);
  }

  void dequeue(Node& node) {
    if (node.queue == kAbandoned) take(&abandoned_, node.last_turn, node);
    if (node.queue == kLive) {
      take(&expected_, node.expected_turn, node);
      take(&overdue_, node.overdue_turn, node);
    }
    node.queue = kNone;
  }

  int64_t now_ = 0;
  int64_t usual_period_ = 1;
  Order abandoned_;
  Order expected_;  // the same leaves as overdue_
  Order overdue_;
  std::vector<Order::node_type> spare_;
  int64_t num_entries_ = 0;  // queued or spare; there is room for all of them in spare_
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_eviction_policy(const std::string& name) {
  if (name == "lru") return std::make_unique<LruPolicy>();
  if (name == "turns") return std::make_unique<TurnsPolicy>();
  throw std::invalid_argument("eviction policy '" + name + "' is unknown, expected 'lru' or 'turns'");
}

}  // namespace skv
