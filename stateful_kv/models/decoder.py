"""The decoder all families share: weights and the dense parts of a layer. Attention and cache belong to generate.py.

A family file (llama.py, qwen2.py, ...) turns its config.json into a DecoderConfig; names of tensors are those of
Hugging Face checkpoints, which these families have in common.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .rope import RopeConfig, cos_sin_table


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes and switches of one checkpoint."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of every query and key head before the rotary embedding (Qwen3)
    windows: tuple[int, ...] = ()  # per layer: keys a token sees to its left, -1 = all; () = all layers -1

    def window(self, layer: int) -> int:
        return self.windows[layer] if self.windows else -1


STREAMED_ROWS = 32  # up to which overlapped row_linear is as fast as torch's linear, on a GPU that streams weights
FUSED_ROWS = 8  # up to which such a GPU's linears take over what stands between them (ops.fused_row_linear)


def streams_weights(weight: Tensor) -> bool:
    """Whether ops.row_linear has its kernel for few rows on this weight's device."""
    is_half = weight.dtype in (torch.float16, torch.bfloat16)
    return weight.device.type == "cuda" and is_half and torch.cuda.get_device_capability(weight.device) == (9, 0)


class Linear:
    """x [rows, k] @ weight [n, k]^T + bias.

    On the CPU the weight is packed and a row's bits depend on that row alone, so that reuse, drafts and batching do not
    change them (ops.row_linear); elsewhere few rows are row_linear's where it is faster, and more are torch's own until
    row_independent() is asked for.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.is_row_independent = weight.device.type == "cpu"
        self.streamed_rows = STREAMED_ROWS if streams_weights(weight) else 0
        self.weight = ops.pack_linear_weight(weight) if self.is_row_independent else weight
        self.transposed = None if self.is_row_independent else weight.t()
        self.bias = bias

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Writes and returns out [rows, n]."""
        if self.is_row_independent or len(x) <= self.streamed_rows:
            return ops.row_linear(x, self.weight, self.bias, out)
        if self.bias is None:
            return torch.mm(x, self.transposed, out=out)
        return torch.addmm(self.bias, x, self.transposed, out=out)

    def fused(self, x: Tensor, out: Tensor, **options) -> Tensor:
        """With what stands before and after it; options: as in ops.fused_row_linear."""
        return ops.fused_row_linear(x, self.weight, self.bias, out=out, **options)

    def row_independent(self) -> "Linear":
        """The same through ops.row_linear; the weight is shared, and on a GPU not packed."""
        linear = copy.copy(self)
        linear.is_row_independent = True
        return linear


class Buffers:
    """The activations of one forward pass, which all its layers use one after the other."""

    def __init__(self, config: DecoderConfig, rows: int, like: Tensor):
        c = config
        heads = (c.num_heads, c.num_kv_heads, c.num_kv_heads)
        self.normed = like.new_empty(rows, c.hidden_size)
        self.qkv = like.new_empty(rows, sum(heads) * c.head_dim)
        # Views of one buffer, [rows, heads, head_dim] each.
        parts = self.qkv.split([n * c.head_dim for n in heads], 1)
        self.query, self.key, self.value = (part.view(rows, n, c.head_dim) for part, n in zip(parts, heads))
        self.attention = like.new_empty(rows, c.num_heads, c.head_dim)
        self.attention_rows = self.attention.view(rows, c.num_heads * c.head_dim)
        self.gate_up = like.new_empty(rows, 2 * c.intermediate_size)
        self.activated = like.new_empty(rows, c.intermediate_size)


