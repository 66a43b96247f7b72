// Which cached leaf loses its tail next. The tree reports what becomes evictable; the policy only orders it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace skv {

struct Node;

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  // There will be so many nodes. Whatever is reported of them afterwards allocates nothing.
  virtual void reserve(int64_t /*num_nodes*/) {}
  // The node became evictable (its last lock went). Along one path children are always reported before their
  // parents.
  virtual void on_insert(Node& node) = 0;
  // The node was locked or deleted.
  virtual void on_remove(Node& node) = 0;
  // A turn begins to use the node; called once per node of its path, locked or not before.
  virtual void on_access(Node& /*node*/) {}
  // An evictable node was cut in two; upper is new and evictable too.
  virtual void on_split(Node& upper, Node& lower) = 0;
  // An evictable node lost its last child.
  virtual void on_leaf(Node& /*node*/) {}
  // The first idle session came to rest on the node, or the last one left it.
  virtual void on_attached(Node& /*node*/) {}
  // An evictable node without children, or nullptr when nothing is evictable. It loses blocks until enough
  // are free or it is gone.
  virtual Node* victim() = 0;
};

// "lru": the leaf whose last turn lies furthest back.
// "turns": for agents that take turns. First leaves that no open session rests on, then sessions that have
// missed several of their usual turns, then the one whose next turn is expected last: with agents going
// round, least recently used is exactly the one needed next.
std::unique_ptr<EvictionPolicy> make_eviction_policy(const std::string& name);

}  // namespace skv
