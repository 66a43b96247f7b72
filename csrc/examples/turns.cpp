// Conversations that stay on the device, from C++ alone: sessions, ragged steps, drafts, a fork and a
// rollback.
//
//   turns [--cuda]        (--cuda: on a GPU)
//
// The "model" is one attention layer of random bfloat16 weights; everything around it is what a server does
// with a real one. Row-independent linears and batch-invariant attention (num_splits -1) make every answer
// the same bits however it came about, which the program checks: it ends with 1 if one differs.
#include <runtime/runtime.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "device.h"

namespace {

using Tokens = std::vector<int32_t>;

constexpr int kVocab = 64, kHeads = 4, kKvHeads = 2, kHeadDim = 64;
constexpr int kHidden = kHeads * kHeadDim, kQkv = (kHeads + 2 * kKvHeads) * kHeadDim;
constexpr int kMaxPosition = 4096;
constexpr skv::DType kType = skv::DType::kBFloat16;

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// ---- the model

struct Model {
  explicit Model(Device* device) : embedding(kVocab * kHidden) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    auto weight = [&](int64_t n, float scale) {
      std::vector<uint16_t> host(n);
      for (uint16_t& w : host) w = to_bfloat16(normal(random) * scale);
      uint16_t* memory = device->alloc<uint16_t>(n);
      device->upload(memory, host.data(), n);
      return memory;
    };
    for (uint16_t& e : embedding) e = to_bfloat16(normal(random));
    qkv = weight(kQkv * kHidden, 0.6f);
    logits = weight(kVocab * kHidden, 0.3f);
    std::vector<float> table(kMaxPosition * kHeadDim);  // cos first, then sin
    for (int position = 0; position < kMaxPosition; ++position) {
      for (int i = 0; i < kHeadDim / 2; ++i) {
        const float angle = position * std::pow(10000.0f, -2.0f * i / kHeadDim);
        table[position * kHeadDim + i] = std::cos(angle);
        table[position * kHeadDim + kHeadDim / 2 + i] = std::sin(angle);
      }
    }
    cos_sin = device->alloc<float>(static_cast<int64_t>(table.size()));
    device->upload(cos_sin, table.data(), static_cast<int64_t>(table.size()));
  }

  std::vector<uint16_t> embedding;  // [vocab, hidden], on the host
  uint16_t* qkv;                    // [qkv, hidden]
  uint16_t* logits;                 // [vocab, hidden]
  float* cos_sin;                   // [max_position, head_dim]
};

// ---- a server: the runtime plans, the device computes

class Server {
 public:
  Server(Device* device, const Model& model, const skv::RuntimeOptions& options)
      : device_(*device), model_(model), options_(options), runtime_(options), sizes_(runtime_.sizes()) {
    const int64_t cache = int64_t{options.num_blocks} * options.block_size * kKvHeads * kHeadDim;
    k_cache_ = device->alloc<uint16_t>(cache);
    v_cache_ = device->alloc<uint16_t>(cache);
    hidden_ = device->alloc<uint16_t>(sizes_.max_batch_tokens * kHidden);
    rows_ = device->alloc<uint16_t>(sizes_.max_batch_tokens * kQkv);
    attended_ = device->alloc<uint16_t>(sizes_.max_batch_tokens * kHidden);
    last_ = device->alloc<uint16_t>(sizes_.max_logit_rows * kHidden);
    logits_ = device->alloc<float>(sizes_.max_logit_rows * kVocab);
    for (skv::BufferSpec& buffer :
         runtime_.buffer_specs()) {  // the step's buffers, where the ops can read them
      void* memory = buffer.get();
      if (device->is_cuda()) memory = device->alloc<char>(buffer.num_bytes());
      on_device_.push_back({buffer.name, memory});
    }
  }

  skv::Runtime& runtime() { return runtime_; }

  // One turn in each session, all in one ragged batch; returns the answers.
  std::vector<Tokens> generate(const std::vector<std::pair<uint64_t, Tokens>>& turns, int64_t max_tokens) {
    std::vector<uint64_t> requests;
    skv::RequestParams params;
    params.max_tokens = max_tokens;
    for (auto& [session, tokens] : turns) {
      requests.push_back(
          runtime_.submit(session, tokens.data(), static_cast<int64_t>(tokens.size()), params));
    }
    std::vector<Tokens> answers(turns.size());
    while (const auto step = runtime_.plan()) {
      try {
        forward(*step);
      } catch (...) {
        runtime_.cancel_step();  // nothing of it happened
        throw;
      }
      for (const skv::Event& event : runtime_.commit()) {
        for (size_t i = 0; i < requests.size(); ++i) {
          if (requests[i] != event.request_id) continue;
          answers[i].insert(answers[i].end(), event.tokens.begin(), event.tokens.end());
        }
      }
    }
    stats.clear();
    for (uint64_t request : requests) stats.push_back(runtime_.take_stats(request));
    return answers;
  }

