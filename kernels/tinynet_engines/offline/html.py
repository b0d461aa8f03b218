"""The report as one HTML file without external resources: a roofline plot, a bar per kernel, facts and findings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tinynet_engines.offline.estimate import estimate
from tinynet_engines.offline.launch import Launch
from tinynet_engines.offline.report import (
    DISCLAIMER,
    Report,
    format_quantity,
    format_time,
    launch_tables,
    seconds_of,
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #66707c; --line: #d9dee4; --back: #ffffff; --card: #f5f7f9;
  --memory: #2f7ed8; --arithmetic: #e08214; --unknown: #9aa3ad; --error: #c62828; --warning: #b26a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebef; --dim: #98a3af; --line: #333b44; --back: #14181c;
  --card: #1d2329; --memory: #62a8f0; --arithmetic: #f2a444; --error: #ff7a70; --warning: #f0b04a; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1180px; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.3rem; margin: 3rem 0 .2rem }
h3 { font-size: 1rem; margin: 2rem 0 .4rem }
p { margin: .3rem 0 } .dim { color: var(--dim) }
.note { border-left: 4px solid var(--arithmetic); padding: .4rem .8rem; background: var(--card); margin: 1rem 0 }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0 }
.card { background: var(--card); border-radius: 8px; padding: .6rem 1rem; min-width: 8.5rem }
.card b { display: block; font-size: 1.35rem; font-weight: 600 } .card span { color: var(--dim); font-size: .85rem }
svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif }
svg text { fill: var(--ink) } svg .dim { fill: var(--dim) } svg .grid { stroke: var(--line) }
svg .roof { stroke: var(--ink); fill: none; stroke-width: 2 }
.memory { fill: var(--memory) } .arithmetic { fill: var(--arithmetic) } .unknown { fill: var(--unknown) }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin: 0 .3em 0 1em }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .8rem; white-space: nowrap }
th, td { text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--line) }
th { color: var(--dim) } summary { cursor: pointer; font-weight: 600; margin: 1.6rem 0 .4rem }
li.error b { color: var(--error) } li.warning b { color: var(--warning) }
"""


def write_html(reports: Sequence[Report], path: str | Path, title: str) -> None:
    """Write the page for one or more reports of the same program.

    Args:
        reports: one per target.
        path: the file to write.
        title: a description of what was inspected.
    """
    Path(path).write_text(page(reports, title), encoding="utf-8")


def page(reports: Sequence[Report], title: str) -> str:
    """The complete HTML document."""
    sections = "".join(_section(report) for report in reports)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f'<h1>{escape(title)}</h1><p class="dim">What these GPUs would run, compiled and recorded without one.</p>'
        f'<p class="note">{escape(DISCLAIMER)}</p>{_overview(reports) if len(reports) > 1 else ""}'
        f"{sections}</body></html>\n"
    )


def _overview(reports: Sequence[Report]) -> str:
    """One bar per target, shortest least time first, each a link to its section."""
    order = sorted(reports, key=lambda report: report.total.bound_seconds)
    longest = order[-1].total.bound_seconds or 1.0
    row, label, room = 24, 250, _WIDTH - 250 - 330
    marks = [f'<svg viewBox="0 0 {_WIDTH} {row * len(order) + 6}" role="img" aria-label="least time by target">']
    for index, report in enumerate(order):
        target, seconds, top = report.target, report.total.bound_seconds, index * row + 3
        width, errors = room * seconds / longest, len(report.errors)
        text = f"{format_time(seconds)}, {errors} errors, {len(report.findings) - errors} warnings"
        marks.append(
            f'<a href="#{target.name}"><text x="{label - 8}" y="{top + 15}" text-anchor="end">{target.name}, '
            f'{escape(target.chip)}</text><rect class="memory" x="{label}" y="{top}" width="{width:.1f}" '
            f'height="{row - 7}" rx="2"/><text class="dim" x="{label + width + 6:.1f}" y="{top + 15}">{text}</text></a>'
        )
    return f"<h3>Least time by target</h3>{''.join(marks)}</svg>"


