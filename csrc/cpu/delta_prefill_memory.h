// What a work item of delta_prefill keeps while it runs.
#pragma once
#include "attention_rows.h"
#include "attention_softmax.h"
#include "attention_tiles.h"
#include "delta_prefill_plan.h"

namespace skv::cpu::SKV_ISA {

constexpr int64_t kStreamRows = 16;  // of a KV head: up to here keys and values are taken as they lie
constexpr int64_t kTallScores = kStreamRows * kPackKeys;  // a group of keys as the matrix unit leaves them
static_assert(kTileKeys % kMicroColumns == 0 && kTileKeys % kPackKeys == 0);
static_assert(kMicroColumns % kPackKeys == 0);

// The memory of one item, carved out of the thread's scratch.
struct ItemMemory {
  uint32_t *q, *k, *v, *staging, *zeros;
  float *acc, *folded, *scores, *tall, *shrink, *sums;
  uint32_t* weights;
  RowState *state, *folded_state;
  int32_t *begin, *end;         // visible keys of every row, the same for all heads
  const char **keys, **values;  // of this tile and the next: kTileKeys of each
};

template <class Steps>
class Carver {
 public:
  // With base == nullptr it only counts.
  static int64_t carve(char* base, int64_t rows, int64_t heads, bool folds, bool streams,
                       const PackShape<Steps>& shape, ItemMemory& memory) {
    Carver c{base, 0};
    const int64_t block_rows = streams ? heads * rows : Steps::kBlockRows;
    const int64_t more_rows = Steps::kTiles && !streams ? 15 : 0;  // a tile of the matrix unit has 16
    c.take(memory.q, (heads * rows + more_rows) * shape.row_steps);
    const bool tall = Steps::kTiles && streams;
    c.take(memory.tall, tall ? 2 * kTallScores : 0);
    c.take(memory.k, tall ? 0 : (streams ? kMicroColumns : kTileKeys) * shape.row_steps);
    const int64_t value_keys = !streams ? kTileKeys : Steps::kTiles ? kMicroColumns : 0;
    c.take(memory.v, value_keys / Steps::kPerStep * shape.width);
    c.take(memory.staging, (Steps::kTiles ? 2 : 1) * kPackKeys * shape.row_steps);
    c.take(memory.zeros, streams ? shape.row_steps : 0);
    c.take(memory.acc, heads * rows * shape.width);
    c.take(memory.folded, folds ? heads * rows * shape.width : 0);
    c.take(memory.scores, block_rows * kTileKeys);
    c.take(memory.weights, block_rows * kTileKeys / Steps::kPerStep);
    c.take(memory.shrink, block_rows);
    c.take(memory.sums, streams || Steps::kTiles ? block_rows * shape.width : 0);
    c.take(memory.state, heads * rows);
    c.take(memory.folded_state, folds ? heads * rows : 0);
    c.take(memory.begin, rows);
    c.take(memory.end, rows);
    c.take(memory.keys, 2 * kTileKeys);
    c.take(memory.values, 2 * kTileKeys);
    return c.used_;
  }

 private:
  Carver(char* base, int64_t used) : base_(base), used_(used) {}
  template <class T>
  void take(T*& pointer, int64_t count) {
    if (base_ != nullptr) pointer = reinterpret_cast<T*>(base_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
  char* base_;
  int64_t used_;
};

}  // namespace skv::cpu::SKV_ISA
