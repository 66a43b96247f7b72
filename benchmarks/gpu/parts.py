"""The parts of gpu_check.py: each a list of steps, each step a process of its own with a time limit.

A step's status is "ok", "failed", "timed out" or "skipped"; its summary is one line of what it printed. Nothing a
step does, crash or hang, keeps the next from running.
"""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from .bench import GROUPS
from .target import ROOT

TESTS = ROOT / "tests"
DRY_TESTS = ("merge_states", "copy_blocks")  # op tests of a dry run: the emulator takes minutes for all
SANITIZERS = {"memcheck": ["--report-api-errors", "no"], "racecheck": [], "initcheck": []}


@dataclasses.dataclass
class Outcome:
    code: int | None  # None: out of time
    output: str


@dataclasses.dataclass
class Step:
    name: str
    command: list[str]
    limit_s: float
    summary: Callable[[Outcome], str] = lambda done: last_line(done.output)
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    results: pathlib.Path | None = None  # JSON that the step writes, joined with its entry
    passes: Callable[[Outcome], bool] = lambda done: done.code == 0


@dataclasses.dataclass
class Part:
    name: str
    purpose: str
    steps: Callable[["Setting"], list[Step]]
    side_by_side: int = 1  # steps that run at the same time; 1 where they are timed


@dataclasses.dataclass
class Setting:
    emulated: bool
    folder: pathlib.Path  # of logs and of what steps write
    capability: str = ""  # "9.0"
    simt_library: str = ""

    @property
    def backend(self) -> str:
        return "simt" if self.emulated else "cuda"

    def environment(self) -> dict[str, str]:
        found = {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "PYTHONUNBUFFERED": "1"}
        found["STATEFUL_KV_TEST_BACKENDS"] = self.backend
        if self.simt_library:
            found["STATEFUL_KV_SIMT_LIBRARY"] = self.simt_library
        return found

    def module(self, name: str, *args: str) -> list[str]:
        dry = ["--dry-run"] if self.emulated else []
        return [sys.executable, "-m", f"benchmarks.gpu.{name}", *args, *dry]


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def execute(step: Step, setting: Setting, limit_s: float) -> Outcome:
    """Runs a step in a process group of its own, so that nothing of it outlives its time."""
    env = os.environ | setting.environment() | step.env
    log = setting.folder / f"{step.name}.log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            step.command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    return Outcome(code, log.read_text(errors="replace"))


def run_step(step: Step, setting: Setting, limit_s: float) -> dict:
    """The step's entry in the report."""
    begin = time.monotonic()
    limit_s = min(step.limit_s, limit_s)
    entry = {"name": step.name, "command": " ".join(step.command)}
    if limit_s <= 0:
        return entry | {"status": "skipped", "seconds": 0.0, "summary": "no time left in this call"}
    try:
        done = execute(step, setting, limit_s)
        status = "timed out" if done.code is None else "ok" if step.passes(done) else "failed"
        summary = step.summary(done)
        entry |= {"code": done.code, "tail": done.output[-3000:] if status != "ok" else ""}
    except Exception as error:
        status, summary = "failed", f"{type(error).__name__}: {error}"
    if step.results is not None and step.results.is_file():
        entry |= json.loads(step.results.read_text())
    return entry | {"status": status, "seconds": round(time.monotonic() - begin, 1), "summary": summary[:300]}


# ---- the parts ----


def build_steps(setting: Setting) -> list[Step]:
    if setting.emulated:
        return [Step("emulated ops", [sys.executable, str(TESTS / "simt" / "build.py"), "plain"], 540)]
    arch = setting.capability.replace(".", "")
    archs = {"SKV_CUDA": "ON", "SKV_CUDA_ARCHS": arch + ("a" if arch == "90" else "")}
    holds_kernels = "import torch, stateful_kv; print('kernels', torch.ops.stateful_kv.append_kv.default._schema.name)"
    return [
        Step("driver", ["bash", "-c", "nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || true"], 30),
        Step("nvcc", ["nvcc", "--version"], 30),
        Step("package", [sys.executable, "setup.py", "build_ext", "--inplace"], 480, env=archs),
        Step("import", [sys.executable, "-c", holds_kernels], 60),
    ]