  std::vector<skv::RequestStats> stats;  // of the latest turns

 private:
  template <class T>
  T* buffer(const char* name) const {
    for (auto& [key, memory] : on_device_) {
      if (key == name) return static_cast<T*>(memory);
    }
    throw std::logic_error(name);
  }

  skv::CacheView view(uint16_t* data) const {
    const int64_t token = kKvHeads * kHeadDim;
    return {data, options_.block_size * token, token, kHeadDim};
  }

  void linear(void* out, skv::DType out_type, const uint16_t* x, const uint16_t* weight, int64_t rows,
              int64_t n) {
    skv::RowLinearParams p{};
    p.out = out, p.out_stride = n, p.out_dtype = out_type;
    p.x = x, p.x_stride = kHidden, p.dtype = kType;
    p.weight = weight, p.weight_stride = kHidden;
    p.rows = rows, p.n = n, p.k = kHidden;
    call::row_linear(device_, p);
  }

  void forward(const skv::StepInfo& step) {
    const skv::CacheShape shape{options_.num_blocks, static_cast<int32_t>(options_.block_size), kKvHeads,
                                kHeadDim, kType};
    if (device_.is_cuda()) {
      for (skv::BufferSpec& spec : runtime_.buffer_specs()) {
        device_.upload(buffer<char>(spec.name.c_str()), static_cast<const char*>(spec.get()),
                       spec.num_bytes());
      }
    }

    // 1. Copy-on-write of tail blocks that others share.
    void *k = k_cache_, *v = v_cache_;
    skv::CopyBlocksParams copy{};
    copy.k_caches = &k, copy.v_caches = &v, copy.num_layers = 1;
    copy.k_layout = view(nullptr), copy.v_layout = view(nullptr), copy.cache = shape;
    copy.src_blocks = buffer<int32_t>("copy_src"), copy.dst_blocks = buffer<int32_t>("copy_dst");
    copy.num_tokens = buffer<int32_t>("copy_num_tokens"), copy.num_copies = step.num_copies;
    if (step.num_copies) call::copy_blocks(device_, copy);

    // 2. The new tokens' rows, appended to the cache.
    const int32_t* tokens = runtime_.buffers().token_ids;
    std::vector<uint16_t> embedded(step.num_tokens * kHidden);
    for (int64_t i = 0; i < step.num_tokens; ++i) {
      std::memcpy(&embedded[i * kHidden], &model_.embedding[tokens[i] * kHidden], kHidden * 2);
    }
    device_.upload(hidden_, embedded.data(), step.num_tokens * kHidden);
    linear(rows_, kType, hidden_, model_.qkv, step.num_tokens, kQkv);
    const skv::HeadsView query{rows_, kQkv, kHeadDim};
    skv::RopeAppendKvParams append{};
    append.append.k_cache = view(k_cache_), append.append.v_cache = view(v_cache_),
    append.append.cache = shape;
    append.append.key = {rows_ + kHidden, kQkv, kHeadDim};
    append.append.value = {rows_ + kHidden + kKvHeads * kHeadDim, kQkv, kHeadDim};
    append.append.dtype = kType, append.append.num_tokens = step.num_tokens;
    append.append.slot_mapping = buffer<int64_t>("slot_mapping");
    append.query_out = append.query = query, append.num_heads = kHeads;
    append.positions = buffer<int64_t>("positions"), append.positions_are_int64 = true;
    append.cos_sin_cache = model_.cos_sin, append.cos_sin_dtype = skv::DType::kFloat32;
    append.cos_sin_stride = kHeadDim, append.max_position = kMaxPosition, append.rotary_dim = kHeadDim;
    call::rope_append_kv(device_, append);

    // 3. Their attention over everything their conversations hold.
    skv::DeltaPrefillParams attention{};
    attention.out = {attended_, kHidden, kHeadDim}, attention.query = query, attention.dtype = kType;
    attention.k_cache = view(k_cache_), attention.v_cache = view(v_cache_), attention.cache = shape;
    attention.num_heads = kHeads, attention.total_q = step.num_tokens, attention.batch = step.num_seqs;
    attention.cu_seqlens_q = buffer<int32_t>("cu_seqlens_q"),
    attention.seqused_k = buffer<int32_t>("seqused_k");
    attention.block_table = buffer<int32_t>("block_table");
    attention.block_table_stride = attention.max_blocks = sizes_.max_blocks_per_seq;
    attention.max_seqlen_q = static_cast<int32_t>(step.max_seqlen_q);
    attention.softmax_scale = 0.125f, attention.causal = true, attention.window_left = -1;
    attention.num_splits = -1;
#ifdef SKV_CUDA
    if (device_.is_cuda()) {
      attention.workspace_size = skv::cuda::delta_prefill_workspace(attention);
      attention.workspace = scratch(attention.workspace_size);
    }
#endif
    call::delta_prefill(device_, attention);

    // 4. Logits of the rows that decide something, and the draw: accepted drafts and one token more.
    const int64_t num_rows = step.num_logit_rows;
    if (num_rows == 0) return;
    const int64_t* picked = runtime_.buffers().logit_rows;
    for (int64_t i = 0; i < num_rows; ++i) {
      device_.upload(last_ + i * kHidden, attended_ + picked[i] * kHidden, kHidden);
    }
    linear(logits_, skv::DType::kFloat32, last_, model_.logits, num_rows, kVocab);
    skv::VerifyDraftsParams verify{};
    verify.tokens = buffer<int32_t>("out_tokens"), verify.num_tokens = buffer<int32_t>("out_num_tokens");
    verify.tokens_stride = verify.max_rows = sizes_.max_rows_per_seq;
    verify.logits = logits_, verify.logits_stride = kVocab, verify.dtype = skv::DType::kFloat32;
    verify.total_rows = num_rows, verify.vocab = kVocab, verify.batch = step.num_seqs;
    verify.draft_tokens = buffer<int32_t>("draft_tokens"), verify.cu_rows = buffer<int32_t>("cu_rows");
#ifdef SKV_CUDA
    if (device_.is_cuda()) {
      verify.workspace_size = skv::cuda::verify_drafts_workspace(num_rows, step.num_seqs);
      verify.workspace = scratch(verify.workspace_size);
    }
#endif
    call::verify_drafts(device_, verify);
    if (device_.is_cuda()) {
      const skv::StepBuffers& host = runtime_.buffers();
      device_.download(host.out_tokens, verify.tokens, step.num_seqs * sizes_.max_rows_per_seq);
      device_.download(host.out_num_tokens, verify.num_tokens, step.num_seqs);
    }
  }

