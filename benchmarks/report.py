"""Writes the report of the proof from its result files: one page that needs nothing else.

    python benchmarks/report.py [--results DIR] [--out FILE]

Reads proof_*.json as `python -m benchmarks.proof results` left them and writes proof.html beside them. Where a peer is
faster that stands first; then, per workload, tables (speculation off everywhere first), turn time over turn number,
wall time, the ablation and acceptance.
"""

import argparse
import html
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks.proof import tables
from benchmarks.proof.contestants import CONTESTANTS
from benchmarks.proof.plots import Line, bars, lines

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "cpu"
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:980px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0;font-size:13px}td,th{padding:3px 9px;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}"
)


def load(folder: pathlib.Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("proof_*.json"))]


def title(contestant: str) -> str:
    return CONTESTANTS[contestant].title


def unit(result: dict) -> str:
    return "s of processor time" if result["settings"]["clock"] == "cpu" else "s"


def heading(result: dict) -> str:
    s = result["settings"]
    return f"{result['title']}: {s['model']}, {s['dtype']}, {s['threads']} thread{'s' if s['threads'] > 1 else ''}"


COLUMNS = ["contestant", "turn ms", "mean", "p99", "first token ms", "p99", "all s", "tokens/s", "turn to ours",
           "all to ours", "prompt tokens computed", "accepted", "peak MB", "greedy"]  # fmt: skip


def cells(row: dict, key: str) -> list[str]:
    ratio = row[key] or {"turn": None, "wall": None}
    name = row["title"] + row["condition"] + ("" if row["turns"] == row["all_turns"] else f" ({row['turns']} turns)")
    return [
        name,
        *(tables.number(row[k]) for k in ("turn_ms", "turn_mean_ms", "turn_p99_ms", "ttft_ms", "ttft_p99_ms")),
        tables.number(row["wall_s"], ".1f"),
        tables.number(row["tokens_per_s"], ".1f"),
        *(tables.number(ratio[k], ".2f") for k in ("turn", "wall")),
        tables.number(row["prompt_tokens_computed"], ","),
        "" if row["acceptance"] is None else f"{row['acceptance']:.0%} of {row['drafted']:,}",
        tables.number(row["peak_mb"]),
        tables.verdict(row["verdict"]),
    ]


def compared(result: dict, drafting: bool) -> tuple[list[list[str]], str]:
    """Rows of one table, fastest first: all that do not speculate, or everyone, to ours of that kind."""
    turns = max(row["turns"] for row in result["rows"])
    rows = [
        row | {"all_turns": turns, "condition": tables.condition(result, row["contestant"])}
        for row in result["rows"]
        if not CONTESTANTS[row["contestant"]].is_ablation
        and (drafting or not CONTESTANTS[row["contestant"]].speculates)
    ]
    key = "to_ours" if drafting else "to_plain"
    rows.sort(key=lambda row: row["turn_ms"])
    return [cells(row, key) for row in rows], key


def ablation(result: dict) -> str:
    """Ours, and with one mechanism changed at a time; those that were not run say so."""
    rows = tables.ablation(result)
    marked = any(tables.MARK in cell for row in rows for cell in row)
    return (
        "<h3>Ours with one mechanism changed at a time</h3>"
        + html_table(tables.ABLATION, rows)
        + (f"<p>{html.escape(tables.MARK_SAYS)}</p>" if marked else "")
    )


def says_losses(results: list[dict]) -> list[str]:
    """One sentence for each cell in which a peer is faster."""
    said = []
    for result in results:
        for c in tables.comparisons(result):
            if c.ratio < 1.0:
                said.append(
                    f"{heading(result)}: {title(c.peer)}{tables.condition(result, c.peer)} takes {c.ratio:.2f} of the "
                    f"time of {c.ours_title} {tables.WHAT[c.what]}"
                )
    return said


