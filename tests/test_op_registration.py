"""How the ops are registered: schemas as promised, opcheck, torch.compile, and every instruction set of the CPU."""

import functools
import os
import pathlib
import platform
import re
import subprocess
import sys

import background
import pytest
import torch
from backends import BACKENDS
from cases import Frozen, same_bits
from op_calls import CALLS, OUTPUTS, all_tensors, on_device
from torch import library

import stateful_kv as skv

TESTS = pathlib.Path(__file__).resolve().parent
LIBRARY = pathlib.Path(skv.__file__).with_name("libstateful_kv_ops.so")
ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")
AMX = ("delta_prefill", "row_linear")  # the ops that use it; the others are avx512_bf16's there
X86 = platform.machine().lower() in ("x86_64", "amd64")

# The contract: names, order, defaults and what is mutated are what other engines build on.
SCHEMAS = """
append_kv(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor key, Tensor value, Tensor slot_mapping, Tensor? k_scale=None,
    Tensor? v_scale=None) -> ()
rope_append_kv(Tensor(a!) query_out, Tensor(b!) k_cache, Tensor(c!) v_cache, Tensor query, Tensor key, Tensor value,
    Tensor positions, Tensor cos_sin_cache, Tensor slot_mapping, bool interleaved=False, Tensor? q_norm_weight=None,
    Tensor? k_norm_weight=None, float norm_eps=1e-6, Tensor? k_scale=None, Tensor? v_scale=None) -> ()
delta_prefill(Tensor(a!) out, Tensor(b!)? lse, Tensor query, Tensor k_cache, Tensor v_cache, Tensor cu_seqlens_q,
    Tensor seqused_k, Tensor block_table, int max_seqlen_q, float softmax_scale, bool causal=True, int window_left=-1,
    float softcap=0.0, Tensor? tree_mask=None, Tensor? sinks=None, Tensor? k_scale=None, Tensor? v_scale=None,
    int num_splits=0, Tensor? schedule=None) -> ()
schedule_delta_prefill(Tensor(a!) schedule, Tensor cu_seqlens_q, Tensor seqused_k, int num_heads, int num_kv_heads,
    int head_dim, int max_seqlen_q, int num_splits=0, bool causal=True, int window_left=-1) -> ()
merge_states(Tensor(a!) out, Tensor(b!) lse, Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b) -> ()
copy_blocks(Tensor(a!)[] k_caches, Tensor(b!)[] v_caches, Tensor src_blocks, Tensor dst_blocks,
    Tensor? num_tokens=None) -> ()
compact_kv(Tensor(a!)[] k_caches, Tensor(b!)[] v_caches, Tensor src_slots, Tensor dst_slots, Tensor cu_moves) -> ()
verify_drafts(Tensor(a!) tokens, Tensor(b!) num_tokens, Tensor(c!)? rows, Tensor logits, Tensor draft_tokens,
    Tensor cu_rows, Tensor? parents=None, Tensor? temperature=None, Tensor? top_k=None, Tensor? top_p=None,
    Tensor? min_p=None, Tensor? seeds=None, Tensor? positions=None, Tensor? token_bitmask=None,
    Tensor(d!)? logprobs=None) -> ()
propose_drafts(Tensor(a!) drafts, Tensor(b!) num_drafts, Tensor history, Tensor history_lens, int max_ngram,
    int min_ngram=1, bool latest=True) -> ()
plan_step(Tensor(a!) token_ids, Tensor(b!) positions, Tensor(c!) slot_mapping, Tensor(d!) cu_seqlens_q,
    Tensor(e!) seqused_k, Tensor(f!) logit_rows, Tensor(g!) draft_tokens, Tensor(h!) cu_rows,
    Tensor(i!) sample_positions, Tensor history, Tensor lengths, Tensor computed, Tensor finished, Tensor drafts,
    Tensor num_drafts, Tensor draft_limits, Tensor max_lengths, Tensor num_slots, Tensor block_table, int block_size,
    int max_rows) -> ()
commit_step(Tensor(a!) history, Tensor(b!) lengths, Tensor(c!) computed, Tensor(d!) finished, Tensor(e!) results,
    Tensor(f!) step, Tensor tokens, Tensor num_tokens, Tensor cu_seqlens_q, Tensor cu_rows, Tensor max_lengths,
    Tensor stop_tokens) -> ()
rms_norm(Tensor(a!) out, Tensor input, Tensor weight, float epsilon) -> ()
fused_add_rms_norm(Tensor(a!) input, Tensor(b!) residual, Tensor weight, float epsilon) -> ()
silu_and_mul(Tensor(a!) out, Tensor input) -> ()
row_linear(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias=None) -> ()
fused_row_linear(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias=None, Tensor? norm_weight=None,
    float epsilon=1e-6, bool silu_and_mul=False, bool add=False) -> ()
pack_linear_weight(Tensor(a!) packed, Tensor weight) -> ()
"""


