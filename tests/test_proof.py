"""The harness of the proof: cells, judging, figures, report; a run from the command line on a tiny model."""

import json
import pathlib
import random
import re
import subprocess
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import report
from benchmarks.proof import cells, contestants, judge, models, plots, summary, tables
from benchmarks.proof.cells import Cell
from benchmarks.workloads import files
from stateful_kv import prefix_groups

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
    assert all(c.ratio >= 2 for c in tables.comparisons(result)) and result["commits"] == ["abc"]


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
    comparisons = summary.comparisons(summary.summarize(group, {}, {})["rows"])
    found = {(c.peer, c.ours, c.what): pytest.approx(c.ratio) for c in comparisons if c.ratio < 1}
    assert found == {
        ("vllm", "ours-plain", "turn"): 0.9,
        ("vllm", "ours-plain", "first"): 0.9,
        ("vllm-lookup", "ours", "turn"): 0.8,
        ("vllm-lookup", "ours", "first"): 0.8,
        ("vllm-lookup", "ours", "wall"): 0.8,
    }


def test_a_repetition_without_a_partner_counts_too(tmp_path):
    """Within the only pair the peer is slower, but half of ours took longer than it ever did."""
    group = write_cells(
        tmp_path,
        {"ours-plain": [made_cell([1, 1]), made_cell([4, 4]), made_cell([4, 4])], "vllm": [made_cell([2, 2])]},
    )
    result = summary.summarize(group, {}, {})
    assert next(r for r in result["rows"] if r["contestant"] == "vllm")["to_plain"] == dict(turn=2, wall=2)
    assert {(c.what, c.ratio) for c in tables.comparisons(result)} == {("turn", 0.5), ("wall", 0.5), ("first", 0.5)}


def test_a_cache_of_any_size_is_named_where_the_others_have_a_bound():
    bounded, free = dict(settings=dict(pool_tokens=64)), dict(settings=dict(pool_tokens=None))
    assert tables.condition(bounded, "transformers") and not tables.condition(free, "transformers")
    assert not tables.condition(bounded, "vllm")


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


@pytest.fixture(scope="module")
def reference(checkpoint):
    return judge.Reference(checkpoint)


def argmax(reference, talk):
    torch = reference.torch
    with torch.inference_mode():
        return int(reference.model(input_ids=torch.tensor([talk])).logits[0, -1].argmax())


def greedy(reference, talk, length):
    """The conversation with a greedy answer behind it."""
    talk = list(talk)
    for _ in range(length):
        talk.append(argmax(reference, talk))
    return talk


def other(token):
    return (token + 1) % models.SHAPES["tiny"]["vocab_size"]


def test_the_judge_finds_a_wrong_token_and_where_it_stands(reference):
    talk = greedy(reference, range(7, 47), 6)
    second = greedy(reference, [*talk, 101, 200], 6)
    assert reference.differences(talk, 40) == reference.differences(second, 48) == []
    wrong = [*second[:50], other(second[50]), *second[51:]]
    found = reference.differences(wrong, 48)
    assert found[0][0] == 2 and found[0][1] > 0


def test_what_the_reference_has_read_leaves_no_trace(checkpoint, reference):
    """Conversations that part, go on and come back, in any order, against one that has read nothing before."""
    rng, talks = random.Random(1), [list(range(5, 65))]
    for _ in range(6):
        talk = talks[rng.randrange(len(talks))]
        talks.append(talk[: rng.randrange(20, len(talk))] + [rng.randrange(2560) for _ in range(rng.randrange(9, 30))])
    asked = [(talk, len(talk) - 4) for talk in talks] + [(talk[:30], 12) for talk in talks]
    rng.shuffle(asked)
    for talk, begin in asked:
        fresh = judge.Reference(checkpoint).differences(talk, begin)
        found = reference.differences(talk, begin)
        assert [i for i, _ in found] == [i for i, _ in fresh]
        assert [gap for _, gap in found] == pytest.approx([gap for _, gap in fresh], abs=1e-4)


