// verify_drafts: a row of padding, then three sequences of 3, 0 and 2 rows; rows split over CTAs and not,
// chains and trees, greedy, sampled and cut, with and without a mask of allowed tokens; cut rows that their
// short list settles, that it cannot hold, and that keep more than it holds.
#include "fewer_types.h"

#include "verify_drafts.cu"

#include <numeric>

#include "small.h"

namespace {

using namespace skv;
using small::Buffer;

constexpr int kBatch = 3, kRows = 6, kMaxRows = 4;
const int kCuRows[kBatch + 1] = {1, 4, 4, 6};
const int kParents[kRows] = {-1, -1, 0, 0, -1, 0};  // the first sequence branches

const float kTemperature[kBatch] = {50.f, 1.f, 2.f};

struct Options {
  int vocab, shift;
  bool tree, masked, sampled, cut;
  int seed = 1000, top_k = 3;         // of the first sequence
  uint32_t levels = 4000;             // different logits
  float top_p = 0.6f, min_p = 0.05f;  // of the last sequence
};

// Beside a top_k of 3 it leaves one or two tokens of the first sequence.
float min_p_of(const Options& o, int b) { return b == 2 ? o.min_p : b == 0 && o.top_k == 3 ? 0.999f : 0.f; }
float top_p_of(const Options& o, int b) { return b == 2 ? o.top_p : 1.f; }

struct Draw {
  int token;
  float logprob;
};

// What verify_drafts promises of one row, sorted and added up the plain way.
Draw draw_row(const std::vector<float>& x, const std::vector<bool>& allowed, const Options& o, int b,
              int depth) {
  std::vector<int> ids;
  double sum = 0, largest = -INFINITY;
  for (float v : x) largest = std::max(largest, double(v));
  for (float v : x) sum += std::exp(v - largest);
  for (int i = 0; i < o.vocab; ++i) {
    if (allowed[i]) ids.push_back(i);
  }
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int c) { return x[a] > x[c]; });
  if (ids.empty()) return {-1, NAN};
  int token = ids[0];
  if (o.sampled) {
    const float temperature = kTemperature[b];
    const size_t top_k = o.cut && b == 0 ? size_t(o.top_k) : ids.size();
    const double top_p = o.cut ? top_p_of(o, b) : 1, min_p = o.cut ? min_p_of(o, b) : 0;
    const double top = x[ids[0]];
    const auto weight = [&](int i) { return std::exp((x[i] - top) / temperature); };
    double total = 0, before = 0;
    float best = -INFINITY;
    size_t end = std::min(top_k, ids.size());
    while (end < ids.size() && x[ids[end]] == x[ids[end - 1]]) ++end;
    for (size_t i = 0; i < end; ++i) total += weight(ids[i]);
    for (size_t i = 0; i < end; ++i) {
      const int id = ids[i];
      if (before > 0 && before >= top_p * total) break;
      before += weight(id);
      if (weight(id) < min_p) continue;
      const PhiloxWords w = philox(uint64_t(o.seed + b), uint32_t(id) / 4, uint64_t(50 + b + depth));
      const uint32_t words[4] = {w.x, w.y, w.z, w.w};
      const float score = x[id] * (1.f / temperature) + gumbel_of_word(words[id % 4]);
      if (score > best || (score == best && id < token)) best = score, token = id;
    }
  }
  return {token, float(x[token] - largest - std::log(sum))};
}

