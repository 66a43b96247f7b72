"""What is timed for each op but attention: shapes, the bytes that have to move, our call and its peers.

A Case builds one set of buffers at a time: build(target) returns {contestant: call}, all on the same buffers. Names
of peers begin with "torch" or "flashinfer", those of other ways to call ours with "ours"; what cannot be imported or
raises is reported beside the time of ours.
"""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .target import Target

FP8 = torch.float8_e4m3fn
HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 16


@dataclasses.dataclass
class Case:
    op: str
    shape: dict
    num_bytes: int  # that the call has to read and write at least
    build: Callable[[Target], dict[str, Callable[[], object]]]
    flops: int = 0
    held_bytes: int = 0  # of one set of buffers, where that is more than num_bytes


def int32(target, values):
    return torch.tensor(values, dtype=torch.int32, device=target.device)


def noise(target, *shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device=target.device).to(dtype)


def pool(target, num_blocks, dtype=torch.bfloat16, heads=KV_HEADS, dim=DIM, block=BLOCK):
    if dtype == FP8:
        return torch.zeros(num_blocks, block, heads, dim, dtype=torch.uint8, device=target.device).view(FP8)
    return torch.zeros(num_blocks, block, heads, dim, dtype=dtype, device=target.device)


def append_cases(tiny: bool) -> list[Case]:
    def make(tokens, cache_dtype, rope):
        def build(target):
            num_blocks = tokens // BLOCK + 64
            k_cache, v_cache = (pool(target, num_blocks, cache_dtype) for _ in range(2))
            fused = noise(target, tokens, (HEADS + 2 * KV_HEADS) * DIM)
            parts = fused.split([HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM], -1)
            query, key, value = (t.unflatten(-1, (-1, DIM)) for t in parts)
            slots = torch.randperm(num_blocks * BLOCK, device=target.device)[:tokens].sort().values
            scale = torch.tensor(0.05, device=target.device) if cache_dtype == FP8 else None
            if not rope:
                calls = {"ours": lambda: target.ops.append_kv(k_cache, v_cache, key, value, slots, scale, scale)}
                if cache_dtype != FP8:

                    def index_put():
                        k_cache.view(-1, KV_HEADS, DIM)[slots] = key
                        v_cache.view(-1, KV_HEADS, DIM)[slots] = value

                    calls["torch index_put"] = index_put
                return calls
            positions = torch.arange(tokens, device=target.device)
            cos_sin = noise(target, max(tokens, 1), DIM, dtype=torch.float32)
            out = torch.empty(tokens, HEADS, DIM, dtype=query.dtype, device=target.device)

            def rotate(x, cos, sin):
                first, second = x.chunk(2, -1)
                return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

            def separate():
                cos, sin = cos_sin[positions].bfloat16()[:, None].chunk(2, -1)
                out.copy_(rotate(query, cos, sin))
                k_cache.view(-1, KV_HEADS, DIM)[slots] = rotate(key, cos, sin)
                v_cache.view(-1, KV_HEADS, DIM)[slots] = value

            def ours():
                target.ops.rope_append_kv(
                    out, k_cache, v_cache, query, key, value, positions, cos_sin, slots, k_scale=scale, v_scale=scale
                )

            return {"ours": ours} | ({} if cache_dtype == FP8 else {"torch composition": separate})

        kv_row = KV_HEADS * DIM * (2 + cache_dtype.itemsize)
        moved = tokens * (2 * kv_row + (HEADS * DIM * 4 + DIM * 4 if rope else 0))
        shape = {"tokens": tokens, "cache": str(cache_dtype)[6:]}
        return Case("rope_append_kv" if rope else "append_kv", shape, moved, build)

    sizes = (3,) if tiny else (1, 64, 512, 4096, 16384)
    return [make(n, d, rope) for rope in (False, True) for d in (torch.bfloat16, FP8) for n in sizes]


