"""The embedded model as it is trained: a small Llama in plain torch, its beginning, its checkpoint.

Copying is what a tool-calling agent does most, and what a small model learns last. The weights therefore begin with
heads that copy (Elhage et al. 2021, Olsson et al. 2022): in the first layer three heads look one, two and three tokens
back, in the next one a head looks for a place where the last three tokens, or tokens like them, stood before, and
passes on what followed there. They are trained slowly, so that the rest learns when to rely on them.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import chat


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; heads are of 64."""

    vocab: int
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 640
    theta: float = 500_000.0
    max_length: int = 4096

    head_dim = 64


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        d, kv = shape.hidden, shape.kv_heads * shape.head_dim
        self.input_norm, self.post_norm = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.q, self.k, self.v = (nn.Linear(d, n, bias=False) for n in (shape.heads * shape.head_dim, kv, kv))
        self.o = nn.Linear(shape.heads * shape.head_dim, d, bias=False)
        self.gate, self.up = (nn.Linear(d, shape.intermediate, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.intermediate, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y = F.rms_norm(x, x.shape[-1:], self.input_norm.to(x.dtype), 1e-5)
        q, k, v = (f(y).view(batch, length, -1, Shape.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        attention = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(attention.transpose(1, 2).reshape(batch, length, -1))
        y = F.rms_norm(x, x.shape[-1:], self.post_norm.to(x.dtype), 1e-5)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def _rotate(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = t.shape[-1] // 2
    return t * cos + torch.cat((-t[..., half:], t[..., :half]), -1) * sin


class Network(nn.Module):
    """Token ids to logits; embedding and output share their weights."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.empty(shape.vocab, shape.hidden))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))

    def frequencies(self) -> Tensor:
        dim = self.shape.head_dim
        return self.shape.theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)

    def forward(self, ids: Tensor, positions: Tensor, chosen: Tensor | None = None) -> Tensor:
        """ids, positions [batch, length] -> logits [number of chosen, vocab]; chosen: bool [batch, length], None = all
        of them."""
        angles = positions.float()[:, None, :, None] * self.frequencies().to(ids.device)
        angles = torch.cat((angles, angles), -1)
        x = F.embedding(ids, self.embedding)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.bfloat16)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        x = x.flatten(0, 1) if chosen is None else x[chosen]
        return F.linear(F.rms_norm(x, x.shape[-1:], self.norm.to(x.dtype), 1e-5), self.embedding)

    def begin(self, tokenizer, seed: int) -> None:
        """The weights before the first step."""
        generator = torch.Generator().manual_seed(seed)
        d = self.shape.hidden
        with torch.no_grad():
            for block in self.blocks:
                for linear in (block.q, block.k, block.v, block.gate, block.up):
                    linear.weight.normal_(0, d**-0.5, generator=generator)
                block.o.weight.zero_()
                block.down.weight.zero_()
            self.embedding.copy_(_word_vectors(tokenizer, d, generator))
            self._copying_heads(generator)
            self.norm.fill_(3.0)

    def _copying_heads(self, generator: torch.Generator) -> None:
        d, dim, half = self.shape.hidden, self.shape.head_dim, self.shape.head_dim // 2
        f = self.frequencies()

        def orthogonal(rows: int, columns: int) -> Tensor:
            return torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0].T

        # Dimension 0 is the same in every embedding: what does not depend on the token is read from there. What a
        # token is, what stood one, two and three before it, and what is passed on lie in directions of their own.
        size = (d - 1) // 5
        basis = F.pad(orthogonal(d - 1, d - 1), (1, 0))
        content, *back, output = (F.pad(basis[n * size :][:size], (0, 0, 0, dim - size)) for n in range(5))
        block = self.blocks[0]
        # score(distance) = sum of cos((distance - n) f) over the quick frequencies: highest n tokens back.
        quick = (torch.arange(half) < 8).float()
        for n, (kv, head) in enumerate(((1, 2), (1, 3), (0, 1))):
            kv, head = slice(kv * dim, (kv + 1) * dim), slice(head * dim, (head + 1) * dim)
            block.k.weight[kv] = 0
            block.k.weight[kv, 0] = torch.cat((f.cos(), f.sin()))
            block.v.weight[kv] = content
            block.q.weight[head] = 0
            block.q.weight[head, 0] = 8 * torch.cat((quick * (n * f).cos(), -quick * (n * f).sin()))
            block.o.weight[:, head] = 0.05 * back[n].T
        # A match of contents must not depend on the distance: it uses the slow frequencies only.
        slow = [i for i in range(half) if f[i] < 0.01]
        slow += [i + half for i in slow]
        match = [orthogonal(len(slow), dim) for _ in range(3)]
        kv, head, block = slice(dim, 2 * dim), slice(3 * dim, 4 * dim), self.blocks[1]
        query, key = torch.zeros(dim, d), torch.zeros(dim, d)
        query[slow] = 2 * match[0] @ content + 1.2 * match[1] @ back[0] + 1.5 * match[2] @ back[1]
        key[slow] = match[0] @ back[0] + match[1] @ back[1] + match[2] @ back[2]
        block.q.weight[head], block.k.weight[kv], block.v.weight[kv] = query, key, output
        block.o.weight[:, head] = 0.8 * output.T

    def copying(self) -> list[nn.Parameter]:
        """The matrices in which the copying heads are."""
        return [linear.weight for b in self.blocks[:2] for linear in (b.q, b.k, b.v, b.o)]

    # ---- checkpoints in the Hugging Face layout ----

    def tensors(self) -> dict[str, Tensor]:
        """Parameters by their names in a Llama checkpoint."""
        named = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        for idx, block in enumerate(self.blocks):
            p = f"model.layers.{idx}."
            named |= {
                p + "input_layernorm.weight": block.input_norm,
                p + "post_attention_layernorm.weight": block.post_norm,
            }
            named |= {p + f"self_attn.{n}_proj.weight": getattr(block, n).weight for n in "qkvo"}
            named |= {p + f"mlp.{n}_proj.weight": getattr(block, n).weight for n in ("gate", "up", "down")}
        return named

    def config(self, stop: int, pad: int) -> dict:
        s = self.shape
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": s.hidden,
            "intermediate_size": s.intermediate,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "head_dim": s.head_dim,
            "max_position_embeddings": s.max_length,
            "rms_norm_eps": 1e-5,
            "rope_theta": s.theta,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "vocab_size": s.vocab,
            "bos_token_id": None,
            "eos_token_id": stop,
            "pad_token_id": pad,
            "torch_dtype": "bfloat16",
        }


def _word_vectors(tokenizer, d: int, generator: torch.Generator) -> Tensor:
    """Embeddings of equal norm; pieces with the same letters (` order`, `order`, `_order`) begin near each other, so do
    the signs that stand around a value in JSON and in a sentence."""
    size = tokenizer.get_vocab_size()
    pieces = [tokenizer.decode([i], skip_special_tokens=False) for i in range(size)]
    letters = [re.sub(r"[^a-z]", "", piece.lower()) for piece in pieces]
    signs = {'":': "colon", ":": "colon", ' "': "quote", " '": "quote"}
    letters = [signs.get(piece, word) for piece, word in zip(pieces, letters)]
    index = {word: i for i, word in enumerate(dict.fromkeys(word for word in letters if len(word) > 1))}
    shared = torch.randn(len(index), d, generator=generator)
    own = torch.randn(size, d, generator=generator)
    for i, word in enumerate(letters):
        if word in index:
            part = 0.3 if pieces[i] in signs else 0.45
            own[i] = part * own[i] + math.sqrt(1 - part**2) * shared[index[word]]
    own *= 0.02 * math.sqrt(d) / own.norm(dim=1, keepdim=True)
    own[:, 0] = 0.06
    return own


def save_checkpoint(network: Network, directory: Path, tokenizer_file: Path) -> None:
    """config.json, model.safetensors (bfloat16), tokenizer.json, tokenizer_config.json, generation_config.json."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    stop, pad = tokenizer.token_to_id(chat.END), tokenizer.token_to_id(chat.PAD)
    tensors = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in network.tensors().items()}
    save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})
    files = {
        "config.json": network.config(stop, pad),
        "tokenizer_config.json": chat.tokenizer_config(network.shape.max_length),
        "generation_config.json": {"eos_token_id": stop, "pad_token_id": pad, "do_sample": False},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if tokenizer_file != directory / "tokenizer.json":
        (directory / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
