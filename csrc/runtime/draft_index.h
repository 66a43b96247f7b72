// Incremental prompt lookup: what followed the last n tokens when they occurred before.
//
// The same meaning as the propose_drafts op: for n from max_ngram down to min_ngram, if the last n tokens
// occur earlier in the history (overlap allowed), propose what follows the latest (or earliest) such
// occurrence.
//
// Per n one table leads from a hash to the latest position where an n-gram of such a hash ended, and one link
// per position leads from there to the one before it (to the earliest, a proposal walks them all). Adding a
// token thus writes one slot per n, of 4 bytes, and one line of links, and looks at nothing that lies behind;
// a proposal compares tokens along the links, so a collision is never a wrong answer. Insertions in order
// make removals in reverse order trivial: rollback costs what it removes.
//
// A fork shares everything so far: layers are shared between copies, and whoever adds tokens to a shared
// layer puts a layer of its own on top. Layers are merged geometrically, so their number stays logarithmic.
// Who rolls back to less than half of a shared layer leaves it and indexes the rest anew.
//
// The index holds no tokens: every call gets the history that it was extended with. extend() that throws
// std::bad_alloc has changed nothing; truncate() needs no memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace skv {

class DraftIndex {
 public:
  static constexpr int kMaxNgram = 16;

  // Copying forks: both copies share what they have and go on separately.
  DraftIndex(int max_ngram, int min_ngram);

  int64_t length() const { return length_; }
  // history[0, length) is what was indexed before plus new tokens.
  void extend(const int32_t* history, int64_t length);
  // Forgets positions from `length` on; history still holds them.
  void truncate(const int32_t* history, int64_t length);
  // Writes at most k drafts and returns how many; history[0, length()) is the text so far. ngram: the length
  // of the n-gram that found them.
  int propose(const int32_t* history, int k, bool latest, int32_t* drafts, int* ngram = nullptr) const {
    return propose_for(history, history + length_, length_, min_ngram_, k, latest, drafts, ngram);
  }
  // The same for another text, of tail_length tokens before tail_end: what follows its last n tokens in this
  // one, for n down to `shortest`. Drafts end before a negative token, which parts texts that are indexed
  // together.
  int propose_for(const int32_t* history, const int32_t* tail_end, int64_t tail_length, int shortest, int k,
                  bool latest, int32_t* drafts, int* ngram) const;
  // Where tokens lie that followed earlier occurrences of such a text's end: of its last n tokens for the
  // longest n, latest first, then of shorter ones down to `shortest`, each place once. At most kVisits are
  // looked at, however often the text repeats itself. Returns how many; places[i] is below length().
  int occurrences(const int32_t* history, const int32_t* tail_end, int64_t tail_length, int shortest,
                  int64_t* places) const;
  static constexpr int kVisits = 32;

 private:
  struct Layer;
  struct View {
    std::shared_ptr<Layer> layer;
    int64_t limit;  // positions from here on belong to another copy's future
  };

  void push_layer(const int32_t* history, int64_t end);
  template <class Fn>
  void with_slots(Layer& layer, const int32_t* history, int64_t begin, int64_t end, Fn fn) const;
  void add(Layer& layer, const int32_t* history, int64_t begin, int64_t end) const;
  void cut(Layer& layer, const int32_t* history, int64_t limit) const;
  int64_t find(const int32_t* history, const int32_t* tail_end, int n, uint64_t hash, bool latest) const;

  int max_ngram_;
  int min_ngram_;
  int64_t length_ = 0;
  std::vector<View>
      views_;  // consecutive ranges of positions; the last one is extended when nobody shares it
};

}  // namespace skv
