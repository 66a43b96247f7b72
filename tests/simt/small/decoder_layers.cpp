// Two decoder layers of one step, launched as the loop launches them, overlapped: with their norms,
// activations and residuals in the linears and as ops of their own, with the same bits.  What it is for: in
// the race build no grid reads before it has waited what one ahead of it writes.
#include "delta_prefill.cu"
#include "delta_prefill_few_rows.cuh"
#include "delta_prefill_hopper.cuh"
#include "fused_add_rms_norm.cu"
#include "fused_row_linear.cu"
#include "prefill_case.h"
#include "rms_norm.cu"
#include "rope_append_kv.cu"
#include "row_linear.cu"
#include "silu_and_mul.cu"

SMALL_WITH_FEW_ROWS(__half)
SMALL_WITH_HOPPER(__half)
SMALL_WITHOUT_ANY_ATTENTION
SMALL_WITHOUT_HOPPER(__nv_bfloat16)
SMALL_WITHOUT_HOPPER(__nv_fp8_e4m3)
SMALL_WITHOUT_FEW_ROWS(__nv_bfloat16)

namespace {

using namespace skv;
using small::Buffer;

constexpr int kLayers = 2, kRows = 2, kHeads = 2, kDim = 64, kHidden = 128, kQkv = 4 * kDim, kMiddle = 64;
constexpr int kBlockSize = 16, kBlocks = 30;
constexpr int kContexts[kRows] = {41, 233};  // with the new token: in a warp's first piece, and in its second
constexpr DType kType = DType::kFloat16;
constexpr float kEpsilon = 1e-5f;

struct Layer {
  Buffer<__half> input_norm, post_norm, qkv, o, gate_up, down, keys, values;

  explicit Layer(size_t salt)
      : input_norm(kHidden),
        post_norm(kHidden),
        qkv(kQkv * kHidden),
        o(kHidden * kHeads * kDim),
        gate_up(2 * kMiddle * kHidden),
        down(kHidden * kMiddle),
        keys(kBlocks * kBlockSize * kDim),
        values(keys.size()) {
    for (Buffer<__half>* b : {&qkv, &o, &gate_up, &down}) {
      small::fill_numbers(*b, ++salt * 1000);
      for (size_t i = 0; i < b->size(); ++i) (*b)[i] = __half(float((*b)[i]) / 16);
    }
    for (Buffer<__half>* b : {&input_norm, &post_norm, &keys, &values})
      small::fill_numbers(*b, ++salt * 1000);
  }
};

struct Step {
  const int num_splits;
  std::vector<Layer*> layers;
  Buffer<__half> residual{kRows * kHidden}, normed{kRows * kHidden}, qkv{kRows * kQkv},
      attention{kRows * kHeads * kDim}, product{kRows * 2 * kMiddle}, activated{kRows * kMiddle};
  Buffer<float> cos_sin{kContexts[1] * kDim};
  Buffer<int32_t> positions{kRows}, cu_seqlens{kRows + 1}, lengths{kRows}, table{kBlocks},
      schedule{size_t(schedule_size(kRows))};
  Buffer<int64_t> slots{kRows};

  explicit Step(int num_splits_) : num_splits(num_splits_) {
    for (int i = 0; i < kLayers; ++i) layers.push_back(new Layer(100 * (i + 1)));
    small::fill_numbers(residual, 7);
    small::fill_numbers(cos_sin, 9);
    for (int i = 0; i < kBlocks; ++i) table[i] = kBlocks - 1 - i;
    cu_seqlens[0] = 0;
    for (int i = 0; i < kRows; ++i) {
      cu_seqlens[i + 1] = i + 1;
      lengths[i] = kContexts[i];
      positions[i] = kContexts[i] - 1;
      const int block = table[i * (kBlocks / kRows) + positions[i] / kBlockSize];
      slots[i] = block * kBlockSize + positions[i] % kBlockSize;
    }
  }
  ~Step() {
    for (Layer* layer : layers) delete layer;
  }