def prim_summary(done: Outcome) -> str:
    kinds = [line.split(" ", 1)[0] for line in done.output.splitlines()]
    wrong = [line for line in done.output.splitlines() if line.startswith("WRONG")]
    counts = f"{kinds.count('ok')} ok, {kinds.count('skipped')} skipped, {len(wrong)} wrong"
    return f"{counts}; {wrong[0]}" if wrong else counts


def on_tests_path() -> dict[str, str]:
    return {"PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}"}


def prim_steps(setting: Setting) -> list[Step]:
    source = TESTS / "simt" / "prim_check.cu"
    if setting.emulated:
        build_and_run = "import os; from simt.build import build; p = build('prim_check_plain'); os.execv(p, [p])"
        return [Step("prim functions", [sys.executable, "-c", build_and_run], 300, prim_summary, on_tests_path())]
    arch = setting.capability.replace(".", "") + ("a" if setting.capability == "9.0" else "")
    program = setting.folder / "prim_check"
    gencode = f"arch=compute_{arch},code=sm_{arch}"
    compile_it = ["nvcc", "-std=c++17", "-gencode", gencode, "-I", str(ROOT / "csrc" / "cuda"), "-o", str(program)]
    compile_it += ["-DSKV_SM90_CODE"] if setting.capability == "9.0" else []
    return [
        Step("compile prims", [*compile_it, str(source)], 200),
        Step("prim functions", [str(program)], 60, prim_summary),
    ]


def pytest_summary(done: Outcome) -> str:
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.output, re.MULTILINE)
    ending = re.findall(r"^=*\s*(.*\d+ (?:passed|failed|skipped|deselected|error).*?)\s*=*$", done.output, re.MULTILINE)
    line = ending[-1] if ending else last_line(done.output)
    return f"{line}; first: {failures[0]}" if failures else line


def pytest_step(setting: Setting, name: str, files: list[pathlib.Path], limit_s: float, keyword: str = "") -> Step:
    choice = setting.backend + (f" and ({keyword})" if keyword else "")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--maxfail=10", "-p", "no:cacheprovider"]
    if setting.emulated:  # a tensor that a test forgot to put on the GPU shows without one
        command += ["-p", "tagged_simt"]
    command += ["-k", choice, *(str(f) for f in files)]
    return Step(name, command, limit_s, pytest_summary, on_tests_path())


def tested_ops() -> dict[str, list[pathlib.Path]]:
    """{op: its test files} of every op that has a CUDA source; test_<op>_<what>.py belong to it too."""
    ops = sorted(p.stem for p in (ROOT / "csrc" / "torch").glob("*.cpp") if (TESTS / f"test_{p.stem}.py").is_file())
    return {op: [TESTS / f"test_{op}.py", *sorted(TESTS.glob(f"test_{op}_*.py"))] for op in ops}


def op_steps(setting: Setting) -> list[Step]:
    ops = tested_ops()
    if setting.emulated:
        return [pytest_step(setting, op, ops[op][:1], 200) for op in DRY_TESTS]
    steps = [pytest_step(setting, op, files, 420) for op, files in ops.items()]
    rest = [TESTS / f"test_{name}.py" for name in ("op_errors", "op_errors_overlap", "op_registration", "wild_indices")]
    return sorted(steps, key=lambda s: s.name != "delta_prefill") + [pytest_step(setting, "registration", rest, 420)]


def graph_steps(setting: Setting) -> list[Step]:
    steps = [pytest_step(setting, "capture and replay", [TESTS / "test_cuda_graphs.py"], 300)]
    if not setting.emulated:  # where launches never overlap
        steps.append(pytest_step(setting, "overlapping launches", [TESTS / "test_overlapping_launches.py"], 200))
    return steps


def sanitizer_passes(done: Outcome) -> bool:
    """No complaint about one of our kernels; torch's own are not ours to judge."""
    return bool(done.code is not None and "ok " in done.output) and not our_complaints(done.output)


