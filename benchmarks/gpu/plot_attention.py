"""Share of the roofline against rows, from what bench.py wrote: python -m benchmarks.gpu.plot_attention JSON [SVG]

A point per cell: rows of a KV head (new tokens x query heads) on a logarithmic axis, the floor's time over ours on the
other; a colour per context, a dash per batch. The floor is the larger of bytes over the measured copy bandwidth and
FLOP over the measured rate of matrix products.
"""

import argparse
import math
import pathlib
import sys

from .attention_cells import rows_in

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 420, 60, 50, 30, 150
COLOURS = ("#1b6ca8", "#e07a1f", "#3a9a4b", "#b03060", "#6b4fa0", "#8a6d3b")
DASHES = ("", "6 3", "2 3")


def points(rows: list[dict]) -> dict[tuple[int, int], list[tuple[int, float]]]:
    """{(context, batch): [(rows of a KV head, share)]} of the cells of delta_prefill that have a time of ours."""
    lines: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for row in rows:
        if row["op"] != "delta_prefill" or "share" not in row:
            continue
        shape = row["shape"]
        heads, kv_heads = map(int, shape.get("heads", "32/8").split("/"))
        at = shape["delta"] * heads // kv_heads, row["share"]
        lines.setdefault((shape["context"], shape["batch"]), []).append(at)
    return {key: sorted(line) for key, line in sorted(lines.items())}


def svg(rows: list[dict], title: str) -> str:
    lines = points(rows)
    if not lines:
        raise ValueError("no cell of delta_prefill was timed")
    most = max(r for line in lines.values() for r, _ in line)
    decades = max(math.log2(most), 1)

    def place(r: float, share: float) -> str:
        x = LEFT + math.log2(r) / decades * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{HEIGHT - BOTTOM - min(share, 1.05) * (HEIGHT - BOTTOM - TOP) / 1.05:.1f}"

    def text(x: float, y: float, what: str, anchor: str = "middle") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="12" font-family="sans-serif">{what}</text>'

    parts = [text(LEFT, 18, title, "start"), text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "rows of a KV head")]
    for percent in range(0, 101, 20):
        y = place(1, percent / 100).split(",")[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(text(LEFT - 8, float(y) + 4, f"{percent} %", "end"))
    for power in range(0, int(decades) + 1, 2):
        x = float(place(2**power, 0).split(",")[0])
        parts.append(text(x, HEIGHT - BOTTOM + 18, str(2**power)))
    contexts, batches = sorted({c for c, _ in lines}), sorted({b for _, b in lines})
    for i, ((context, batch), line) in enumerate(lines.items()):
        style = f'stroke="{COLOURS[contexts.index(context) % len(COLOURS)]}" fill="none" stroke-width="1.5"'
        style += f' stroke-dasharray="{DASHES[batches.index(batch) % len(DASHES)]}"'
        parts.append(f'<polyline points="{" ".join(place(r, s) for r, s in line)}" {style}/>')
        y = TOP + 14 * i
        parts.append(f'<line x1="{WIDTH - RIGHT + 8}" x2="{WIDTH - RIGHT + 34}" y1="{y}" y2="{y}" {style}/>')
        parts.append(text(WIDTH - RIGHT + 40, y + 4, f"{context // 1024}K x {batch}", "start"))
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n' + "\n".join(parts) + "\n</svg>\n"


def main(source: str, target: str | None = None) -> int:
    path = pathlib.Path(source)
    pathlib.Path(target or path.with_suffix(".svg")).write_text(svg(rows_in(path), path.stem))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="JSON")
    parser.add_argument("target", metavar="SVG", nargs="?")
    args = parser.parse_args()
    sys.exit(main(args.source, args.target))
