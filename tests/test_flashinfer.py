"""FlashInfer's interfaces over our ops: CSR page tables, its cache layouts, base-2 log-sum-exps.

Where a folder of FlashInfer's published traces is at hand (FLASHINFER_TRACES=.../tests/trace/fi_trace_out), also the
references inside them.
"""

import json
import math
import os
import pathlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stateful_kv.integrations import flashinfer

TRACES = os.environ.get("FLASHINFER_TRACES")


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def page_table(lengths, page_size, num_pages, seed=0):
    """Random distinct pages for sequences of these lengths."""
    pages = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed)).int()
    counts = [-(-n // page_size) for n in lengths]
    indptr = torch.tensor([0, *counts]).cumsum(0).int()
    last = [n - (c - 1) * page_size if c else 1 for n, c in zip(lengths, counts)]
    return indptr, pages[: sum(counts)].clone(), int32(*last)


def attention(q, k, v, scale, causal):
    """float64 attention of one sequence, bottom-right aligned: out, base-2 log-sum-exp."""
    n, m, group = len(q), len(k), q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->qhk", q.double(), k) * scale
    if causal:
        scores.masked_fill_((torch.arange(m) > torch.arange(n)[:, None] + m - n)[:, None], -math.inf)
    return torch.einsum("qhk,khd->qhd", scores.softmax(-1), v), scores.logsumexp(-1) / math.log(2)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_page_tables_name_the_same_pages(data):
    page_size = data.draw(st.sampled_from([1, 2, 5, 16]))
    lengths = data.draw(st.lists(st.integers(0, 70), max_size=5))
    indptr, indices, last = page_table(lengths, page_size, 400)
    table, seqused = flashinfer.csr_to_block_table(indptr, indices, last, page_size)
    assert seqused.tolist() == lengths and seqused.dtype == table.dtype == torch.int32
    for b, n in enumerate(lengths):
        count = -(-n // page_size)
        assert table[b, :count].tolist() == indices[indptr[b] : indptr[b + 1]].tolist()
        assert (table[b, count:] == -1).all()
    narrow, _ = flashinfer.csr_to_block_table(indptr, indices, last, page_size, max_pages=2)
    wide, _ = flashinfer.csr_to_block_table(indptr, indices, last, page_size, max_pages=80)
    assert torch.equal(narrow, wide[:, :2]) and torch.equal(wide[:, : table.shape[1]], table)


def test_slots_of_tokens_and_of_none():
    indptr, indices = int32(0, 2, 2, 3), int32(7, 4, 9)
    slots = flashinfer.csr_to_slot_mapping(int32(0, 0, 2), int32(3, 4, 1), indptr, indices, 4)
    assert slots.tolist() == [7 * 4 + 3, 4 * 4, 9 * 4 + 1] and slots.dtype == torch.int64
    for b, p in ((0, 8), (0, -1), (1, 0), (3, 0), (-1, 0)):
        with pytest.raises(IndexError, match=f"token 1 is at position {p} of sequence {b}"):
            flashinfer.csr_to_slot_mapping(int32(0, b), int32(0, p), indptr, indices, 4)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("fused", [True, False], ids=["one tensor", "tuple"])
@pytest.mark.parametrize("page_size", [1, 16])
def test_append_then_prefill_then_decode(layout, fused, page_size):
    torch.manual_seed(page_size)
    lengths, heads, kv_heads, dim = [37, 5, 64], 4, 2, 64
    rows = [7, 5, 1]
    indptr, indices, last = page_table(lengths, page_size, 200)
    inner = (page_size, kv_heads, dim) if layout == "NHD" else (kv_heads, page_size, dim)
    cache = torch.full((200, 2, *inner), math.nan)
    given = cache if fused else (cache[:, 0], cache[:, 1])
    keys, values = ([torch.randn(n, kv_heads, dim) for n in lengths] for _ in range(2))
    flashinfer.append_paged_kv_cache(
        torch.cat(keys), torch.cat(values),
        torch.tensor([b for b, n in enumerate(lengths) for _ in range(n)]).int(),
        torch.tensor([i for n in lengths for i in range(n)]).int(),
        given, indices, indptr, last, layout,
    )  # fmt: skip
    q = torch.randn(sum(rows), heads, dim)
    starts = torch.tensor([0, *rows]).cumsum(0).int()
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(kv_layout=layout)
    for causal in (True, False):
        wrapper.plan(starts, indptr, indices, last, heads, kv_heads, dim, page_size, causal=causal)
        out, lse = wrapper.run(q, given, return_lse=True)
        for b in range(3):
            part = slice(int(starts[b]), int(starts[b + 1]))
            want, want_lse = attention(q[part], keys[b], values[b], dim**-0.5, causal)
            torch.testing.assert_close(out[part].double(), want, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(lse[part].double(), want_lse, rtol=1e-5, atol=1e-5)
    decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(kv_layout=layout)
    decode.plan(indptr, indices, last, heads, kv_heads, dim, page_size, sm_scale=0.3)
    out = decode.run(q[:3], given)
    for b in range(3):
        want, _ = attention(q[b : b + 1], keys[b], values[b], 0.3, False)
        torch.testing.assert_close(out[b : b + 1].double(), want, rtol=1e-5, atol=1e-5)


def test_states_merge_in_base_2():
    torch.manual_seed(0)
    q, k, v = torch.randn(6, 4, 64), torch.randn(50, 4, 64), torch.randn(50, 4, 64)
    (va, sa), (vb, sb) = (attention(q, k[part], v[part], 0.1, False) for part in (slice(0, 20), slice(20, 50)))
    out, lse = flashinfer.merge_state(va.float(), sa.float(), vb.float(), sb.float())
    want, want_lse = attention(q, k, v, 0.1, False)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-6)


def test_a_chain_stops_at_the_first_disagreement():
    batch, n, vocab = 40, 4, 6
    torch.manual_seed(1)
    logits = torch.randn(batch, n + 1, vocab)
    drafts = torch.where(torch.rand(batch, n) < 0.7, logits[:, :n].argmax(-1), torch.randint(vocab, (batch, n))).int()
    tokens, counts = flashinfer.chain_speculative_sampling(drafts, logits)
    seen = set()
    for b in range(batch):
        best, accepted = logits[b].argmax(-1).tolist(), 0
        while accepted < n and int(drafts[b, accepted]) == best[accepted]:
            accepted += 1
        seen.add(accepted)
        assert tokens[b].tolist() == best[: accepted + 1] + [-1] * (n - accepted) and int(counts[b]) == accepted + 1
    assert seen >= {0, n}


def test_what_does_not_fit_is_named():
    indptr, indices, last = int32(0, 1), int32(3), int32(2)
    with pytest.raises(ValueError, match=r"last_page_len has shape \[2\], expected \[1\]"):
        flashinfer.csr_to_block_table(indptr, indices, int32(1, 2), 4)
    with pytest.raises(ValueError, match=r"indices is torch.int64 of shape \[1\], expected int32"):
        flashinfer.csr_to_block_table(indptr, indices.long(), last, 4)
    with pytest.raises(ValueError, match="kv_layout is 'KV'"):
        flashinfer.BatchPrefillWithPagedKVCacheWrapper(kv_layout="KV")
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper()
    cache = torch.zeros(4, 2, 4, 1, 64)
    with pytest.raises(RuntimeError, match=r"plan\(\) was not called"):
        wrapper.run(torch.zeros(1, 1, 64), cache)
    wrapper.plan(int32(0, 1), indptr, indices, last, 1, 1, 64, 4)
    with pytest.raises(ValueError, match=r"are \(2, 1, 64, 4\), expected \(1, 1, 64, 4\) as planned"):
        wrapper.run(torch.zeros(1, 2, 64), cache)
    with pytest.raises(ValueError, match=r"paged_kv_cache has shape \[4, 3, 4, 1, 64\]"):
        wrapper.run(torch.zeros(1, 1, 64), torch.zeros(4, 3, 4, 1, 64))


@pytest.mark.parametrize(
    ("indptr", "last", "message"),
    [
        ((0, 3), (2,), r"indptr\[1\] is 3, expected 0 to 2, the length of indices"),
        ((-1, 2), (2,), r"indptr\[0\] is -1, expected 0 to 2"),
        ((0, 2, 1), (2, 2), r"indptr\[2\] is 1, expected 2 to 2"),
        ((0, 2), (0,), r"last_page_len\[0\] is 0, expected 1 to 4"),
        ((0, 0, 2), (0, 5), r"last_page_len\[1\] is 5, expected 1 to 4"),
    ],
)
def test_pages_that_are_not_there_are_named(indptr, last, message):
    with pytest.raises(IndexError, match=message):
        flashinfer.csr_to_block_table(int32(*indptr), int32(5, 6), int32(*last), 4)
    if "indptr" in message:
        cache = torch.zeros(8, 2, 4, 1, 64)
        with pytest.raises(IndexError, match=message):
            flashinfer.append_paged_kv_cache(
                torch.ones(1, 1, 64), torch.ones(1, 1, 64), int32(0), int32(9), cache, int32(5, 6), int32(*indptr),
                int32(*last),
            )  # fmt: skip
        assert not cache.any()


def test_what_lies_outside_of_the_indices_is_no_page(monkeypatch):
    """Where the contents are not looked at, as on a GPU."""
    monkeypatch.setattr(flashinfer, "_require_offsets", lambda *args: None)
    table, _ = flashinfer.csr_to_block_table(int32(-1, 3), int32(5, 6), int32(1), 4)
    assert table.tolist() == [[-1, 5, 6, -1]]
    with pytest.raises(IndexError, match="token 1 is at position 9 of sequence 0"):
        flashinfer.csr_to_slot_mapping(int32(0, 0), int32(5, 9), int32(0, 3), int32(5, 6), 4)
    with pytest.raises(ValueError, match=r"last_page_len is torch.float32, expected int32"):
        flashinfer.csr_to_block_table(int32(0, 1), int32(5), torch.ones(1), 4)


def planned(indices=(5,), last=2, **options):
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper()
    wrapper.plan(int32(0, 1), int32(0, len(indices)), int32(*indices), int32(last), 1, 1, 64, 4, **options)
    return wrapper


def test_a_refused_plan_leaves_the_one_before():
    q, cache = torch.randn(1, 1, 64), torch.randn(8, 2, 4, 1, 64)
    wrapper = planned()
    before = wrapper.run(q, cache)
    for qo_indptr, options in ((int32(0, 1, 2), {}), (int32(0, 1), {"window_left": -2, "causal": True})):
        with pytest.raises(ValueError, match=r"qo_indptr has shape \[3\]|window_left is -2"):
            wrapper.plan(qo_indptr, int32(0, 1), int32(6), int32(4), 1, 1, 64, 4, **options)
        assert torch.equal(wrapper.run(q, cache), before)
    fresh = flashinfer.BatchPrefillWithPagedKVCacheWrapper()
    with pytest.raises(ValueError, match="window_left is -2"):
        fresh.plan(int32(0, 1), int32(0, 1), int32(6), int32(4), 1, 1, 64, 4, window_left=-2)
    with pytest.raises(RuntimeError, match="was not called"):
        fresh.run(q, cache)


def test_what_flashinfers_callers_pass_without_effect_is_taken():
    workspace, q, cache = torch.empty(8), torch.randn(1, 1, 64), torch.randn(8, 2, 4, 1, 64)
    want = planned().run(q, cache)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
        workspace, "NHD", False, backend="auto", qo_indptr_buf=None
    )
    wrapper.plan(
        int32(0, 1), int32(0, 1), int32(5), int32(2), 1, 1, 64, 4, 64, custom_mask=None, causal=True,
        pos_encoding_mode="NONE", rope_theta=1e4, q_data_type="float32", kv_data_type=torch.float32, o_data_type=None,
        non_blocking=False, seq_lens=None, disable_split_kv=False, use_fp16_qk_reduction=False,
    )  # fmt: skip
    assert torch.equal(wrapper.run(q, cache, enable_pdl=True, window_left=-1, lse=None), want)
    decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", False, True)
    decode.plan(
        int32(0, 1), int32(5), int32(2), num_qo_heads=1, num_kv_heads=1, head_dim=64, page_size=4,
        pos_encoding_mode="NONE", data_type=torch.float32, q_len_per_req=1,
    )  # fmt: skip
    assert torch.equal(decode.run(q, cache, q_len_per_req=1), want)


@pytest.mark.parametrize("stored", [torch.float32, torch.float8_e4m3fn])
def test_scales_that_are_numbers(stored):
    q, cache = torch.randn(1, 1, 64), torch.randn(8, 2, 4, 1, 64).to(stored)
    wrapper = planned((5, 6), logits_soft_cap=3.0)
    scaled = cache.float().clone()
    scaled[:, 0] *= 1.5
    want, want_lse = wrapper.run(2 * q, scaled, return_lse=True)
    out, lse = wrapper.run(q, cache, q_scale=2, k_scale=1.5, v_scale=0.5, return_lse=True)
    torch.testing.assert_close(out, want * 0.5)
    torch.testing.assert_close(lse, want_lse)
    with pytest.raises(TypeError, match="run: v_scale is '1', expected a finite number"):
        wrapper.run(q, cache, v_scale="1")
    if stored == torch.float8_e4m3fn:
        torch.testing.assert_close(wrapper.run(q, cache, k_scale=torch.tensor(3.0)), want)


@pytest.mark.parametrize(
    ("call", "options", "error", "message"),
    [
        ("init", {"use_cuda_graph": True}, NotImplementedError, "Wrapper: use_cuda_graph is True, expected False"),
        ("init", {"jit_args": [1]}, NotImplementedError, r"jit_args is \[1\], expected None"),
        ("init", {"graph": True}, TypeError, "unexpected argument 'graph'"),
        ("plan", {"pos_encoding_mode": "ALIBI"}, NotImplementedError, "pos_encoding_mode is 'ALIBI', expected 'NONE'"),
        ("plan", {"custom_mask": torch.ones(1)}, NotImplementedError, "plan: custom_mask is tensor"),
        ("plan", {"head_dim_vo": 32}, NotImplementedError, "plan: head_dim_vo is 32, expected head_dim_qk, 64"),
        ("plan", {"disable_split_kv": True}, NotImplementedError, "plan: disable_split_kv is True, expected False"),
        ("plan", {"q_data_type": "ones"}, TypeError, "plan: q_data_type is 'ones', expected a torch.dtype"),
        ("plan", {"casual": True}, TypeError, "plan: got an unexpected argument 'casual'"),
        ("run", {"window_left": 1}, NotImplementedError, "run: window_left is 1, expected -1 as planned"),
        ("run", {"q_len_per_req": 1}, TypeError, "run: got an unexpected argument 'q_len_per_req'"),
        ("run", {"kv_cache_sf": ()}, NotImplementedError, r"run: kv_cache_sf is \(\), expected None"),
    ],
)  # fmt: skip
def test_what_flashinfer_can_and_this_cannot_is_refused_by_name(call, options, error, message):
    with pytest.raises(error, match=message):
        if call == "init":
            flashinfer.BatchPrefillWithPagedKVCacheWrapper(**options)
        wrapper = planned(**(options if call == "plan" else {}))
        wrapper.run(torch.zeros(1, 1, 64), torch.zeros(8, 2, 4, 1, 64), **options)


def test_the_planned_data_types_are_those_of_the_run():
    q, cache = torch.zeros(1, 1, 64), torch.zeros(8, 2, 4, 1, 64)
    for name, what in (("q_data_type", "q"), ("kv_data_type", "paged_kv_cache"), ("o_data_type", "q")):
        with pytest.raises(
            ValueError, match=f"run: {what} is torch.float32, expected torch.float16, the planned {name}"
        ):
            planned(**{name: "float16"}).run(q, cache)
    with pytest.raises(TypeError):
        flashinfer.BatchDecodeWithPagedKVCacheWrapper(None, "NHD", False, False, -1)


# ---- FlashInfer's own references ------------------------------------------------------------------------------------


def reference(name):
    """The torch function that a published trace carries, and the trace."""
    trace = json.loads((pathlib.Path(TRACES) / f"{name}.json").read_text())
    scope = {"torch": torch, "math": math}
    exec(trace["reference"], scope)
    return next(v for k, v in scope.items() if k.endswith("_reference")), trace["axes"]


@pytest.mark.skipif(not TRACES, reason="FLASHINFER_TRACES names no folder of FlashInfer's traces")
class TestPublishedTraces:
    def shapes(self, axes):
        return (axes[n]["value"] for n in ("num_qo_heads", "num_kv_heads", "head_dim", "page_size"))

    def close(self, got, want):
        torch.testing.assert_close(got[0].float(), want[0].float(), rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(got[1], want[1], rtol=1e-3, atol=1e-3)

    def test_paged_prefill(self):
        run, axes = reference("gqa_paged_prefill_h32_kv8_d128_ps16")
        shape = heads, kv_heads, dim, page_size = tuple(self.shapes(axes))
        indptr, indices, last = page_table([48, 16, 32], page_size, 9)
        starts, q = int32(0, 5, 21, 22), torch.randn(22, heads, dim).bfloat16()
        k, v = (torch.randn(9, page_size, kv_heads, dim).bfloat16() for _ in range(2))
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper()
        wrapper.plan(starts, indptr, indices, last, *shape, causal=True)
        self.close(wrapper.run(q, (k, v), return_lse=True), run(q, k, v, starts, indptr, indices, dim**-0.5))

    @pytest.mark.parametrize("page_size", [16, 64])
    def test_paged_decode(self, page_size):
        run, axes = reference(f"gqa_paged_decode_h32_kv8_d128_ps{page_size}")
        shape = heads, kv_heads, dim, _ = tuple(self.shapes(axes))
        indptr, indices, last = page_table([2 * page_size, page_size], page_size, 5)
        q = torch.randn(2, heads, dim).bfloat16()
        k, v = (torch.randn(5, page_size, kv_heads, dim).bfloat16() for _ in range(2))
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper()
        wrapper.plan(indptr, indices, last, *shape)
        self.close(wrapper.run(q, (k, v), return_lse=True), run(q, k, v, indptr, indices, dim**-0.5))

    def test_append(self):
        run, axes = reference("append_paged_kv_cache_kv8_d128")
        heads, dim = axes["num_kv_heads"]["value"], axes["head_dim"]["value"]
        indptr, indices, last = page_table([20, 3], 8, 6)
        batch, positions = int32(0, 0, 1, 0), int32(18, 19, 2, 7)
        key, value = (torch.randn(4, heads, dim).bfloat16() for _ in range(2))
        ours, theirs = (tuple(torch.zeros(6, 8, heads, dim).bfloat16() for _ in range(2)) for _ in range(2))
        flashinfer.append_paged_kv_cache(key, value, batch, positions, ours, indices, indptr, last)
        run(key, value, batch, positions, theirs, indices, indptr, last)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs)) and ours[0].any()

    def test_merge_state(self):
        run, axes = reference("merge_state_h32_d128")
        heads, dim = axes["num_heads"]["value"], axes["head_dim"]["value"]
        va, vb = (torch.randn(9, heads, dim).bfloat16() for _ in range(2))
        sa, sb = (torch.randn(9, heads) * 4 for _ in range(2))
        self.close(flashinfer.merge_state(va, sa, vb, sb), run(va, sa, vb, sb))

    def test_chain_sampling(self):
        """Their reference takes a draft whose target probability is not below its own; prompt-lookup drafts are
        certain, so with a target sure of its best token both say the same."""
        run, axes = reference("chain_speculative_sampling_v32000")
        vocab, batch, n = axes["vocab_size"]["value"], 6, 3
        best = torch.randint(vocab, (batch, n + 1))
        target = torch.nn.functional.one_hot(best, vocab).float()
        drafts = torch.where(torch.rand(batch, n) < 0.7, best[:, :n], best[:, :n] ^ 1).int()
        certain = torch.nn.functional.one_hot(drafts.long(), vocab).float()
        certain = torch.cat([certain, torch.zeros(batch, 1, vocab)], 1)
        tokens, _ = flashinfer.chain_speculative_sampling(drafts, target.log())
        assert torch.equal(tokens, run(certain, drafts, target))
