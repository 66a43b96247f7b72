"""The demo's figures: the table of turns, the comparison with the baseline, the summary, the JSON."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .driver import RoundRecord, TurnRecord

MAX_FED_SHARE = 0.15
# Two runs of a model feed its matmuls different numbers of rows, so their logits differ by rounding. A difference of
# outputs is explained by that when the two tokens' logits are closer than this.
GAP_BOUND = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}


@dataclass
class Difference:
    """The first token in which a turn with reuse and speculation differs from the baseline's."""

    agent: str
    turn_idx: int
    position: int
    token: int
    baseline_token: int
    gap: float
    explained: bool


def all_turns(rounds: list[RoundRecord]) -> list[TurnRecord]:
    return [turn for record in rounds for turn in record.turns]


def compare(rounds: list[RoundRecord], baseline: list[RoundRecord], engine: Any, bound: float) -> list[Difference]:
    """Every turn whose tokens differ. The gap is what separates the best logit, by the baseline's model on the shared
    tokens, from the worse of the two tokens: never less than the gap of the top two."""
    differences = []
    for ours, theirs in zip(all_turns(rounds), all_turns(baseline)):
        if ours.tokens == theirs.tokens:
            continue
        pairs = list(zip(ours.tokens, theirs.tokens))
        position = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        if position == len(pairs):
            # One answer is the other's beginning: no rounding explains that.
            differences.append(Difference(ours.agent, ours.turn_idx, position, -1, -1, float("inf"), False))
            continue
        token, other = pairs[position]
        logits = engine.score(ours.prompt + ours.tokens[:position]).float()
        gap = float(logits.max() - min(logits[token], logits[other]))
        differences.append(Difference(ours.agent, ours.turn_idx, position, token, other, gap, gap < bound))
    return differences


def decode_steps(turn: Any) -> int:
    """Steps of a turn (TurnRecord or engine's Turn) after the one that ended its prompt.

    Each draws a token more than it accepts, but the last where the turn ends on an accepted draft: whether it did show
    the rows, as a step feeds one that is neither prompt nor draft, and a preempted turn some of its own again."""
    stats, least = turn.stats, len(turn.tokens) - 1 - turn.stats.accepted
    rows = stats.fed_tokens - stats.drafted - (stats.prompt_tokens - stats.reused_tokens)
    return least + (least + 1 in (rows, rows - stats.recomputed_tokens))


def prompt_rows(turn: TurnRecord) -> int:
    """The rows of a turn that were prompt: all it fed, less one row per decoding step and less the drafts."""
    return turn.stats.fed_tokens - decode_steps(turn) - turn.stats.drafted


def turn_s(turn: TurnRecord) -> float:
    return turn.stats.prefill_s + turn.stats.decode_s