def scripted_turn(agent, delta, fork_of=None):
    return dict(agent=agent, delta=delta, answer=2, fork_of=fork_of)


def scripted_row(step, agent, tokens):
    return dict(step=step, agent=agent, tokens=tokens)


def test_conversations_are_rebuilt_with_forks_and_scripts():
    work = dict(steps=[[scripted_turn(0, [1, 2])], [scripted_turn(1, [3], fork_of=0)], [scripted_turn(0, [4])]])
    found = judge.turns(work, [scripted_row(0, 0, [8, 8]), scripted_row(2, 0, [9, 9])], [[5, 5], [6, 6], [7, 7]])
    assert [(t.step, t.agent, t.begin, t.tokens) for t in found] == [
        (0, 0, 2, [1, 2, 8, 8]),
        (2, 0, 5, [1, 2, 8, 8, 4, 9, 9]),
    ]


def test_a_fork_begins_as_its_parent_was_before_the_step():
    work = dict(steps=[[scripted_turn(0, [1])], [scripted_turn(0, [2]), scripted_turn(1, [3], fork_of=0)]])
    work["steps"].append([scripted_turn(1, [4]), scripted_turn(0, [5])])
    places = [(0, 0), (1, 0), (1, 1), (2, 1), (2, 0)]
    found = judge.turns(work, [scripted_row(*place, [60 + i] * 2) for i, place in enumerate(places)], None)
    assert [(t.step, t.agent) for t in found] == places
    assert found[2].tokens == [1, 60, 60, 3, 62, 62]
    assert found[3].tokens == [*found[2].tokens, 4, 63, 63] and found[3].begin == 7
    assert found[4].tokens == [1, 60, 60, 2, 61, 61, 5, 64, 64]


def test_a_sample_is_whole_conversations_and_the_same_every_time():
    judged = [judge.Judged(step, agent, 1, [step, agent]) for step in range(4) for agent in range(5)]
    assert judge.sample(judged, None) == judge.sample(judged, 20) == judged
    chosen = judge.sample(judged, 10)
    assert len(chosen) == 10 and chosen == judge.sample(judged, 10) == [t for t in judged if t in chosen]
    of_agent = sorted(sum(t.agent == agent for t in chosen) for agent in range(5))
    assert of_agent == [0, 0, 2, 4, 4]
    assert judge.sample(judged, 10, seed=1) != chosen


def answered(workload, answer):
    """A cell in which answer(context, turn) answered every turn."""
    rows, script = [], [[0] * t["answer"] for step in workload["steps"] for t in step]
    for index, step in enumerate(workload["steps"]):
        for t in step:
            rows.append(dict(step=index, agent=t["agent"], tokens=[0] * t["answer"]))
            context = judge.turns(workload, rows, script)[-1]
            rows[-1]["tokens"] = answer(context.tokens[: context.begin], t)
    return dict(cell=dict(model="tiny"), rows=rows)


@pytest.fixture
def forked(monkeypatch, tmp_path):
    """An orchestrator, three forks at once that share nothing with it after that, and the orchestrator again."""
    steps = [[scripted_turn(0, list(range(9, 40)))]]
    steps.append([scripted_turn(a, [50 + a, 3, 4], fork_of=0) for a in (1, 2, 3)])
    steps.append([scripted_turn(a, [70 + a, 5]) for a in (3, 0, 1)])
    path = tmp_path / "work.json"
    path.write_text(json.dumps(dict(steps=steps)))
    monkeypatch.setattr(files, "ensure", lambda name, checkpoint: path)
    return dict(steps=steps)