def promised_schemas():
    text = re.sub(r"\s+", " ", SCHEMAS)
    return {s.split("(")[0].strip(): s.strip() for s in re.findall(r".*?-> \(\)", text)}


@pytest.mark.parametrize("op", promised_schemas())
def test_schema(backend, op):
    namespace = backend.ops.name
    want = torch._C.parse_schema(f"{namespace}::{promised_schemas()[op]}")
    assert str(getattr(backend.ops, op).default._schema) == str(want)


def test_every_promised_op_has_a_call_to_test_it_with():
    assert set(promised_schemas()) == set(CALLS)


def call_of(backend, op):
    """A valid call without fp8, which opcheck's own comparisons cannot read."""
    bf16 = (torch.bfloat16,) if op in ("append_kv", "rope_append_kv", "delta_prefill") else ()
    return on_device(CALLS[op](*bf16), backend.device)


@pytest.mark.parametrize("op", CALLS)
def test_opcheck(backend, op):
    library.opcheck(getattr(backend.ops, op).default, (), call_of(backend, op))


@pytest.mark.parametrize("op", CALLS)
def test_opcheck_without_optional_arguments(backend, op):
    schema = getattr(backend.ops, op).default._schema
    optional = {a.name for a in schema.arguments if str(a.type).startswith("Optional")}
    optional -= {"seeds", "positions"} if op == "verify_drafts" else set()
    needed = {a.name for a in schema.arguments if not a.has_default_value()}
    kwargs = call_of(backend, op)
    kwargs = {k: (None if k in optional else v) for k, v in kwargs.items() if k not in optional or k in needed}
    library.opcheck(getattr(backend.ops, op).default, (), kwargs)


def compiled_equals_eager(backend, op, call, compiler):
    def function(kwargs):
        call(kwargs)
        return [t.float().nan_to_num().sum() for k, t in all_tensors(kwargs).items() if k.split("[")[0] in OUTPUTS[op]]

    torch.manual_seed(1)
    eager, traced = call_of(backend, op), None
    before = Frozen(**all_tensors(eager))
    traced = {k: [t.clone() for t in v] if isinstance(v, list) else v for k, v in eager.items()}
    traced = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in traced.items()}
    want = function(eager)
    with pytest.raises(AssertionError):
        before.check()  # the call does something
    got = torch.compile(function, fullgraph=True, backend=compiler)(traced)
    assert all(torch.allclose(a, b) for a, b in zip(got, want, strict=True))
    for name, t in all_tensors(eager).items():
        assert same_bits(t, all_tensors(traced)[name]), name


@pytest.mark.parametrize("op", CALLS)
def test_compiles_in_one_graph(backend, op):
    torch.compiler.reset()
    compiled_equals_eager(backend, op, lambda kwargs: getattr(backend.ops, op)(**kwargs), "aot_eager")


@pytest.mark.parametrize("op", CALLS)
def test_the_wrapper_compiles_in_one_graph(backend, op):
    if backend.name == "simt":
        pytest.skip("the wrappers call the real library")
    torch.compiler.reset()
    compiled_equals_eager(backend, op, lambda kwargs: getattr(skv.ops, op)(**kwargs), "aot_eager")


