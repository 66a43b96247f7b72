// The draw of one row: temperature, top_k, top_p, min_p, then the Gumbel-max over what is kept.
//
// Nothing is sorted and no probabilities are written out for the vocabulary. Every filter is a cut on the
// logits themselves: kept are the tokens above `value`, and of those at `value` the ones up to `last_id`.
// Without top_k and top_p the draw is one pass over the row; with them the few tokens that can be kept are
// gathered first.
#pragma once
#include <new>

#include "logits_row.h"

namespace skv::cpu::SKV_ISA {

struct SampleSettings {
  float temperature;  // above 0
  int32_t top_k;      // <= 0 = off
  float top_p;        // >= 1 = off
  float min_p;        // <= 0 = off
  uint64_t seed, position;
};

// Memory of one thread, taken at the first row that needs it.
class SampleScratch {
 public:
  SampleScratch() = default;
  SampleScratch(const SampleScratch&) = delete;
  ~SampleScratch() { ::operator delete(memory_); }

  // Room for n candidates and the vector that a last partial one is padded to.
  void reserve(int64_t n) {
    if (memory_) return;
    const size_t room = static_cast<size_t>(n) + 4 * kLanes;
    memory_ = ::operator new(room * 12);
    values = static_cast<float*>(memory_);
    weights = values + room;
    ids = reinterpret_cast<int32_t*>(weights + room);
  }

  float* values = nullptr;
  float* weights = nullptr;
  int32_t* ids = nullptr;

 private:
  void* memory_ = nullptr;
};

struct Cut {
  float value = -kInfinity;
  int32_t last_id = INT32_MAX;

  void raise_to(float v) {
    if (v > value) *this = {v, INT32_MAX};
  }
  bool keeps(float x, int32_t id) const { return x > value || (x == value && id <= last_id); }
};

// Moves the k largest of x[0 .. n) to the front and returns the smallest of them. 1 <= k <= n, no NaN.
inline float select_largest(float* x, int64_t n, int64_t k) {
  int64_t low = 0, high = n - 1;
  while (low < high) {
    const float a = x[low], b = x[low + (high - low) / 2], c = x[high];
    const float pivot = a < b ? (b < c ? b : (a < c ? c : a)) : (a < c ? a : (b < c ? c : b));  // median
    int64_t i = low, j = high;
    while (i <= j) {
      while (x[i] > pivot) ++i;
      while (x[j] < pivot) --j;
      if (i > j) break;
      const float kept = x[i];
      x[i++] = x[j];
      x[j--] = kept;
    }
    if (k - 1 <= j) {
      high = j;
    } else if (k - 1 >= i) {
      low = i;
    } else {
      break;
    }
  }
  float least = x[0];
  for (int64_t i = 1; i < k; ++i) least = x[i] < least ? x[i] : least;
  return least;
}

template <class T>
class RowSampler {
 public:
  RowSampler(const LogitsRow<T>& row, const SampleSettings& settings, SampleScratch& scratch)
      : row_(row), s_(settings), scratch_(scratch) {
    if (s_.temperature > 1e30f) s_.temperature = 1e30f;  // keeps -infinity / temperature what it is
  }

  int64_t draw() {
    const int64_t first = row_.argmax(&largest_);
    if (first < 0 || largest_ == kInfinity || largest_ == -kInfinity) return first;
    const bool by_rank = s_.top_k > 0 && s_.top_k < row_.vocab, by_mass = s_.top_p < 1.0f;
    Cut cut;
    if (by_rank) cut.value = kth_largest(s_.top_k);
    if (by_mass) {
      double total = 0;
      if (!by_rank) {
        total = row_.sum_exp(largest_, s_.temperature);
        cut.value = least_nucleus_logit(total);
      }
      gather(cut.value);
      weigh();
      if (by_rank) {
        for (int64_t i = 0; i < count_; ++i) total += static_cast<double>(scratch_.weights[i]);
      }
      cut = nucleus(static_cast<double>(s_.top_p) * total);
    } else if (by_rank) {
      gather(cut.value);
    }
    if (s_.min_p > 0.0f) cut.raise_to(least_min_p_logit());
    return by_rank || by_mass ? draw_candidates(cut) : draw_row(cut);
  }