def test_forks_and_bursts_are_judged_and_what_they_share_is_read_once(checkpoint, reference, forked, tmp_path):
    group = tmp_path / "fan_out_tiny_float32"
    right = answered(forked, lambda context, t: greedy(reference, context, t["answer"])[len(context) :])
    calls = []

    def wrong_once(context, t):
        tokens = greedy(reference, context, t["answer"])[len(context) :]
        calls.append(t)
        return [tokens[0], other(tokens[1])] if len(calls) == 3 else tokens  # agent 2's, as it is forked

    group.mkdir()
    wrong = answered(forked, wrong_once)
    for name, cell in {"ours.0": right, "ours-plain.0": right, "ours.1": wrong, "vllm.0": wrong}.items():
        (group / f"{name}.json").write_text(json.dumps(cell))
    lines = []
    verdicts = judge.judge(group, checkpoint, on_line=lines.append)
    everything = dict(turns=7, of_turns=7, tokens=14)
    assert verdicts["ours-plain"] == dict(differ=0, largest_gap=0.0, at=[], repetitions_differ=0, **everything)
    assert verdicts["ours"] == verdicts["ours-plain"] | dict(repetitions_differ=1)
    found = verdicts["vllm"]
    assert found["differ"] == 1 and found["at"] == [dict(turn=1, agent=2, token=1, gap=found["largest_gap"])]
    assert found["largest_gap"] > 0
    assert len(lines) == 8  # seven, and agent 2's other answer
    assert judge.judge(group, checkpoint, on_line=pytest.fail) == verdicts
    some = judge.judge(group, checkpoint, limit=3, on_line=pytest.fail)
    assert {(v["turns"], v["of_turns"], v["tokens"]) for v in some.values()} == {(3, 7, 6)}


def test_the_reference_reads_a_shared_beginning_once(checkpoint):
    judged = [[*range(5, 105), *range(200 + 9 * i, 209 + 9 * i)] for i in range(4)]
    reference = judge.Reference(checkpoint)
    for tokens in judged:
        reference.differences(tokens, 105)
    assert reference.num_read == 100 + 4 * 8  # without each answer's last token


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


# ---- ablation ----


def test_an_ablation_changes_one_thing():
    for m in contestants.ABLATION:
        parts = [set(contestants.CONTESTANTS[n].variant.split("+")) - {"whole"} for n in (m.contestant, m.base)]
        assert len(parts[0] ^ parts[1]) == 1, m
    named = {m.contestant for m in contestants.ABLATION}
    assert named >= {c.name for c in contestants.CONTESTANTS.values() if c.is_ablation}


