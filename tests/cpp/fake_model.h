// A fake device and a fake model for tests of the runtime.
//
// The device is one array of KV slots; a step writes into a slot the token and a hash of the whole prefix up
// to it, so KV of another prefix, overwritten, never copied or never written is noticed by the next step that
// reads it. The model draws a token from that hash, so every answer can be recomputed from tokens alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "check.h"
#include "core/step.h"
#include "runtime/runtime.h"

namespace fake {

constexpr int32_t kVocab = 7;

inline uint64_t chain(uint64_t prefix_hash, int32_t token) {
  return (prefix_hash ^ (static_cast<uint64_t>(token) + 1)) * 0x9E3779B97F4A7C15ull + 0xD1B54A32D192ED03ull;
}

// Mostly a function of the last two tokens, so that drafts hit; sometimes of everything before.
inline int32_t draw(uint64_t prefix_hash, int32_t last, int32_t before_last) {
  if ((prefix_hash >> 33) % 4 == 0) return static_cast<int32_t>((prefix_hash >> 40) % kVocab);
  return (3 * last + 5 * before_last + 1) % kVocab;
}

inline int64_t pick(std::mt19937* random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(*random);
}

// Tokens of a turn: but for one in `one_in` a beginning that others have too, then up to `most` of its own.
inline std::vector<int32_t> random_delta(std::mt19937* random, int64_t one_in, int64_t most) {
  static const std::vector<std::vector<int32_t>> kShared = {
      {1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 3, 3}, {1, 2, 3, 4, 5}, {6, 6}};
  std::vector<int32_t> delta;
  if (pick(random, 1, one_in) > 1) delta = kShared[pick(random, 0, 2)];
  for (int64_t n = pick(random, 0, most); n > 0; --n)
    delta.push_back(static_cast<int32_t>(pick(random, 0, kVocab - 1)));
  return delta;
}

inline std::vector<int32_t> answer(std::vector<int32_t> tokens, int64_t max_tokens, int32_t stop) {
  uint64_t prefix_hash = 0;
  for (int32_t token : tokens) prefix_hash = chain(prefix_hash, token);
  std::vector<int32_t> out;
  while (static_cast<int64_t>(out.size()) < max_tokens && (out.empty() || out.back() != stop)) {
    const size_t n = tokens.size();
    out.push_back(draw(prefix_hash, tokens[n - 1], n > 1 ? tokens[n - 2] : 0));
    tokens.push_back(out.back());
    prefix_hash = chain(prefix_hash, out.back());
  }
  return out;
}

class Device {
 public:
  explicit Device(skv::Runtime* runtime)
      : runtime_(runtime),
        b_(runtime->buffers()),
        block_size_(runtime->options().block_size),
        rows_per_seq_(1 + runtime->options().num_drafts),
        slots_(runtime->options().num_blocks * block_size_) {}

  void run(const skv::StepInfo& info) {
    copy_blocks(info.num_copies);
    find_parents(info);
    std::set<int64_t> written;
    for (int64_t row = 0; row < info.num_seqs; ++row) append(row, &written);
    for (int64_t row = 0; row < info.num_seqs; ++row) verify(row);
  }

  // Of a step with trees: KV of accepted rows goes where its position is.
  void move(int64_t num_moves) {
    for (int64_t i = 0; i < num_moves; ++i) slots_.at(b_.move_dst[i]) = slots_.at(b_.move_src[i]);
  }

  bool step(std::vector<skv::Event>* events) {
    const auto info = runtime_->plan();
    if (!info) return false;
    run(*info);
    if (info->has_trees) move(runtime_->plan_moves());
    *events = runtime_->commit();
    return true;
  }

  // A step that the device takes by itself; what commit_ahead() takes of it.
  std::vector<int32_t> run_ahead(const skv::AheadInfo& info, int64_t max_rows) {
    const int64_t max_seqs = runtime_->options().max_seqs;
    const int64_t width = skv::kResultHeader + rows_per_seq_;
    copy_blocks(info.num_copies);
    ahead_.resize(max_seqs);
    std::vector<int32_t> results(max_seqs * width, 0);
    for (int64_t row = 0; row < max_seqs; ++row) {
      if (b_.ahead_request[row] != 0) step_ahead(row, max_rows, results.data() + row * width);
    }
    return results;
  }

