"""What a build used, drawn: lines for a terminal, a table, an SVG. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import pairwise

from mayfly.cli.output import seconds
from mayfly.model import GIB, MIB
from mayfly.wire import PointJson, UsageJson

WIDTH = 60
BARS = " ▁▂▃▄▅▆▇█"

COLUMNS = ("STEP", "TIME", "MEMORY", "CACHE", "CPU", "READ", "WRITTEN", "KILLED")

_Value = Callable[[PointJson], float]


def lines(used: UsageJson) -> Iterator[str]:
    """The whole build in a few lines, with a drawing for each of memory, cache, CPU and disk."""
    size, points = used["size"], used["points"]
    outcome = used["outcome"] or "running"
    yield f"build {used['id']} of {used['repo']}: {outcome}, size {size['name']}"
    if used["memory_bytes"] is None:
        yield "nothing is known of what it used"
        return
    kills = used["oom_kills"] or 0
    yield (
        f"memory {size_of(used['memory_bytes'])} of {size_of(used['granted_memory_bytes'])}"
        f" (with page cache {size_of(used['memory_peak_bytes'] or 0)})"
        f"{grown(used)}, cpu {used['cpu']:g} of {size['cpus']}"
        f", disk {size_of(used['disk_bytes'] or 0)} of {size_of(size['disk_bytes'])}"
        f"{f', killed for want of memory: {kills}' if kills else ''}"
    )
    if not points:
        return
    whole = used["granted_memory_bytes"]
    yield _drawn("memory", points, lambda p: p["memory_bytes"], whole, size_of(whole))
    yield _drawn("cache", points, lambda p: p["cache_bytes"], whole, size_of(whole))
    cpus = size["cpus"]
    yield f"{'cpu':8}{bars(_speed(points), cpus)} {cpus} vCPU"
    disk = max(1, *(point["disk_bytes"] for point in points))
    yield _drawn("disk", points, lambda p: p["disk_bytes"], disk, size_of(disk))
    yield f"{'':8}0 s{seconds(points[-1]['at_s']):>{WIDTH - 3}}"


def grown(used: UsageJson) -> str:
    """How much memory was given while it ran, in words; empty when none was."""
    more = used["granted_memory_bytes"] - used["size"]["memory_bytes"]
    return f", {size_of(more)} of it given while it ran" if more else ""


def rows(used: UsageJson) -> Iterator[Sequence[object]]:
    """One row for each step, in order of start; what was cached has only its name."""
    for step in used["steps"]:
        name = step["name"] if len(step["name"]) <= WIDTH else step["name"][: WIDTH - 1] + "…"
        if step["cached"]:
            yield (name, "CACHED", *[None] * 6)
            continue
        took = seconds(step["seconds"])
        if step["end_s"] is None:
            took = f"{took}, running"
        yield (
            name,
            f"{took}, failed" if step["failed"] else took,
            size_of(step["memory_bytes"]),
            size_of(step["cache_bytes"]),
            f"{step['cpu']:.1f}",
            size_of(step["read_bytes"]),
            size_of(step["written_bytes"]),
            step["oom_kills"] or None,
        )


def size_of(size_bytes: int) -> str:
    """Bytes for people: `430 MiB`, `1.5 GiB`."""
    if size_bytes < GIB:
        return f"{round(size_bytes / MIB)} MiB"
    return f"{size_bytes / GIB:.3g} GiB"


def bars(values: Sequence[float], whole: float) -> str:
    """A line of 60 blocks, each the most of its part of the values; the highest is `whole`."""
    drawn = []
    for place in range(WIDTH):
        start = place * len(values) // WIDTH
        end = max(start + 1, (place + 1) * len(values) // WIDTH)
        share = max(values[start:end], default=0) / whole if whole else 0
        block = min(len(BARS) - 1, round(share * (len(BARS) - 1)))
        drawn.append(BARS[max(block, 1 if share > 0 else 0)])
    return "".join(drawn)


def _drawn(name: str, points: Sequence[PointJson], value: _Value, whole: float, label: str) -> str:
    return f"{name:8}{bars([value(point) for point in points], whole)} {label}"


def _speed(points: Sequence[PointJson]) -> list[float]:
    """vCPUs used between a point and the one before."""
    return [
        max(0.0, (now["cpu_s"] - before["cpu_s"]) / max(0.001, now["at_s"] - before["at_s"]))
        for before, now in pairwise([points[0], *points])
    ]


PLOT_X, PLOT_WIDTH, PLOT_HEIGHT, ROW_HEIGHT = 70, 800, 90, 16
COLOURS = {"memory": "#c2410c", "cache": "#fdba74", "cpu": "#1d4ed8", "disk": "#15803d"}


def svg(used: UsageJson) -> str:
    """A picture that stands alone: three curves, and below them each step from start to end."""
    points, steps = used["points"], used["steps"]
    last_s = max([1.0, *(p["at_s"] for p in points), *(s["end_s"] or 0 for s in steps)])
    memory = max(1, used["granted_memory_bytes"])
    disk = max([1, *(p["disk_bytes"] for p in points)])
    speeds = _speed(points) if points else []

    def both(point: PointJson) -> float:
        return (point["memory_bytes"] + point["cache_bytes"]) / memory

    plots: list[tuple[str, str, list[tuple[str, list[float]]]]] = [
        (
            "memory",
            size_of(memory),
            [
                ("cache", [both(point) for point in points]),
                ("memory", [point["memory_bytes"] / memory for point in points]),
            ],
        ),
        (
            "cpu",
            f"{used['size']['cpus']} vCPU",
            [("cpu", [speed / used["size"]["cpus"] for speed in speeds])],
        ),
        ("disk", size_of(disk), [("disk", [point["disk_bytes"] / disk for point in points])]),
    ]
    body, top = [], 40.0
    for name, label, curves in plots:
        body.append(_text(4, top + 12, name) + _text(4, top + 26, label, "#6b7280"))
        body.append(
            f'<rect x="{PLOT_X}" y="{top}" width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" '
            'fill="none" stroke="#d1d5db"/>'
        )
        for colour, shares in curves:
            body.append(_area(points, shares, last_s, top, COLOURS[colour]))
        top += PLOT_HEIGHT + 14
    for step in steps:
        start, end = step["start_s"], step["end_s"] if step["end_s"] is not None else last_s
        x, width = _x(start, last_s), max(1.0, (end - start) / last_s * PLOT_WIDTH)
        fill = "#dc2626" if step["failed"] else "#9ca3af" if step["cached"] else "#0f766e"
        body.append(
            f'<rect x="{x:.1f}" y="{top + 2:.1f}" width="{width:.1f}" height="{ROW_HEIGHT - 4}" '
            f'fill="{fill}" fill-opacity="0.35"/>'
        )
        need = "CACHED" if step["cached"] else size_of(step["memory_bytes"])
        body.append(_text(PLOT_X + 4, top + 12, f"{step['name']}  {need}"))
        top += ROW_HEIGHT
    body.append(_text(PLOT_X, top + 14, "0 s") + _text(PLOT_X + 760, top + 14, seconds(last_s)))
    title = f"build {used['id']} of {used['repo']}: {used['outcome'] or 'running'}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{PLOT_X + PLOT_WIDTH + 10}" '
        f'height="{top + 24:.0f}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{_text(4, 20, title)}'
        f"{''.join(body)}</svg>\n"
    )


def _x(at_s: float, last_s: float) -> float:
    return PLOT_X + at_s / last_s * PLOT_WIDTH


def _area(
    points: Sequence[PointJson], shares: Sequence[float], last_s: float, top: float, colour: str
) -> str:
    if not points:
        return ""
    bottom = top + PLOT_HEIGHT
    corners = [f"{_x(points[0]['at_s'], last_s):.1f},{bottom:.1f}"]
    for point, share in zip(points, shares, strict=True):
        y = bottom - min(1.0, max(0.0, share)) * PLOT_HEIGHT
        corners.append(f"{_x(point['at_s'], last_s):.1f},{y:.1f}")
    corners.append(f"{_x(points[-1]['at_s'], last_s):.1f},{bottom:.1f}")
    return f'<polygon points="{" ".join(corners)}" fill="{colour}" fill-opacity="0.7"/>'


def _text(x: float, y: float, text: str, colour: str = "#111827") -> str:
    return f'<text x="{x}" y="{y:.1f}" fill="{colour}">{escape(text)}</text>'
