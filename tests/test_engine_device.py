"""What the engine does on a GPU and not on the CPU, without one: buffers apart from the host's, shared work lists."""

import types

import pytest
import torch
from checkpoints import VOCAB, save

import stateful_kv as skv
from stateful_kv import generate
from stateful_kv.demo.main import blocks_on_gpu
from stateful_kv.engine import Engine
from stateful_kv.models import decoder

FIXED = skv.PromptLookup(adaptive=False)  # drafts whatever they cost here


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save("llama3", tmp_path_factory.mktemp("device"))


class Apart(generate.HostBuffers):
    """A device whose memory is the host's, but not the same: what was not copied is not there."""

    def __init__(self, runtime, device):
        self.stale = []  # what was handed out before, to be spoiled when the next step begins
        super().__init__(runtime, types.SimpleNamespace(type="elsewhere"))

    @staticmethod
    def _page_locked(t):
        return t.clone()

    def _allocated(self, t):
        return torch.full_like(t, 99)

    def take(self, name, *size):
        taken = super().take(name, *size)
        assert not any(taken.data_ptr() == t.data_ptr() for t in self.host.values()) or taken.numel() == 0
        assert taken.shape == size and taken.is_contiguous()
        host, staged, device = self._views[(name, *size)]
        assert staged.is_contiguous() and device.is_contiguous() and torch.equal(host, taken)
        return taken

    def synchronize(self):
        for t in self.on_device.values():
            t.fill_(99)  # nothing of a step may be needed in the next


def conversations(engine):
    """Answers of interleaved sessions with drafts, a fork, sampling and more tokens than one step takes."""
    sampled = skv.SamplingParams(max_tokens=9, temperature=0.9, top_p=0.9, seed=3)
    greedy = skv.SamplingParams(max_tokens=9)
    one, two = engine.open_session(), engine.open_session()
    texts = [[i * 7 % VOCAB for i in range(70)], [1, 2, 3] * 6]
    answers = [
        t.tokens for t in engine.generate([skv.Request(one, texts[0], greedy), skv.Request(two, texts[1], sampled)])
    ]
    child = one.fork()
    requests = [skv.Request(s, [5, 6], p) for s, p in ((one, sampled), (child, greedy), (two, greedy))]
    return answers + [t.tokens for t in engine.generate(requests)]


def test_answers_are_the_same_with_buffers_on_a_device_of_their_own(checkpoint, monkeypatch):
    options = {"num_blocks": 128, "block_size": 8, "max_batch_tokens": 32, "speculation": FIXED}
    expected = conversations(Engine.from_pretrained(checkpoint, **options))
    monkeypatch.setattr(generate, "HostBuffers", Apart)
    engine = Engine.from_pretrained(checkpoint, **options)
    assert not engine._loop._buffers.is_shared
    assert conversations(engine) == expected
    tables = [views for key, views in engine._loop._buffers._views.items() if key[0] == "block_table"]
    assert any(host is not staged for host, staged, _ in tables), "no table took the way over the packed copy"


def test_trees_with_buffers_on_a_device_of_their_own(checkpoint, monkeypatch):
    """Masks, parents and moves reach it, the rows walked come back."""
    params, prompt = skv.SamplingParams(max_tokens=40), [i * 7 % VOCAB for i in range(40)]
    answer = Engine.from_pretrained(checkpoint, num_blocks=64, speculation=None).complete(prompt, params).tokens
    decoys = [answer[i - 4 : i] + [(t + 1) % VOCAB for t in answer[i : i + 6]] for i in range(4, len(answer))]
    monkeypatch.setattr(generate, "HostBuffers", Apart)
    trees = skv.PromptLookup(num_drafts=12, branches=4, adaptive=False)
    engine = Engine.from_pretrained(checkpoint, num_blocks=64, speculation=trees)
    for _ in range(2):
        turn = engine.open_session(draft_spans=[answer, *decoys]).generate(prompt, params)
        assert turn.tokens == answer
    assert engine.stats()["tree_steps"] > 10 and turn.stats.accepted_branches > 10


def test_a_failed_step_waits_for_the_device_before_its_buffers_are_free(checkpoint, monkeypatch):
    events = []

    class Watched(Apart):
        def synchronize(self):
            events.append("waited")

    monkeypatch.setattr(generate, "HostBuffers", Watched)
    engine = Engine.from_pretrained(checkpoint, num_blocks=16)

    class Freeing:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def cancel_step(self):
            events.append("freed")
            self.inner.cancel_step()

    monkeypatch.setattr(engine._loop, "runtime", Freeing(engine._loop.runtime))
    monkeypatch.setattr(generate, "forward", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.open_session().generate([1, 2, 3])
    assert events[:2] == ["waited", "freed"]


@pytest.mark.parametrize("num_splits", [0, -1])
def test_work_lists_shared_by_the_layers_give_the_same_bits(checkpoint, monkeypatch, num_splits):
    made = []
    schedule = generate.ops.schedule_delta_prefill

    def counted(*args, **options):
        made.append(options["window_left"])
        return schedule(*args, **options)

    monkeypatch.setattr(generate.ops, "schedule_delta_prefill", counted)
    model = skv.models.load(checkpoint, torch.device("cpu"))
    engine = Engine(model, num_blocks=64, deterministic=num_splits == -1)
    expected = conversations(engine)
    assert not made
    forward = generate.forward
    monkeypatch.setattr(generate, "forward", lambda *args: forward(*args, has_schedule=True))
    engine = Engine(model, num_blocks=64, deterministic=num_splits == -1)
    assert conversations(engine) == expected
    assert len(made) <= 2 * engine.stats()["steps"]  # of all rows, and of those that decide something


def test_linears_of_a_gpu_are_torchs_until_an_engine_is_deterministic(checkpoint, monkeypatch):
    """Weights as a GPU keeps them, plain; engines of both kinds share one model."""
    options, called = {"num_blocks": 128, "block_size": 8}, []
    expected = conversations(Engine.from_pretrained(checkpoint, **options))

    class OnAGpu(decoder.Linear):
        def __init__(self, weight, bias=None):
            self.weight, self.transposed, self.bias, self.is_row_independent = weight, weight.t(), bias, False
            self.streamed_rows = 0  # a GPU that does not stream weights

    monkeypatch.setattr(decoder, "Linear", OnAGpu)
    model = skv.models.load(checkpoint, torch.device("cpu"))
    for name, module in (("mm", torch), ("addmm", torch), ("row_linear", decoder.ops)):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, f=real, **k: (called.append(n), f(*a, **k))[1])
    assert conversations(Engine(model, deterministic=True, **options)) == expected
    assert set(called) == {"row_linear"}
    called.clear()
    conversations(Engine(model, deterministic=False, **options))
    assert "row_linear" not in called and "mm" in called


def test_float32_on_a_gpu_is_refused_by_name():
    model = decoder.Decoder.__new__(decoder.Decoder)
    model.device, model.dtype = torch.device("cuda"), torch.float32
    with pytest.raises(NotImplementedError, match="dtype is float32 on cuda, expected float16 or bfloat16"):
        Engine(model)


def test_the_demos_two_engines_share_the_memory_of_a_gpu(checkpoint, monkeypatch):
    model = skv.models.load(checkpoint, torch.device("cpu"))
    per_block = generate.KVCache.bytes_per_block(model, 16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * per_block, 200 * per_block))
    assert blocks_on_gpu(model) == 40
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9 * per_block, 10**9 * per_block))
    assert blocks_on_gpu(model) == 62500
