"""Plots as SVG text, for pages that need nothing else."""

import html
import math
from dataclasses import dataclass

COLORS = ["#1b6ca8", "#c8553d", "#3a7d44", "#7d4e9f", "#b08900", "#2a9d8f", "#d1495b", "#555555", "#8a5a44", "#0b3954"]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 860, 380, 70, 44, 16, 250


@dataclass(frozen=True)
class Line:
    label: str
    points: list[tuple[float, float]]


def _ticks_log(low: float, high: float) -> list[float]:
    marks = [
        m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    return [m for m in marks if low <= m <= high]


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{html.escape(text)}</text>'


def _frame(body: list[str], height: int = HEIGHT) -> str:
    style = 'style="max-width:100%;background:#fff" font-family="sans-serif" fill="#222"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {style}>{"".join(body)}</svg>'


def lines(series: list[Line], x_label: str, y_label: str) -> str:
    """Lines over a linear x and a logarithmic y, which shows ratios as distances; a legend on the right."""
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys) / 1.15, max(ys) * 1.15

    def at(x: float, y: float) -> tuple[float, float]:
        share = (math.log(y) - math.log(y0)) / (math.log(y1) - math.log(y0))
        across = (x - x0) / ((x1 - x0) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    body = []
    for tick in _ticks_log(y0, y1):
        _, y = at(x0, tick)
        body.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>' + _text(LEFT - 6, y + 4, f"{tick:g}", "end")
        )
    step = max(1, round((x1 - x0) / 8))
    for tick in range(math.ceil(x0), math.floor(x1) + 1, step):
        body.append(_text(at(tick, y0)[0], HEIGHT - BOTTOM + 16, str(tick), "middle"))
    for i, s in enumerate(series):
        color, dash = COLORS[i % len(COLORS)], ' stroke-dasharray="6 4"' if i >= len(COLORS) else ""
        places = [at(x, y) for x, y in s.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        body.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>')
        if len(places) < 12:
            body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
        y = TOP + 10 + 18 * i
        body.append(f'<path d="M{WIDTH - RIGHT + 14} {y}h22" stroke="{color}" stroke-width="3"{dash}/>')
        body.append(_text(WIDTH - RIGHT + 42, y + 4, s.label))
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle"))
    body.append(f'<g transform="translate(14 {HEIGHT / 2}) rotate(-90)">{_text(0, 0, y_label, "middle")}</g>')
    return _frame(body)


def bars(values: list[tuple[str, float]], unit: str) -> str:
    """One horizontal bar per value, from 0, the number written behind it."""
    height, left = 26 * len(values) + 12, 300
    top = max((v for _, v in values), default=1.0) or 1.0
    body = []
    for i, (label, value) in enumerate(values):
        y, width = 8 + 26 * i, max(1.0, value / top * (WIDTH - left - 110))
        body.append(_text(left - 8, y + 14, label, "end"))
        body.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="18" fill="{COLORS[i % len(COLORS)]}"/>')
        body.append(_text(left + width + 6, y + 14, f"{value:.3g} {unit}"))
    return _frame(body, height)
