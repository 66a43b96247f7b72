"""Nothing in a step that the device takes by itself waits for it, and on a GPU it is captured."""

import random

import pytest
import torch
from checkpoints import save
from device_steps import SHAPE, engine_of, params_of, small_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import stateful_kv as skv
from stateful_kv import device_step

# All that a step may do beside the ops of this library: make memory, look at it in another shape, compute. What reads
# a value (item, nonzero, unique, a mask, a copy to the host) is not here, nor is anything else nobody thought of.
ALLOWED = {
    "aten::empty", "aten::new_empty", "aten::view", "aten::_unsafe_view", "aten::reshape", "aten::split_with_sizes",
    "aten::split", "aten::slice", "aten::select", "aten::unbind", "aten::transpose", "aten::t", "aten::detach",
    "aten::alias", "aten::embedding", "aten::index_select", "aten::mm", "aten::addmm",
}  # fmt: skip
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__len__")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("device_step"))


class Waits(RuntimeError):
    pass


class NothingWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name not in ALLOWED and not name.startswith("stateful_kv"):
            raise Waits(name)
        return func(*args, **(kwargs or {}))


class NobodyReads(TorchFunctionMode):
    """Reading a tensor of the host needs no dispatch; on a GPU the same call waits."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in READS and name != "__len__":
            raise Waits(name)
        if name == "to" and any(isinstance(a, (str, torch.device)) for a in (*args[1:], *(kwargs or {}).values())):
            raise Waits(name)
        return func(*args, **(kwargs or {}))


def watched(monkeypatch, step):
    """`step` in place of device_step.device_step, under both modes; returns how often it ran."""
    ran = []

    def watched_step(*args):
        with torch.inference_mode(), NobodyReads(), NothingWaits():
            step(*args)
        ran.append(1)

    monkeypatch.setattr(device_step, "device_step", watched_step)
    return ran


def take_turns(model):
    engine = engine_of(model, device_loop=True)
    params = [skv.SamplingParams(max_tokens=12), skv.SamplingParams(max_tokens=9, temperature=0.7, top_p=0.9, seed=1)]
    requests = [skv.Request(engine.open_session(), [i] * 9, p) for i, p in enumerate(params)]
    return [t.tokens for t in engine.generate(requests)]


def test_nothing_in_a_step_waits_for_the_device(model, monkeypatch):
    expected = take_turns(model)
    ran = watched(monkeypatch, device_step.device_step)
    assert take_turns(model) == expected
    assert len(ran) > 3


WAITING = {
    "item": lambda s: s.lengths[0].item(),
    "bool": lambda s: bool(s.lengths[0] > 3),
    "index": lambda s: range(s.lengths[0]),
    "tolist": lambda s: s.lengths.tolist(),
    "numpy": lambda s: s.lengths.numpy(),
    "cpu": lambda s: s.lengths.cpu(),
    "to": lambda s: s.lengths.to("cpu"),
    "copy_": lambda s: torch.empty(8, dtype=torch.int32).copy_(s.lengths),
    "nonzero": lambda s: s.lengths.nonzero(),
    "where": lambda s: torch.where(s.lengths > 0),
    "mask": lambda s: s.history[s.lengths > 0],
    "masked_select": lambda s: s.lengths.masked_select(s.lengths > 0),
    "unique": lambda s: s.lengths.unique(),
    "repeat_interleave": lambda s: torch.repeat_interleave(s.lengths),
    "equal": lambda s: torch.equal(s.lengths, s.computed),
}


@pytest.mark.parametrize("how", WAITING)
def test_a_step_that_waits_would_be_noticed(model, monkeypatch, how):
    real = device_step.device_step

    def waits(model, cache, state, *rest):
        real(model, cache, state, *rest)
        WAITING[how](state)

    watched(monkeypatch, waits)
    with pytest.raises(Waits):
        take_turns(model)


# ---- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_steps_give_the_answers_of_the_hosts(tmp_path):
    path = save("llama2", tmp_path, {**SHAPE, "hidden_size": 256, "num_attention_heads": 4, "head_dim": 64})
    answers, loop = [], None
    for device_loop in (False, True):
        engine = skv.Engine.from_pretrained(
            path, device="cuda", dtype=torch.bfloat16, num_blocks=200, device_loop=device_loop, deterministic=True
        )
        sessions, answers_of = [engine.open_session() for _ in range(5)], []
        for turn in range(3):
            requests = [
                skv.Request(s, [i, turn] * (3 + i), params_of(random.Random(i))) for i, s in enumerate(sessions)
            ]
            answers_of += [t.tokens for t in engine.generate(requests)]
        answers.append(answers_of)
        loop = engine._loop.device_loop
    assert answers[0] == answers[1]
    assert any(rows.graph is not None for rows in loop._rows.values()) and loop.steps > 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_launching_a_captured_step_does_not_wait(tmp_path, monkeypatch):
    path = save("llama2", tmp_path, {**SHAPE, "hidden_size": 256, "num_attention_heads": 4, "head_dim": 64})
    engine = skv.Engine.from_pretrained(path, device="cuda", dtype=torch.bfloat16, num_blocks=200, device_loop=True)
    session, params = engine.open_session(), skv.SamplingParams(max_tokens=40)
    session.generate([1, 2, 3], params)  # captures
    loop, replayed = engine._loop.device_loop, []
    launch = loop._launch

    def strict(info):
        if loop._rows_for(loop.shape_of(info)).graph is None:
            return launch(info)
        torch.cuda.set_sync_debug_mode("error")
        try:
            launch(info)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        replayed.append(1)

    monkeypatch.setattr(loop, "_launch", strict)
    session.generate([4, 5, 6], params)
    assert len(replayed) > 10
