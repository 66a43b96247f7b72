"""Loads a Hugging Face checkpoint directory: config.json and safetensors, sharded or not."""

import dataclasses
import pathlib

import torch
from torch import Tensor

from ..arguments import shown
from . import llama, mistral, qwen2, qwen3
from .decoder import Decoder, DecoderConfig
from .fields import Fields

FAMILIES = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3, "mistral": mistral}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STORED_DTYPES = ("F64", "F32", "F16", "BF16")  # as safetensors calls them


def read_config(directory: str | pathlib.Path) -> tuple[DecoderConfig, dict]:
    """The parsed config of a checkpoint and config.json itself.

    Raises FileNotFoundError without config.json, NotImplementedError naming an unsupported architecture or option,
    ValueError naming an entry that is missing or malformed.
    """
    path = pathlib.Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, expected a Hugging Face checkpoint directory")
    raw = Fields.read(path)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        names = raw.get("architectures") or "none named"
        names = ", ".join(map(str, names)) if isinstance(names, list) else names
        raise NotImplementedError(
            f"{path}: architecture {names} (model_type {shown(family)}) is not supported, "
            f"expected one of {sorted(FAMILIES)}"
        )
    if raw.get("quantization_config"):
        raise NotImplementedError(f"{path}: quantized weights are not supported, expected a plain checkpoint")
    return FAMILIES[family].parse(raw), raw


def _named_dtype(raw: Fields) -> torch.dtype:
    """The one the config names, else float32."""
    name = "dtype" if raw.get("dtype") is not None else "torch_dtype"
    value = raw.get(name)
    if value in (None, "auto"):
        return torch.float32
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
    if not any(dtype is supported for supported in DTYPES):
        raise raw.wrong(name, "float32, float16 or bfloat16")
    return dtype


class _Tensors:
    """name -> tensor over one safetensors file or the shards of an index; a missing name is an error that says so."""

    def __init__(self, directory: pathlib.Path):
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError("loading checkpoints needs safetensors: pip install 'stateful_kv[text]'") from error
        self._directory, self._where = directory, {}
        for path in map(directory.joinpath, self._shards()):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: not found, expected the weights as safetensors")
            try:
                file = safe_open(str(path), framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{path}: {error}, expected a whole safetensors file") from None
            self._where.update(dict.fromkeys(file.keys(), (path, file)))

    def _shards(self) -> list[str]:
        single, index = self._directory / "model.safetensors", self._directory / "model.safetensors.index.json"
        if not index.is_file():
            return [single.name]
        fields = Fields.read(index)
        shards = fields["weight_map"].values() if isinstance(fields["weight_map"], dict) else [None]
        if not all(isinstance(shard, str) for shard in shards):
            raise fields.wrong("weight_map", "an object of tensors' names and their files'")
        if single.is_file() and single.name not in shards:  # either may be what was left behind
            raise ValueError(f"{single}: lies beside {index}, which does not name it, expected one of the two")
        return sorted(set(shards))

    def names(self) -> set[str]:
        return set(self._where)

    def take(self, name: str) -> Tensor:
        if name not in self._where:
            raise ValueError(f"{self._directory}: tensor {name!r} is missing from the checkpoint")
        path, file = self._where[name]
        dtype = file.get_slice(name).get_dtype()
        if dtype not in STORED_DTYPES:
            raise NotImplementedError(
                f"{path}: tensor {name!r} has dtype {dtype}; quantised weights are not supported, "
                f"expected one of {', '.join(STORED_DTYPES)}"
            )
        return file.get_tensor(name)


def load(directory: str | pathlib.Path, device: torch.device, dtype: torch.dtype | None = None) -> Decoder:
    """The checkpoint's weights on `device`; dtype None = the one the config names, else float32.

    Raises as read_config does, ValueError naming a missing tensor, one of a wrong shape or one that the config does
    not explain: a bias that nothing adds would change every answer in silence.
    """
    directory = pathlib.Path(directory)
    config, raw = read_config(directory)
    dtype = _named_dtype(raw) if dtype is None else dtype
    tensors = _Tensors(directory)
    config = _with_actual_head(config, tensors)
    expected = expected_shapes(config)
    allowed = expected.keys() | {"lm_head.weight"}
    extra = sorted(name for name in tensors.names() - allowed if not name.endswith("rotary_emb.inv_freq"))
    if extra:
        raise ValueError(f"{directory}: the config has no place for tensor {extra[0]!r} ({len(extra)} such tensors)")

    def take(name: str) -> Tensor:
        tensor = tensors.take(name)
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{directory}: tensor {name!r} has shape {list(tensor.shape)}, expected {list(expected[name])}"
            )
        return tensor

    return Decoder(config, take, device, dtype)


def _with_actual_head(config: DecoderConfig, tensors: _Tensors) -> DecoderConfig:
    """A config that says "tied" beside a checkpoint whose lm_head differs from its embedding: the checkpoint is
    right.
    """
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if not config.tie_word_embeddings or not {head, embedding} <= tensors.names():
        return config
    return dataclasses.replace(config, tie_word_embeddings=torch.equal(tensors.take(head), tensors.take(embedding)))


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor a checkpoint of this config holds."""
    hidden, inter = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for i in range(config.num_layers):
        p, attn, mlp = f"model.layers.{i}.", f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        shapes |= {p + "input_layernorm.weight": (hidden,), p + "post_attention_layernorm.weight": (hidden,)}
        shapes |= {attn + f"{n}_proj.weight": (rows, hidden) for n, rows in (("q", q), ("k", kv), ("v", kv))}
        shapes |= {attn + "o_proj.weight": (hidden, q), mlp + "down_proj.weight": (hidden, inter)}
        shapes |= {mlp + f"{n}_proj.weight": (inter, hidden) for n in ("gate", "up")}
        if config.qkv_bias:
            shapes |= {attn + f"{n}_proj.bias": (rows,) for n, rows in (("q", q), ("k", kv), ("v", kv))}
        if config.output_bias:
            shapes[attn + "o_proj.bias"] = (hidden,)
        if config.mlp_bias:
            shapes |= {
                mlp + "gate_proj.bias": (inter,),
                mlp + "up_proj.bias": (inter,),
                mlp + "down_proj.bias": (hidden,),
            }
        if config.qk_norm:
            shapes |= {attn + "q_norm.weight": (config.head_dim,), attn + "k_norm.weight": (config.head_dim,)}
    return shapes