  static RowLinearParams linear(Buffer<__half>& out, int n, Buffer<__half>& x, Buffer<__half>& weight,
                                int k) {
    RowLinearParams p{};
    p.out = out.data();
    p.out_stride = n;
    p.out_dtype = p.dtype = kType;
    p.x = x.data();
    p.x_stride = p.weight_stride = p.k = k;
    p.weight = weight.data();
    p.rows = kRows;
    p.n = n;
    return p;
  }
  static void fused(const RowLinearParams& linear, Buffer<__half>* norm, bool silu, bool add) {
    FusedRowLinearParams p{linear, norm ? norm->data() : nullptr, kEpsilon, silu, add, nullptr, 0};
    if (silu) p.linear.out_stride /= 2;
    small::expect(cuda::fused_row_linear_workspace(p) == 0, "is one launch");
    cuda::fused_row_linear(p, nullptr);
  }
  void rope(Layer& layer) {
    RopeAppendKvParams p{};
    AppendKvParams& a = p.append;
    a.cache = {kBlocks, kBlockSize, 1, kDim, kType};
    a.k_cache = {layer.keys.data(), kBlockSize * kDim, kDim, kDim};
    a.v_cache = {layer.values.data(), kBlockSize * kDim, kDim, kDim};
    a.key = {qkv.data() + kHeads * kDim, kQkv, kDim};
    a.value = {qkv.data() + (kHeads + 1) * kDim, kQkv, kDim};
    a.dtype = kType;
    a.slot_mapping = slots.data();
    a.num_tokens = kRows;
    p.query = p.query_out = {qkv.data(), kQkv, kDim};
    p.num_heads = kHeads;
    p.positions = positions.data();
    p.cos_sin_cache = cos_sin.data();
    p.cos_sin_dtype = DType::kFloat32;
    p.cos_sin_stride = p.rotary_dim = kDim;
    p.max_position = kContexts[1];
    p.norm_eps = kEpsilon;
    cuda::rope_append_kv(p, nullptr);
  }
  void attend(Layer& layer, bool is_first) {
    if (is_first) {
      ScheduleDeltaPrefillParams s{};
      s.schedule = schedule.data();
      s.schedule_size = int64_t(schedule.size());
      s.cu_seqlens_q = cu_seqlens.data();
      s.seqused_k = lengths.data();
      s.batch = kRows;
      s.num_heads = kHeads;
      s.num_kv_heads = s.max_seqlen_q = 1;
      s.head_dim = kDim;
      s.num_splits = num_splits;
      s.window_left = -1;
      cuda::schedule_delta_prefill(s, nullptr);
    }
    DeltaPrefillParams p{};
    p.query = {qkv.data(), kQkv, kDim};
    p.out = {attention.data(), kHeads * kDim, kDim};
    p.dtype = kType;
    p.cache = {kBlocks, kBlockSize, 1, kDim, kType};
    p.k_cache = {layer.keys.data(), kBlockSize * kDim, kDim, kDim};
    p.v_cache = {layer.values.data(), kBlockSize * kDim, kDim, kDim};
    p.num_heads = kHeads;
    p.total_q = p.batch = kRows;
    p.max_seqlen_q = 1;
    p.cu_seqlens_q = cu_seqlens.data();
    p.seqused_k = lengths.data();
    p.block_table = table.data();
    p.block_table_stride = p.max_blocks = kBlocks / kRows;
    p.softmax_scale = 0.125f;
    p.causal = true;
    p.window_left = -1;
    p.num_splits = num_splits;
    p.schedule = schedule.data();
    p.workspace_size = cuda::delta_prefill_workspace(p);
    Buffer<uint64_t> workspace(size_t(p.workspace_size + 7) / 8);
    p.workspace = workspace.data();
    cuda::delta_prefill(p, nullptr);
  }
  RmsNormParams norm(Buffer<__half>& weight) {
    return {normed.data(), kHidden, residual.data(), kHidden, weight.data(), kRows, kHidden, kType, kEpsilon};
  }
  void add_and_norm(Buffer<__half>& weight) {
    FusedAddRmsNormParams p{};
    p.input = normed.data();
    p.residual = residual.data();
    p.input_stride = p.residual_stride = p.hidden = kHidden;
    p.weight = weight.data();
    p.rows = kRows;
    p.dtype = kType;
    p.epsilon = kEpsilon;
    cuda::fused_add_rms_norm(p, nullptr);
  }

  std::vector<__half> run(bool is_fused) {
    prim::overlapped() = true;
    if (!is_fused) cuda::rms_norm(norm(layers[0]->input_norm), nullptr);
    for (int i = 0; i < kLayers; ++i) {
      Layer& l = *layers[i];
      const auto to_qkv = linear(qkv, kQkv, is_fused ? residual : normed, l.qkv, kHidden);
      is_fused ? fused(to_qkv, &l.input_norm, false, false) : cuda::row_linear(to_qkv, nullptr);
      rope(l);
      attend(l, i == 0);
      if (is_fused) {
        fused(linear(residual, kHidden, attention, l.o, kHeads * kDim), nullptr, false, true);
        fused(linear(activated, 2 * kMiddle, residual, l.gate_up, kHidden), &l.post_norm, true, false);
        fused(linear(residual, kHidden, activated, l.down, kMiddle), nullptr, false, true);
        continue;
      }
      cuda::row_linear(linear(normed, kHidden, attention, l.o, kHeads * kDim), nullptr);
      add_and_norm(l.post_norm);
      cuda::row_linear(linear(product, 2 * kMiddle, normed, l.gate_up, kHidden), nullptr);
      cuda::silu_and_mul({activated.data(), kMiddle, product.data(), 2 * kMiddle, kRows, kMiddle, kType},
                         nullptr);
      cuda::row_linear(linear(normed, kHidden, activated, l.down, kMiddle), nullptr);
      add_and_norm(layers[(i + 1) % kLayers]->input_norm);
    }
    prim::overlapped() = false;
    return small::copy_of(residual);
  }
};

void layers(int num_splits) {
  std::vector<__half> found[2];
  for (bool is_fused : {false, true}) found[is_fused] = Step(num_splits).run(is_fused);
  for (size_t i = 0; i < found[0].size(); ++i) {
    small::expect(float(found[0][i]) - float(found[0][i]) == 0, "not a number");
    small::expect(!std::memcmp(&found[0][i], &found[1][i], 2), "fused, element " + std::to_string(i));
  }
}
void with_few_rows_kernel() { layers(1); }
void with_few_rows_split() { layers(0); }
void with_wgmma_kernel() { layers(-1); }

}  // namespace

int main() {
  simt::set_compute_capability(90);
  return small::run({with_few_rows_kernel, with_few_rows_split, with_wgmma_kernel}, 3);
}