def _section(report: Report) -> str:
    target, total = report.target, report.total
    errors = len(report.errors)
    cards = [
        (str(total.launches), f"launches of {total.kernels} kernels"),
        (format_time(total.bound_seconds), "at least, all launches"),
        (format_time(total.estimated_seconds), "estimate, all launches"),
        (format_quantity(total.bytes, "B"), "compulsory traffic"),
        (format_quantity(total.flops, "FLOP"), "arithmetic"),
        (str(errors), "errors"),
        (str(len(report.findings) - errors), "warnings"),
    ]
    shown = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in cards
    )
    unknown = f'<p class="dim">{total.unknown_costs} launches of unknown cost are not included in the sums.</p>'
    return (
        f'<section id="{target.name}"><h2>{target.name}: {escape(target.chip)}</h2>'
        f'<p class="dim">{target.multiprocessors} multiprocessors, {target.bandwidth / 1e9:.0f} GB/s; peaks: '
        f'{escape(target.source)}</p><div class="cards">{shown}</div>{unknown if total.unknown_costs else ""}'
        f"<h3>Roofline</h3>{_legend()}{_roofline(report)}<h3>Least time by kernel</h3>{_bars(report)}"
        f"{_findings(report)}{_facts(report)}</section>"
    )


def _legend() -> str:
    keys = "".join(
        f'<span class="key" style="background: var(--{name})"></span>bound by {name}'
        for name in ("memory", "arithmetic")
    )
    return f'<p class="dim">One dot per kernel; its area is its share of the least time. {keys}</p>'


# ---- roofline -----------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 1100, 420, 70, 45, 15, 150