template <class T>
void verify(DType dtype, const Options& o) {
  const int stride = (o.vocab + 15) / 8 * 8 + 8, words = (o.vocab + 31) / 32;
  Buffer<T> logits((kRows - 1) * stride + o.vocab + o.shift);
  Buffer<int32_t> bitmask(kRows * (words + 1)), draft_tokens(8), cu_rows(4), parents(8), top_k(4);
  Buffer<float> temperature(4), top_p(4), min_p(4);
  Buffer<int64_t> seeds(4), positions(4);
  Buffer<int32_t> tokens(kBatch * 8, 55), rows(kBatch * 8, 55), num_tokens(4, 55);
  Buffer<float> logprobs(kBatch * 8, 55.f);
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = T(float(int(small::hash(uint32_t(i)) % o.levels)) * 13.f / float(o.levels));
  logits[o.shift + 2 * stride + 7] = T(NAN);
  for (size_t i = 0; i < bitmask.size(); ++i) bitmask[i] = int32_t(small::hash(uint32_t(i) + 5));
  for (int row : {2, 4}) std::fill_n(bitmask.data() + row * (words + 1), words + 1, 0);  // may draw nothing
  for (int b = 0; b < kBatch; ++b) {
    temperature[b] = kTemperature[b];
    top_k[b] = b == 0 ? o.top_k : 0;
    top_p[b] = top_p_of(o, b);
    min_p[b] = min_p_of(o, b);
    seeds[b] = o.seed + b;
    positions[b] = 50 + b;
  }
  std::copy(kCuRows, kCuRows + kBatch + 1, cu_rows.data());
  std::copy(kParents, kParents + kRows, parents.data());

  std::vector<Draw> draws(kRows, Draw{-1, NAN});
  for (int b = 0; b < kBatch; ++b) {
    for (int r = kCuRows[b]; r < kCuRows[b + 1]; ++r) {
      std::vector<float> x(o.vocab);
      std::vector<bool> allowed(o.vocab, true);
      int depth = r - kCuRows[b];
      if (o.tree) depth = depth > 0;
      for (int i = 0; i < o.vocab; ++i) {
        x[i] = float(logits[o.shift + r * stride + i]);
        if (x[i] != x[i]) x[i] = -INFINITY;
        if (o.masked) allowed[i] = bitmask[r * (words + 1) + i / 32] >> (i % 32) & 1;
      }
      draws[r] = draw_row(x, allowed, o, b, depth);
    }
  }
  // Drafts: the last of the first sequence is right, the middle one only in a chain; that of the other
  // sequence only in a tree.
  small::set(draft_tokens,
             {0, 0, o.tree ? -7 : draws[1].token, draws[o.tree ? 1 : 2].token, 0, draws[4].token + !o.tree});

  VerifyDraftsParams p{};
  p.tokens = tokens.data();
  p.num_tokens = num_tokens.data();
  p.rows = rows.data();
  p.logprobs = logprobs.data();
  p.tokens_stride = 8;
  p.rows_stride = 7;
  p.logprobs_stride = 6;
  p.max_rows = kMaxRows;
  p.logits = logits.data() + o.shift;
  p.logits_stride = stride;
  p.dtype = dtype;
  p.total_rows = kRows;
  p.vocab = o.vocab;
  p.batch = kBatch;
  p.draft_tokens = draft_tokens.data();
  p.cu_rows = cu_rows.data();
  p.parents = o.tree ? parents.data() : nullptr;
  if (o.sampled) p.temperature = temperature.data(), p.seeds = seeds.data(), p.positions = positions.data();
  if (o.cut) p.top_k = top_k.data(), p.top_p = top_p.data(), p.min_p = min_p.data();
  if (o.masked) p.token_bitmask = bitmask.data(), p.bitmask_stride = words + 1;
  p.workspace_size = cuda::verify_drafts_workspace(kRows, kBatch);
  Buffer<uint64_t> workspace(size_t(p.workspace_size + 7) / 8);
  p.workspace = workspace.data();
  cuda::verify_drafts(p, nullptr);

  std::vector<int> first = o.tree ? std::vector<int>{0, 2} : std::vector<int>{0, 1, 2};
  if (o.masked && !o.tree) first = {0};
  const std::vector<std::vector<int>> walks = {first,
                                               {},
                                               o.masked ? std::vector<int>{}
                                               : o.tree ? std::vector<int>{0, 1}
                                                        : std::vector<int>{0}};
  for (int b = 0; b < kBatch; ++b) {
    const std::string where = "sequence " + std::to_string(b);
    const auto& walk = walks[b];
    small::expect(num_tokens[b] == int(walk.size()), where + ": num_tokens");
    for (int i = 0; i < kMaxRows; ++i) {
      const bool used = i < int(walk.size());
      const Draw want = used ? draws[kCuRows[b] + walk[i]] : Draw{-1, NAN};
      small::expect(tokens[b * 8 + i] == want.token, where + ": token " + std::to_string(i));
      small::expect(rows[b * 7 + i] == (used ? walk[i] : -1), where + ": row");
      small::expect_close(logprobs[b * 6 + i], want.logprob, 1e-3f, where + ": logprob");
    }
  }
}

