"""What the report and README's figures both say of result files, what is missing from them included."""

from benchmarks.workloads.files import NAMES

from .contestants import ABLATION as MECHANISMS
from .contestants import CONTESTANTS, Mechanism
from .summary import Comparison
from .summary import comparisons as compared_rows

MARK = "†"
MARK_SAYS = f"{MARK} drafted as many tokens as drafts of one length do, so two things are changed"
ABLATION = ["ours", "turn ms", "all s", "changed from", "turn to it", "all to it", "drafted", "greedy"]


def number(value: float | None, form: str = ".0f") -> str:
    return "" if value is None else format(value, form)


def sentence(begin: str, names: list[str]) -> str:
    return f"{begin}{'; '.join(names)}." if names else ""


WHAT = dict(turn="at the median turn", wall="over the whole workload", first="to the first token, at the median turn")


def comparisons(result: dict) -> list[Comparison]:
    return compared_rows(result["rows"])


def condition(result: dict, contestant: str) -> str:
    """What a contestant was spared that the others were not."""
    unbounded = result["settings"].get("pool_tokens") and CONTESTANTS[contestant].engine == "transformers"
    return ", with a cache of any size" if unbounded else ""


def verdict(v: dict | None) -> str:
    """Tokens that are not the float32 reference's, of all judged, and the largest gap of logits among them."""
    if v is None or not v["tokens"]:
        return "not judged"
    said = "all" if not v["differ"] else f"{v['differ']} of {v['tokens']} differ, gap {v['largest_gap']:.2g}"
    # Files from before turns were counted judged every one of them.
    if v.get("turns") != v.get("of_turns"):
        said += f", judged {v['turns']} of {v['of_turns']} turns"
    return said


def differences(result: dict) -> list[str]:
    """Per contestant whose answers are not all the reference's: how many tokens, and where the first one stands."""
    said = []
    for row in result["rows"]:
        v = row["verdict"]
        if v and v["differ"]:
            p = v["at"][0]
            agent = f", agent {p['agent']}" if result["settings"]["agents"] > 1 and "agent" in p else ""
            said.append(
                f"{row['title']}: {verdict(v)}; the first at step {p['turn'] + 1}{agent}, token {p['token'] + 1} of "
                f"the answer, gap {p['gap']:.2g}"
            )
        if v and v.get("repetitions_differ"):
            said.append(f"{row['title']}: {v['repetitions_differ']} repetitions answered otherwise than the first")
    return said


def not_measured(result: dict) -> list[str]:
    """Titles of the contestants that a result file lacks, with the reason where there is one."""
    there, skipped = {row["contestant"] for row in result["rows"]}, result["skipped"]
    missing = [c for c in CONTESTANTS.values() if c.name not in there]
    return [f"{c.title}: {skipped[c.name]}" if c.name in skipped else c.title for c in missing]


def workloads_not_run(results: list[dict]) -> list[str]:
    there = {result["workload"] for result in results}
    return [name for name in NAMES if name not in there]


def _to_base(row: dict, mechanism: Mechanism) -> dict | None:
    """Files of before this was kept have the ratio to ours."""
    return row.get("to_base", row["to_ours"] if mechanism.base == "ours" else None)


def _mark(rows: dict[str, dict], name: str) -> str:
    """Ablations drafted one length once, whatever ours did."""
    drafted = {n: rows[n]["drafted"] for n in ("ours", "ours-fixed", name) if n in rows}
    is_marked = len(drafted) == 3 and drafted["ours"] != drafted["ours-fixed"] == drafted[name]
    return MARK if is_marked and CONTESTANTS[name].is_ablation else ""


def _why_missing(result: dict, mechanism: Mechanism) -> str:
    if mechanism.contestant in result["skipped"]:
        return "not run: " + result["skipped"][mechanism.contestant]
    is_idle = mechanism.between_agents and result["settings"]["agents"] == 1
    return "not run: one agent, nothing to share" if is_idle else "not run"


def changed(result: dict, mechanism: Mechanism) -> str:
    """Time with a mechanism changed to the time without the change: at the median turn, in all."""
    rows = {row["contestant"]: row for row in result["rows"]}
    if mechanism.contestant not in rows:
        return _why_missing(result, mechanism)
    ratio = _to_base(rows[mechanism.contestant], mechanism)
    if ratio is None:
        return f"not run: {CONTESTANTS[mechanism.base].title}" if mechanism.base not in rows else "no ratio kept"
    return ", ".join(number(ratio[k], ".2f") or "-" for k in ("turn", "wall")) + _mark(rows, mechanism.contestant)


def ablation(result: dict) -> list[list[str]]:
    """Rows below the heads ABLATION: each base, then what differs from it in one mechanism."""
    rows = {row["contestant"]: row for row in result["rows"]}
    lines = []
    for base in dict.fromkeys(m.base for m in MECHANISMS):
        lines.append(_line(rows.get(base), CONTESTANTS[base].title, "", None, "not run"))
        for m in (m for m in MECHANISMS if m.base == base):
            row = rows.get(m.contestant)
            name = m.change + _mark(rows, m.contestant)
            if row and m.contestant == "ours-cascade" and (counts := row.get("counts")):
                name += f", in {counts['grouped_steps']} of {counts['steps']} steps"
            ratio = _to_base(row, m) if row else None
            lines.append(_line(row, name, CONTESTANTS[base].title, ratio, _why_missing(result, m)))
    return lines


def _line(row: dict | None, name: str, base: str, ratio: dict | None, why_missing: str) -> list[str]:
    if row is None:
        return [f"{name}: {why_missing}", *[""] * (len(ABLATION) - 1)]
    ratio = ratio or dict(turn=None, wall=None)
    times = [number(row["turn_ms"]), number(row["wall_s"], ".1f"), base]
    times += [number(ratio[k], ".2f") for k in ("turn", "wall")]
    return [name, *times, number(row["drafted"], ","), verdict(row["verdict"])]