def _roofline(report: Report) -> str:
    """Attainable operations per second over operations per byte, both logarithmic."""
    target = report.target
    points = [
        (launch, count) for launch, count in report.groups() if launch.arithmetic_intensity and launch.bound_seconds
    ]
    if not points:
        return '<p class="dim">No launch has a known arithmetic intensity.</p>'
    types = sorted({launch.operand_type for launch, _ in points} | {"fp32"}, key=target.peak)
    intensities = [launch.arithmetic_intensity or 1.0 for launch, _ in points]
    ridges = [target.peak(name) / target.bandwidth for name in types]
    low_x = 10 ** math.floor(math.log10(min(*intensities, 1.0)))
    high_x = 10 ** math.ceil(math.log10(max(*intensities, *ridges) * 1.5))
    low_y = 10 ** math.floor(math.log10(low_x * target.bandwidth))
    high_y = 10 ** math.ceil(math.log10(target.peak(types[-1])))

    def x(intensity: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(intensity / low_x) / math.log(high_x / low_x)

    def y(rate: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * math.log(rate / low_y) / math.log(high_y / low_y)

    marks = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="roofline plot">']
    for exponent in range(round(math.log10(low_x)), round(math.log10(high_x)) + 1):
        at = x(10.0**exponent)
        marks.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        label = f"{10.0**exponent:g}"
        marks.append(f'<text class="dim" x="{at:.1f}" y="{_HEIGHT - 25}" text-anchor="middle">{label}</text>')
    for exponent in range(round(math.log10(low_y)), round(math.log10(high_y)) + 1):
        at = y(10.0**exponent)
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        label = format_quantity(10.0**exponent, "FLOP/s")
        marks.append(
            f'<text class="dim" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label.replace("FLOP/s", "")}</text>'
        )
    marks.append(
        f'<text class="dim" x="{_LEFT}" y="{_HEIGHT - 6}">operations per byte; vertical: operations per second</text>'
    )
    for name, ridge in zip(types, ridges, strict=True):
        peak = target.peak(name)
        start = f"M{x(low_x):.1f} {y(low_x * target.bandwidth):.1f}"
        marks.append(f'<path class="roof" d="{start} L{x(ridge):.1f} {y(peak):.1f} L{x(high_x):.1f} {y(peak):.1f}"/>')
        marks.append(f'<text x="{x(high_x) + 8:.1f}" y="{y(peak) + 4:.1f}">{name} {peak / 1e12:.0f} TFLOP/s</text>')
    named: list[tuple[float, float]] = []  # positions of names: those of the largest dots, as long as there is room
    for launch, count in sorted(points, key=lambda point: -_group_seconds(*point)):
        intensity = launch.arithmetic_intensity or 1.0
        rate = min(target.peak(launch.operand_type), intensity * target.bandwidth)
        radius = 4 + 22 * math.sqrt(_group_seconds(launch, count) / (report.total.bound_seconds or 1.0))
        marks.append(
            f'<circle class="{launch.bound_by}" fill-opacity="0.6" cx="{x(intensity):.1f}" cy="{y(rate):.1f}" '
            f'r="{radius:.1f}"><title>{escape(_tooltip(launch, count))}</title></circle>'
        )
        left, middle = x(intensity) + radius + 5, y(rate) + 4
        if len(named) < 6 and all(abs(left - at) > 260 or abs(middle - height) > 15 for at, height in named):
            named.append((left, middle))
            marks.append(f'<text x="{left:.1f}" y="{middle:.1f}">{escape(launch.name.removesuffix("_kernel"))}</text>')
    return "".join(marks) + "</svg>"


def _group_seconds(launch: Launch, count: int) -> float:
    return (launch.bound_seconds or 0.0) * count


def _tooltip(launch: Launch, count: int) -> str:
    return (
        f"{launch.name} x{count}\n{launch.tile}\n{format_quantity(launch.bytes, 'B')}, "
        f"{format_quantity(launch.flops, 'FLOP')}, at least {format_time(launch.bound_seconds)} each "
        f"(estimate {format_time(seconds_of(estimate(launch)))}), "
        f"{launch.waves:.2f} waves, occupancy {launch.occupancy:.0%} ({launch.resident[1]})"
    )


# ---- bars, findings, facts -----------------------------------------------------------------------------------------


def _bars(report: Report) -> str:
    """One bar per kernel name: its least time over all its launches, longest first."""
    times: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for launch, count in report.groups():
        by_limit = times.setdefault(launch.name, {})
        by_limit[launch.bound_by] = by_limit.get(launch.bound_by, 0.0) + _group_seconds(launch, count)
        counts[launch.name] = counts.get(launch.name, 0) + count
    order = sorted(times, key=lambda name: -sum(times[name].values()))
    longest = max((sum(each.values()) for each in times.values()), default=0.0) or 1.0
    total = report.total.bound_seconds or 1.0
    row, label, room = 24, 310, _WIDTH - 310 - 260
    marks = [f'<svg viewBox="0 0 {_WIDTH} {row * len(order) + 6}" role="img" aria-label="least time by kernel">']
    for index, name in enumerate(order):
        top, left = index * row + 3, float(label)
        marks.append(f'<text x="{label - 8}" y="{top + 15}" text-anchor="end">{escape(name)}</text>')
        for limit in ("memory", "arithmetic", "unknown"):
            width = room * times[name].get(limit, 0.0) / longest
            marks.append(
                f'<rect class="{limit}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="{row - 7}" rx="2"/>'
            )
            left += width
        seconds = sum(times[name].values())
        text = f"{format_time(seconds)}, {seconds / total:.0%}, {counts[name]} launch{'es' * (counts[name] > 1)}"
        marks.append(f'<text class="dim" x="{left + 6:.1f}" y="{top + 15}">{text}</text>')
    return "".join(marks) + "</svg>"


def _findings(report: Report) -> str:
    items = [
        f'<li class="{"error" if finding.fatal else "warning"}"><b>{finding.kind.replace("_", " ")}</b> '
        f"{escape(name)}{f' ({count} launches)' if count > 1 else ''}: {escape(finding.message)}</li>"
        for name, finding, count in report.distinct_findings()
    ]
    found = f"<ul>{''.join(items)}</ul>" if items else '<p class="dim">None.</p>'
    return f"<h3>Errors and warnings</h3>{found}"


def _facts(report: Report) -> str:
    parts = []
    for title, rows in launch_tables(report):
        head, *body = rows
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
        table = f'<div class="wide"><table><tr>{cells}</tr>{lines}</table></div>'
        parts.append(f"<details><summary>{escape(title)}</summary>{table}</details>")
    return "".join(parts)
