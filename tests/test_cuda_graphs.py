"""Every op captured into a CUDA graph and replayed on changed contents of the same tensors.

A replay has to do what a fresh call does: nothing that depends on contents may be decided on the host, and no scratch
memory may keep anything from one replay to the next. Backends without graphs repeat the call itself.
"""

import pytest
import torch
from cases import same_bits
from op_calls import CALLS, OUTPUTS, all_tensors, int32, int64, on_device, replace

# What else but the random contents changes between capture and replay: other lengths, slots, counts.
CHANGED = {
    "append_kv": {"slot_mapping": int64(-1, 2, 94, 33, -1)},
    "rope_append_kv": {"slot_mapping": int64(5, 7, -1, 64, 0), "positions": int64(31, 0, 1, 2, 3)},
    "delta_prefill": {"cu_seqlens_q": int32(0, 2, 2, 5), "seqused_k": int32(31, 0, 17)},
    "schedule_delta_prefill": {"cu_seqlens_q": int32(0, 2, 2, 5), "seqused_k": int32(32, 0, 17)},
    "copy_blocks": {"src_blocks": int32(3, -1), "dst_blocks": int32(0, 1), "num_tokens": int32(7, 16)},
    "compact_kv": {"src_slots": int64(3, 4, -1), "dst_slots": int64(2, 3, 1), "cu_moves": int32(0, 1, 1, 3)},
    "verify_drafts": {"cu_rows": int32(0, 2, 4, 5), "parents": int32(-1, 0, -1, 0, -1, -1), "seeds": int64(9, 8, 7)},
    "propose_drafts": {"history_lens": int32(3, 20, 11)},
    "plan_step": {"lengths": int32(7, 30, 1), "computed": int32(2, 29, 0), "finished": int32(0, 0, 1)},
    "commit_step": {"num_tokens": int32(4, 0, 1), "max_lengths": int32(22, 40, 40)},
}


class Recorded:
    """A call that can be done again on whatever its tensors then hold."""

    def __init__(self, backend, call):
        self.call, self.graph = call, None
        if backend.name == "cuda":
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                call()  # the first call sets attributes and loads modules
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                call()

    def replay(self):
        if self.graph is None:
            self.call()
        else:
            self.graph.replay()
            torch.cuda.synchronize()


def call_of(op, seed):
    torch.manual_seed(seed)
    takes_cache = op in ("append_kv", "rope_append_kv", "delta_prefill")
    kwargs = CALLS[op](torch.bfloat16) if takes_cache else CALLS[op]()
    if op == "delta_prefill":
        kwargs["tree_mask"] = None  # its bits belong to the lengths
    return kwargs


def contents(kwargs):
    return {name: t.clone() for name, t in all_tensors(kwargs).items()}


def write(kwargs, new):
    for name, t in all_tensors(kwargs).items():
        t.copy_(new[name])


def has_kernel(backend, op, kwargs):
    try:
        getattr(backend.ops, op)(**kwargs)
    except RuntimeError as error:
        if "no CUDA kernel" in str(error):
            return False
        raise
    return True


@pytest.mark.parametrize("op", CALLS)
def test_replay_does_what_a_call_does(backend, op):
    """Two replays on different contents, each beside a fresh call on the same: equal bits everywhere."""
    run = getattr(backend.ops, op)
    captured = on_device(call_of(op, 0), backend.device)
    if not has_kernel(backend, op, captured):
        pytest.skip("no CUDA kernel yet")
    write(captured, contents(on_device(call_of(op, 0), backend.device)))
    recorded = Recorded(backend, lambda: run(**captured))
    seen = []
    for seed, changed in ((1, CHANGED.get(op, {})), (2, {}), (1, CHANGED.get(op, {}))):
        fresh = call_of(op, seed)
        for name, value in changed.items():
            fresh = replace(fresh, name, value)
        fresh = on_device(fresh, backend.device)
        before = contents(fresh)
        write(captured, before)
        recorded.replay()
        run(**fresh)
        after = contents(captured)
        for name, t in all_tensors(fresh).items():
            assert same_bits(after[name], t), name
        outputs = [name for name in after if name.split("[")[0] in OUTPUTS[op]]
        assert any(not same_bits(after[name], before[name]) for name in outputs), "the call did nothing"
        seen.append({name: after[name] for name in outputs})
    assert all(same_bits(t, seen[2][name]) for name, t in seen[0].items()), "a replay depends on the one before"


@pytest.mark.parametrize("num_splits", [0, 3, -1])
def test_a_step_of_attention_in_one_graph(backend, num_splits):
    """Schedule, append and attention captured together follow lengths that change between replays."""
    heads, kv_heads, dim, blocks, batch = 4, 2, 64, 12, 3
    device, dtype = backend.device, torch.bfloat16
    if not backend.supports("delta_prefill", dtype, head_dim=dim):
        pytest.skip("not promised on this backend")
    table = torch.arange(blocks, dtype=torch.int32, device=device).view(batch, -1)
    state = {
        "k_cache": torch.randn(blocks, 16, kv_heads, dim).to(dtype),
        "v_cache": torch.randn(blocks, 16, kv_heads, dim).to(dtype),
        "query": torch.randn(6, heads, dim).to(dtype),
        "key": torch.randn(6, kv_heads, dim).to(dtype),
        "value": torch.randn(6, kv_heads, dim).to(dtype),
        "cu_seqlens_q": int32(0, 1, 4, 6),
        "seqused_k": int32(20, 31, 2),
        "slots": int64(19, 92, 93, 94, 128, 129),
        "schedule": torch.zeros(4096, dtype=torch.int32),
        "out": torch.zeros(6, heads, dim).to(dtype),
    }
    state = {name: t.to(device) for name, t in state.items()}
    lengths = [
        ((0, 1, 4, 6), (20, 31, 2), (19, 92, 93, 94, 128, 129)),
        ((0, 3, 3, 6), (64, 0, 40), (61, 62, 63, 165, 166, 167)),
        ((0, 2, 3, 4), (2, 1, 50), (0, 1, 64, 177, -1, -1)),
    ]

    def step(s, schedule):
        ops = backend.ops
        ops.append_kv(s["k_cache"], s["v_cache"], s["key"], s["value"], s["slots"])
        if schedule is not None:
            ops.schedule_delta_prefill(schedule, s["cu_seqlens_q"], s["seqused_k"], heads, kv_heads, dim, 3, num_splits)
        ops.delta_prefill(
            s["out"], None, s["query"], s["k_cache"], s["v_cache"], s["cu_seqlens_q"], s["seqused_k"], table, 3,
            dim**-0.5, num_splits=num_splits, schedule=schedule,
        )  # fmt: skip

    start = {name: t.clone() for name, t in state.items()}
    recorded = Recorded(backend, lambda: step(state, state["schedule"]))
    for cu_seqlens_q, seqused_k, slots in lengths:
        for name, t in start.items():
            state[name].copy_(t)
        state["cu_seqlens_q"].copy_(int32(*cu_seqlens_q))
        state["seqused_k"].copy_(int32(*seqused_k))
        state["slots"].copy_(int64(*slots))
        plain = {name: t.clone() for name, t in state.items()}
        recorded.replay()
        step(plain, None)  # its own schedule, made inside
        for name in ("k_cache", "v_cache", "out"):
            assert same_bits(state[name], plain[name]), name
        assert not same_bits(state["out"][: cu_seqlens_q[-1]], start["out"][: cu_seqlens_q[-1]])