def copy_cases(tiny: bool) -> list[Case]:
    def make(copies, layers):
        def build(target):
            ks, vs = ([pool(target, 2 * copies) for _ in range(layers)] for _ in range(2))
            order = torch.randperm(2 * copies, device=target.device).int()
            src, dst = order[:copies].contiguous(), order[copies:].contiguous()
            wide_src, wide_dst = src.long(), dst.long()

            def plain():
                for cache in (*ks, *vs):
                    cache[wide_dst] = cache[wide_src]

            return {"ours": lambda: target.ops.copy_blocks(ks, vs, src, dst), "torch index per layer": plain}

        moved = 2 * 2 * layers * copies * BLOCK * KV_HEADS * DIM * 2
        return Case("copy_blocks", {"blocks": copies, "layers": layers}, moved, build)

    return [make(2, 2)] if tiny else [make(1, 32), make(8, 32), make(64, 32), make(512, 32)]


def compact_cases(tiny: bool) -> list[Case]:
    def make(batch, moves, layers):
        def build(target):
            ks, vs = ([pool(target, batch) for _ in range(layers)] for _ in range(2))
            first = torch.arange(batch, device=target.device)[:, None] * BLOCK
            step = torch.arange(moves, device=target.device)[None]
            src, dst = (first + 2 * step + 1).flatten(), (first + step + 1).flatten()
            cu_moves = torch.arange(batch + 1, device=target.device, dtype=torch.int32) * moves

            def plain():
                for cache in (*ks, *vs):
                    rows = cache.view(-1, KV_HEADS, DIM)
                    rows[dst] = rows[src]

            return {"ours": lambda: target.ops.compact_kv(ks, vs, src, dst, cu_moves), "torch index per layer": plain}

        moved = 2 * 2 * layers * batch * moves * KV_HEADS * DIM * 2
        return Case("compact_kv", {"batch": batch, "moves": moves, "layers": layers}, moved, build)

    return [make(2, 3, 2)] if tiny else [make(1, 4, 32), make(64, 4, 32)]


def merge_cases(tiny: bool) -> list[Case]:
    def make(rows):
        def build(target):
            a, b, out = (noise(target, rows, HEADS, DIM) for _ in range(3))
            lse_a, lse_b, lse = (noise(target, HEADS, rows, dtype=torch.float32) for _ in range(3))

            def plain():
                total = torch.logaddexp(lse_a, lse_b)
                wa, wb = (torch.exp(x - total).T[..., None] for x in (lse_a, lse_b))
                out.copy_(a * wa + b * wb)
                lse.copy_(total)

            return {"ours": lambda: target.ops.merge_states(out, lse, a, lse_a, b, lse_b), "torch composition": plain}

        return Case("merge_states", {"rows": rows}, rows * HEADS * (3 * DIM * 2 + 12), build)

    return [make(n) for n in ((4,) if tiny else (64, 1024, 16384))]


