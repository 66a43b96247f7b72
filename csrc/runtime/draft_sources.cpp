// What a session's answer may go on with, beside its own history: spans that its caller expects, and the
// conversations related to it. Part of Runtime.
//
// Related is the session it was forked from, and every session of the namespace that begins with the same
// block of tokens and thus shares a path of the radix tree; those that took turns latest are asked first. The
// source that knows the longest tail wins, the own history among equals; a single token of a relative says
// too little. Whatever is drafted is verified: sources change how long a turn takes, never what it says.
#include <algorithm>
#include <stdexcept>

#include "runtime.h"

namespace skv {
namespace {

constexpr size_t kRecent = 64;  // sessions of a namespace that relatives are looked for among
constexpr int kRelativesNgram = 2;
constexpr int kBranchNgram = 2;  // least that the context of another continuation has in common with ours

// Behind a token that ends the answer nothing is drawn. A tree gives those rows to branches; chains are as
// long as the device makes them.
int up_to_stop(const std::vector<int32_t>& stops, const int32_t* tokens, int num_tokens) {
  for (int i = 0; i < num_tokens; ++i) {
    if (std::find(stops.begin(), stops.end(), tokens[i]) != stops.end()) return i + 1;
  }
  return num_tokens;
}

}  // namespace

void Runtime::set_spans(uint64_t session, const std::vector<std::vector<int32_t>>& spans) {
  Sequence& seq = get_idle(session, "set_spans");
  auto made = std::make_shared<DraftSpans>(DraftSpans{{}, DraftIndex(options_.max_ngram, 1)});
  for (const std::vector<int32_t>& span : spans) {
    made->tokens.insert(made->tokens.end(), span.begin(), span.end());
    made->tokens.push_back(-1);
  }
  made->index.extend(made->tokens.data(), static_cast<int64_t>(made->tokens.size()));
  seq.spans = spans.empty() ? nullptr : std::move(made);
}

Sequence* Runtime::find_open(uint64_t session) const {
  const uint32_t slot = static_cast<uint32_t>(session);
  Sequence* seq = slot < sequences_.size() ? sequences_[slot].get() : nullptr;
  return seq && seq->handle == session ? seq : nullptr;
}

bool Runtime::is_related(const Sequence& a, const Sequence& b) const {
  const int64_t n = options_.block_size;
  return std::min(a.tokens.size(), b.tokens.size()) >= static_cast<size_t>(n) &&
         std::equal(a.tokens.begin(), a.tokens.begin() + n, b.tokens.begin());
}

// What find_relatives() will write.
void Runtime::reserve_relatives(Sequence& seq) {
  seq.root->recent.reserve(kRecent);
  seq.relatives.reserve(std::min<size_t>(options_.num_relatives, 1 + kRecent));
}

// Once a turn, so that a step asks a handful of sessions at most.
void Runtime::find_relatives(Sequence& seq) {
  std::vector<uint64_t>& recent = seq.root->recent;
  recent.erase(std::remove_if(recent.begin(), recent.end(),
                              [&](uint64_t id) { return id == seq.handle || !find_open(id); }),
               recent.end());
  if (recent.size() >= kRecent) recent.erase(recent.begin());
  seq.relatives.clear();
  if (find_open(seq.parent)) seq.relatives.push_back(seq.parent);
  for (auto it = recent.rbegin(); it != recent.rend(); ++it) {
    if (static_cast<int>(seq.relatives.size()) >= options_.num_relatives) break;
    if (*it != seq.parent && is_related(seq, *find_open(*it))) seq.relatives.push_back(*it);
  }
  recent.push_back(seq.handle);
}

// Drafts for a decoding request: as many as pay. found: where they come from.
int64_t Runtime::propose(Request& request, int64_t most, Step* found) {
  Sequence& seq = *request.seq;
  const int k = static_cast<int>(most);
  int32_t* drafts = request.drafts.data();
  const int32_t* end = seq.tokens.data() + request.known();
  seq.index.extend(seq.tokens.data(), request.known());
  int offered = seq.index.propose(seq.tokens.data(), k, options_.latest, drafts, &found->ngram);
  auto ask = [&](const DraftIndex& index, const int32_t* text, int shortest, DraftSource source) {
    const int more = index.propose_for(text, end, request.known(), std::max(shortest, found->ngram + 1), k,
                                       options_.latest, drafts, &found->ngram);
    if (more == 0) return;
    offered = more;
    found->source = source;
  };
  if (seq.spans) ask(seq.spans->index, seq.spans->tokens.data(), 1, DraftSource::kSpans);
  for (uint64_t id : seq.relatives) {
    Sequence* other = found->ngram < options_.max_ngram ? find_open(id) : nullptr;
    if (!other) continue;
    // What it said since its own last proposal is indexed now instead of then.
    other->index.extend(other->tokens.data(), static_cast<int64_t>(other->tokens.size()));
    ask(other->index, other->tokens.data(), kRelativesNgram, DraftSource::kRelatives);
  }
  if (offered == 0) return 0;
  if (options_.num_branches > 0) {
    offered = up_to_stop(request.params.stop_token_ids, drafts, offered);
    offered = grow_tree(request, offered, k, *found);
    found->has_candidates = true;
  }
  const int kind = draft_kind(found->source, found->ngram);
  const int64_t length = found->trunk = draft_length_.choose(&seq.draft_record, kind, offered);
  return found->has_candidates && length > 0 ? choose_branches(request, length, most, found) : length;
}

// What else may follow, merged with the chain that was found: other places of the conversation where its last
// tokens occurred, then the other sources. Returns the chain's length, which goes on where another
// continuation goes on behind its end.
int Runtime::grow_tree(Request& request, int offered, int most, const Step& found) {
  Sequence& seq = *request.seq;
  DraftTree& tree = request.tree;
  tree.clear(most);
  tree.add(request.drafts.data(), offered);
  const int32_t* end = seq.tokens.data() + request.known();
  int left = options_.num_branches;
  auto ask = [&](const DraftIndex& index, const int32_t* text, int shortest) {
    int64_t places[DraftIndex::kVisits];
    const int num = index.occurrences(text, end, request.known(), shortest, places);
    for (int i = 0; i < num && left > 0; ++i) {
      const int32_t* from = text + places[i];
      const int32_t* to = std::find_if(from, from + std::min<int64_t>(most, index.length() - places[i]),
                                       [](int32_t token) { return token < 0; });
      const int num_tokens = up_to_stop(request.params.stop_token_ids, from, static_cast<int>(to - from));
      left -= tree.add(from, num_tokens);
    }
  };
  const int shortest = std::min(kBranchNgram, found.ngram);
  ask(seq.index, seq.tokens.data(), shortest);
  if (seq.spans) ask(seq.spans->index, seq.spans->tokens.data(), shortest);
  for (uint64_t id : seq.relatives) {
    Sequence* other = left > 0 ? find_open(id) : nullptr;
    if (!other) continue;
    other->index.extend(other->tokens.data(), static_cast<int64_t>(other->tokens.size()));
    ask(other->index, other->tokens.data(), kRelativesNgram);
  }
  const int chain = tree.chain_length();
  for (int i = offered; i < chain; ++i) request.drafts[i] = tree[i + 1].token;
  return std::max(offered, chain);
}

// The drafts of a tree, where one is expected to bring more than a chain of as many rows; else the chain.
// They may be one path all the same, along another continuation than the first.
int64_t Runtime::choose_branches(Request& request, int64_t length, int64_t most, Step* found) {
  const DraftTree& tree = request.tree;
  int nodes[kTreeRows];
  const int num = branch_model_.choose(request.seq->branch_record, draft_kind(found->source, found->ngram),
                                       tree, static_cast<int>(most), draft_length_.worth(), nodes);
  if (num == 0) return length;
  int row_of[DraftTree::kMaxNodes];
  row_of[0] = 0;
  found->trunk = 0;
  for (int i = 0; i < num; ++i) {
    row_of[nodes[i]] = i + 1;
    request.drafts[i] = tree[nodes[i]].token;
    request.parents[i] = row_of[tree[nodes[i]].parent];
    if (nodes[i] == i + 1 && i < tree.chain_length()) found->trunk = i + 1;
    found->is_tree |= request.parents[i] != i;
  }
  return num;
}

}  // namespace skv