 private:
  struct Slot {
    int32_t token = -7;
    uint64_t prefix_hash = 0;
  };

  // What the device knows of a row between the steps that it takes by itself.
  struct Ahead {
    std::vector<int32_t> tokens, table, stops;
    int64_t computed = 0;
    bool finished = false;
  };

  void copy_blocks(int64_t num_copies) {
    for (int64_t i = 0; i < num_copies; ++i) {
      for (int64_t j = 0; j < block_size_; ++j) {
        Slot& target = slots_.at(b_.copy_dst[i] * block_size_ + j);
        target = j < b_.copy_num_tokens[i] ? slots_.at(b_.copy_src[i] * block_size_ + j) : Slot{};
      }
    }
  }

  int64_t slot(int64_t row, int64_t position) const {
    const int64_t width = runtime_->options().max_blocks_per_seq;
    return b_.block_table[row * width + position / block_size_] * block_size_ + position % block_size_;
  }

  // Of every row the index within its sequence of the one before it, -1: the first.
  void find_parents(const skv::StepInfo& info) {
    parents_.assign(info.num_tokens, -1);
    for (int64_t row = 0; row < info.num_seqs; ++row) {
      const int64_t begin = b_.cu_seqlens_q[row], end = b_.cu_seqlens_q[row + 1];
      for (int64_t i = 0; begin + i < end; ++i) {
        int64_t parent = i - 1;
        auto sees = [&](int64_t j) {
          return b_.tree_mask[(begin + i) * skv::kTreeWords + j / 32] >> (j % 32) & 1;
        };
        while (info.has_trees && parent >= 0 && !sees(parent)) --parent;
        parents_[begin + i] = parent;
      }
    }
  }

  // Hash of a row's cached prefix, every slot of which must hold exactly that.
  template <class SlotOf>
  uint64_t hash_prefix(int64_t length, SlotOf slot_of) const {
    uint64_t prefix_hash = 0;
    for (int64_t position = 0; position < length; ++position) {
      const Slot& cached = slots_.at(slot_of(position));
      prefix_hash = chain(prefix_hash, cached.token);
      CHECK(cached.prefix_hash == prefix_hash);
    }
    return prefix_hash;
  }

  void append(int64_t row, std::set<int64_t>* written) {
    const int64_t begin = b_.cu_seqlens_q[row];
    const int64_t end = b_.cu_seqlens_q[row + 1];
    const int64_t start = b_.seqused_k[row] - (end - begin);
    const uint64_t before = hash_prefix(start, [&](int64_t position) { return slot(row, position); });
    std::vector<uint64_t> hashes;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t parent = parents_[i];
      const int64_t target = slot(row, start + i - begin);
      CHECK(b_.positions[i] == (parent < 0 ? start : b_.positions[begin + parent] + 1));
      hashes.push_back(chain(parent < 0 ? before : hashes[parent], b_.token_ids[i]));
      Slot& cached = slots_.at(target);
      if (b_.slot_mapping[i] < 0) {
        CHECK(cached.prefix_hash == hashes.back());
        continue;
      }
      CHECK(b_.slot_mapping[i] == target);
      CHECK(written->insert(target).second);
      cached = Slot{b_.token_ids[i], hashes.back()};
    }
  }

  void verify(int64_t row) {
    const int64_t begin = b_.cu_seqlens_q[row], first = b_.cu_rows[row], last = b_.cu_rows[row + 1];
    const int64_t start = b_.seqused_k[row] - (b_.cu_seqlens_q[row + 1] - begin);
    int32_t num = 0;
    for (int64_t i = first; i < last;) {
      const int64_t token_row = b_.logit_rows[i], parent = parents_[token_row];
      const int32_t before_last = parent >= 0 ? b_.token_ids[begin + parent]
                                  : start > 0 ? slots_.at(slot(row, start - 1)).token
                                              : 0;
      const Slot& cached = slots_.at(slot(row, start + token_row - begin));
      const int32_t token = draw(cached.prefix_hash, cached.token, before_last);
      b_.out_rows[row * rows_per_seq_ + num] = static_cast<int32_t>(i - first);
      b_.out_tokens[row * rows_per_seq_ + num++] = token;
      int64_t next = i + 1;
      while (next < last &&
             (parents_[b_.logit_rows[next]] != token_row - begin || b_.draft_tokens[next] != token)) {
        ++next;
      }
      i = next;
    }
    b_.out_num_tokens[row] = num;
  }