def verify_cases(tiny: bool) -> list[Case]:
    def make(batch, rows_each, vocab, draw):
        """draw: greedy, top_p, or "top_p, few likely": of logits like a model's, of which a hundred stand out."""
        sampled = draw != "greedy"

        def build(target):
            total = batch * rows_each
            logits = noise(target, total, vocab)
            if draw == "top_p, few likely":
                logits[:, :: vocab // 100] += 12
            drafts = torch.randint(0, vocab, (total,), dtype=torch.int32, device=target.device)
            cu_rows = torch.arange(batch + 1, dtype=torch.int32, device=target.device) * rows_each
            tokens = int32(target, [[0] * rows_each] * batch)
            num_tokens = int32(target, [0] * batch)
            options = {}
            if sampled:
                full = torch.ones(batch, device=target.device)
                seeds = torch.arange(batch, device=target.device)
                options = {"temperature": full * 0.8, "top_p": full * 0.95, "seeds": seeds, "positions": seeds + 100}

            def ours():
                target.ops.verify_drafts(tokens, num_tokens, None, logits, drafts, cu_rows, **options)

            def plain():  # the draws alone, without the walk along the drafts
                if not sampled:
                    return logits.argmax(-1)
                probabilities = torch.softmax(logits.float() / 0.8, -1)
                ordered, order = probabilities.sort(-1, descending=True)
                ordered[ordered.cumsum(-1) - ordered > 0.95] = 0
                return order.gather(-1, torch.multinomial(ordered, 1))

            calls = {"ours": ours, "torch draws": plain}
            if sampled and rows_each > 1 and not target.emulated:
                calls["flashinfer chain"] = flashinfer_chain(logits, drafts, batch, rows_each)
            return calls

        shape = {"batch": batch, "rows": rows_each, "vocab": vocab, "draw": draw}
        return Case("verify_drafts", shape, batch * rows_each * vocab * 2, build)

    if tiny:
        return [make(2, 3, 512, draw) for draw in ("greedy", "top_p, few likely")]
    return [make(b, 8, 131072, draw) for b in (1, 8, 64) for draw in ("greedy", "top_p", "top_p, few likely")]


def flashinfer_chain(logits, drafts, batch, rows_each):
    """Its chain sampling, with the softmax that it needs first; the target's row after the last draft included."""
    vocab = logits.size(-1)

    def run():
        import flashinfer

        target = torch.softmax(logits.float() / 0.8, -1).view(batch, rows_each, vocab)
        ids = drafts.view(batch, rows_each)[:, 1:].contiguous()
        return flashinfer.sampling.chain_speculative_sampling(target[:, :-1].contiguous(), ids, target)

    return run


def propose_cases(tiny: bool) -> list[Case]:
    def make(batch, history, vocab):
        def build(target):
            tokens = torch.randint(0, vocab, (batch, history), dtype=torch.int32, device=target.device)
            lens = int32(target, [history] * batch)
            drafts, found = int32(target, [[0] * 8] * batch), int32(target, [0] * batch)

            def plain():  # the latest earlier occurrence of the last three tokens
                windows = tokens.unfold(1, 3, 1)
                hit = (windows[:, :-1] == tokens[:, None, -3:]).all(-1)
                return (hit * torch.arange(1, hit.size(1) + 1, device=hit.device)).amax(1)

            return {
                "ours": lambda: target.ops.propose_drafts(drafts, found, tokens, lens, 4, 1, True),
                "torch, one length": plain,
            }

        return Case("propose_drafts", {"batch": batch, "history": history}, batch * history * 4, build)

    return [make(2, 64, 8)] if tiny else [make(b, n, 50000) for b in (1, 128) for n in (1024, 32768)]


def linear_cases(tiny: bool) -> list[Case]:
    """The linears of an 8B model: QKV, attention output, gate and up, down, logits."""

    def make(rows, n, k):
        def build(target):
            x, weight = noise(target, rows, k), noise(target, n, k)
            packed = weight.view(n, k // 2, 2).clone()
            target.ops.pack_linear_weight(packed, weight)
            out = torch.empty(rows, n, dtype=x.dtype, device=target.device)
            return {
                "ours": lambda: target.ops.row_linear(out, x, weight),
                "ours, packed": lambda: target.ops.row_linear(out, x, packed),
                "torch linear (cuBLAS)": lambda: F.linear(x, weight),
            }

        shape, moved = {"rows": rows, "n": n, "k": k}, 2 * (rows * k + n * k + rows * n)
        return Case("row_linear", shape, moved, build, 2 * rows * n * k, held_bytes=moved + 2 * n * k)

    def fused(rows, n, k, what):
        """A linear with what stands beside it in a layer, in one call and op by op, one after another."""

        def build(target):
            x, weight, norm_weight = noise(target, rows, k), noise(target, n, k), noise(target, k)
            normed, product = torch.empty_like(x), torch.empty(rows, n, dtype=x.dtype, device=target.device)
            out = torch.zeros(rows, n // 2 if what == "norm, silu" else n, dtype=x.dtype, device=target.device)
            options = {"norm": (norm_weight, 1e-6, False, False), "norm, silu": (norm_weight, 1e-6, True, False)}
            options = options.get(what, (None, 1e-6, False, True))

            def separate():
                if what == "add":
                    target.ops.row_linear(product, x, weight)
                    return out.add_(product)
                target.ops.rms_norm(normed, x, norm_weight, 1e-6)
                target.ops.row_linear(out if what == "norm" else product, normed, weight)
                return target.ops.silu_and_mul(out, product) if what == "norm, silu" else out

            return {
                "ours": lambda: target.ops.fused_row_linear(out, x, weight, None, *options),
                "ours, op by op": separate,
                "torch linear (cuBLAS) alone": lambda: F.linear(x, weight),
            }

        moved = 2 * (rows * k + n * k + rows * n)
        return Case("fused_row_linear", {"rows": rows, "n": n, "k": k, "with": what}, moved, build, 2 * rows * n * k)

    def pack(n, k):
        def build(target):
            weight = noise(target, n, k)
            packed = torch.empty(n, k // 2, 2, dtype=weight.dtype, device=target.device)
            return {
                "ours": lambda: target.ops.pack_linear_weight(packed, weight),
                "torch copy, not packed": lambda: packed.view(n, k).copy_(weight),
            }

        return Case("pack_linear_weight", {"n": n, "k": k}, 2 * 2 * n * k, build)

    if tiny:
        return [make(3, 64, 64), fused(3, 64, 64, "norm, silu"), fused(3, 64, 64, "add"), pack(64, 64)]
    layer = ((6144, 4096, "norm"), (4096, 4096, "add"), (28672, 4096, "norm, silu"), (4096, 14336, "add"))
    fused_cases = [fused(rows, *shape) for shape in layer for rows in (1, 4, 8)]
    sizes = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096))
    linears = [make(rows, n, k) for n, k in sizes for rows in (1, 2, 4, 8, 16, 64, 512, 2048)]
    return [*fused_cases, pack(28672, 4096), *linears]


def dense_cases(tiny: bool) -> list[Case]:
    """Norms and activation of a layer with 4,096 hidden and 14,336 intermediate channels."""
    eps = 1e-6

    def rms_norm(rows, hidden):
        def build(target):
            x, weight = noise(target, rows, hidden), noise(target, hidden)
            out = torch.empty_like(x)
            return {
                "ours": lambda: target.ops.rms_norm(out, x, weight, eps),
                "torch rms_norm": lambda: F.rms_norm(x, (hidden,), weight, eps),
            }

        return Case("rms_norm", {"rows": rows, "hidden": hidden}, rows * hidden * 4 + hidden * 2, build)

    def fused_add_rms_norm(rows, hidden):
        def build(target):
            x, residual, weight = noise(target, rows, hidden), noise(target, rows, hidden), noise(target, hidden)

            def plain():
                residual.add_(x)
                return F.rms_norm(residual, (hidden,), weight, eps)

            return {
                "ours": lambda: target.ops.fused_add_rms_norm(x, residual, weight, eps),
                "torch add, rms_norm": plain,
            }

        return Case("fused_add_rms_norm", {"rows": rows, "hidden": hidden}, rows * hidden * 8 + hidden * 2, build)

    def silu_and_mul(rows, width):
        def build(target):
            x = noise(target, rows, 2 * width)
            out = torch.empty(rows, width, dtype=x.dtype, device=target.device)
            return {
                "ours": lambda: target.ops.silu_and_mul(out, x),
                "torch silu, mul": lambda: F.silu(x[:, :width]) * x[:, width:],
            }

        return Case("silu_and_mul", {"rows": rows, "width": width}, rows * width * 6, build)

    if tiny:
        return [rms_norm(3, 64), fused_add_rms_norm(3, 64), silu_and_mul(3, 64)]
    sizes = (1, 64, 2048)
    cases = [make(rows, 4096) for make in (rms_norm, fused_add_rms_norm) for rows in sizes]
    return cases + [silu_and_mul(rows, 14336) for rows in sizes]