void greedy() { verify<__half>(DType::kFloat16, {4203, 0, false, false, false, false}); }
void greedy_tree_masked() { verify<float>(DType::kFloat32, {301, 1, true, true, false, false}); }
void sampled() { verify<__half>(DType::kFloat16, {301, 0, false, true, true, false}); }
void cut_tree() {
  for (int seed = 0; seed < 12; ++seed)
    verify<float>(DType::kFloat32, {130, 0, true, false, true, true, seed});
}
void cut_masked() { verify<__half>(DType::kFloat16, {4203, 0, false, true, true, true}); }
void cut_ties() { verify<__half>(DType::kFloat16, {2101, 0, false, false, true, true, 1000, 3, 3}); }
void cut_long() {
  for (int seed = 0; seed < 12; ++seed)
    verify<float>(DType::kFloat32, {700, 0, true, false, true, true, seed, 40});
}

// More rows than a warp walks at once; each row's largest logit says which token it draws.
void long_walk(bool tree) {
  constexpr int kLong = 70, kVocab = 64;
  const auto drawn = [](int r) { return r * 7 % kVocab; };
  Buffer<float> logits(kLong * kVocab, 0.f);
  Buffer<int32_t> draft_tokens(kLong + 2), parents(kLong + 2), cu_rows(4), tokens(kLong + 2), rows(kLong + 2),
      num_tokens(4);
  std::vector<int> walked;
  for (int r = 0; r < kLong; ++r) {
    logits[r * kVocab + drawn(r)] = 1.f;
    // In the tree rows 7 to 65 are what row 5 does not draw; 66 goes on, and 67 to 69 after it.
    const bool is_wrong = tree && r > 5 && r < 66;
    parents[r] = tree && r > 5 && r <= 66 ? 5 : r - 1;
    draft_tokens[r] = r == 0 ? -3 : drawn(parents[r]) + is_wrong;
    if (!is_wrong) walked.push_back(r);
  }
  cu_rows[0] = 0, cu_rows[1] = kLong;
  VerifyDraftsParams p{};
  p.tokens = tokens.data();
  p.num_tokens = num_tokens.data();
  p.rows = rows.data();
  p.tokens_stride = p.rows_stride = p.max_rows = kLong;
  p.logits = logits.data();
  p.logits_stride = p.vocab = kVocab;
  p.dtype = DType::kFloat32;
  p.total_rows = kLong;
  p.batch = 1;
  p.draft_tokens = draft_tokens.data();
  p.cu_rows = cu_rows.data();
  p.parents = tree ? parents.data() : nullptr;
  p.workspace_size = cuda::verify_drafts_workspace(kLong, 1);
  Buffer<uint64_t> workspace(size_t(p.workspace_size + 7) / 8);
  p.workspace = workspace.data();
  cuda::verify_drafts(p, nullptr);
  small::expect(num_tokens[0] == int(walked.size()), "long walk: num_tokens");
  for (int i = 0; i < kLong; ++i) {
    const int row = i < int(walked.size()) ? walked[i] : -1;
    small::expect(rows[i] == row, "long walk: row");
    small::expect(tokens[i] == (row < 0 ? -1 : drawn(row)), "long walk: token");
  }
}
void cut_wide() {
  for (int seed = 0; seed < 7; ++seed)
    verify<__half>(DType::kFloat16, {4203, 0, true, seed < 4, true, true, seed});
}
void cut_by_min_p() {
  for (int seed = 0; seed < 12; ++seed)
    verify<float>(DType::kFloat32, {700, 0, true, false, true, true, seed, 40, 4000, 1.f, 0.7f});
}
void cut_by_both() {
  for (int seed = 0; seed < 12; ++seed)
    verify<float>(DType::kFloat32, {700, 0, true, false, true, true, seed, 40, 4000, 0.95f, 0.3f});
}
void long_chain() { long_walk(false); }
void long_tree() { long_walk(true); }

}  // namespace

int main() {
  return small::run({greedy, greedy_tree_masked, sampled, cut_tree, cut_masked, cut_ties, cut_long, cut_wide,
                     cut_by_min_p, cut_by_both, long_chain, long_tree},
                    3);
}