  // Drafts are what the model says where the prefix does not matter.
  void step_ahead(int64_t row, int64_t max_rows, int32_t* entry) {
    Ahead& state = ahead_[row];
    const int64_t width = runtime_->options().max_blocks_per_seq;
    const uint64_t request = static_cast<uint64_t>(b_.ahead_request[row]);
    if (b_.ahead_joins[row]) {
      state.tokens = runtime_->known_tokens(request);
      state.stops = runtime_->stop_tokens(request);
      state.computed = b_.ahead_computed[row];
      state.finished = false;
      CHECK(static_cast<int64_t>(state.tokens.size()) == b_.ahead_length[row]);
    }
    state.table.resize(b_.table_end[row]);
    std::copy(b_.block_table + row * width + b_.table_begin[row],
              b_.block_table + row * width + b_.table_end[row], state.table.begin() + b_.table_begin[row]);
    auto slot_of = [&](int64_t position) {
      return state.table.at(position / block_size_) * block_size_ + position % block_size_;
    };
    const int64_t length = static_cast<int64_t>(state.tokens.size());
    const int64_t start = std::min(state.computed, length - 1), pending = length - start;
    const int64_t slots = b_.ahead_slots[row];
    const int64_t rows = std::min({pending, slots - start, max_rows});
    if (state.finished || rows <= 0) return;
    const int64_t drafts = pending > 1 ? 0
                                       : std::max<int64_t>(0, std::min({int64_t{b_.ahead_drafts[row]},
                                                                        b_.ahead_max_length[row] - length - 1,
                                                                        slots - length, max_rows - 1}));
    std::vector<int32_t> fed = state.tokens;
    for (int64_t i = 0; i < drafts; ++i) {
      fed.push_back((3 * fed.back() + 5 * (fed.size() > 1 ? fed[fed.size() - 2] : 0) + 1) % kVocab);
    }
    uint64_t prefix_hash = hash_prefix(start, slot_of);
    entry[0] = static_cast<int32_t>(rows + drafts);
    entry[1] = static_cast<int32_t>(rows < pending ? 0 : 1 + drafts);
    int32_t num = 0;
    for (int64_t i = start; i < start + rows + drafts; ++i) {
      prefix_hash = chain(prefix_hash, fed[i]);
      if (i >= state.computed) slots_.at(slot_of(i)) = Slot{fed[i], prefix_hash};
      CHECK(slots_.at(slot_of(i)).prefix_hash == prefix_hash);
      // A draw behind a draft that was wrong is none.
      if (entry[1] == 0 || i < length - 1 || num != i - (length - 1)) continue;
      if (num > 0 && entry[skv::kResultHeader + num - 1] != fed[i]) continue;
      entry[skv::kResultHeader + num++] = draw(prefix_hash, fed[i], i > 0 ? fed[i - 1] : 0);
    }
    entry[2] = num;
    if (entry[1] == 0) {
      state.computed = std::max(state.computed, start + rows);
      return;
    }
    for (int32_t i = 0; i < num && !state.finished; ++i) {
      const int32_t token = entry[skv::kResultHeader + i];
      state.tokens.push_back(token);
      state.finished = std::find(state.stops.begin(), state.stops.end(), token) != state.stops.end() ||
                       static_cast<int64_t>(state.tokens.size()) >= b_.ahead_max_length[row];
    }
    const int64_t written = std::min<int64_t>(length + num - 1, static_cast<int64_t>(state.tokens.size()));
    state.computed = std::max(state.computed, written);
  }

  skv::Runtime* runtime_;
  const skv::StepBuffers& b_;
  int64_t block_size_;
  int64_t rows_per_seq_;
  std::vector<Slot> slots_;
  std::vector<int64_t> parents_;  // of the step's rows
  std::vector<Ahead> ahead_;      // per batch row
};

}  // namespace fake
