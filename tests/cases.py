"""Inputs with hard shapes, and the comparisons of the op tests.

A pool is a pair of cache views in one of the memory layouts engines use, over storage that starts as NaN in every
dtype (all bits set), so that whatever a test does not write is poison. `Frozen` proves that a call changed nothing.
"""

import math

import torch

FP8 = torch.float8_e4m3fn
LAYOUTS = ("nhd", "hnd", "2_blocks", "blocks_2", "interleaved", "padded")


def nan_storage(shape, dtype, device="cpu"):
    width = torch.empty((), dtype=dtype).element_size()
    ints = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[width]
    return torch.full(shape, 0xFF if width == 1 else -1, dtype=ints, device=device).view(dtype)


def make_pool(layout, num_blocks, block_size, heads, dim, dtype, device="cpu"):
    """(k_cache, v_cache, storages): views [num_blocks, block_size, heads, dim] and all memory behind them."""
    if layout == "nhd":
        k, v = (nan_storage((num_blocks, block_size, heads, dim), dtype, device) for _ in range(2))
        return k, v, [k, v]
    if layout == "hnd":
        k, v = (nan_storage((num_blocks, heads, block_size, dim), dtype, device) for _ in range(2))
        return k.transpose(1, 2), v.transpose(1, 2), [k, v]
    if layout == "2_blocks":
        both = nan_storage((2, num_blocks, block_size, heads, dim), dtype, device)
        return both[0], both[1], [both]
    if layout == "blocks_2":
        both = nan_storage((num_blocks, 2, block_size, heads, dim), dtype, device)
        return both[:, 0], both[:, 1], [both]
    if layout == "interleaved":
        both = nan_storage((num_blocks, block_size, heads, 2 * dim), dtype, device)
        return both[..., :dim], both[..., dim:], [both]
    assert layout == "padded"  # odd strides and a misaligned base
    k, v = (nan_storage((num_blocks, block_size + 1, heads + 1, dim + 3), dtype, device) for _ in range(2))
    return k[:, :-1, :-1, 1 : 1 + dim], v[:, 1:, 1:, 3 : 3 + dim], [k, v]


def fill(cache, rows):
    """cache[...] = rows for any dtype, fp8 included."""
    as_bits(cache).copy_(as_bits(rows.to(cache.dtype)))


def as_bits(t):
    return t.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(as_bits(a), as_bits(b))


class Frozen:
    """Copies of tensors (with all the memory around them), to prove later that they still hold the same bits."""

    def __init__(self, **tensors):
        self.tensors = {k: (t, self.memory(t).clone()) for k, t in tensors.items() if t is not None}

    @staticmethod
    def memory(t):
        if t.untyped_storage().nbytes() > 1 << 28:  # sparsely touched: only what the view shows
            return as_bits(t)
        return torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())

    def check(self):
        for name, (t, before) in self.tensors.items():
            assert torch.equal(self.memory(t), before), f"{name} was changed"


def fused_rows(num_tokens, head_counts, dim, dtype, device="cpu"):
    """Slices [num_tokens, heads, dim] of one fused buffer, as a QKV projection leaves them."""
    fused = torch.randn(num_tokens, sum(head_counts) * dim, dtype=torch.float32).to(dtype).to(device)
    parts = fused.split([h * dim for h in head_counts], -1)
    return [part.view(num_tokens, heads, dim) for part, heads in zip(parts, head_counts)]


def ulp(reference, dtype):
    """One unit in the last place of `dtype` at each row's largest magnitude (rows along the last dimension)."""
    info = torch.finfo(dtype)
    size = reference.abs().amax(-1, keepdim=True) if reference.dim() else reference.abs()
    exponent = torch.floor(torch.log2(size.clamp(min=info.tiny)))
    return torch.exp2(exponent) * info.eps


def assert_close(got, exact, plain, what=""):
    """The tolerance of the project: an error of at most twice plain torch's at the same dtype, or one unit in the
    last place. `exact` is float64; `plain` the same computation at the op's dtype, or several of them in other orders:
    of a few sums in one order the largest error says little of what is usual."""
    dtype = got.dtype
    plain = torch.stack(list(plain)) if isinstance(plain, (list, tuple)) else plain
    got, plain, exact = got.detach().cpu().double(), plain.detach().cpu().double(), exact.cpu()
    special = ~exact.isfinite()
    assert torch.equal(got[special].nan_to_num(nan=7e300), exact[special].nan_to_num(nan=7e300)), f"{what}: inf or NaN"
    got, exact, plain = (torch.where(special, 0.0, t) for t in (got, exact, plain))
    assert not got.isnan().any(), f"{what}: {int(got.isnan().sum())} NaN"
    if exact.numel() == 0:
        return
    # Of torch's errors those that are numbers: on some processors an infinity makes its bfloat16 linear NaN elsewhere.
    allowed = torch.maximum(2 * (plain - exact).abs().nan_to_num(0.0, 0.0).amax(), ulp(exact, dtype))
    error = (got - exact).abs()
    worst = int((error - allowed).flatten().argmax())
    assert (error <= allowed).all(), (
        f"{what}: got {got.flatten()[worst]:.8g}, exact {exact.flatten()[worst]:.8g}, "
        f"error {error.flatten()[worst]:.3g} > allowed {allowed.expand_as(error).flatten()[worst]:.3g}"
    )


def cumulative(lengths, device="cpu"):
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def make_block_table(lengths, block_size, num_blocks, shared_blocks=0, extra_columns=0, pad=-1):
    """Permuted tables; the first `shared_blocks` blocks of every sequence are the same. Unused columns hold `pad`."""
    needed = [-(-length // block_size) for length in lengths]
    columns = max([*needed, 1]) + extra_columns
    table = torch.full((len(lengths), columns), pad, dtype=torch.int32)
    order = torch.randperm(num_blocks).tolist()
    shared = [order.pop() for _ in range(shared_blocks)]
    for b, count in enumerate(needed):
        blocks = (shared + [order.pop() for _ in range(max(count - shared_blocks, 0))])[:count]
        table[b, :count] = torch.tensor(blocks, dtype=torch.int32)
    return table


def blocks_needed(lengths, block_size, shared_blocks=0):
    return shared_blocks + sum(max(-(-length // block_size) - shared_blocks, 0) for length in lengths) + 2


def random_tree(n):
    """Parents of a random draft tree of n tokens (-1 for the first) and its ancestor bits, one list of bool a row."""
    parents = [-1] + [int(torch.randint(0, i, ())) for i in range(1, n)]
    rows = []
    for i in range(n):
        see = [False] * n
        j = i
        while j >= 0:
            see[j] = True
            j = parents[j]
        rows.append(see)
    return parents, rows


def pack_bits(rows, words):
    """Rows of bool as int32 [len(rows), words], bit j % 32 of word j // 32."""
    packed = []
    for row in rows:
        values = [0] * words
        for j, bit in enumerate(row):
            values[j // 32] |= int(bit) << (j % 32)
        packed.append([v - (1 << 32) if v >= 1 << 31 else v for v in values])
    return torch.tensor(packed, dtype=torch.int32).reshape(len(rows), words)


def words(count):
    return math.ceil(count / 32)
