"""Kernels that begin while the one ahead still runs (ops.overlapping_launches): the same bits as one after another.

Only a GPU overlaps them. The CPU shows that nothing else changes; the emulator, in every test of these ops, that each
CTA waits for the grids ahead, and on two layers that none reads before what one of them writes
(tests/simt/small/decoder_layers.cpp).
"""

import contextlib

import pytest
import torch
from backends import BACKENDS
from cases import same_bits

import stateful_kv as skv
from stateful_kv import ops
from stateful_kv.models import Decoder, DecoderConfig
from stateful_kv.models.checkpoint import expected_shapes
from stateful_kv.models.rope import RopeConfig


def model_on(device, hidden, intermediate, layers, heads, kv_heads, dim, dtype):
    config = DecoderConfig(
        family="llama", vocab_size=500, hidden_size=hidden, intermediate_size=intermediate, num_layers=layers,
        num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, rms_norm_eps=1e-5, max_position=8192,
        rope=RopeConfig(dim, 500000.0), tie_word_embeddings=False,
    )  # fmt: skip
    shapes, device = expected_shapes(config), torch.device(device)

    def take(name):
        torch.manual_seed(len(name))
        return torch.randn(shapes[name], device=device, dtype=dtype) * hidden**-0.5

    return Decoder(config, take, device, dtype)


def run(model, contexts, answer, **options):
    """Tokens of two turns of several sessions, and what their caches hold."""
    blocks = sum(-(-(n + 2 * answer + 40) // 16) + 2 for n in contexts)
    engine = skv.Engine(model, num_blocks=blocks, block_size=16, max_seqs=len(contexts), **options)
    torch.manual_seed(1)
    engine._loop.cache.storage.normal_()
    r, tokens = torch.Generator().manual_seed(2), []
    sessions = [engine.open_session() for _ in contexts]
    params = skv.SamplingParams(max_tokens=answer)
    for lengths in (contexts, [1 + n % 7 for n in contexts]):
        texts = [torch.randint(0, 500, (n,), generator=r) for n in lengths]
        turns = engine.generate([skv.Request(s, t, params) for s, t in zip(sessions, texts)])
        tokens += [list(turn.tokens) for turn in turns]
    return tokens, engine._loop.cache.storage.clone()


DEVICES = [backend.device for backend in BACKENDS if not backend.emulated]
LOOPS = {  # on a GPU the second one's steps are captured
    "host": {"deterministic": False}, "device": {"deterministic": False, "device_loop": True},
    "deterministic": {"deterministic": True},
}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("contexts", [[700], [3, 40, 1500, 90, 5000, 333, 64, 2047]], ids=["one", "eight"])
def test_an_engine_gives_the_same_bits(monkeypatch, contexts, loop, device):
    shape, dtype, answer, rounds = (64, 96, 2, 2, 1, 64), torch.float32, 4, 1
    if device == "cuda":
        shape, dtype, answer, rounds = (2048, 5632, 6, 16, 4, 128), torch.bfloat16, 40, 3
    model = model_on(device, *shape, dtype)
    options = {**LOOPS[loop], "speculation": None}
    with monkeypatch.context() as patch:
        patch.setattr(ops, "overlapping_launches", contextlib.nullcontext)
        want = run(model, contexts, answer, **options)
    for _ in range(rounds):
        got = run(model, contexts, answer, **options)
        assert got[0] == want[0]
        assert same_bits(got[1], want[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("contexts", [[70], [3, 40, 300, 9]], ids=["one", "four"])
def test_layers_that_fuse_give_the_same_bits(contexts, loop, device):
    """Few rows: norms, activation and residual within the linears (Layer.fused_rows), or by ops of their own."""
    shape, dtype = (64, 96, 2, 2, 1, 64), torch.float32
    if device == "cuda":
        shape, dtype = (2048, 5632, 6, 16, 4, 128), torch.bfloat16
    model = model_on(device, *shape, dtype)
    drafts = skv.PromptLookup(num_drafts=2, adaptive=False)  # as many whatever they cost
    found = []
    for fused_rows in (0, 8):
        for layer in model.layers:
            layer.fused_rows = fused_rows
        found.append(run(model, contexts, 20, **LOOPS[loop], speculation=drafts))
    assert found[0][0] == found[1][0]
    assert same_bits(found[0][1], found[1][1])


def test_the_switch_is_put_back():
    schema = torch.ops.stateful_kv.overlap_launches.default._schema
    assert str(schema) == "stateful_kv::overlap_launches(bool enabled) -> bool"
    assert torch.ops.stateful_kv.overlap_launches(False) is False
    with ops.overlapping_launches():
        with ops.overlapping_launches(False):
            assert torch.ops.stateful_kv.overlap_launches(False) is False
        on = torch.ops.stateful_kv.overlap_launches(True)
    assert torch.ops.stateful_kv.overlap_launches(False) is False
    if torch.cuda.is_available():
        assert on is True
    with pytest.raises(KeyError), ops.overlapping_launches():
        raise KeyError
    assert torch.ops.stateful_kv.overlap_launches(False) is False
