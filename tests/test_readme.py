"""README tells the truth: its example runs, its commands and files exist, its figures are those of the result files."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
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
