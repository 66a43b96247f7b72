// The runtime's invariants, recomputed from scratch. Used by tests and debugging, never on a turn's path.
#include <stdexcept>

#include "runtime.h"

namespace skv {
namespace {

void require(bool condition, const char* what) {
  if (!condition) throw std::logic_error(std::string("Runtime: ") + what);
}

// The path composes to exactly the table's entries below own_begin, and its tokens are the session's.
void check_path(const Sequence& seq, int64_t block_size) {
  int64_t covered = seq.node->end;  // table entries of deeper nodes override those above
  for (const Node* node = seq.node; !node->is_root(); node = node->parent) {
    require(node->end <= static_cast<int64_t>(seq.tokens.size()), "a session's node reaches past its tokens");
    for (int64_t i = node->start; i < node->end; ++i) {
      require(node->tokens()[i - node->start] == seq.tokens[i], "a session stands at a node of other tokens");
    }
    const int64_t last = (covered + block_size - 1) / block_size;
    for (int64_t idx = node->start / block_size; idx < last; ++idx) {
      require(idx >= seq.own_begin || seq.table[idx] == node->block(idx),
              "a block table differs from its path");
    }
    covered = node->start / block_size * block_size;
  }
}

}  // namespace

void Runtime::check() const {
  std::vector<int32_t> refs(pool_.num_blocks(), 0);
  tree_.check(&refs);
  int64_t held = 0;
  int64_t locks = 0;
  for (auto& owner : sequences_) {
    if (!owner) continue;
    const Sequence& seq = *owner;
    const int64_t size = static_cast<int64_t>(seq.table.size());
    const int64_t num_tokens = static_cast<int64_t>(seq.tokens.size());
    auto found = requests_.find(seq.request_id);
    const Request* request = found == requests_.end() ? nullptr : found->second.get();
    require((seq.request_id != 0) == (request != nullptr), "a session is busy with a request that is gone");
    const Node* root = seq.node;
    while (!root->is_root()) root = root->parent;
    require(root == seq.root, "a session stands in another namespace");
    require(seq.committed <= num_tokens && (request || seq.committed == num_tokens),
            "tokens outside any turn");
    require(seq.resident <= num_tokens && seq.resident >= seq.node->end, "resident is out of range");
    require(seq.computed <= num_tokens, "more was computed than there are tokens");
    check_path(seq, options_.block_size);
    if (!request || request->admitted == 0) {
      require(seq.resident == seq.node->end, "an idle session counts KV that is not cached");
      require(seq.own_begin == size, "an idle session owns blocks");
      require(size == (seq.resident + options_.block_size - 1) / options_.block_size,
              "a table of the wrong size");
      bool found_self = false;
      for (const Attachment* who = seq.node->attached; who; who = who->next)
        found_self = found_self || who == &seq;
      require(found_self, "an idle session is not attached");
      continue;
    }
    ++locks;
    require(rows_[request->row].request == request && rows_[request->row].owner == seq.handle,
            "a running request has lost its row");
    require(seq.row_synced <= size && seq.row_sent <= size, "a row claims to hold more than the table");
    for (int64_t i = 0; i < seq.row_synced; ++i) {
      require(buffers_.block_table[request->row * options_.max_blocks_per_seq + i] == seq.table[i],
              "a block-table row differs from its session");
    }
    for (int64_t i = seq.own_begin; i < size; ++i) {
      require(pool_.ref_count(seq.table[i]) == 1 && refs[seq.table[i]] == 0, "a writable block is shared");
      ++refs[seq.table[i]];
      ++held;
    }
  }
  int64_t used = 0;
  for (int32_t b = 0; b < pool_.num_blocks(); ++b) {
    require(refs[b] == pool_.ref_count(b), "a block's references are miscounted");
    used += refs[b] > 0;
  }
  require(used + pool_.num_free() == pool_.num_blocks(), "free and used blocks do not add up");
  require(stats().session_held == held, "session-held blocks are miscounted");
  require(locks == static_cast<int64_t>(running_.size()), "a running request has no session");
  require(waiting_.size() + running_.size() == requests_.size(), "a request neither waits nor runs");
}

}  // namespace skv