def test_shared_prefixes_are_worth_reading_once_in_the_burst():
    """Or the row that shows it would show nothing: decoding beside seven others, 1,500 tokens the same."""
    shape = models.SHAPES["110M"]
    heads = (shape["num_attention_heads"], 4, shape["hidden_size"] // shape["num_attention_heads"])
    table = np.arange(8 * 140, dtype=np.int32).reshape(8, 140)
    table[:, :93] = table[0, :93]
    new, used = np.ones(8, np.int64), np.full(8, 2000, np.int32)
    found = prefix_groups.groups_that_pay(table, new, used, 16, heads, 4, prefix_groups.COSTS["cpu"])
    assert found == ([0, 8], [93], 8)


def ablated(tmp_path, more=None, skipped=None, agents=8):
    made = {
        "ours": [made_cell([1, 1, 1], drafted=2)],
        "ours-plain": [made_cell([2, 2, 2])],
        "ours-fixed": [made_cell([1, 1, 1], drafted=40)],
        **(more or {}),
    }
    for of_name in made.values():
        for cell in of_name:
            cell["cell"]["agents"] = agents
    verdicts = {"ours": dict(tokens=12, differ=0, largest_gap=0.0, at=[], turns=3, of_turns=9)}
    result = summary.summarize(write_cells(tmp_path, made), verdicts, skipped or {})
    return dict(machine=dict(processor="P", commit="c", date="d"), workload="burst", title="eight", **result)


def test_each_mechanism_is_compared_with_what_it_changes_and_missing_ones_are_named(tmp_path):
    cascade = made_cell([3, 3, 3]) | dict(counts=dict(steps=9, grouped_steps=4))
    more = {"ours-fast": [made_cell([6, 6, 6])], "ours-cascade": [cascade], "ours-no-tree": [made_cell([5, 5, 5])]}
    rows = tables.ablation(ablated(tmp_path, more, {"ours-no-reuse": "no memory"}))
    assert all(len(row) == len(tables.ABLATION) for row in rows)
    shown = {row[0]: (row[3], row[4], row[5]) for row in rows}
    assert shown == {
        "ours": ("", "", ""),
        "no reuse: not run: no memory": ("", "", ""),
        "no tree": ("ours", "5.00", "5.00"),
        "no speculation": ("ours", "2.00", "2.00"),
        "drafts of one length": ("ours", "1.00", "1.00"),
        "ours, not deterministic, no speculation": ("", "", ""),
        "shared prefixes read once: off on a CPU, here on, in 4 of 9 steps": (
            "ours, not deterministic, no speculation",
            "0.50",
            "0.50",
        ),
    }
    assert rows[0][-1] == "all, judged 3 of 9 turns" and rows[2][-1] == "not judged"


def test_an_ablation_that_drafted_otherwise_is_marked(tmp_path):
    no_tree, no_reuse = contestants.ABLATION[1], contestants.ABLATION[0]
    more = {
        "ours-no-tree": [made_cell([3, 3, 3], drafted=40)],
        "ours-no-reuse": [made_cell([4, 4, 4], drafted=3)],
    }
    result = ablated(tmp_path, more)
    assert tables.changed(result, no_tree) == "3.00, 3.00" + tables.MARK
    assert tables.changed(result, no_reuse) == "4.00, 4.00"
    assert tables.MARK_SAYS in report.section(result)


def test_why_an_ablation_is_missing(tmp_path):
    no_reuse, no_tree, cascade = (contestants.ABLATION[i] for i in (0, 1, 4))
    result = ablated(tmp_path / "one", agents=1)
    assert tables.changed(result, no_tree) == tables.changed(result, cascade)
    assert tables.changed(result, no_tree) == "not run: one agent, nothing to share"
    assert tables.changed(result, no_reuse) == "not run"
    alone = ablated(tmp_path / "alone", {"ours-cascade": [made_cell([1, 1, 1])]})
    assert tables.changed(alone, cascade) == "not run: ours, not deterministic, no speculation"


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
    place = dict(turn=0, agent=0, token=1, gap=0.25)
    verdicts = {"llama": dict(tokens=12, differ=1, largest_gap=0.25, at=[place], repetitions_differ=2)}
    result = summary.summarize(group, verdicts, {"vllm": "No module named 'vllm'"})
    page = report.page([dict(machine=machine, workload="six_turns", title="six", **result)])
    loss = page.index("takes 0.90 of the time of ours, no speculation at the median turn")
    assert page.index("Where a peer is faster") < loss < page.index("<table>")
    missing = page[page.index("Not run: ") :].split("</p>")[0]
    assert "vLLM, prefix caching: No module named &#x27;vllm&#x27;; vLLM, prefix caching and n-grams;" in missing
    assert "ours, no tree;" in missing and "llama.cpp, prefix kept;" not in missing
    assert "<td>no tree: not run: one agent, nothing to share</td>" in page and "<td>no reuse: not run</td>" in page
    assert "Workloads that were not run: thirty_five_turns; " in page
    assert "1 of 12 differ, gap 0.25" in page and "25% of 12" in page
    assert "the first at step 1, token 2 of the answer, gap 0.25" in page
    assert "llama.cpp, prefix kept: 2 repetitions answered otherwise than the first" in page
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
    assert rows["ours-plain"]["to_base"] == rows["ours-plain"]["to_ours"] and "to_base" not in rows["ours"]
    assert rows["ours-plain"]["counts"] == dict(steps=128, grouped_steps=0)
    assert rows["transformers"]["prompt_tokens_computed"] == rows["ours-plain"]["prompt_tokens_computed"]
    assert rows["transformers-lookup"]["prompt_tokens_computed"] > rows["ours"]["prompt_tokens_computed"]
    assert result["machine"]["commit"] and rows["ours"]["peak_mb"] > rows["ours"]["ready_mb"] * 0.5
