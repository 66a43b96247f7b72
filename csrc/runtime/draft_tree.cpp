// Trees of drafts; contract in draft_tree.h.
#include "draft_tree.h"

#include <algorithm>
#include <array>

namespace skv {
namespace {

constexpr float kKeepRow = 0.98f;    // what a conversation's draw still weighs after the next one
constexpr float kKeepAll = 0.998f;   // the same over all conversations
constexpr double kTrustAll = 4.0;    // draws that what all conversations saw weighs
constexpr double kTrustGuess = 8.0;  // draws that the guess weighs
constexpr double kGuess[kNumPlaces] = {0.6, 0.6, 0.0, 0.0, 0.0};  // branches are fed on evidence only
constexpr double kLeastWorth = 0.02;  // tokens that a branch's row must bring where rows have no price

int place_of(const DraftTree& tree, int node) {
  return tree.is_alone(node) ? 0 : std::min(1 + tree[node].rank, kNumPlaces - 1);
}

void count(BranchRecord* record, int kind, int place, bool held, float keep) {
  record->judged[kind][place] = record->judged[kind][place] * keep + 1.0f;
  record->held[kind][place] = record->held[kind][place] * keep + (held ? 1.0f : 0.0f);
}

}  // namespace

void DraftTree::clear(int most) {
  capacity_ = std::min(1 + 4 * most, kMaxNodes);
  nodes_.assign(1, DraftNode{});
}

bool DraftTree::add(const int32_t* tokens, int num_tokens) {
  const int before = size();
  int node = 0;
  for (int i = 0; i < num_tokens; ++i) {
    int last = 0, child = nodes_[node].first_child;
    while (child != 0 && nodes_[child].token != tokens[i]) {
      last = child;
      child = nodes_[child].next_sibling;
    }
    if (child == 0) {
      if (size() == capacity_) break;
      child = size();
      const int rank = last == 0 ? 0 : nodes_[last].rank + 1;
      nodes_.push_back({tokens[i], node, 0, 0, rank});
      (last == 0 ? nodes_[node].first_child : nodes_[last].next_sibling) = child;
    }
    node = child;
  }
  return size() > before;
}

int DraftTree::chain_length() const {
  int node = 1;
  while (node < size() && nodes_[node].parent == node - 1) ++node;
  return node - 1;
}

double BranchModel::probability(const BranchRecord& record, int kind, int place) const {
  const double others =
      (all_.held[kind][place] + kTrustGuess * kGuess[place]) / (all_.judged[kind][place] + kTrustGuess);
  return (record.held[kind][place] + kTrustAll * others) / (record.judged[kind][place] + kTrustAll);
}

int BranchModel::choose(const BranchRecord& record, int kind, const DraftTree& tree, int most, double worth,
                        int* nodes) const {
  const int chain = tree.chain_length();
  if (tree.size() == 1 + chain) return 0;
  double by_place[kNumPlaces];
  for (int place = 0; place < kNumPlaces; ++place) by_place[place] = probability(record, kind, place);
  // What a node brings is no more than what its parent does, so the first ones in this order are a tree.
  std::array<double, DraftTree::kMaxNodes> brings;
  std::array<int, DraftTree::kMaxNodes> order;
  brings[0] = 1.0;
  int num = 0;
  for (int node = 1; node < tree.size(); ++node) {
    brings[node] = brings[tree[node].parent] * by_place[place_of(tree, node)];
    if (brings[node] > std::max(worth, node <= chain ? 0.0 : kLeastWorth)) order[num++] = node;
  }
  auto first = [&](int a, int b) { return brings[a] != brings[b] ? brings[a] > brings[b] : a < b; };
  if (num > most) std::nth_element(order.begin(), order.begin() + most, order.begin() + num, first);
  num = std::min(num, most);
  std::sort(order.begin(), order.begin() + num);
  if (num == 0 || (order[num - 1] == num && num <= chain)) return 0;
  std::copy_n(order.begin(), num, nodes);
  return num;
}

void BranchModel::judge(BranchRecord* record, int kind, const DraftTree& tree, const int32_t* drawn,
                        int num_drawn) {
  int node = 0;
  for (int i = 0; i < num_drawn; ++i) {
    int next = 0;
    for (int child = tree[node].first_child; child != 0; child = tree[child].next_sibling) {
      const bool held = tree[child].token == drawn[i];
      count(record, kind, place_of(tree, child), held, kKeepRow);
      count(&all_, kind, place_of(tree, child), held, kKeepAll);
      if (held) next = child;
    }
    if (next == 0) return;
    node = next;
  }
}

}  // namespace skv
