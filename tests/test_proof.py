"""The harness of the proof: cells, judging, figures, report; a run from the command line on a tiny model."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import report
from benchmarks.proof import cells, contestants, judge, models, plots, summary
from benchmarks.proof.cells import Cell

ROOT = pathlib.Path(__file__).resolve().parents[1]


# ---- figures ----


def made_cell(turn_s, contestant="ours", every=1, computed=10, drafted=0, accepted=0):
    rows = [
        dict(step=i, agent=0, context=100 * (i + 1), delta=50, tokens=[1, 2, 3, 4], ttft_s=s / 2, turn_s=s,
             computed=computed, drafted=drafted, accepted=accepted)
        for i, s in enumerate(turn_s)
    ]  # fmt: skip
    settings = dict(model="tiny", dtype="float32", threads=1, clock="wall", agents=1, max_context=400)
    facts = dict(version=contestant, commit="abc", peak_mb=9.0, ready_mb=4.0, load_average=0.5, wall_s=sum(turn_s))
    return dict(cell={**settings, "pool_tokens": None, "every": every}, rows=rows, **facts)


def write_cells(folder, made):
    for name, repetitions in made.items():
        for i, cell in enumerate(repetitions):
            cells.keep(Cell("six_turns", "tiny", "float32", name, i), cell, folder)
    return folder / "six_turns_tiny_float32"


def test_quantiles_are_values_that_occurred():
    assert summary.quantile([5, 1, 4, 2, 3], 0.5) == 3
    assert summary.quantile(list(range(1, 36)), 0.99) == 35
    assert summary.quantile(list(range(1, 201)), 0.99) == 198


def test_ratios_are_taken_within_a_repetition(tmp_path):
    """The second repetition met a machine ten times slower: no ratio notices."""
    group = write_cells(
        tmp_path,
        {
            "ours-plain": [made_cell([1, 1, 1]), made_cell([10, 10, 10])],
            "ours": [made_cell([0.5, 0.5, 0.5]), made_cell([5, 5, 5])],
            "llama": [made_cell([3, 2, 1]), made_cell([30, 20, 10])],
        },
    )
    result = summary.summarize(group, {}, {})
    row = next(r for r in result["rows"] if r["contestant"] == "llama")
    assert row["to_plain"] == dict(turn=2, wall=2) and row["to_ours"] == dict(turn=4, wall=4)
    assert row["turn_ms"] == 1e3 * 11 and row["wall_s"] == 33
    assert result["losses"] == [] and result["commits"] == ["abc"]


def test_losses_are_named(tmp_path):
    group = write_cells(
        tmp_path,
        {
            "ours-plain": [made_cell([1, 1, 1])],
            "ours": [made_cell([0.5, 0.5, 0.5])],
            "vllm": [made_cell([0.9, 0.9, 3])],
            "vllm-lookup": [made_cell([0.4, 0.4, 0.4])],
            "ours-no-tree": [made_cell([0.1, 0.1, 0.1])],
        },
    )
    found = {(x["peer"], x["ours"], x["what"]): x["ratio"] for x in summary.summarize(group, {}, {})["losses"]}
    assert found == {
        ("vllm", "ours-plain", "turn"): 0.9,
        ("vllm-lookup", "ours", "turn"): 0.8,
        ("vllm-lookup", "ours", "wall"): pytest.approx(0.8),
    }


def test_turns_left_out_leave_no_wall_time(tmp_path):
    group = write_cells(tmp_path, {"ours-plain": [made_cell([1, 1])], "llama-recomputing": [made_cell([4], every=5)]})
    row = next(r for r in summary.summarize(group, {}, {})["rows"] if r["contestant"] == "llama-recomputing")
    assert row["wall_s"] is None and row["to_plain"] == dict(turn=4, wall=None)


def test_acceptance_and_computed_tokens_are_sums(tmp_path):
    group = write_cells(tmp_path, {"ours": [made_cell([1, 1], computed=7, drafted=8, accepted=2)]})
    row = summary.summarize(group, {}, {})["rows"][0]
    assert (row["prompt_tokens_computed"], row["drafted"], row["acceptance"]) == (14, 16, 0.25)


# ---- judging ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder, models.FOLDER = models.FOLDER, tmp_path_factory.mktemp("models")
    yield models.checkpoint("tiny")
    models.FOLDER = folder


def test_the_judge_finds_a_wrong_token_and_where_it_stands(checkpoint):
    reference = judge.Reference(checkpoint)
    talk, answers = list(range(7, 47)), []
    for turn in range(3):
        begin = len(talk)
        for _ in range(6):
            talk.append(argmax(reference, talk))
        answers.append((begin, len(talk), turn))
        talk += [100 + turn, 200]
    assert reference.differences(talk, answers) == []
    begin = answers[1][0]
    wrong = [*talk[: begin + 2], (talk[begin + 2] + 1) % 2560, *talk[begin + 3 :]]
    found = reference.differences(wrong, answers)
    assert (found[0]["turn"], found[0]["token"]) == (1, 2) and found[0]["gap"] > 0


def argmax(reference, talk):
    torch = reference.torch
    with torch.inference_mode():
        return int(reference.model(input_ids=torch.tensor([talk])).logits[0, -1].argmax())


def test_conversations_are_rebuilt_with_forks_and_scripts():
    turn = lambda agent, delta, fork_of=None: dict(agent=agent, delta=delta, answer=2, fork_of=fork_of)  # noqa: E731
    work = dict(steps=[[turn(0, [1, 2])], [turn(1, [3], fork_of=0)], [turn(0, [4])]])
    row = lambda step, agent, tokens: dict(step=step, agent=agent, tokens=tokens)  # noqa: E731
    talks = judge.spans(work, [row(0, 0, [8, 8]), row(2, 0, [9, 9])], [[5, 5], [6, 6], [7, 7]])
    assert talks == [([1, 2, 8, 8, 4, 9, 9], [(2, 4, 0), (5, 7, 2)]), ([1, 2, 8, 8, 3, 6, 6], [])]


# ---- cells ----


def test_cells_are_interleaved():
    made = cells.interleaved(["six_turns"], "tiny", "float32", ["ours", "llama"], 2)
    assert [(c.contestant, c.repetition) for c in made] == [("ours", 0), ("llama", 0), ("ours", 1), ("llama", 1)]


def test_slow_contestants_wait_for_a_script_and_then_skip_turns(tmp_path, checkpoint):
    slow = Cell("thirty_five_turns", "tiny", "float32", "ours-no-reuse", 0)
    with pytest.raises(RuntimeError, match="needs the answers"):
        cells.settings(slow, 1, None, tmp_path)
    cells.keep(Cell("thirty_five_turns", "tiny", "float32", "ours-plain", 0), made_cell([1] * 35), tmp_path)
    wanted = cells.settings(slow, 1, None, tmp_path)
    assert wanted["every"] == 5 and len(wanted["script"]) == 35
    assert "script" not in cells.settings(Cell("six_turns", "tiny", "float32", "ours-no-reuse", 0), 1, None, tmp_path)


def test_a_failing_contestant_says_what_it_said(tmp_path, checkpoint):
    cell = Cell("six_turns", "tiny", "float32", "ours", 0)
    wanted = cells.settings(cell, 1, 1, tmp_path) | {"variant": "no_wheels"}
    with pytest.raises(RuntimeError, match="no_wheels"):
        cells.run(cell, wanted, {}, [], 60, lambda line: None)


def test_a_contestant_that_takes_too_long_is_ended(tmp_path, checkpoint):
    cell = Cell("six_turns", "tiny", "float32", "ours", 0)
    wanted = cells.settings(cell, 1, 1, tmp_path)
    with pytest.raises(RuntimeError, match="at most 0 s"):
        cells.run(cell, wanted, {}, [], 0.2, lambda line: None)


def test_an_engine_that_is_not_there_is_reported():
    assert "nothing_like_this" in contestants.missing("llama_cpp", sys.executable + "_nothing_like_this")


# ---- report ----


def test_lines_are_drawn_where_their_values_are():
    svg = plots.lines([plots.Line("a", [(1, 10), (2, 100)]), plots.Line("b & c", [(1, 100), (2, 10)])], "turn", "ms")
    a, b = ([tuple(map(float, p.split(","))) for p in line.split()] for line in re.findall(r'points="([^"]+)"', svg))
    assert a[0][1] > a[1][1] and b[0][1] < b[1][1]  # y grows downwards
    assert a[0][0] == b[0][0] < a[1][0] and "b &amp; c" in svg


def test_the_page_begins_with_losses_and_needs_nothing_else(tmp_path):
    group = write_cells(
        tmp_path / "cells",
        {
            "ours-plain": [made_cell([1, 1, 1])],
            "ours": [made_cell([0.5, 0.5, 0.5], drafted=4, accepted=1)],
            "llama": [made_cell([0.9, 0.9, 0.9])],
        },
    )
    machine = dict(processor="P", commit="c", date="d")
    verdicts = {"llama": dict(tokens=12, differ=1, largest_gap=0.25, at=[dict(turn=0, token=1, gap=0.25)])}
    result = summary.summarize(group, verdicts, {"vllm": "No module named 'vllm'"})
    page = report.page([dict(machine=machine, workload="six_turns", title="six", **result)])
    loss = page.index("takes 0.90 of the time of ours, no speculation at the median turn")
    assert page.index("Where a peer is faster") < loss < page.index("<table>")
    assert "Not measured: vLLM, prefix caching: No module named" in page
    assert "1 of 12 differ, gap 0.25" in page and "25% of 12" in page
    assert not re.search(r"(src|href)=|<script|url\(|@import", page)
    off, everyone = page.split("<h3>Everyone with what they have")
    assert "<td>ours</td>" not in off and "<td>ours</td>" in everyone


# ---- from the command line ----


def proof(*args, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", "benchmarks.proof", *args], cwd=cwd, capture_output=True, text=True)


def test_a_run_on_a_tiny_model(tmp_path):
    common = ["--model", "tiny", "--workload", "six_turns", "--cells", str(tmp_path / "cells"), "--threads", "1"]
    common += ["--results", str(tmp_path / "results"), "--python", "llama_cpp=/nothing/here", "--clock", "cpu"]
    names = ["ours", "ours-plain", "transformers", "transformers-lookup", "llama"]
    run = ["run", *common, "--contestant", *names, "--steps", "2", "--repetitions", "1"]
    done = proof(*run)
    assert done.returncode == 0, done.stderr
    assert "SKIPPED: llama" in done.stderr and done.stderr.count("s of turns") == 4
    again = proof(*run)
    assert again.stderr.count("there already") == 4
    done = proof("results", *common, "--contestant", *names)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / "proof_six_turns_tiny_float32_cpu.json").read_text())
    rows = {row["contestant"]: row for row in result["rows"]}
    assert set(rows) == set(names) - {"llama"} and "llama" in result["skipped"]
    assert all(row["verdict"]["differ"] == 0 and row["verdict"]["tokens"] == 128 for row in rows.values())
    assert rows["transformers"]["prompt_tokens_computed"] == rows["ours-plain"]["prompt_tokens_computed"]
    assert rows["transformers-lookup"]["prompt_tokens_computed"] > rows["ours"]["prompt_tokens_computed"]
    assert result["machine"]["commit"] and rows["ours"]["peak_mb"] > rows["ours"]["ready_mb"] * 0.5