class Layer:
    """One decoder layer: fused QKV and gate-up projections, norms, biases."""

    def __init__(self, config: DecoderConfig, take: Callable[[str], Tensor], index: int):
        p = f"model.layers.{index}."
        attn, mlp = p + "self_attn.", p + "mlp."

        def fused(kind: str, names: list[str]) -> Tensor:
            return torch.cat([take(f"{name}_proj.{kind}") for name in names])

        qkv, gate_up = [attn + n for n in "qkv"], [mlp + "gate", mlp + "up"]
        self.eps = config.rms_norm_eps
        self.window_left = config.window(index)
        self.input_norm = take(p + "input_layernorm.weight")
        self.qkv_linear = Linear(fused("weight", qkv), fused("bias", qkv) if config.qkv_bias else None)
        self.q_norm = take(attn + "q_norm.weight") if config.qk_norm else None
        self.k_norm = take(attn + "k_norm.weight") if config.qk_norm else None
        self.o_linear = Linear(take(attn + "o_proj.weight"), take(attn + "o_proj.bias") if config.output_bias else None)
        self.post_norm = take(p + "post_attention_layernorm.weight")
        self.gate_up_linear = Linear(fused("weight", gate_up), fused("bias", gate_up) if config.mlp_bias else None)
        self.down_linear = Linear(
            take(mlp + "down_proj.weight"), take(mlp + "down_proj.bias") if config.mlp_bias else None
        )
        self.fused_rows = FUSED_ROWS if streams_weights(self.down_linear.weight) else 0
        self.is_last = False

    def row_independent(self) -> "Layer":
        layer = copy.copy(self)
        for name, part in vars(self).items():
            if isinstance(part, Linear):
                setattr(layer, name, part.row_independent())
        return layer

    def before_attention(self, b: Buffers, residual: Tensor) -> None:
        """Query, key and value of the normed rows: b.normed -> b.qkv, or the norm too: residual -> b.qkv."""
        if len(residual) <= self.fused_rows:
            self.qkv_linear.fused(residual, b.qkv, norm_weight=self.input_norm, epsilon=self.eps)
        else:
            self.qkv_linear(b.normed, b.qkv)

    def after_attention(self, b: Buffers, residual: Tensor) -> None:
        """Output projection, residual, MLP, residual, and the norm of what comes next: b.attention -> b.normed.

        residual: [rows, hidden], updated in place. Few rows leave the norm to the next layer's before_attention, whose
        bits are the same.
        """
        if len(residual) <= self.fused_rows:
            self.o_linear.fused(b.attention_rows, residual, add=True)
            self.gate_up_linear.fused(
                residual, b.activated, norm_weight=self.post_norm, epsilon=self.eps, silu_and_mul=True
            )
            self.down_linear.fused(b.activated, residual, add=True)
            if self.is_last:
                ops.rms_norm(residual, self.next_norm, self.eps, b.normed)
            return
        self.o_linear(b.attention_rows, b.normed)
        ops.fused_add_rms_norm(b.normed, residual, self.post_norm, self.eps)
        self.gate_up_linear(b.normed, b.gate_up)
        ops.silu_and_mul(b.gate_up, b.activated)
        self.down_linear(b.activated, b.normed)
        ops.fused_add_rms_norm(b.normed, residual, self.next_norm, self.eps)


class Decoder:
    """A checkpoint's weights on one device, in one dtype."""

    def __init__(self, config: DecoderConfig, take: Callable[[str], Tensor], device: torch.device, dtype: torch.dtype):
        """take(name) returns the checkpoint's tensor `name`, or raises an error that names it."""

        def place(name: str, copies: bool = False) -> Tensor:
            tensor = take(name)
            # What the CPU does not pack is copied: the file is mapped, and could change under the engine.
            return tensor.to(device=device, dtype=dtype, copy=copies or tensor.ndim == 1)

        self.config, self.device, self.dtype = config, device, dtype
        self.embedding = place("model.embed_tokens.weight", copies=True)
        self.layers = [Layer(config, place, i) for i in range(config.num_layers)]
        final_norm = place("model.norm.weight")
        for layer, norm in zip(self.layers, [*(layer.input_norm for layer in self.layers[1:]), final_norm]):
            layer.next_norm = norm
        self.layers[-1].is_last = True
        self.lm_head = Linear(self.embedding if config.tie_word_embeddings else place("lm_head.weight"))
        self.cos_sin = cos_sin_table(config.rope, config.max_position, device)

    def row_independent(self) -> "Decoder":
        """This model with linears whose rows do not depend on their number (ops.row_linear); weights are shared."""
        if self.lm_head.is_row_independent:
            return self
        model = copy.copy(self)
        model.layers = [layer.row_independent() for layer in self.layers]
        model.lm_head = self.lm_head.row_independent()
        return model

    def embed(self, token_ids: Tensor) -> tuple[Tensor, Buffers]:
        """The residual stream [rows, hidden], and buffers that hold the first layer's input: normed, if it does not do
        that itself."""
        residual = F.embedding(token_ids, self.embedding)
        b = Buffers(self.config, len(token_ids), residual)
        if len(residual) > self.layers[0].fused_rows:
            ops.rms_norm(residual, self.layers[0].input_norm, self.config.rms_norm_eps, b.normed)
        return residual, b

    def logits(self, normed: Tensor) -> Tensor:
        """[rows, hidden], past the final norm -> [rows, vocab], in the model's dtype."""
        with ops.overlapping_launches():  # the head's first weights come while the norm is at work
            return self.lm_head(normed, normed.new_empty(len(normed), self.config.vocab_size))
