"""benchmarks/gpu_check.py without a GPU: its dry run, what it says where there is none; that no failure stops it."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import background
import pytest
import torch
from device_tags import DeviceTags, OnTwoDevices, TaggedOps, is_tagged
from simt.build import cuda_include

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import gpu_check
from benchmarks.gpu import attention_cells, kernels, parts, plot_attention, status
from benchmarks.gpu.attention_cases import CONTEXTS, DELTAS, attention_cases
from benchmarks.gpu.bench import GROUPS, LONG_GROUPS, finish, row_of
from benchmarks.gpu.parts import PARTS, Outcome, Part, Setting, Step, run_step
from benchmarks.gpu.report import Report, kernel_rows

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py")]
needs_emulator = pytest.mark.skipif(cuda_include() is None, reason="needs the CUDA headers; set CUDA_HOME")


@pytest.fixture
def setting(tmp_path):
    return Setting(emulated=True, folder=tmp_path)


def python(name, code, limit_s=60):
    return Step(name, [sys.executable, "-c", code], limit_s)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = subprocess.run([*COMMAND, "--out", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "there is no GPU" in done.stdout and not list(tmp_path.iterdir())


def dry_run():
    """(the finished process, what it wrote, what of that is taken for a GPU's)."""
    with tempfile.TemporaryDirectory() as name:
        out = pathlib.Path(name, "emulated")
        command = [*COMMAND, "--dry-run", "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        report = out / "gpu_check.json"
        written = json.loads(report.read_text()) if report.exists() else None
        return done, written, status.results(out.parent) if written else None


def in_background(items):
    wanted = cuda_include() and any(item.name == "test_the_dry_run_goes_through_every_part" for item in items)
    return {"dry run": dry_run} if wanted else {}


@needs_emulator
def test_the_dry_run_goes_through_every_part():
    done, written, taken_for_real = background.result("dry run")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert written["emulated"] is True and list(written["parts"]) == list(PARTS)
    assert {name: part["status"] for name, part in written["parts"].items()} == dict.fromkeys(PARTS, "ok")
    rows = [row for step in written["parts"]["bench"]["steps"] for row in step["rows"]]
    timed = {row["op"] for row in rows if "ours" in row["us"]}
    assert timed == {op for op, names in kernels.kernels().items() if names}
    assert "emulated: a dry run" in done.stdout and "all parts passed" in done.stdout
    assert taken_for_real == []


def test_parts_are_chosen_by_name():
    assert gpu_check.chosen_parts("bench,build") == ["build", "bench"]
    with pytest.raises(Exception, match="'nothing' is not a part, expected some of build,prims,ops"):
        gpu_check.chosen_parts("build,nothing")


# ---- one failure does not end the run ----


@pytest.mark.parametrize(
    ("step", "expected", "said"),
    [
        (python("good", "print('fine')"), "ok", "fine"),
        (python("raises", "raise ValueError('broken')"), "failed", "ValueError: broken"),
        (python("crashes", "import os; print('so far', flush=True); os.abort()"), "failed", "so far"),
        (python("hangs", "import time; print('slow', flush=True); time.sleep(60)", 4), "timed out", "slow"),
        (Step("not there", ["/no/such/program"], 5), "failed", "No such file"),
    ],
    ids=lambda x: x.name if isinstance(x, Step) else None,
)
def test_a_step_ends_in_a_status(setting, step, expected, said):
    begin = time.monotonic()
    entry = run_step(step, setting, 30)
    assert entry["status"] == expected and said in entry["summary"]
    assert time.monotonic() - begin < 20


def test_a_hanging_step_takes_its_children_with_it(setting, tmp_path):
    mark = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert run_step(python("parent", code, 1), setting, 30)["status"] == "timed out"
    time.sleep(3)
    assert not mark.exists()


def test_what_a_step_wrote_before_it_died_is_kept(setting, tmp_path):
    path = tmp_path / "rows.json"
    code = f"import pathlib, os; pathlib.Path({str(path)!r}).write_text('{{\"rows\": [1, 2]}}'); os.abort()"
    step = Step("half", [sys.executable, "-c", code], 30, results=path)
    entry = run_step(step, setting, 30)
    assert entry["status"] == "failed" and entry["rows"] == [1, 2]


def test_no_step_starts_when_the_time_is_over(setting):
    entry = run_step(python("late", "print('ran')"), setting, 0)
    assert entry["status"] == "skipped" and "no time left" in entry["summary"]


def test_later_parts_run_after_one_fails(setting, tmp_path, monkeypatch, capsys):
    def broken(setting):
        raise FileNotFoundError("tests are not here")

    chosen = {
        "a": Part("a", "", lambda s: [python("bad", "raise SystemExit(3)"), python("good", "print('fine')")]),
        "b": Part("b", "", broken),
        "c": Part("c", "", lambda s: [python("last", "print('reached')")]),
    }
    monkeypatch.setattr(gpu_check, "PARTS", chosen)
    report = Report(tmp_path / "gpu_check.json", True, "abc")
    passed = [gpu_check.run_part(name, setting, report, time.monotonic() + 60) for name in chosen]
    assert passed == [False, False, True]
    written = json.loads(report.path.read_text())["parts"]
    assert [step["status"] for step in written["a"]["steps"]].count("ok") == 1
    assert written["b"]["steps"][0]["summary"] == "tests are not here"
    assert written["c"]["status"] == "ok" and written["c"]["commit"] == "abc"
    assert "c: last: ok" in capsys.readouterr().out


def test_parts_of_an_earlier_call_stay(tmp_path):
    path = tmp_path / "gpu_check.json"
    first = Report(path, True, "one")
    first.begin("ops")
    first.add("ops", {"name": "append_kv", "status": "failed"})
    first.add("ops", {"name": "merge_states", "status": "ok"})
    first.end("ops", 1)
    second = Report(path, True, "two")
    second.begin("bench")
    second.end("bench", 1)
    assert {k: v["commit"] for k, v in json.loads(path.read_text())["parts"].items()} == {"ops": "one", "bench": "two"}
    again = Report(path, True, "one")  # of the same commit: what is run again takes the place of what was there
    again.begin("ops")
    again.add("ops", {"name": "append_kv", "status": "ok"})
    again.end("ops", 1)
    ops = json.loads(path.read_text())["parts"]["ops"]
    assert ops["status"] == "ok" and [step["name"] for step in ops["steps"]] == ["merge_states", "append_kv"]
    second.begin("ops")
    assert second.data["parts"]["ops"]["steps"] == []
    data = json.loads(path.read_text()) | {"emulated": False}
    path.write_text(json.dumps(data))
    assert Report(path, True, "three").data["parts"] == {}  # never beside results of a GPU


# ---- tests that forget a device are found without a GPU ----


def test_tensors_said_to_be_on_a_gpu_do_not_mix_with_the_hosts():
    with DeviceTags():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        made = [there * 2, there[1:], torch.zeros_like(there), here.to("cuda"), here.to(there.device), here.to(there)]
        made += [torch.empty(2, device=there.device), there.to(torch.float64), torch.stack([there, there])]
        assert all(is_tagged(t) and t.device.type == "cuda" for t in made)
        back = [there.cpu(), there.to("cpu"), torch.zeros(2), torch.zeros_like(there, device="cpu")]
        assert not any(is_tagged(t) or t.device.type == "cuda" for t in back)
        assert is_tagged(there + torch.tensor(1.0)) and there.copy_(here) is there
        for mixed in (torch.add, torch.equal, lambda a, b: torch.cat([a, b])):
            with pytest.raises(OnTwoDevices):
                mixed(there, here)
        with pytest.raises(OnTwoDevices, match="numpy"):
            there.numpy()


def test_ops_refuse_a_tensor_that_was_left_on_the_host():
    with DeviceTags():
        a, lse = torch.zeros(3, 2, 64, device="cuda"), torch.zeros(2, 3, device="cuda")
        ops = TaggedOps(torch.ops.stateful_kv)
        ops.merge_states(a, lse, a, lse, a.clone(), lse.clone())
        with pytest.raises(OnTwoDevices, match=r"merge_states got a tensor of the host, torch.float32 \[2, 3\]"):
            ops.merge_states(a, lse, a, lse, a.clone(), torch.zeros(2, 3))


# ---- what is read out of the steps' output ----


def test_summaries_name_the_first_failure():
    text = (
        "..F\n= FAILURES =\nFAILED tests/test_a.py::test_x[cuda] - boom\n= 1 failed, 9 passed, 3 deselected in 2.1s =\n"
    )
    expected = "1 failed, 9 passed, 3 deselected in 2.1s; first: tests/test_a.py::test_x[cuda]"
    assert parts.pytest_summary(Outcome(1, text)) == expected
    assert parts.pytest_summary(Outcome(0, "....\n12 passed in 0.5s\n")) == "12 passed in 0.5s"
    prims = "ok cp_async16\nskipped wgmma: not for compute capability 8.0\nWRONG ldmatrix_x4: word 3\n"
    assert parts.prim_summary(Outcome(1, prims)) == "1 ok, 1 skipped, 1 wrong; WRONG ldmatrix_x4: word 3"


REPORTED = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 2 bytes
=========     at void skv::cuda::append_kv_kernel<unsigned short>(skv::AppendKvParams)+0x40
=========     by thread (0,0,0) in block (0,0,0)
=========     Saved host backtrace up to driver entry point at kernel launch time
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel()+0x10
========= Error: Race reported between Write access at void skv::cuda::merge_states_kernel()+0x10
=========     and Read access at void skv::cuda::merge_states_kernel()+0x20
========= ERROR SUMMARY: 3 errors
ok append_kv: 2 calls
"""


def test_the_sanitizers_report_is_read_for_our_kernels_only():
    found = parts.our_complaints(REPORTED)
    assert [line[10:20] for line in found] == ["Invalid __", "Error: Rac"]
    assert not parts.sanitizer_passes(Outcome(0, REPORTED))
    others = "========= Uninitialized __global__ memory read\n=========     at void at::fill()\nok append_kv: 2 calls\n"
    assert parts.sanitizer_passes(Outcome(0, others))
    assert not parts.sanitizer_passes(Outcome(1, "========= Error: device not supported\n"))  # nothing was watched
    assert not parts.sanitizer_passes(Outcome(0, "ok append_kv: 2 calls\nWRONG delta_prefill: launch failed\n"))


def test_rates_and_ratios():
    case = next(c for c in attention_cases(False) if c.shape["delta"] == 1 and c.shape["batch"] == 64)
    row = row_of(case, {"copy_bytes_per_s": 4e12, "matmul_flop_per_s": 8e14})
    assert row["floor_us"] == pytest.approx(case.num_bytes / 4e6)  # one token each: bytes are what takes the time
    keys = 64 * case.shape["context"] * 8 * 128 * 2
    assert case.num_bytes == pytest.approx(2 * keys, rel=0.01)
    row["us"] = {
        "ours": 2 * row["floor_us"],
        "torch SDPA": 3 * row["floor_us"],
        "flashinfer fa2": 2.5 * row["floor_us"],
    }
    row["errors"] = {}
    finish(row)
    assert row["share"] == pytest.approx(0.5) and row["GB/s"] == pytest.approx(2000)
    assert row["best_peer"] == "flashinfer fa2" and row["ratio"] == pytest.approx(1.25)
    line = kernel_rows({"bench": {"steps": [{"rows": [row]}]}}, emulated=False)[0]
    assert line[3:] == ["2000 GB/s", "50%", "1.25x", "flashinfer fa2"]


def test_cells_of_the_attention_table():
    shapes = [c.shape for c in attention_cases(False) if c.op == "delta_prefill" and c.shape["cache"] == "bfloat16"]
    assert {(s["delta"], s["context"]) for s in shapes if s["batch"] == 1} == {
        (d, c) for d in (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048) for c in (1024, 4096, 16384, 65536, 131072) if d <= c
    }
    assert {s["batch"] for s in shapes} == {1, 8, 64}


def test_the_whole_table_of_attention_is_there_by_name():
    cases = {name: make(False) for name, make in LONG_GROUPS.items()}
    for heads in (32, 64):
        for cache in ("bfloat16", "float8"):
            shapes = [c.shape for c in cases[f"table_{heads}_128_{cache}"]]
            assert {s.get("block", 16) for s in shapes} == {16, 128}
            assert len(shapes) == 2 * 3 * sum(d <= c for d in DELTAS for c in CONTEXTS)
    assert {s.shape["head_dim"] for n, of in cases.items() for s in of if "_128_" not in n} == {64, 192, 256}
    wide = cases["table_64_128_float8"][0]
    assert wide.shape["heads"] == "64/8" and wide.num_bytes == pytest.approx(2 * 1024 * 8 * 128, rel=0.1)


def test_the_plot_has_a_line_for_each_context_and_batch():
    case = attention_cases(False)[0]
    rows = []
    for delta, context, batch in ((1, 1024, 1), (64, 1024, 1), (1, 4096, 8)):
        shape = case.shape | {"delta": delta, "context": context, "batch": batch}
        rows.append({"op": "delta_prefill", "shape": shape, "share": 0.5})
    rows.append({"op": "delta_prefill", "shape": case.shape, "us": {}})  # not timed
    assert plot_attention.points(rows) == {(1024, 1): [(4, 0.5), (256, 0.5)], (4096, 8): [(4, 0.5)]}
    drawn = plot_attention.svg(rows, "title")
    assert drawn.count("<polyline") == 2 and "1K x 1" in drawn and "4K x 8" in drawn
    with pytest.raises(ValueError, match="no cell"):
        plot_attention.svg(rows[-1:], "title")


def test_every_op_with_kernels_is_tested_and_timed_on_a_gpu():
    has_kernels = {op for op, names in kernels.kernels().items() if names}
    assert has_kernels == {case.op for make in GROUPS.values() for case in make(False)}
    tested = set(parts.tested_ops())
    assert {status.CALLED_BY.get(op, op) for op in has_kernels} <= tested
    setting = Setting(emulated=False, folder=pathlib.Path("logs"), capability="9.0")
    for part in PARTS.values():
        assert all(step.command and step.limit_s <= 480 for step in part.steps(setting)), part.name
    assert parts.build_steps(setting)[2].env == {"SKV_CUDA": "ON", "SKV_CUDA_ARCHS": "90a"}


# ---- the table of what was seen on a GPU ----


def test_the_table_of_kernels_is_up_to_date():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.status", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_names_every_kernel_and_reads_results_of_gpus_only(tmp_path):
    shared = {"status": "ok", "seconds": 1.0, "summary": ""}
    row = {"op": "append_kv", "us": {"ours": 3.0}, "errors": {}}
    sources = kernels.digests()
    right = {"commit": "abc", "date": "2026-01-02", "kernels": sources}
    timed = {"commit": "def", "date": "2026-01-03", "kernels": dict(sources)}
    result = {
        "emulated": False,
        "machine": {"gpu": "Some GPU"},
        "parts": {
            "ops": right | {"steps": [{"name": "append_kv", **shared}, {"name": "row_linear", **shared}]},
            "bench": timed | {"steps": [{"name": "append", "rows": [row], **shared}]},
        },
    }
    (tmp_path / "some_gpu").mkdir()
    path = tmp_path / "some_gpu" / "gpu_check.json"

    def written(**changes):
        path.write_text(json.dumps(result | changes))
        return status.table(tmp_path)

    lines = {line.split(" | ")[0][2:]: line for line in written().splitlines()[2:]}
    assert list(lines) == kernels.registered_ops()
    assert "`append_kv_kernel`" in lines["append_kv"]
    assert "| Some GPU, commit `abc`, 2026-01-02 | Some GPU, commit `def`, 2026-01-03 |" in lines["append_kv"]
    assert "| not yet | not yet |" in lines["merge_states"]
    assert "| Some GPU, commit `abc`, 2026-01-02 | not yet |" in lines["row_linear"]

    # A kernel that has changed since, and one that was not there.
    result["parts"]["bench"]["kernels"]["append_kv_kernel"] = "another"
    del sources["row_linear_kernel"]
    table = written()
    assert "| Some GPU, commit `abc`, 2026-01-02 | Some GPU, commit `def`, 2026-01-03, changed since |" in table
    assert "| row_linear | `row_linear_kernel` | not yet | not yet |" in table
    assert "`row_linear_f32_kernel`, `row_linear_stream_kernel` | Some GPU" in table

    result["parts"]["ops"]["steps"][0]["status"] = "failed"
    assert "| append_kv | `append_kv_kernel` | not yet | Some GPU" in written()
    assert "Some GPU" not in written(emulated=True)


def test_a_kernel_is_what_it_includes_without_comments(tmp_path):
    cuda = tmp_path / "csrc" / "cuda"
    cuda.mkdir(parents=True)
    (cuda / "prim.cuh").write_text("int primitive;\n")
    (cuda / "common.cuh").write_text('#include "prim.cuh"\nint x;  // a\n')
    kernel = '#include "common.cuh"\n__global__ void __launch_bounds__(f(1), 2) {}_kernel(int) {{}}\n'
    for name in ("one", "two"):
        (cuda / f"{name}.cuh").write_text(kernel.format(name))
    first = kernels.digests(tmp_path)
    assert list(first) == ["one_kernel", "two_kernel"] and first["one_kernel"] != first["two_kernel"]
    (cuda / "prim.cuh").write_text("int other;\n")
    (cuda / "common.cuh").write_text('#include "prim.cuh"\nint\n  x; /* b\nc */\n')
    assert kernels.digests(tmp_path) == first
    (cuda / "common.cuh").write_text('#include "prim.cuh"\nlong x;\n')
    assert all(first[name] != digest for name, digest in kernels.digests(tmp_path).items())


def test_steps_are_chosen_by_name(setting, tmp_path, monkeypatch):
    steps = [python("fused", "print('fused ran')"), python("other", "raise SystemExit(1)")]
    monkeypatch.setattr(
        gpu_check, "PARTS", {"a": Part("a", "", lambda s: steps), "b": Part("b", "", lambda s: steps[1:])}
    )
    report = Report(tmp_path / "gpu_check.json", True, "abc")
    end, only = time.monotonic() + 60, re.compile("^fused$|none")
    assert [gpu_check.run_part(name, setting, report, end, only) for name in "ab"] == [True, True]
    assert list(report.data["parts"]) == ["a"]  # of b nothing was to run
    assert [step["summary"] for step in report.data["parts"]["a"]["steps"]] == ["fused ran"]


def test_the_list_of_attention_cells_says_what_nobody_measured(tmp_path):
    lines = attention_cells.lists(tmp_path).splitlines()[2:]
    assert len(lines) == len(LONG_GROUPS) and all(line.endswith("| not measured | not measured |") for line in lines)
    cases = LONG_GROUPS["table_64_128_bfloat16"](False)
    rows = [{"op": "delta_prefill", "shape": c.shape, "us": {"ours": 2.0}, "errors": {}} for c in cases[:4]]
    for row, peer in zip(rows, (3.0, 1.0, 2.0)):
        row |= {"floor_us": 1.0, "bytes": 1, "flops": 1}
        row["us"]["torch SDPA"] = peer
        finish(row)
    rows.append({"op": "delta_prefill", "shape": cases[4].shape, "us": {"torch SDPA": 1.0}, "errors": {"ours": "x"}})
    (tmp_path / "some_gpu").mkdir()
    (tmp_path / "some_gpu" / "table_64_128_bfloat16.json").write_text(json.dumps({"rows": rows}))
    lines = attention_cells.lists(tmp_path).splitlines()
    (line,) = [line for line in lines if line.startswith("| 64 / 8 | 128 | bfloat16")]
    assert line.endswith(f"| {len(cases)} | 4 | 2 of 3 |")
    assert lines[-1].startswith("some_gpu, `table_64_128_bfloat16`, batch 1, delta 2,") and "0.50" in lines[-1]
    (tmp_path / "some_gpu" / "table_64_128_bfloat16.json").write_text(json.dumps({"rows": rows[3:4]}))
    assert any(
        line.endswith(f"| {len(cases)} | 1 | no peer ran |") for line in attention_cells.lists(tmp_path).splitlines()
    )


def test_environment_of_steps(setting):
    setting.simt_library = "somewhere.so"
    found = setting.environment()
    assert found["STATEFUL_KV_TEST_BACKENDS"] == "simt" and found["STATEFUL_KV_SIMT_LIBRARY"] == "somewhere.so"
    assert found["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