 private:
  // The k-th largest logit (-infinity if fewer are above it): candidates above a rising bar, thinned to k
  // when the buffer is full.
  float kth_largest(int64_t k) {
    scratch_.reserve(row_.vocab);
    float* x = scratch_.values;
    const int64_t room = row_.vocab < 2 * k + 1024 ? row_.vocab : 2 * k + 1024;
    int64_t n = 0;
    float bar = -kInfinity;
    row_.for_each_block([&](int64_t, const Vec* v) {
      for (int j = 0; j < 4; ++j) {
        uint32_t bits = gt_bits(v[j], splat(bar));
        if (__builtin_expect(bits == 0, 1)) continue;
        alignas(64) float lane[kLanes];
        store(lane, v[j]);
        for (; bits; bits &= bits - 1) x[n++] = lane[__builtin_ctz(bits)];
        if (n < room) continue;
        bar = select_largest(x, n, k);
        n = k;
      }
    });
    return n < k ? -kInfinity : select_largest(x, n, k);
  }

  // Tokens of less than (1 - top_p) / vocab together weigh less than 1 - top_p, so none of them is needed to
  // reach top_p. A factor of two for rounding.
  float least_nucleus_logit(double total) const {
    const double top_p = s_.top_p > 0.0f ? static_cast<double>(s_.top_p) : 0.0;
    const double weight = total * (1.0 - top_p) / static_cast<double>(row_.vocab) / 2;
    if (!(weight > 0)) return -kInfinity;
    return static_cast<float>(static_cast<double>(largest_) +
                              static_cast<double>(s_.temperature) * __builtin_log(weight));
  }

  float least_min_p_logit() const {
    const double ratio = s_.min_p < 1.0f ? static_cast<double>(s_.min_p) : 1.0;
    return static_cast<float>(static_cast<double>(largest_) +
                              static_cast<double>(s_.temperature) * __builtin_log(ratio));
  }

  // Logits of at least `bar` (above -infinity) and their tokens, ascending.
  void gather(float bar) {
    scratch_.reserve(row_.vocab);
    const Vec lowest = splat(bar > -3.4028235e38f ? bar : -3.4028235e38f);
    count_ = 0;
    row_.for_each_block([&](int64_t i, const Vec* v) {
      for (int j = 0; j < 4; ++j) {
        uint32_t bits = ge_bits(v[j], lowest);
        if (__builtin_expect(bits == 0, 1)) continue;
        alignas(64) float lane[kLanes];
        store(lane, v[j]);
        for (; bits; bits &= bits - 1) {
          const int k = __builtin_ctz(bits);
          scratch_.values[count_] = lane[k];
          scratch_.ids[count_++] = static_cast<int32_t>(i + j * kLanes + k);
        }
      }
    });
    for (int64_t i = count_; i < count_ + kLanes; ++i) {  // what fills the last vector is never drawn
      scratch_.values[i] = -kInfinity;
      scratch_.ids[i] = 0;
    }
  }

  void weigh() {
    for (int64_t i = 0; i < count_; i += kLanes) {
      const Vec distance = sub(load(scratch_.values + i), splat(largest_));
      store(scratch_.weights + i, exp_of(div(distance, splat(s_.temperature))));
    }
  }

  // Unsigned order of the result = order of x; -0 is 0.
  static uint32_t order_of(float x) {
    const uint32_t u = bits_of(x + 0.0f);
    return u >> 31 ? ~u : u | 0x80000000u;
  }

