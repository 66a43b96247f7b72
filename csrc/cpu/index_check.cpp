#include "index_check.h"

#include <string>
#include <vector>

#include "../core/backend.h"
#include "../core/step.h"

namespace skv::cpu {

namespace {

// cu[0] >= 0, never falling, cu[n] <= limit.
void check_cumulative(const char* arg, const int32_t* cu, int64_t n, int64_t limit) {
  for (int64_t i = 0; i <= n; ++i) {
    const int64_t least = i == 0 ? 0 : cu[i - 1];
    if (cu[i] < least) throw_index_error(arg, i, cu[i], "at least", least);
    if (cu[i] > limit) throw_index_error(arg, i, cu[i], "at most", limit);
  }
}

}  // namespace

void check_indices(const CopyBlocksParams& p) {
  const int64_t num_blocks = p.cache.num_blocks;
  std::vector<bool> is_src(static_cast<size_t>(num_blocks)), is_dst(static_cast<size_t>(num_blocks));
  for (int64_t i = 0; i < p.num_copies; ++i) {
    const int32_t src = p.src_blocks[i], dst = p.dst_blocks[i];
    if (src >= num_blocks)
      throw_index_error("src_blocks", i, src, "a negative block id or one below", num_blocks);
    if (dst >= num_blocks)
      throw_index_error("dst_blocks", i, dst, "a negative block id or one below", num_blocks);
    if (src < 0 || dst < 0) continue;
    if (p.num_tokens && (p.num_tokens[i] < 0 || p.num_tokens[i] > p.cache.block_size)) {
      throw_index_error("num_tokens", i, p.num_tokens[i], "0 to", p.cache.block_size);
    }
    if (is_dst[static_cast<size_t>(dst)]) {
      throw IndexError("dst_blocks[" + std::to_string(i) + "] is " + std::to_string(dst) +
                       ", which an earlier entry names too; expected distinct blocks");
    }
    is_dst[static_cast<size_t>(dst)] = true;
    is_src[static_cast<size_t>(src)] = true;
  }
  for (int64_t i = 0; i < p.num_copies; ++i) {
    if (p.src_blocks[i] < 0 || p.dst_blocks[i] < 0 || !is_src[static_cast<size_t>(p.dst_blocks[i])]) continue;
    throw IndexError("dst_blocks[" + std::to_string(i) + "] is " + std::to_string(p.dst_blocks[i]) +
                     ", which is a block of src_blocks; expected no block to be both");
  }
}

void check_indices(const CompactKvParams& p) {
  const int64_t num_slots = p.cache.num_blocks * p.cache.block_size;
  check_cumulative("cu_moves", p.cu_moves, p.batch, p.num_moves);
  for (int64_t i = p.cu_moves[0]; i < p.cu_moves[p.batch]; ++i) {
    for (auto [arg, slots] : {std::pair{"src_slots", p.src_slots}, {"dst_slots", p.dst_slots}}) {
      if (slots[i] >= num_slots)
        throw_index_error(arg, i, slots[i], "a negative slot or one below", num_slots);
    }
  }
}

void check_indices(const VerifyDraftsParams& p) {
  check_cumulative("cu_rows", p.cu_rows, p.batch, p.total_rows);
  std::vector<int64_t> depth;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t start = p.cu_rows[b], rows = p.cu_rows[b + 1] - start;
    if (p.parents == nullptr) {
      if (rows > p.max_rows) throw_index_error("cu_rows", b + 1, start + rows, "at most", start + p.max_rows);
      continue;
    }
    depth.assign(static_cast<size_t>(rows), 1);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t parent = p.parents[start + r];
      if (r == 0 ? parent != -1 : (parent < 0 || parent >= r)) {
        throw_index_error("parents", start + r, parent, r == 0 ? "exactly" : "0 to", r - 1);
      }
      if (r > 0) depth[static_cast<size_t>(r)] = depth[static_cast<size_t>(parent)] + 1;
      if (depth[static_cast<size_t>(r)] > p.max_rows) {
        throw_index_error("parents", start + r, parent,
                          "a path of rows no longer than max_rows =", p.max_rows);
      }
    }
  }
}

void check_indices(const ProposeDraftsParams& p) {
  for (int64_t b = 0; b < p.batch; ++b) {
    if (p.history_lens[b] < 0 || p.history_lens[b] > p.max_history) {
      throw_index_error("history_lens", b, p.history_lens[b], "0 to", p.max_history);
    }
  }
}

namespace {

// What plan_step and commit_step take for granted of a sequence.
template <class Params>
void check_lengths(const Params& p, int64_t b) {
  auto within = [&](const char* arg, int64_t value, int64_t limit) {
    if (value < 0 || value > limit) throw_index_error(arg, b, value, "0 to", limit);
  };
  within("lengths", p.lengths[b], p.max_history);
  within("computed", p.computed[b], p.lengths[b]);
  within("max_lengths", p.max_lengths[b], p.max_history);
}

}  // namespace

void check_indices(const PlanStepParams& p) {
  for (int64_t b = 0; b < p.batch; ++b) {
    check_lengths(p, b);
    const int64_t slots = p.num_slots[b];
    if (slots < 0 || slots > p.max_blocks * p.block_size) {
      throw_index_error("num_slots", b, slots, "0 to", p.max_blocks * p.block_size);
    }
    if (p.num_drafts[b] < 0 || p.num_drafts[b] > p.max_drafts) {
      throw_index_error("num_drafts", b, p.num_drafts[b], "0 to", p.max_drafts);
    }
    const StepWish wish = step_wish(p, b, p.lengths[b], p.computed[b]);
    const int32_t* table = p.block_table + b * p.block_table_stride;
    const int64_t end = wish.rows > 0 ? wish.start + wish.rows : 0;
    for (int64_t i = p.computed[b] / p.block_size; i * p.block_size < end; ++i) {
      if (table[i] < 0) {
        throw_index_error("block_table", b * p.max_blocks + i, table[i], "a block, which is at least", 0);
      }
    }
  }
}

void check_indices(const CommitStepParams& p) {
  check_cumulative("cu_seqlens_q", p.cu_seqlens_q, p.batch, INT32_MAX);
  check_cumulative("cu_rows", p.cu_rows, p.batch, INT32_MAX);
  if (p.step[0] < 0) throw_index_error("step", 0, p.step[0], "at least", 0);
  for (int64_t b = 0; b < p.batch; ++b) {
    check_lengths(p, b);
    const int64_t rows = p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b], logits = p.cu_rows[b + 1] - p.cu_rows[b];
    if (logits > step_least(rows, p.max_rows)) {
      throw_index_error("cu_rows", b + 1, p.cu_rows[b + 1], "at most",
                        p.cu_rows[b] + step_least(rows, p.max_rows));
    }
    if (rows > 0 && p.lengths[b] == 0)
      throw_index_error("lengths", b, 0, "of a sequence with rows at least", 1);
    // Rows are what is pending, with drafts behind it where there are logits.
    const int64_t start = step_least(p.computed[b], p.lengths[b] - 1);
    const int64_t most = rows == 0 ? 0 : p.lengths[b] - start + (logits > 0 ? logits - 1 : 0);
    if (rows > most) {
      throw_index_error("cu_seqlens_q", b + 1, p.cu_seqlens_q[b + 1], "at most", p.cu_seqlens_q[b] + most);
    }
    if (logits > 0 && (p.num_tokens[b] < 0 || p.num_tokens[b] > logits)) {
      throw_index_error("num_tokens", b, p.num_tokens[b], "0 to", logits);
    }
  }
}

}  // namespace skv::cpu
