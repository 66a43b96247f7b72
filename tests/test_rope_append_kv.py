"""rope_append_kv: norm, rotation and append in one pass, against the oracle; values land bitwise."""

import math
import random

import pytest
import reference
import torch
from backends import FLOATS, FP8
from cases import LAYOUTS, Frozen, as_bits, assert_close, fused_rows, make_pool, nan_storage, same_bits

MAX_POSITION = 300


def cos_sin(rotary_dim, dtype=torch.float32, device="cpu", max_position=MAX_POSITION):
    inverse = 10000.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angles = torch.arange(max_position, dtype=torch.float64)[:, None] * inverse
    return torch.cat((angles.cos(), angles.sin()), -1).to(dtype).to(device)


def check(
    backend, num_tokens=23, heads=4, kv_heads=2, head_dim=64, rotary_dim=None, dtype=torch.bfloat16, cache_dtype=None,
    layout="nhd", block_size=16, interleaved=False, q_norm=False, k_norm=False, norm_eps=1e-6, extra_rows=0,
    skip=0.2, in_place=False, table_dtype=torch.float32, position_dtype=torch.int64, scale_shape=None, dirty=True,
):  # fmt: skip
    cache_dtype, device = cache_dtype or dtype, backend.device
    num_blocks = -(-num_tokens // block_size) + 2
    k_cache, v_cache, storages = make_pool(layout, num_blocks, block_size, kv_heads, head_dim, cache_dtype, device)
    rows = num_tokens + extra_rows
    query, key, value = fused_rows(rows, (heads, kv_heads, kv_heads), head_dim, dtype, device)
    if dirty:
        for t in (query, key, value):
            t[num_tokens:] = math.nan
    slots = torch.randperm(num_blocks * block_size)[:num_tokens].to(torch.int64)
    slots[torch.rand(num_tokens) < skip] = -1
    slots = slots.to(device)
    positions = torch.randint(0, MAX_POSITION, (num_tokens,)).to(position_dtype).to(device)
    table = cos_sin(rotary_dim or head_dim, table_dtype, device)
    weights = {
        name: (1 + torch.randn(head_dim) * 0.3).to(dtype).to(device)
        for name, wanted in (("q_norm_weight", q_norm), ("k_norm_weight", k_norm))
        if wanted
    }
    scales = {}
    if scale_shape is not None:
        scales = {name: (torch.rand(scale_shape) + 0.05).to(device) for name in ("k_scale", "v_scale")}
    out_storage = query if in_place else nan_storage((rows, heads, head_dim + 8), dtype, device)
    query_out = query if in_place else out_storage[..., :head_dim]
    query_before, key_rows, value_rows = query.clone(), key[:num_tokens].cpu(), value[:num_tokens].cpu()

    inputs = dict(key=key, value=value, positions=positions, table=table, slots=slots, **weights, **scales)
    if in_place:
        inputs = {k: v for k, v in inputs.items() if k not in ("key", "value")}  # they share the fused buffer
    before = Frozen(**inputs) if in_place else Frozen(query=query, **inputs)
    backend.ops.rope_append_kv(
        query_out, k_cache, v_cache, query, key, value, positions, table, slots, interleaved, norm_eps=norm_eps,
        **weights, **scales,
    )  # fmt: skip
    before.check()
    assert same_bits(key[:num_tokens].cpu(), key_rows) and same_bits(value[:num_tokens].cpu(), value_rows)

    def rotated(x, weight, dtype):
        weight = None if weight is None else weight.cpu()
        return reference.rope_rows(x.cpu(), positions.cpu(), table.cpu(), interleaved, weight, norm_eps, dtype)

    exact, plain = (rotated(query_before, weights.get("q_norm_weight"), d) for d in (torch.float64, dtype))
    assert_close(query_out[:num_tokens], exact, plain, "query_out")
    assert same_bits(
        query_out[num_tokens:], query_before[num_tokens:] if in_place else nan_storage(
            (extra_rows, heads, head_dim), dtype, device)
    ), "rows past num_tokens"  # fmt: skip

    written = [t for t, s in enumerate(slots.tolist()) if s >= 0]
    exact, plain = (rotated(key, weights.get("k_norm_weight"), d)[written] for d in (torch.float64, dtype))
    stored = reference.gather_slots(k_cache.cpu(), slots[slots >= 0].tolist())
    if cache_dtype == FP8:
        scale = scales.get("k_scale")
        scale = torch.tensor(1.0) if scale is None else scale.cpu()
        exact = exact / (scale.double() if scale.dim() == 0 else scale.double()[:, None])
        plain = reference.to_fp8(plain, scale)
    assert_close(stored, exact, plain, "k_cache")
    _, want_v = reference.append_kv(
        *(nan_like(c) for c in (k_cache, v_cache)), key.cpu(), value.cpu(), slots.cpu(),
        None, scales["v_scale"].cpu() if scales else None,
    )  # fmt: skip
    assert same_bits(v_cache.cpu(), want_v), "v_cache"

    clear(k_cache, slots)
    clear(v_cache, slots)
    for storage in storages:
        assert same_bits(storage, nan_storage(tuple(storage.shape), storage.dtype, device)), "outside the slots"


def nan_like(cache):
    return nan_storage(tuple(cache.shape), cache.dtype)


def clear(cache, slots):
    for s in slots.tolist():
        if s >= 0:
            as_bits(cache)[s // cache.size(1), s % cache.size(1)] = -1 if cache.element_size() > 1 else 0xFF


@pytest.mark.each_isa
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("norm", [False, True])
def test_dtypes_and_styles(backend, dtype, interleaved, norm):
    check(backend, dtype=dtype, interleaved=interleaved, q_norm=norm, k_norm=norm)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cache_dtype", [torch.float16, FP8], ids=str)
def test_layouts(backend, layout, cache_dtype):
    check(backend, layout=layout, dtype=torch.float16, cache_dtype=cache_dtype, k_norm=True)


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale_shape", [None, (), (2,)])
def test_fp8_cache(backend, dtype, scale_shape):
    check(backend, dtype=dtype, cache_dtype=FP8, scale_shape=scale_shape)


@pytest.mark.each_isa
@pytest.mark.parametrize("head_dim, rotary_dim", [(8, 2), (8, 8), (24, 16), (40, 6), (64, 32), (80, 20), (96, 96),
                                                  (112, 56), (128, 64), (192, 192), (256, 64), (256, 256),
                                                  (2056, 1030)])  # fmt: skip
def test_head_and_rotary_dims(backend, head_dim, rotary_dim):
    if not backend.supports("rope_append_kv", head_dim=head_dim):
        pytest.skip("not promised on this backend")
    for interleaved in (False, True):
        check(backend, head_dim=head_dim, rotary_dim=rotary_dim, interleaved=interleaved, q_norm=True)


@pytest.mark.each_isa
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 16, 17, 300])
def test_token_counts_and_padding_rows(backend, num_tokens):
    for extra_rows in (0, 3):
        check(backend, num_tokens=num_tokens, extra_rows=extra_rows)


