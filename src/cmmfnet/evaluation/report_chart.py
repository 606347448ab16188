"""A line chart of scores over training steps, as inline SVG."""

from __future__ import annotations

import html
import math

from cmmfnet.evaluation.metrics import METRICS

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 240, 52, 14, 30, 34


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers within [low, high], about ``count`` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    base = 10 ** math.floor(math.log10(raw))
    step = min((base * f for f in (1, 2, 2.5, 5, 10)), key=lambda each: abs(math.log(each / raw)))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(name: str, lines: dict[str, tuple[int, list[list[float]]]]) -> str:
    """``lines``: label -> (number of its colour, [[step, value], ...])."""
    points = [point for _, line in lines.values() for point in line if math.isfinite(point[1])]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    if not points:
        return ""
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high, start, end = (
        low - margin,
        high + margin,
        min(0, *xs) if len(xs) > 1 else 0,
        max(xs) or 1,
    )

    def x(step: float) -> float:
        return LEFT + (step - start) / (end - start) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    metric = METRICS[name]
    parts = [
        f'<text class="title" x="{LEFT}" y="16">{metric.title} ({metric.better or "no direction"} '
        "is better)</text>"
    ]
    marks = ticks(low, high)
    digits = (
        max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9))
        if len(marks) > 1
        else metric.decimals
    )
    if len(marks) > 1 and round(marks[1] - marks[0], digits) != round(marks[1] - marks[0], 12):
        digits += 1  # steps of 2.5
    for mark in marks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark):.1f}" '
            f'y2="{y(mark):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:.{digits}f}</text>'
        )
    for mark in ticks(start, end, 5):
        text = f"{mark / 1000:g}k" if mark >= 1000 else f"{mark:g}"
        parts.append(
            f'<text x="{x(mark):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>'
    )
    for label, (colour, line) in lines.items():
        finite = [point for point in line if math.isfinite(point[1])]
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in finite)
        dots = "".join(
            f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="3"><title>{html.escape(label)}, step '
            f"{s:g}: "
            f"{v:.{metric.decimals}f}</title></circle>"
            for s, v in finite
        )
        parts.append(f'<g class="m{colour}"><polyline points="{path}"/>{dots}</g>')
    last = "; ".join(
        f"{html.escape(label)} {line[-1][1]:.{metric.decimals}f}"
        for label, (_, line) in lines.items()
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{metric.title} by step; '
        f'last: {last}">'
        f"{''.join(parts)}</svg>"
    )
