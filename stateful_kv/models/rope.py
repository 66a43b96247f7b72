"""Rotary position tables: default, linear, llama3 and yarn scaling, as Hugging Face configs describe them.

Sources: RoFormer (Su et al., 2021); position interpolation (Chen et al., 2023); YaRN (Peng et al., 2023);
the llama3 rule of Llama 3.1's reference code. Frequencies are computed in float32, as transformers does.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import INT32, shown
from .fields import Fields


@dataclass(frozen=True)
class RopeConfig:
    """What the tables follow from, and nothing else: equal configs are equal tables."""

    rotary_dim: int
    theta: float
    kind: str = "default"  # default | linear | llama3 | yarn
    scaling: tuple[tuple[str, float], ...] = ()  # the entries that the kind reads, defaults filled in
    original_max_position: float = 0  # positions the model was trained on before scaling


def rope_config(config: Fields, rotary_dim: int) -> RopeConfig:
    """Reads rope_parameters (transformers 5) or rope_theta + rope_scaling (before) from a config.json."""
    names = [name for name in ("rope_scaling", "rope_parameters") if config.get(name)]
    found = [_read(config, name, rotary_dim) for name in names] or [_read(config, None, rotary_dim)]
    if found[0] != found[-1]:  # transformers takes rope_scaling; which is meant cannot be known
        both = " and ".join(f"{name} is {shown(config[name])}" for name in names)
        raise ValueError(f"{config.where}: {both}, expected one of them or the same in both")
    return found[0]


def _read(config: Fields, name: str | None, rotary_dim: int) -> RopeConfig:
    """The rotary embedding as the dictionary `name` has it."""
    config = config.with_defaults(rope_theta=10000.0)
    entries = config[name] if name else {}
    if not isinstance(entries, dict):
        raise config.wrong(name, "an object")
    s = Fields(f"{config.where}: {name}" if name else config.where, entries)
    for key, value in s.items():
        if isinstance(value, dict):
            raise s.wrong(key, "one rotary embedding for all layers", NotImplementedError)
    for fields in (s, config):  # transformers ignores it in these families, vLLM applies it
        if fields.get("partial_rotary_factor") not in (None, 1):
            raise fields.wrong("partial_rotary_factor", "1.0: partial rotation is not supported", NotImplementedError)
    theta = (s if "rope_theta" in s else config).real("rope_theta", above=0)
    kind_name = "rope_type" if "rope_type" in s else "type"
    kind = s.get(kind_name, "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise s.wrong(kind_name, "default, linear, llama3 or yarn", NotImplementedError)
    if kind == "default":
        return RopeConfig(rotary_dim, theta)
    if kind == "linear":
        return RopeConfig(rotary_dim, theta, kind, (("factor", s.real("factor", above=0)),))
    # The top-level entry goes first, in transformers too.
    original_name = "original_max_position_embeddings"
    if original_name in config:
        original = config.real(original_name, above=0)
    else:
        original = s.real(original_name, above=0) if original_name in s else config.integer("max_position_embeddings")
    if kind == "llama3":
        scaling = {name: s.real(name, above=0) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    else:
        if theta <= 1:
            raise (s if "rope_theta" in s else config).wrong(
                "rope_theta", "a number above 1, as yarn needs its logarithm"
            )
        scaling = _yarn_entries(s, config, original)
    return RopeConfig(rotary_dim, theta, kind, tuple(scaling.items()), original)


def _yarn_entries(s: Fields, config: Fields, original: float) -> dict[str, float]:
    if s["factor"] is None:
        factor = config.integer("max_position_embeddings") / original
    else:
        factor = s.real("factor", above=0)
    if factor * original > INT32[1]:
        raise s.wrong("factor", f"one by which {original:g} positions stay below 2^31")

    def given(name: str, **bounds: float) -> float | None:
        """None where the entry is null or left out."""
        return s.real(name, **bounds) if s.get(name) is not None else None

    def get_mscale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    attention_factor, mscale, mscale_all_dim = map(given, ("attention_factor", "mscale", "mscale_all_dim"))
    if attention_factor is None:
        attention_factor = get_mscale(1.0)
        if mscale and mscale_all_dim:
            attention_factor = get_mscale(mscale) / get_mscale(mscale_all_dim)
    if s.get("truncate", True) not in (True, False, None):
        raise s.wrong("truncate", "true or false")
    return dict(
        factor=factor,
        attention_factor=attention_factor,
        beta_fast=given("beta_fast", low=0) or 32.0,
        beta_slow=given("beta_slow", low=0) or 1.0,
        truncate=bool(s.get("truncate", True)),
    )


def _yarn(rope: RopeConfig, inv_freq: Tensor) -> tuple[Tensor, float]:
    s, dim = dict(rope.scaling), rope.rotary_dim

    def correction_dim(rotations: float) -> float:
        return dim * math.log(rope.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = correction_dim(s["beta_fast"]), correction_dim(s["beta_slow"])
    if s["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return inv_freq / s["factor"] * ramp + inv_freq * (1 - ramp), s["attention_factor"]


def _llama3(rope: RopeConfig, inv_freq: Tensor) -> Tensor:
    s = dict(rope.scaling)
    factor, low, high = s["factor"], s["low_freq_factor"], s["high_freq_factor"]
    wavelen = 2 * math.pi / inv_freq
    original = rope.original_max_position
    smooth = (original / wavelen - low) / (high - low)
    blended = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    scaled = torch.where(wavelen > original / low, inv_freq / factor, inv_freq)
    between = (wavelen >= original / high) & (wavelen <= original / low)
    return torch.where(between, blended, scaled)


def cos_sin_table(rope: RopeConfig, max_position: int, device: torch.device) -> Tensor:
    """float32 [max_position, rotary_dim]: cosines first, then sines."""
    exponent = torch.arange(0, rope.rotary_dim, 2, dtype=torch.int64).float() / rope.rotary_dim
    inv_freq = 1.0 / (rope.theta**exponent)
    scale = 1.0
    if rope.kind == "linear":
        inv_freq = inv_freq / dict(rope.scaling)["factor"]
    elif rope.kind == "llama3":
        inv_freq = _llama3(rope, inv_freq)
    elif rope.kind == "yarn":
        inv_freq, scale = _yarn(rope, inv_freq)
    angles = torch.arange(max_position, dtype=torch.float32)[:, None] * inv_freq[None, :]
    return torch.cat([angles.cos() * scale, angles.sin() * scale], dim=1).to(device)
