"""README tells the truth: its example runs, its commands and files exist, its figures are those of the result files."""

import pathlib
import re
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import losses

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()


def block(marker: str, language: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```{language}\n(.*?)```", README, re.S)
    assert found, f"README.md has no {marker}"
    return found[1]


def test_the_example_runs():
    code = block("example", "python")
    assert len(code.strip().splitlines()) <= 12
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "TurnStats(prompt_tokens=79, reused_tokens=75" in done.stdout


def test_the_ops_can_be_called_as_it_says():
    done = subprocess.run(
        [sys.executable, "-c", block("example: ops", "python")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True [3, 32, 128]\n"


def test_there_are_two_commands_and_ci_runs_the_second():
    assert re.findall(r"<!-- command: (\w+) -->", README) == ["demo", "tests"]
    assert "-m stateful_kv demo" in block("command: demo", "bash")
    assert "-m pytest" in block("command: tests", "bash")
    assert "command: tests" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_point_at_files(target):
    assert (ROOT / target).exists()


def test_figures_are_those_of_the_result_files():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "figures.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", (RESULTS / "FIGURES.md").read_text()))))
def test_links_of_figures_point_at_files(target):
    assert (RESULTS / target).exists()


def test_readme_says_first_where_something_else_is_faster():
    section = README.split("<!-- figures -->")[1]
    lost = losses.all_of_them()
    assert lost and all(f"| {x.what} | {x.beside} | {x.cells} of {x.of} |" in section for x in lost)
    assert section.index(lost[0].what) < section.index("Agentic workloads beside other engines")


def test_a_cell_is_lost_where_the_peer_needs_less_time():
    found = losses._loss("op", "peer", "file", [(0.5, "a"), (1.0, "b"), (0.25, "c")])
    assert found == [losses.Loss("op", "peer", "file", 2, 3, 0.25, ("c: 0.25", "a: 0.50"))]
    assert losses._loss("op", "peer", "file", [(1.0, "b")]) == []
