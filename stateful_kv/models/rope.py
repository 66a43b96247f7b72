"""Rotary position tables: default, linear, llama3 and yarn scaling, as Hugging Face configs describe them.

Sources: RoFormer (Su et al., 2021); position interpolation (Chen et al., 2023); YaRN (Peng et al., 2023);
the llama3 rule of Llama 3.1's reference code. Frequencies are computed in float32, as transformers does.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeConfig:
    rotary_dim: int
    theta: float
    kind: str = "default"  # default | linear | llama3 | yarn
    scaling: tuple[tuple[str, object], ...] = ()  # the scaling dictionary's items
    original_max_position: int = 0  # positions the model was trained on before scaling


def rope_config(config: dict, rotary_dim: int) -> RopeConfig:
    """Reads rope_parameters (transformers 5) or rope_theta + rope_scaling (before) from a config.json."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(scaling.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise NotImplementedError(f"rope scaling type {kind!r}: expected default, linear, llama3 or yarn")
    needed = {"linear": ("factor",), "yarn": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
    for name in needed.get(kind, ()):
        if name not in scaling:
            raise ValueError(f"rope scaling of type {kind}: entry {name!r} is missing")
    if (partial := scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))) != 1.0:
        rotary_dim = int(rotary_dim * partial)
    original = scaling.get("original_max_position_embeddings") or config.get("max_position_embeddings", 0)
    if kind in ("llama3", "yarn") and not original:
        raise ValueError(f"rope scaling of type {kind}: original_max_position_embeddings is missing")
    return RopeConfig(rotary_dim, theta, kind, tuple(sorted(scaling.items(), key=lambda kv: kv[0])), original)


def _yarn(rope: RopeConfig, inv_freq: Tensor) -> tuple[Tensor, float]:
    s = dict(rope.scaling)
    factor, dim = float(s["factor"]), rope.rotary_dim

    def get_mscale(scale: float, mscale: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0

    attention_factor = s.get("attention_factor")
    if attention_factor is None:
        if s.get("mscale") and s.get("mscale_all_dim"):
            attention_factor = get_mscale(factor, s["mscale"]) / get_mscale(factor, s["mscale_all_dim"])
        else:
            attention_factor = get_mscale(factor)

    def correction_dim(rotations: float) -> float:
        return dim * math.log(rope.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = correction_dim(s.get("beta_fast") or 32), correction_dim(s.get("beta_slow") or 1)
    if s.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return inv_freq / factor * ramp + inv_freq * (1 - ramp), float(attention_factor)


def _llama3(rope: RopeConfig, inv_freq: Tensor) -> Tensor:
    s = dict(rope.scaling)
    factor, low, high = float(s["factor"]), float(s["low_freq_factor"]), float(s["high_freq_factor"])
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
        inv_freq = inv_freq / float(dict(rope.scaling)["factor"])
    elif rope.kind == "llama3":
        inv_freq = _llama3(rope, inv_freq)
    elif rope.kind == "yarn":
        inv_freq, scale = _yarn(rope, inv_freq)
    angles = torch.arange(max_position, dtype=torch.float32)[:, None] * inv_freq[None, :]
    return torch.cat([angles.cos() * scale, angles.sin() * scale], dim=1).to(device)