def p90(values: list[float]) -> float:
    return sorted(values)[max(0, -(-9 * len(values) // 10) - 1)]


_COLUMNS = {"round": 5, "agent": 12, "turn": 4, "prompt": 6, "reused": 6, "delta": 5, "fed": 4, "accepted": 8}
_COLUMNS |= {"first ms": 8, "turn ms": 8, "base ms": 8}


def _line(cells: list[Any]) -> str:
    return " ".join(
        f"{cell:<{width}}" if name == "agent" else f"{cell:>{width}}"
        for cell, (name, width) in zip(cells, _COLUMNS.items())
    )


def table(rounds: list[RoundRecord], baseline: list[RoundRecord]) -> str:
    """One line a turn: tokens, accepted / drafted, milliseconds to the first token, of the turn, of the baseline's."""
    lines = [_line(list(_COLUMNS))]
    for ours, theirs in zip(all_turns(rounds), all_turns(baseline)):
        stats = ours.stats
        cells = [ours.round_idx + 1, ours.agent, ours.turn_idx + 1, len(ours.prompt), stats.reused_tokens]
        cells += [stats.delta_tokens, prompt_rows(ours), f"{stats.accepted}/{stats.drafted}"]
        cells += [f"{seconds * 1e3:.1f}" for seconds in (stats.ttft_s, turn_s(ours), turn_s(theirs))]
        lines.append(_line(cells))
    return "\n".join(lines)


def _times(turns: list[TurnRecord], rounds: list[RoundRecord]) -> dict[str, float]:
    seconds = [turn_s(turn) for turn in turns]
    return {
        "median_ms": statistics.median(seconds) * 1e3,
        "p90_ms": p90(seconds) * 1e3,
        "median_ttft_ms": statistics.median(turn.stats.ttft_s for turn in turns) * 1e3,
        "total_s": sum(record.wall_s for record in rounds),
    }


def summarise(
    rounds: list[RoundRecord],
    baseline: list[RoundRecord],
    differences: list[Difference],
    engine: Any,
    forks: int,
    bound: float,
) -> dict[str, Any]:
    """All figures of a run, `failures` included: the reasons why it must not count as a success. `engine` is the one
    with reuse, before its sessions are closed."""
    turns, later = all_turns(rounds), [turn for turn in all_turns(rounds) if turn.turn_idx > 0]
    fed, prompt = sum(map(prompt_rows, later)), sum(len(turn.prompt) for turn in later)
    ours, theirs = _times(turns, rounds), _times(all_turns(baseline), baseline)
    rows, rows_of_turns = sum(record.rows for record in rounds), sum(turn.stats.fed_tokens for turn in turns)
    share = fed / prompt if prompt else None
    failures = [
        f"{d.agent} turn {d.turn_idx + 1} differs at token {d.position} with a gap of {d.gap:.3g}, bound {bound:g}"
        for d in differences
        if not d.explained
    ]
    if share is not None and share > MAX_FED_SHARE:
        failures.append(f"{share:.1%} of the prompt tokens were fed from turn 2 on, allowed are {MAX_FED_SHARE:.0%}")
    if rows != rows_of_turns:
        failures.append(f"the model counted {rows} rows, the turns claim {rows_of_turns}")
    return {
        "turns": len(turns),
        "rounds": len(rounds),
        "prompt_tokens": sum(len(turn.prompt) for turn in turns),
        "prompt_tokens_from_turn_2": prompt,
        "prompt_rows_fed_from_turn_2": fed,
        "fed_share_from_turn_2": share,
        "rows_fed": rows,
        "rows_fed_baseline": sum(record.rows for record in baseline),
        "recomputed_tokens": sum(turn.stats.recomputed_tokens for turn in turns),
        "tokens_out": sum(len(turn.tokens) for turn in turns),
        "drafted": sum(turn.stats.drafted for turn in turns),
        "accepted": sum(turn.stats.accepted for turn in turns),
        "calls_by_model": sum(turn.call_from == "model" for turn in turns),
        "forks": forks,
        "blocks_shared": sum(turn.stats.reused_tokens // engine.block_size for turn in turns if turn.turn_idx == 0),
        "engine": engine.stats(),
        "time": ours,
        "time_baseline": theirs,
        "time_ratio": {key: ours[key] / theirs[key] for key in ours},
        "turns_equal": len(turns) - len(differences),
        "turns_different": len(differences),
        "gap_bound": bound,
        "failures": failures,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    import stateful_kv

    cpu = platform.processor()
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    except OSError:
        pass
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "stateful_kv": stateful_kv.__version__,
    }


def turn_json(turn: TurnRecord, theirs: TurnRecord) -> dict[str, Any]:
    return {
        "round": turn.round_idx + 1,
        "agent": turn.agent,
        "turn": turn.turn_idx + 1,
        "prompt_tokens": len(turn.prompt),
        "reused_tokens": turn.stats.reused_tokens,
        "delta_tokens": turn.stats.delta_tokens,
        "recomputed_tokens": turn.stats.recomputed_tokens,
        "prompt_rows_fed": prompt_rows(turn),
        "rows_fed": turn.stats.fed_tokens,
        "drafted": turn.stats.drafted,
        "accepted": turn.stats.accepted,
        "tokens": turn.tokens,
        "finish_reason": turn.finish_reason,
        "ttft_ms": turn.stats.ttft_s * 1e3,
        "turn_ms": turn_s(turn) * 1e3,
        "call_from": turn.call_from,
        "call": {"name": turn.call.name, "arguments": turn.call.arguments} if turn.call else None,
        "result": turn.result,
        "baseline": {
            "rows_fed": theirs.stats.fed_tokens,
            "tokens": theirs.tokens,
            "ttft_ms": theirs.stats.ttft_s * 1e3,
            "turn_ms": turn_s(theirs) * 1e3,
        },
    }


def summary_text(s: dict[str, Any], differences: list[Difference]) -> str:
    share, ratio, ours, theirs = s["fed_share_from_turn_2"], s["time_ratio"], s["time"], s["time_baseline"]
    pool = s["engine"]
    others = "answers" if "requests" in s else "calls by the transcript"
    lines = [
        f"turns            {s['turns']} in {s['rounds']} rounds, {s['calls_by_model']} calls by the model, "
        f"{s['turns'] - s['calls_by_model']} {others}, {s['forks']} forks",
        "fed from turn 2  "
        + (
            f"{s['prompt_rows_fed_from_turn_2']} of {s['prompt_tokens_from_turn_2']} prompt tokens = {share:.1%} "
            f"(at most {MAX_FED_SHARE:.0%}), counted where rows enter the model"
            if share is not None
            else "no agent had a second turn"
        ),
        f"rows in all      {s['rows_fed']}, drafts and answers included; baseline {s['rows_fed_baseline']}",
        f"turn time        median {ours['median_ms']:.1f} ms, baseline {theirs['median_ms']:.1f} "
        f"({ratio['median_ms']:.2f}x); p90 {ours['p90_ms']:.1f}, {theirs['p90_ms']:.1f} ({ratio['p90_ms']:.2f}x); "
        f"total {ours['total_s']:.2f} s, {theirs['total_s']:.2f} ({ratio['total_s']:.2f}x)",
        f"first token      median {ours['median_ttft_ms']:.1f} ms, baseline {theirs['median_ttft_ms']:.1f} "
        f"({ratio['median_ttft_ms']:.2f}x)",
        f"drafts           {s['accepted']} of {s['drafted']} accepted, {s['tokens_out']} tokens out",
        f"blocks           {s['blocks_shared']} shared by forks and prefix matches, {pool['blocks_copied']} copied on "
        f"write; {pool['num_blocks'] - pool['free']} of {pool['num_blocks']} in use, {pool['evicted_blocks']} evicted",
        f"outputs          {s['turns_equal']} of {s['turns']} turns equal the baseline's token for token",
    ]
    if "requests" in s:
        lines.append(f"requests         {s['requests_right']} of {s['requests']} done with exactly the calls they need")
    for d in differences:
        word = "rounding" if d.explained else "NOT EXPLAINED"
        lines.append(
            f"  {d.agent} turn {d.turn_idx + 1}: token {d.position} is {d.token}, baseline {d.baseline_token}, "
            f"logit gap {d.gap:.2g} (bound {s['gap_bound']:g}): {word}"
        )
    return "\n".join(lines + [f"FAILED           {failure}" for failure in s["failures"]])
