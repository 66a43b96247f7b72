// A fake device and a fake model for tests of the runtime.
//
// The device is one array of KV slots; a step writes into a slot the token and a hash of the whole prefix up
// to it, so KV of another prefix, overwritten, never copied or never written is noticed by the next step that
// reads it. The model draws a token from that hash, so every answer can be recomputed from tokens alone.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "check.h"
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
    copy_blocks(info);
    std::set<int64_t> written;
    for (int64_t row = 0; row < info.num_seqs; ++row) append(row, &written);
    for (int64_t row = 0; row < info.num_seqs; ++row) verify(row);
  }

  bool step(std::vector<skv::Event>* events) {
    const auto info = runtime_->plan();
    if (!info) return false;
    run(*info);
    *events = runtime_->commit();
    return true;
  }

 private:
  struct Slot {
    int32_t token = -7;
    uint64_t prefix_hash = 0;
  };

  void copy_blocks(const skv::StepInfo& info) {
    for (int64_t i = 0; i < info.num_copies; ++i) {
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

  void append(int64_t row, std::set<int64_t>* written) {
    const int64_t begin = b_.cu_seqlens_q[row];
    const int64_t end = b_.cu_seqlens_q[row + 1];
    const int64_t start = b_.seqused_k[row] - (end - begin);
    uint64_t prefix_hash = 0;
    for (int64_t position = 0; position < start; ++position) {
      const Slot& cached = slots_.at(slot(row, position));
      prefix_hash = chain(prefix_hash, cached.token);
      CHECK(cached.prefix_hash == prefix_hash);
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t position = start + i - begin;
      CHECK(b_.positions[i] == position);
      prefix_hash = chain(prefix_hash, b_.token_ids[i]);
      Slot& cached = slots_.at(slot(row, position));
      if (b_.slot_mapping[i] < 0) {
        CHECK(cached.prefix_hash == prefix_hash);
        continue;
      }
      CHECK(b_.slot_mapping[i] == slot(row, position));
      CHECK(written->insert(b_.slot_mapping[i]).second);
      cached = Slot{b_.token_ids[i], prefix_hash};
    }
  }

  void verify(int64_t row) {
    int32_t num = 0;
    for (int32_t i = b_.cu_rows[row]; i < b_.cu_rows[row + 1]; ++i) {
      const int64_t position = b_.positions[b_.logit_rows[i]];
      const Slot& cached = slots_.at(slot(row, position));
      const int32_t token =
          draw(cached.prefix_hash, cached.token, position > 0 ? slots_.at(slot(row, position - 1)).token : 0);
      b_.out_tokens[row * rows_per_seq_ + num++] = token;
      if (i + 1 == b_.cu_rows[row + 1] || b_.draft_tokens[i + 1] != token) break;
    }
    b_.out_num_tokens[row] = num;
  }

  skv::Runtime* runtime_;
  const skv::StepBuffers& b_;
  int64_t block_size_;
  int64_t rows_per_seq_;
  std::vector<Slot> slots_;
};

}  // namespace fake