  void* scratch(int64_t bytes) {
    if (bytes > scratch_size_) scratch_ = device_.alloc<char>(scratch_size_ = bytes);
    return scratch_;
  }

  Device& device_;
  const Model& model_;
  skv::RuntimeOptions options_;
  skv::Runtime runtime_;
  skv::StepSizes sizes_;
  std::vector<std::pair<std::string, void*>> on_device_;
  uint16_t *k_cache_, *v_cache_, *hidden_, *rows_, *attended_, *last_;
  float* logits_;
  char* scratch_ = nullptr;
  int64_t scratch_size_ = 0;
};

// ---- the program

Tokens random_tokens(int n, unsigned seed) {
  std::mt19937 random(seed);
  Tokens tokens(n);
  for (int32_t& t : tokens) t = static_cast<int32_t>(random() % kVocab);
  return tokens;
}

void report(const char* what, const skv::RequestStats& s) {
  std::printf("%-34s prompt %4lld  reused %4lld  fed %3lld  drafts %2lld of %2lld accepted\n", what,
              static_cast<long long>(s.prompt_tokens), static_cast<long long>(s.reused_tokens),
              static_cast<long long>(s.fed_tokens), static_cast<long long>(s.accepted),
              static_cast<long long>(s.drafted));
}

int run(bool is_cuda) {
  Device device(is_cuda);
  const Model model(&device);
  skv::RuntimeOptions options;
  options.num_blocks = 128, options.block_size = 16, options.max_batch_tokens = 256, options.max_seqs = 4;
  Server server(&device, model, options);
  skv::Runtime& runtime = server.runtime();

  const uint64_t session = runtime.open();
  const Tokens system = random_tokens(200, 1), second = random_tokens(9, 2), third = random_tokens(5, 3);
  server.generate({{session, system}}, 24);
  report("first turn", server.stats[0]);
  const int64_t after_first = runtime.length(session);
  const Tokens answer = server.generate({{session, second}}, 24)[0];
  report("second turn", server.stats[0]);

  const uint64_t child = runtime.fork(session);  // shares every block, the tail until one of the two writes
  const std::vector<Tokens> both = server.generate({{session, third}, {child, second}}, 24);
  report("third turn", server.stats[0]);
  report("the fork's turn, in the same batch", server.stats[1]);

  runtime.rollback(session, after_first);
  const bool same_again = server.generate({{session, second}}, 24)[0] == answer;
  report("second turn again, rolled back", server.stats[0]);

  // The fork's whole conversation from nothing, one token a step.
  options.num_drafts = 0, options.prefix_cache = false;
  Server plain(&device, model, options);
  const int64_t length = runtime.length(child) - 24;
  const Tokens prompt(runtime.tokens(child), runtime.tokens(child) + length);
  const bool same_cold = plain.generate({{plain.runtime().open(), prompt}}, 24)[0] == both[1];
  report("the fork recomputed", plain.stats[0]);
  runtime.close(child);
  runtime.close(session);

  std::printf("rolled back and repeated: %s\nrecomputed from nothing: %s\n",
              same_again ? "equal" : "DIFFERENT", same_cold ? "equal" : "DIFFERENT");
  return same_again && same_cold ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 && std::strcmp(argv[1], "--cuda") == 0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "turns: %s\n", error.what());
    return 2;
  }
}