def test_every_slot_negative_still_rotates_queries(backend):
    check(backend, skip=2.0)


@pytest.mark.each_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_query_out_may_be_query(backend, dtype):
    for norm in (False, True):
        check(backend, dtype=dtype, in_place=True, q_norm=norm, interleaved=norm, extra_rows=2)


def test_only_one_norm(backend):
    check(backend, q_norm=True)
    check(backend, k_norm=True, norm_eps=0.1)


@pytest.mark.parametrize("table_dtype", ["same", "float32"])
@pytest.mark.parametrize("position_dtype", [torch.int32, torch.int64], ids=str)
def test_table_and_position_dtypes(backend, table_dtype, position_dtype):
    for dtype in (torch.float16, torch.bfloat16):
        table = dtype if table_dtype == "same" else torch.float32
        check(backend, dtype=dtype, table_dtype=table, position_dtype=position_dtype)


@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (8, 1), (7, 7), (32, 8), (14, 2)])
def test_head_counts(backend, heads, kv_heads):
    check(backend, heads=heads, kv_heads=kv_heads)


@pytest.mark.parametrize("block_size", [1, 3, 8, 17, 32, 128, 256])
def test_block_sizes(backend, block_size):
    if not backend.supports("rope_append_kv", block_size=block_size):
        pytest.skip("not promised on this backend")
    check(backend, block_size=block_size, layout="hnd", skip=0)


@pytest.mark.parametrize("seed", range(40))
def test_random_combinations(backend, seed):
    torch.manual_seed(seed)
    pick = random.Random(seed).choice
    head_dim = pick([8, 40, 64, 128] if backend.name == "cpu" else [64, 128])
    dtype, kv_heads = pick(FLOATS), pick([1, 2, 3])
    cache_dtype = pick([dtype, FP8])
    check(
        backend, num_tokens=pick([1, 2, 30, 65]), heads=kv_heads * pick([1, 2, 5]), kv_heads=kv_heads,
        head_dim=head_dim, rotary_dim=pick([head_dim, head_dim // 2, 2]), dtype=dtype, cache_dtype=cache_dtype,
        layout=pick(LAYOUTS), block_size=pick([16, 64]), interleaved=pick([False, True]), q_norm=pick([False, True]),
        k_norm=pick([False, True]), norm_eps=pick([1e-6, 1e-5]), extra_rows=pick([0, 2]), in_place=pick([False, True]),
        table_dtype=pick([torch.float32, dtype]), position_dtype=pick([torch.int32, torch.int64]),
        scale_shape=pick([None, (), (kv_heads,)]) if cache_dtype == FP8 else None,
    )  # fmt: skip


def test_a_row_depends_on_itself_alone(backend):
    """The same bits for a token alone as in a batch (what batch-invariant attention builds on)."""
    query, key, value = fused_rows(9, (4, 2, 2), 64, torch.bfloat16, backend.device)
    table, weight = cos_sin(64, device=backend.device), torch.rand(64).to(torch.bfloat16).to(backend.device)
    slots, positions = torch.arange(9, device=backend.device), torch.arange(9, device=backend.device) * 7

    def run(rows):
        k, v, _ = make_pool("nhd", 1, 16, 2, 64, torch.bfloat16, backend.device)
        out = torch.empty(9, 4, 64, dtype=torch.bfloat16, device=backend.device)[rows]
        backend.ops.rope_append_kv(
            out, k, v, query[rows], key[rows], value[rows], positions[rows], table, slots[rows], False, weight, weight
        )
        return out, k

    out, k = run(slice(0, 9))
    for i in range(9):
        alone, k_alone = run(slice(i, i + 1))
        assert same_bits(alone[0], out[i]) and same_bits(k_alone[0, i], k[0, i])