  // The smallest set of candidates (logit descending, id ascending) whose weights reach `target`: a radix
  // search over the bits of the logits, eleven at a time, for the value at which the sum crosses it.
  Cut nucleus(double target) const {
    constexpr int kShifts[] = {21, 10, 0}, kBits[] = {11, 11, 10};
    uint32_t prefix = 0;
    double above = 0;
    for (int level = 0; level < 3; ++level) {
      const uint32_t bins = 1u << kBits[level];
      const int shift = kShifts[level], prefix_shift = shift + kBits[level];
      double mass[2048] = {};
      bool used[2048] = {};
      for (int64_t i = 0; i < count_; ++i) {
        const uint32_t order = order_of(scratch_.values[i]);
        if (level > 0 && order >> prefix_shift != prefix) continue;
        const uint32_t bin = order >> shift & (bins - 1);
        mass[bin] += static_cast<double>(scratch_.weights[i]);
        used[bin] = true;
      }
      // Where rounding leaves the sum short of the target, the last bin in use crosses it.
      uint32_t crossing = 0;
      double before = above;
      for (uint32_t bin = bins; bin-- > 0;) {
        if (!used[bin]) continue;
        crossing = bin;
        before = above;
        above += mass[bin];
        if (above >= target) break;
      }
      above = before;
      prefix = prefix << kBits[level] | crossing;
    }
    Cut cut;
    for (int64_t i = 0; i < count_; ++i) {  // of equal logits the lowest ids
      if (order_of(scratch_.values[i]) != prefix) continue;
      cut = {scratch_.values[i], scratch_.ids[i]};
      above += static_cast<double>(scratch_.weights[i]);
      if (above >= target) break;
    }
    return cut;
  }

  int64_t draw_candidates(const Cut& cut) const {
    float best = -kInfinity;
    int64_t token = -1;
    const Vec top = splat(largest_), divisor = splat(s_.temperature);
    for (int64_t i = 0; i < count_; i += kLanes) {
      const Vec x = load(scratch_.values + i);
      const Vec score = div(sub(x, top), divisor);
      if (ge_bits(x, splat(cut.value)) == 0) continue;
      if (gt_bits(add(score, splat(kMaxGumbel)), splat(best)) == 0) continue;
      alignas(64) float lane[kLanes];
      store(lane, add(score, gumbel_of_tokens(s_.seed, s_.position, scratch_.ids + i)));
      for (int64_t j = 0; j < kLanes; ++j) {
        if (lane[j] > best && cut.keeps(scratch_.values[i + j], scratch_.ids[i + j])) {
          best = lane[j];
          token = scratch_.ids[i + j];
        }
      }
    }
    return token;
  }

  int64_t draw_row(const Cut& cut) const {  // cut.last_id is not in use
    float best = -kInfinity;
    int64_t token = -1;
    const Vec top = splat(largest_), divisor = splat(s_.temperature), lowest = splat(cut.value);
    row_.for_each_block([&](int64_t i, const Vec* x) {
      Vec score[4];
      for (int j = 0; j < 4; ++j) {
        score[j] = select(div(sub(x[j], top), divisor), splat(-kInfinity), ge_bits(x[j], lowest));
      }
      const Vec highest = max(max(score[0], score[1]), max(score[2], score[3]));
      if (gt_bits(add(highest, splat(kMaxGumbel)), splat(best)) == 0) return;
      UVec words[4];
      words_of_block(s_.seed, s_.position, static_cast<uint32_t>(i), words);
      // A noise above g needs -log(u) < exp(-g), hence 1 - u < exp(-g): most blocks are out without a
      // logarithm.
      const Vec limit =
          splat(4.2992e9f * __builtin_expf(max_of(highest) - best) + 1.0f);  // 2^32 and some slack
      for (int j = 0; j < 4; ++j) {
        if (gt_bits(limit, to_vec(u_xor(words[j], u_splat(0xffffffffu)))) == 0) continue;
        const Vec noisy = add(score[j], gumbel_of_words(words[j]));
        if (__builtin_expect(gt_bits(noisy, splat(best)) == 0, 1)) continue;
        alignas(64) float lane[kLanes];
        store(lane, noisy);
        for (int k = 0; k < kLanes; ++k) {
          if (lane[k] > best) {
            best = lane[k];
            token = i + j * kLanes + k;
          }
        }
      }
    });
    return token;
  }

  LogitsRow<T> row_;
  SampleSettings s_;
  SampleScratch& scratch_;
  float largest_ = 0;
  int64_t count_ = 0;
};

}  // namespace skv::cpu::SKV_ISA