def conditions(result: dict) -> str:
    m, rows = result["machine"], result["rows"]
    commits = ", ".join(result.get("commits") or [m["commit"]])
    versions = ", ".join(dict.fromkeys(row["version"] for row in rows))
    busy = max(row["load_average"] for row in rows)
    repetitions = min(row["repetitions"] for row in rows)
    return (
        f"{m['processor']}, commit {commits}, {m['date']}; {versions}; {repetitions} or more repetitions; times "
        f"are {'processor' if result['settings']['clock'] == 'cpu' else 'wall'} time; the load average of the machine "
        f"reached {busy:.1f} when a contestant began"
    )


def html_table(heads: list[str], rows: list[list[str]]) -> str:
    lines_ = ["<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in heads) + "</tr>"]
    lines_ += ["<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows]
    return "<table>" + "".join(lines_) + "</table>"


def turn_plot(result: dict) -> str:
    series = []
    for row in sorted(result["rows"], key=lambda row: row["turn_ms"]):
        turns = result["turns"][row["contestant"]]
        points = [(i if len(turns) == row["all_turns"] else t["step"], t["turn_ms"]) for i, t in enumerate(turns)]
        series.append(Line(row["title"], [(x + 1, y) for x, y in points]))
    return lines(series, "turn", "ms")


def section(result: dict) -> str:
    turns = max(row["turns"] for row in result["rows"])
    result = result | {"rows": [row | {"all_turns": turns} for row in result["rows"]]}
    s = result["settings"]
    parts = [f"<h2>{html.escape(heading(result))}</h2>"]
    parts.append(
        f"<p>{turns} turns, {s['agents']} agents, contexts to {s['max_context']:,} tokens. "
        f"{html.escape(conditions(result))}.</p>"
    )
    if missing := tables.not_measured(result):
        parts.append(f"<p>{html.escape(tables.sentence('Not run: ', missing))}</p>")
    for drafting, what in ((False, "Speculation off everywhere"), (True, "Everyone with what they have")):
        rows, _ = compared(result, drafting)
        if rows:
            parts.append(f"<h3>{what}</h3>" + html_table(COLUMNS, rows))
    parts.append("<h3>Turn time over the turn's number</h3>" + turn_plot(result))
    walls = sorted(((row["title"], row["wall_s"]) for row in result["rows"] if row["wall_s"]), key=lambda x: x[1])
    if walls:
        parts.append(f"<h3>Whole workload, {unit(result)}</h3>" + bars(walls, "s"))
    parts.append(ablation(result))
    if differences := tables.differences(result):
        parts.append("<h3>Where answers are not the reference's</h3><ul>")
        parts += [f"<li>{html.escape(line)}</li>" for line in differences]
        parts.append("</ul>")
    drafts = [(row["title"], 100 * row["acceptance"]) for row in result["rows"] if row["acceptance"] is not None]
    if drafts:
        parts.append("<h3>Drafted tokens that were accepted</h3>" + bars(drafts, "%"))
    return "\n".join(parts)


def page(results: list[dict]) -> str:
    said = says_losses(results)
    losses = "".join(f"<li>{html.escape(s)}</li>" for s in said)
    first = f"<ul>{losses}</ul>" if said else "<p>In no cell measured here.</p>"
    sections = "\n".join(map(section, results))
    if missing := tables.workloads_not_run(results):
        sections += f"\n<p>{html.escape(tables.sentence('Workloads that were not run: ', missing))}</p>"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>stateful_kv: the proof</title>'
        f"<style>{STYLE}</style></head><body><h1>Agentic workloads, engines side by side</h1>"
        f"<h2>Where a peer is faster</h2>{first}\n{sections}\n"
        "<p>Ratios in tables are taken within a repetition and their median is shown; above 1 means slower than ours. "
        "Where a peer is said to be faster, the quotient of both medians over all repetitions counts too. "
        "&ldquo;greedy&rdquo; compares every token of every answer with a float32 reference that reads the same text; "
        "a gap is how far the token's logit lies below the largest one.</p></body></html>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    results = load(args.results)
    if not results:
        raise SystemExit(f"no proof_*.json in {args.results}: run python -m benchmarks.proof first")
    out = args.out or args.results / "proof.html"
    out.write_text(page(results))
    print(f"wrote {out}: {len(results)} workloads, {len(says_losses(results))} places where a peer is faster")


if __name__ == "__main__":
    main()