def test_compiles_with_dynamic_shapes(backend):
    """One graph for every number of tokens."""
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def function(k_cache, v_cache, key, value, slots):
        backend.ops.append_kv(k_cache, v_cache, key * 2, value, slots)

    for count in (3, 4, 7):
        k, v = (torch.zeros(2, 16, 2, 64, device=backend.device) for _ in range(2))
        key = torch.randn(count, 2, 64, device=backend.device)
        function(k, v, key, key, torch.arange(count, device=backend.device))
        assert torch.equal(k.view(32, 2, 64)[:count], key * 2) and torch.equal(v.view(32, 2, 64)[:count], key)


# ---- the instruction sets of the CPU --------------------------------------------------------------------------------


@pytest.mark.skipif(not X86, reason="other processors have the portable kernels only")
def test_the_library_holds_the_kernels_of_every_instruction_set():
    """By their mangled names: a kernel that was dropped for one set would fall back in silence."""
    data = LIBRARY.read_bytes()
    for isa in ISAS:
        for op in AMX if isa == "amx" else CALLS:
            if op == "schedule_delta_prefill":  # plain integers, compiled once
                continue
            assert f"_ZN3skv3cpu{len(isa)}{isa}{len(op)}{op}E".encode() in data, f"{isa}::{op}"


def cpu_flags():
    try:
        return set(re.search(r"flags\s*:(.*)", pathlib.Path("/proc/cpuinfo").read_text())[1].split())
    except (OSError, TypeError):
        return set()


NEEDS = {"portable": set(), "avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
NEEDS["avx512_bf16"] = NEEDS["avx512"] | {"avx512_bf16"}
NEEDS["amx"] = NEEDS["avx512_bf16"] | {"amx_tile", "amx_bf16"}
OWN = [isa for isa, flags in NEEDS.items() if X86 and cpu_flags() >= flags][-1:]  # what a process takes by itself


def condensed_run(isa):
    env = os.environ | {"STATEFUL_KV_CPU_ISA": isa, "STATEFUL_KV_TEST_BACKENDS": "cpu"}
    files = sorted({str(f) for stem in (*CALLS, "op_errors") for f in TESTS.glob(f"test_{stem}*.py")})
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "each_isa", "-p", "no:cacheprovider", *files]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=TESTS.parent, timeout=1800)


def why_not(isa):
    if not any(b.name == "cpu" for b in BACKENDS):
        return "not the CPU backend"
    if not cpu_flags() >= NEEDS[isa] or (isa != "portable" and not X86):
        return "this processor lacks it"
    if isa in OWN and "STATEFUL_KV_CPU_ISA" not in os.environ:
        return "all other tests have it"
    return None


def in_background(items):
    chosen = [item.callspec.params["isa"] for item in items if item.originalname == "test_each_instruction_set"]
    return {("isa", isa): functools.partial(condensed_run, isa) for isa in chosen if not why_not(isa)}


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(isa):
    """A condensed run of all op tests in a process that is held to one instruction set."""
    if reason := why_not(isa):
        pytest.skip(reason)
    done = background.result(("isa", isa))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 200, done.stdout[-500:]


@pytest.mark.skipif(not cpu_flags() >= NEEDS["avx512"], reason="needs a processor with several instruction sets")
def test_the_choice_of_an_instruction_set_takes_effect():
    """Sums in another order: the bits of some attention row differ between one lane and sixteen."""
    program = (
        "import torch, stateful_kv as skv; torch.manual_seed(0); k = torch.randn(64, 16, 1, 64);"
        "q = torch.randn(32, 4, 64); i = lambda *x: torch.tensor(x, dtype=torch.int32);"
        "out = torch.empty_like(q); torch.ops.stateful_kv.delta_prefill(out, None, q, k, k, i(0, 32), i(1024),"
        "torch.arange(64, dtype=torch.int32)[None], 32, 0.125, num_splits=-1);"
        "print(hash(tuple(out.flatten().tolist())))"
    )
    hashes = {
        isa: subprocess.check_output(
            [sys.executable, "-c", program], env=os.environ | {"STATEFUL_KV_CPU_ISA": isa}, cwd=TESTS.parent
        )
        for isa in ("portable", "avx512")
    }
    assert hashes["portable"] != hashes["avx512"]
