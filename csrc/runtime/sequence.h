// A session: its tokens, its block table and where it stands in the radix tree. Between turns it owns no
// block: what was computed lies in the tree, and eviction may shorten `resident` at any time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "draft_index.h"
#include "draft_length.h"
#include "draft_tree.h"
#include "radix_tree.h"

namespace skv {

// Texts that a caller expects in answers, one after the other with -1 between them. Never changed once made.
struct DraftSpans {
  std::vector<int32_t> tokens;
  DraftIndex index;
};

struct Sequence : Attachment {
  Sequence(int max_ngram, int min_ngram) : index(max_ngram, min_ngram) {}

  void on_shrunk() override;

  // Number of blocks to allocate before positions up to `end` can be written from `resident` on.
  int64_t num_new_blocks(int64_t end, int64_t block_size) const;
  // True when position `resident` lies inside a block of the tree: to be claimed or copied before writing.
  bool tail_is_shared(int64_t block_size) const;

  // Table entries from idx on are no longer those that a row holds.
  void forget_entries(int64_t idx) {
    row_synced = std::min(row_synced, idx);
    row_sent = std::min(row_sent, idx);
  }
  void set_block(int64_t idx, int32_t block) {
    table[idx] = block;
    forget_entries(idx);
  }
  void resize_table(int64_t size) {
    table.resize(size);
    forget_entries(size);
  }

  uint64_t handle = 0;
  Root* root = nullptr;
  const RadixTree* tree = nullptr;
  std::vector<int32_t> tokens;  // committed tokens, and during a turn its delta and answer behind them
  std::vector<int32_t>
      table;  // blocks of positions [0, resident), and during a turn what was reserved behind them
  int64_t committed = 0;    // tokens outside any turn in progress
  int64_t resident = 0;     // leading tokens whose KV is in the cache
  int64_t computed = 0;     // leading tokens whose KV was in the cache at some time
  int64_t own_begin = 0;    // table entries from here on belong to this session alone (only during a turn)
  uint64_t request_id = 0;  // the turn in progress
  DraftIndex index;
  DraftRecord draft_record;
  BranchRecord branch_record;
  std::shared_ptr<const DraftSpans> spans;  // shared with forks
  uint64_t parent = 0;                      // session it was forked from
  std::vector<uint64_t> relatives;  // sessions that this turn drafts from too; closed ones are skipped
  int32_t row = -1;                 // batch row that last held the table
  int64_t row_synced = 0;           // leading table entries that row holds already
  int64_t row_sent = 0;             // leading table entries that the device's table of that row holds
  int64_t row_history = 0;          // leading tokens that the device's history of that row holds
};

}  // namespace skv
