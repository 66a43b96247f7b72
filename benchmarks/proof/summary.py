"""From cells to figures: medians over repetitions, ratios to ours within each repetition."""

import json
import pathlib
import statistics
from dataclasses import dataclass

from .contestants import ABLATION, CONTESTANTS

BASE = "ours-plain"  # what ratios are to: speculation off, as in every table that stands first
BASE_DRAFTING = "ours"


def load(group: pathlib.Path) -> dict[str, list[dict]]:
    """Cells of a group by contestant, repetitions in order."""
    cells: dict[str, list[dict]] = {}
    for name in CONTESTANTS:
        for path in sorted(group.glob(f"{name}.*.json"), key=lambda p: int(p.suffixes[0][1:])):
            cells.setdefault(name, []).append(json.loads(path.read_text()))
    return cells


def quantile(values: list[float], q: float) -> float:
    """The smallest value that a share q of all does not exceed."""
    values = sorted(values)
    return values[max(0, min(len(values) - 1, -int(-q * len(values) // 1) - 1))]


def by_turn(cell: dict, key: str) -> dict[tuple[int, int], float]:
    return {(row["step"], row["agent"]): row[key] for row in cell["rows"]}


def wall(cell: dict) -> float | None:
    """Seconds of all steps; None where turns were left out."""
    if cell["cell"].get("every", 1) > 1:
        return None
    slowest: dict[int, float] = {}
    for row in cell["rows"]:
        slowest[row["step"]] = max(slowest.get(row["step"], 0.0), row["turn_s"])
    return sum(slowest.values())


def medians(cells: list[dict], key: str) -> dict[tuple[int, int], float]:
    """Per turn, the median over repetitions."""
    turns = [by_turn(cell, key) for cell in cells]
    return {turn: statistics.median(t[turn] for t in turns) for turn in turns[0]}


def ratios(cells: list[dict], base: list[dict]) -> dict[str, float | None]:
    """Of the same repetition: this contestant's time to the base's, median over turns and of the whole."""
    turn, whole = [], []
    for cell, other in zip(cells, base):
        a, b = by_turn(cell, "turn_s"), by_turn(other, "turn_s")
        turn.append(statistics.median(a[t] / b[t] for t in a if t in b))
        if wall(cell) is not None:
            whole.append(wall(cell) / wall(other))
    return dict(turn=statistics.median(turn), wall=statistics.median(whole) if whole else None)


def _sum(cell: dict, key: str) -> int | None:
    values = [row[key] for row in cell["rows"]]
    return None if any(v is None for v in values) else sum(values)


def row(name: str, cells: list[dict], all_cells: dict[str, list[dict]]) -> dict:
    turns, firsts = medians(cells, "turn_s"), medians(cells, "ttft_s")
    walls = [w for w in map(wall, cells) if w is not None]
    answered = sum(len(r["tokens"]) for r in cells[0]["rows"])
    drafted, accepted = _sum(cells[0], "drafted"), _sum(cells[0], "accepted")
    result = dict(
        contestant=name,
        title=CONTESTANTS[name].title,
        version=cells[0]["version"],
        repetitions=len(cells),
        turns=len(turns),
        turn_ms=1e3 * statistics.median(turns.values()),
        turn_mean_ms=1e3 * statistics.mean(turns.values()),
        turn_p99_ms=1e3 * quantile(list(turns.values()), 0.99),
        ttft_ms=1e3 * statistics.median(firsts.values()),
        ttft_p99_ms=1e3 * quantile(list(firsts.values()), 0.99),
        wall_s=statistics.median(walls) if walls else None,
        wall_spread=[min(walls), max(walls)] if walls else None,
        tokens_per_s=answered / statistics.median(walls) if walls else None,
        peak_mb=statistics.median(c["peak_mb"] for c in cells),
        ready_mb=statistics.median(c["ready_mb"] for c in cells),
        prompt_tokens_computed=_sum(cells[0], "computed"),
        drafted=drafted,
        accepted=accepted,
        acceptance=accepted / drafted if drafted else None,
        load_average=max(c["load_average"] for c in cells),
        counts=cells[0].get("counts", {}),
    )
    for label, base in (("to_plain", BASE), ("to_ours", BASE_DRAFTING)):
        result[label] = ratios(cells, all_cells[base]) if base in all_cells else None
    for base in (m.base for m in ABLATION if m.contestant == name):
        result["to_base"] = ratios(cells, all_cells[base]) if base in all_cells else None
    return result


def summarize(group: pathlib.Path, verdicts: dict[str, dict], skipped: dict[str, str]) -> dict:
    """What a result file holds of a group, machine facts aside; commits: at which its cells ran."""
    cells = load(group)
    rows = [row(name, cells[name], cells) | {"verdict": verdicts.get(name)} for name in cells]
    series = {
        name: [
            dict(step=step, agent=agent, context=context, turn_ms=1e3 * seconds)
            for ((step, agent), seconds), context in zip(
                medians(cells[name], "turn_s").items(), (r["context"] for r in cells[name][0]["rows"])
            )
        ]
        for name in cells
    }
    first = next(iter(cells.values()))[0]["cell"]
    commits = sorted({cell["commit"] for of_name in cells.values() for cell in of_name if "commit" in cell})
    settings = {k: first[k] for k in ("model", "dtype", "threads", "clock", "agents", "max_context", "pool_tokens")}
    return dict(settings=settings, commits=commits, rows=rows, turns=series, skipped=skipped)


@dataclass(frozen=True)
class Comparison:
    """A peer, with what it has switched on, beside ours with speculation or without. what: turn, wall or first token
    (first). ratio: its time to ours, the smaller of the median within repetitions and the quotient of both medians;
    the latter alone for first tokens."""

    peer: str
    ours: str
    what: str
    ratio: float

    @property
    def ours_title(self) -> str:
        return CONTESTANTS[self.ours].title


MEASURES = dict(turn="turn_ms", wall="wall_s", first="ttft_ms")


def comparisons(rows: list[dict]) -> list[Comparison]:
    """Of every peer that a table stands beside ours, in the order of `rows`."""
    by_name = {row["contestant"]: row for row in rows}
    found = []
    for name, row in by_name.items():
        contestant = CONTESTANTS[name]
        if contestant.is_ours:
            continue
        for base, key in ((BASE, "to_plain"), (BASE_DRAFTING, "to_ours")):
            ours = by_name.get(base)
            if ours is None or row[key] is None or (contestant.speculates and base == BASE):
                continue
            for what, field in MEASURES.items():
                ratios = [row[key][what]] if row[key].get(what) is not None else []
                # One that took every fifth turn has no median of all.
                if row["turns"] == ours["turns"] and row[field] and ours[field]:
                    ratios.append(row[field] / ours[field])
                if ratios:
                    found.append(Comparison(name, base, what, min(ratios)))
    return found
