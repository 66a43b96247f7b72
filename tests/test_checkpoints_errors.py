"""Checkpoints that are unusual or malformed: read as transformers reads them, or refused by file, entry and value."""

import json
import re
import shutil

import pytest
import torch
import transformers
from checkpoints import FAMILIES, VOCAB, save
from safetensors.torch import load_file, save_file

import stateful_kv as skv
from stateful_kv.models import read_config

OUT = object()  # left out of config.json
LINEAR = dict(rope_type="linear", rope_theta=1e4, factor=2.0)
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=128)
SLIDES = dict(use_sliding_window=True, max_window_layers=0, layer_types=OUT)
LAYERS = ["full_attention", "sliding_attention", "full_attention"]


def scaling(entries, **top):
    """rope_scaling and rope_theta, as files before transformers 5 have it."""
    return dict(rope_parameters=OUT, rope_theta=1e4, rope_scaling=entries, **top)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture
def edited(checkpoints, tmp_path):
    """A copy of the checkpoint `name` whose config.json has other entries."""

    def edit(name, **changes):
        copy = shutil.copytree(save(name, checkpoints), tmp_path / "edited")
        config = json.loads((copy / "config.json").read_text()) | changes
        (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not OUT}))
        return copy

    return edit


@pytest.mark.parametrize(
    "name, changes",
    [
        ("llama2", scaling(None, original_max_position_embeddings=64)),
        ("llama2", scaling(LLAMA3, original_max_position_embeddings=64)),
        ("llama2", scaling(dict(LLAMA3, original_max_position_embeddings=256), original_max_position_embeddings=64)),
        ("llama2", scaling(dict(YARN, original_max_position_embeddings=256), original_max_position_embeddings=32)),
        ("llama2", scaling(dict(YARN, factor=None))),
        ("llama2", scaling(dict(YARN, attention_factor=None, beta_fast=None, beta_slow=0, mscale=0.7))),
        ("llama2", scaling(dict(YARN, attention_factor=0, truncate=None))),
        ("llama2", scaling(dict(YARN, mscale=0.7, mscale_all_dim=0.5, truncate=False))),
        ("llama2", dict(rope_parameters=LINEAR, rope_scaling=dict(type="linear", factor=2, rope_theta=10000))),
        ("llama2", dict(partial_rotary_factor=None, layer_types=LAYERS, sliding_window=24)),
        ("llama2", dict(num_key_value_heads=None, head_dim=None, rms_norm_eps=OUT, layer_types=None)),
        ("qwen3", dict(layer_types=["attention"] * 3)),
        ("qwen2", dict(layer_types=LAYERS, use_sliding_window=True, sliding_window=24)),
        ("qwen2", dict(SLIDES, sliding_window=24, max_window_layers=-1)),
        ("qwen3", dict(SLIDES, sliding_window=None)),
        ("mistral", dict(sliding_window=None)),
        ("mistral", dict(layer_types=LAYERS)),
    ],
)
@torch.no_grad()
def test_read_as_transformers_does(name, changes, edited):
    path = edited(name, **changes)
    tokens = torch.randint(VOCAB, (200,), generator=torch.Generator().manual_seed(5)).tolist()
    oracle = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    logits = skv.Engine.from_pretrained(path, dtype=torch.float32, num_blocks=16).score(tokens)
    torch.testing.assert_close(logits, oracle.eval()(torch.tensor([tokens])).logits[0, -1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llama2", "mistral", "qwen2", "qwen3"])
def test_what_is_left_out_is_the_familys_default(name, edited):
    defaults = getattr(transformers, FAMILIES[name][0])()
    config, _ = read_config(edited(name, **SLIDES, max_position_embeddings=OUT, sliding_window=OUT))
    assert config.max_position == defaults.max_position_embeddings
    # Qwen's config forgets the window unless it is used.
    windows = () if name == "llama2" else (transformers.MistralConfig().sliding_window - 1,) * config.num_layers
    assert config.windows == windows


TWICE = r"rope_scaling is {.*} and rope_parameters is {.*}, expected one of them or the same in both"
AMOUNT = "expected an integer from 1 to 2147483647"
FLAG = "expected true or false"
DTYPE = "expected float32, float16 or bfloat16"
MALFORMED = [  # name, changes, message
    ("llama2", dict(rope_parameters=LINEAR, rope_scaling=dict(YARN)), TWICE),
    ("llama2", dict(rope_parameters=LINEAR, rope_scaling=dict(LINEAR, factor=4.0)), TWICE),
    ("llama2", dict(rope_parameters=LINEAR, rope_scaling=dict(LINEAR, rope_theta=5e5)), TWICE),
    ("llama2", scaling("linear"), "rope_scaling is 'linear', expected an object"),
    ("llama2", scaling(dict(LINEAR, factor=0)), "rope_scaling: factor is 0, expected a number above 0"),
    ("llama2", scaling(dict(LINEAR, factor=-2.0)), "rope_scaling: factor is -2.0, expected a number above 0"),
    ("llama2", scaling(dict(LINEAR, factor="2")), "rope_scaling: factor is '2', expected a number"),
    ("llama2", scaling(dict(LINEAR, factor=True)), "rope_scaling: factor is True, expected a number"),
    ("llama2", scaling(dict(LINEAR, factor=None)), "rope_scaling: factor is None, expected a number"),
    ("llama2", scaling(dict(LINEAR, factor=float("nan"))), "rope_scaling: factor is nan, expected a number"),
    ("llama2", scaling(dict(type="linear")), "rope_scaling: entry 'factor' is missing"),
    ("llama2", scaling(dict(LLAMA3, low_freq_factor=None)), "low_freq_factor is None, expected a number above 0"),
    ("llama2", scaling(dict(LLAMA3, high_freq_factor=0)), "high_freq_factor is 0, expected a number above 0"),
    (
        "llama2",
        scaling(dict(LLAMA3, original_max_position_embeddings=None)),
        "original_max_position_embeddings is None",
    ),
    ("llama2", scaling(LLAMA3, original_max_position_embeddings=None), "original_max_position_embeddings is None"),
    ("llama2", scaling(dict(YARN, factor=0)), "factor is 0, expected a number above 0"),
    (
        "llama2",
        scaling(dict(YARN, factor=1e8)),
        "factor is 100000000.0, expected one by which 128 positions stay below",
    ),
    ("llama2", scaling(dict(YARN, beta_fast=-1)), "beta_fast is -1, expected a number of at least 0"),
    ("llama2", scaling(dict(YARN, attention_factor="1")), "attention_factor is '1', expected a number"),
    ("llama2", scaling(dict(YARN, truncate="false")), "truncate is 'false', expected true or false"),
    ("llama2", scaling(dict(YARN, rope_theta=1.0)), "rope_scaling: rope_theta is 1.0, expected a number above 1"),
    ("llama2", scaling(dict(YARN)) | dict(rope_theta=0.5), "rope_theta is 0.5, expected a number above 1"),
    ("llama2", scaling(None) | dict(rope_theta=0.0), "rope_theta is 0.0, expected a number above 0"),
    ("llama2", scaling(None) | dict(rope_theta=None), "rope_theta is None, expected a number above 0"),
    ("llama2", scaling(None) | dict(rope_theta="1e4"), "rope_theta is '1e4', expected a number above 0"),
    ("llama2", dict(layer_types=LAYERS[:2]), "layer_types is .*, expected a list as long as num_hidden_layers, 3"),
    ("qwen3", dict(layer_types=[]), r"layer_types is \[\], expected a list as long as num_hidden_layers, 3"),
    ("qwen3", dict(layer_types="full_attention"), "layer_types is 'full_attention', expected a list"),
    ("qwen2", dict(layer_types=LAYERS, sliding_window=24), r"layer_types\[1\] is 'sliding_attention', .*use_sliding"),
    ("qwen2", dict(SLIDES, layer_types=LAYERS, sliding_window=None), f"sliding_window is None, {AMOUNT}"),
    ("qwen3", dict(SLIDES, sliding_window=0), f"sliding_window is 0, {AMOUNT}"),
    (
        "qwen3",
        dict(SLIDES, sliding_window=24, max_window_layers=None),
        "max_window_layers is None, expected an integer",
    ),
    ("mistral", dict(sliding_window=0), f"sliding_window is 0, {AMOUNT}"),
    ("mistral", dict(sliding_window=24.0), f"sliding_window is 24.0, {AMOUNT}"),
    ("mistral", dict(sliding_window=None, layer_types=LAYERS), f"sliding_window is None, {AMOUNT}"),
    ("llama2", dict(max_position_embeddings=None), f"max_position_embeddings is None, {AMOUNT}"),
    ("llama2", dict(max_position_embeddings=0), f"max_position_embeddings is 0, {AMOUNT}"),
    ("llama2", dict(max_position_embeddings=-5), f"max_position_embeddings is -5, {AMOUNT}"),
    ("llama2", dict(max_position_embeddings=512.0), f"max_position_embeddings is 512.0, {AMOUNT}"),
    ("llama2", dict(num_key_value_heads=0), f"num_key_value_heads is 0, {AMOUNT}"),
    ("llama2", dict(num_key_value_heads=3), "num_key_value_heads is 3, expected a divisor of num_attention_heads, 4"),
    ("llama2", dict(num_attention_heads="4"), f"num_attention_heads is '4', {AMOUNT}"),
    ("llama2", dict(num_hidden_layers=True), f"num_hidden_layers is True, {AMOUNT}"),
    ("llama2", dict(vocab_size=OUT), "entry 'vocab_size' is missing"),
    ("llama2", dict(rms_norm_eps=None), "rms_norm_eps is None, expected a number of at least 0"),
    ("llama2", dict(rms_norm_eps=-1e-6), "rms_norm_eps is -1e-06, expected a number of at least 0"),
    ("llama2", dict(tie_word_embeddings="false"), f"tie_word_embeddings is 'false', {FLAG}"),
    ("llama2", dict(tie_word_embeddings=None), f"tie_word_embeddings is None, {FLAG}"),
    ("llama2", dict(attention_bias=0), f"attention_bias is 0, {FLAG}"),
    ("llama2", dict(mlp_bias="false"), f"mlp_bias is 'false', {FLAG}"),
    ("qwen3", dict(attention_bias="false"), f"attention_bias is 'false', {FLAG}"),
    ("qwen2", dict(use_sliding_window="false"), f"use_sliding_window is 'false', {FLAG}"),
    *(
        ("llama2", dict(dtype=OUT, torch_dtype=value), f"torch_dtype is {re.escape(repr(value))}, {DTYPE}")
        for value in ("compile", "float64", "int8", "fp16", "", 3, ["float16"], {"": "float16"})
    ),
    ("llama2", dict(dtype="torch", torch_dtype="float32"), f"dtype is 'torch', {DTYPE}"),
]
ROTATION = "partial_rotary_factor is 0.5, expected 1.0"
UNSUPPORTED = [
    *((name, dict(partial_rotary_factor=0.5), ROTATION) for name in ("llama2", "mistral", "qwen2", "qwen3")),
    ("llama2", dict(rope_parameters=dict(LINEAR, partial_rotary_factor=0.5)), f"rope_parameters: {ROTATION}"),
    (
        "qwen3",
        dict(rope_parameters={"full_attention": LINEAR}),
        "rope_parameters: full_attention is {.*}, expected one",
    ),
    ("llama2", scaling({"full_attention": LINEAR}), "rope_scaling: full_attention is {.*}, expected one"),
    ("llama2", scaling(dict(type="dynamic", factor=2.0)), "rope_scaling: type is 'dynamic', expected default, linear"),
    ("llama2", dict(is_causal=False), "is_causal is False, expected true"),
    ("llama2", dict(layer_types=["chunked_attention"] * 3), r"layer_types\[0\] is 'chunked_attention', expected"),
    ("qwen3", dict(layer_types=[*LAYERS[:2], 7], use_sliding_window=True), r"layer_types\[2\] is 7, expected"),
    ("llama2", dict(head_dim=12), "head_dim is 12, expected a multiple of 8"),
    (
        "llama2",
        dict(head_dim=OUT, hidden_size=48),
        r"head_dim \(hidden_size 48 / .* 4\) is 12, expected a multiple of 8",
    ),
    ("llama2", dict(model_type="x", architectures="FooForCausalLM"), r"architecture FooForCausalLM \(model_type 'x'\)"),
    ("llama2", dict(model_type=["llama"], architectures=OUT), r"architecture none named \(model_type \['llama'\]\)"),
]


@pytest.mark.parametrize(
    "error, name, changes, message",
    [*((ValueError, *case) for case in MALFORMED), *((NotImplementedError, *case) for case in UNSUPPORTED)],
)
def test_config_entries_are_refused_by_name(error, name, changes, message, edited):
    path = edited(name, **changes)
    with pytest.raises(error, match=f"^{re.escape(str(path))}/config.json: .*{message}"):
        skv.Engine.from_pretrained(path, num_blocks=8)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", b"[" * 100_000])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_files_that_hold_no_json_object(file, text, edited):
    path = edited("llama2")
    (path / file).write_bytes(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path / file))}: .*expected a JSON object"):
        skv.Engine.from_pretrained(path)


@pytest.mark.parametrize(
    "value, dtype",
    [("torch.bfloat16", torch.bfloat16), ("half", torch.float16), ("auto", torch.float32), (None, torch.float32)],
)
def test_the_configs_dtype(value, dtype, edited):
    for name in ("dtype", "torch_dtype"):
        path = edited("llama2", **{"dtype": OUT, name: value})
        assert skv.Engine.from_pretrained(path, num_blocks=8).model.dtype == dtype
        shutil.rmtree(path)


@pytest.mark.parametrize(
    "index, message",
    [
        ({}, "entry 'weight_map' is missing"),
        ({"weight_map": ["a.safetensors"]}, r"weight_map is \['a.safetensors'\], expected an object"),
        ({"weight_map": {"model.norm.weight": None}}, "weight_map is {'model.norm.weight': None}, expected an object"),
    ],
)
def test_an_index_without_its_map(index, message, edited):
    path = edited("llama2")
    (path / "model.safetensors").rename(path / "a.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}/model.safetensors.index.json: {message}"):
        skv.Engine.from_pretrained(path)


def test_weights_that_an_index_does_not_name_are_ambiguous(edited):
    path = edited("llama2")
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    for shard in ("model.safetensors", "a.safetensors"):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(load_file(single), shard)}))
        if shard == single.name:
            skv.Engine.from_pretrained(path, num_blocks=8)
    shutil.copy(single, path / "a.safetensors")
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(single))}: .*{re.escape(str(index))}.*expected one of the two"
    ):
        skv.Engine.from_pretrained(path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", 8, 100, -1])
def test_weights_that_are_no_whole_file(content, edited):
    file = edited("llama2") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: .*expected a whole safetensors file"):
        skv.Engine.from_pretrained(file.parent)


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("name", [NORM, EMBEDDING, "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
@pytest.mark.parametrize(
    "dtype, said",
    [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3")],
)
def test_quantised_weights_are_refused_by_tensor(name, dtype, said, edited):
    file = edited("llama2") / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, name: tensors[name].to(dtype)}, file)
    with pytest.raises(NotImplementedError, match=f"^{re.escape(str(file))}: tensor '{name}' has dtype {said}; quant"):
        skv.Engine.from_pretrained(file.parent)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_weights_of_any_width_load(dtype, edited):
    file = edited("llama2", dtype="float32") / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, NORM: tensors[NORM].to(dtype)}, file)
    engine = skv.Engine.from_pretrained(file.parent, num_blocks=8)
    assert torch.equal(engine.model.layers[-1].next_norm, tensors[NORM].to(dtype).float())


@pytest.mark.parametrize("name", ["llama3", "llama-bias", "qwen3"])  # a tied head, biases, norms of heads
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_that_changes_leaves_a_loaded_engine_as_it_was(name, dtype, edited):
    file = edited(name) / "model.safetensors"
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
    save_file(tensors, file)
    engine = skv.Engine.from_pretrained(file.parent, dtype=dtype, num_blocks=8)
    before = engine.score([1, 2, 3, 4])
    content = bytearray(file.read_bytes())
    content[8 + int.from_bytes(content[:8], "little") :] = b"\0" * sum(t.nbytes for t in tensors.values())
    with open(file, "r+b") as in_place:
        in_place.write(content)
    uncached = skv.Engine(engine.model, num_blocks=8)
    assert torch.equal(uncached.score([1, 2, 3, 4]), before)
