// Drafts that part: continuations merged into a tree, and which of its nodes to feed.
//
// A tree beats a chain of as many rows where a branch carries what the chain misses more often than the
// chain's last rows are reached. Both are counted per conversation from what was drawn, at every point that a
// step came to, whether the branches there were fed or not: how often the only continuation known was right;
// where several were, how often the first, the second, and so on. A node is reached with the product of these
// along its path, and the most likely nodes are fed, as many as the chain may have. Until a branch would have
// been right, and where none is for long, that is the chain itself.
#pragma once

#include <cstdint>
#include <vector>

#include "draft_length.h"

namespace skv {

constexpr int kMaxBranches = 16;

struct DraftNode {
  int32_t token;
  int32_t parent;        // 0: the root, which is the last known token; parents come first
  int32_t first_child;   // 0: none
  int32_t next_sibling;  // 0: none
  int32_t rank;          // among its siblings, in order of arrival
};

class DraftTree {
 public:
  static constexpr int kMaxNodes = 256;

  // Empty, for drafts of at most `most` tokens: up to four times as many nodes are kept.
  void clear(int most);
  // Merges a continuation of the root; what it has in common with others is there once. Returns whether it
  // brought something new.
  bool add(const int32_t* tokens, int num_tokens);
  int size() const { return static_cast<int>(nodes_.size()); }  // the root included
  const DraftNode& operator[](int node) const { return nodes_[node]; }
  // How many leading nodes are one path from the root.
  int chain_length() const;
  bool is_alone(int node) const { return nodes_[nodes_[nodes_[node].parent].first_child].next_sibling == 0; }

 private:
  std::vector<DraftNode> nodes_;
  int capacity_ = 0;
};

// Where a node stands among its siblings: alone, first, second, third or later.
constexpr int kNumPlaces = 5;

// How often what stood there was drawn in a conversation, by kind of draft and place; recent ones count most.
struct BranchRecord {
  float held[kNumDraftKinds][kNumPlaces] = {};
  float judged[kNumDraftKinds][kNumPlaces] = {};
};

class BranchModel {
 public:
  // The nodes to feed, parents first, at most `most` and none that is expected to bring less than `worth`
  // tokens. Returns how many; 0 where they are a chain.
  int choose(const BranchRecord& record, int kind, const DraftTree& tree, int most, double worth,
             int* nodes) const;
  // After the root came these tokens.
  void judge(BranchRecord* record, int kind, const DraftTree& tree, const int32_t* drawn, int num_drawn);

 private:
  double probability(const BranchRecord& record, int kind, int place) const;

  BranchRecord all_;
};

}  // namespace skv