def our_complaints(text: str) -> list[str]:
    """Headlines of compute-sanitizer's report on kernels of this project, and calls that went wrong."""
    blocks = re.split(r"\n(?=={9} \S)", text)
    found = [block.splitlines()[0] for block in blocks[1:] if "skv::" in block]
    return found + [line for line in text.splitlines() if line.startswith("WRONG")]


def sanitizer_summary(done: Outcome) -> str:
    complaints = our_complaints(done.output)
    calls = sum(line.startswith("ok ") for line in done.output.splitlines())
    return f"{calls} ops watched, {len(complaints)} complaints" + (f": {complaints[0]}" if complaints else "")


def sanitizer_steps(setting: Setting) -> list[Step]:
    calls = setting.module("small_calls")
    if setting.emulated:
        return [Step("small calls", calls, 200, sanitizer_summary, passes=sanitizer_passes)]
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # a tensor's end is then the end of its memory
    return [
        Step(tool, ["compute-sanitizer", "--tool", tool, *options, *calls], 180, sanitizer_summary, env,
             passes=sanitizer_passes)
        for tool, options in SANITIZERS.items()
    ]  # fmt: skip


def engine_steps(setting: Setting) -> list[Step]:
    return [Step("greedy tokens", setting.module("engine_check"), 200)]


BUDGETS = {"attention": 240, "linear": 60, "verify": 60}


def bench_steps(setting: Setting) -> list[Step]:
    steps = []
    for group in GROUPS:
        path, budget = setting.folder / f"bench_{group}.json", BUDGETS.get(group, 40)
        command = setting.module("bench", group, "--json", str(path), "--budget", str(budget))
        steps.append(Step(group, command, budget + 60, bench_summary(path), results=path))
    return steps


def bench_summary(path: pathlib.Path):
    def summary(done: Outcome) -> str:
        if not path.is_file():
            return last_line(done.output)
        rows = json.loads(path.read_text())["rows"]
        timed = [row for row in rows if "ours" in row["us"]]
        return f"{len(timed)} of {len(rows)} cases timed" + (f"; {last_line(done.output)}" if done.output else "")

    return summary


def step_steps(setting: Setting) -> list[Step]:
    """bench_step.py: steps of an engine, captured and not: decoding (layers also op by op), without few rows' kernel,
    drafts."""
    tiny = ["--model", "tiny", "--device", "cpu", "--context", "40", "--sessions", "1", "3", "--steps", "3"]
    steps = []
    without = {"STATEFUL_KV_FEW_ROWS": "0"}
    for name, drafts, env in (("decode", "0", {}), ("decode_wgmma", "0", without), ("drafts", "4", {})):
        path = setting.folder / f"step_{name}.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "bench_step.py"), "--drafts", drafts, "--json", str(path)]
        command += tiny if setting.emulated else ["--context", "8192", "--sessions", "1", "8"]
        command += ["--op-by-op"] if name == "decode" else []
        steps.append(Step(name, command, 200, step_summary(path), results=path, env=env))
    return steps


def step_summary(path: pathlib.Path):
    def summary(done: Outcome) -> str:
        if not path.is_file():
            return last_line(done.output)
        row = next(r for r in reversed(json.loads(path.read_text())["rows"]) if "op by op" not in r["contestant"])
        return f"{row['contestant']}, {row['sessions']} sessions: {row['step ms']:.3f} ms, host {row['host us']:.0f} us"

    return summary


PARTS = {
    part.name: part
    for part in (
        Part("build", "the package from source, with nvcc", build_steps),
        Part("prims", "each prim:: function against its definition", prim_steps),
        Part("ops", "the op suite on the backend cuda", op_steps, side_by_side=4),
        Part("graphs", "CUDA-graph capture and replay of each op", graph_steps),
        Part("engine", "greedy tokens of the engine against float32 on the CPU", engine_steps),
        Part("sanitizer", "compute-sanitizer on small calls of each op", sanitizer_steps),
        Part("bench", "times, rates and peers of each kernel", bench_steps),
        Part("step", "a step of an engine, captured and not: weights, attention, the rest, the host", step_steps),
    )
}


def make_folder() -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(prefix="gpu_check_"))
