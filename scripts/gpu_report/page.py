"""The report as a page: the parts and what came of them, tables of benchmarks, pictures, and output of what failed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks import results, tables

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: 0.2rem 0.6rem; text-align: left; white-space: nowrap; }
pre { background: #f5f5f5; padding: 0.8rem; overflow-x: auto; font-size: 12px; }
img { max-width: 100%; }
.succeeded { color: #17692a; } .other { color: #a11; }
"""
LINES_OF_FAILURE = 40


def write_page(report: dict[str, Any], out: Path) -> None:
    """Writes report.html into the report's folder, from its parts and the files that they wrote."""
    body = "\n".join(_sections(report, out))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>tinynet on {escape(report['device'])}</title><style>{STYLE}</style>"
    (out / "report.html").write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'
    )


def _sections(report: dict[str, Any], out: Path) -> Iterator[str]:
    yield f"<h1>tinynet on {escape(report['device'])}</h1>"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version != "None")
    lines = report["engine"], f"{versions}; commit {report['commit']}; {report['date']}"
    yield f"<p>{'<br>'.join(map(escape, lines))}</p>"
    yield _table(("part", "what", "result", "seconds", "before", "after"), [_part(part) for part in report["parts"]])
    for part in report["parts"]:
        if part["status"] != "succeeded":
            yield from _failure(part, out)
    for path in sorted(out.glob("benchmarks*/*.json")):
        yield f"<h2>{escape(path.parent.name)}</h2>"
        runs, rows = json.loads(path.read_text())["runs"], results.load(path)
        yield "".join(f"<p>{'<br>'.join(map(escape, results.describe(run)))}</p>" for run in runs)
        yield _table(("column", *tables.MEANS_HEAD), tables.means(rows, lambda row: row.column))
        yield _table(tables.HEAD, tables.lines(rows))
        yield from _pictures(path.parent, out)
    if (out / "training").is_dir():
        yield "<h2>training</h2>"
        yield f"<pre>{escape(_output('training', out, 12))}</pre>"
        yield from _pictures(out / "training", out)


def _part(part: dict[str, Any]) -> list[str]:
    kind = "succeeded" if part["status"] == "succeeded" else "other"
    before, after = (
        ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in part[moment].items())
        for moment in ("before", "after")
    )
    link = f'<a href="output/{part["name"].replace(" ", "-")}.txt">{escape(part["name"])}</a>'
    status = f'<span class="{kind}">{escape(part["status"])}</span>'
    return [
        _Markup(link),
        part["what"],
        _Markup(status),
        f"{part['seconds']:.0f} of {part['limit']:.0f}",
        before,
        after,
    ]


def _failure(part: dict[str, Any], out: Path) -> Iterator[str]:
    yield f"<h2>{escape(part['name'])}: {escape(part['status'])}</h2>"
    yield f"<pre>{escape(' '.join(part['command']))}\n\n{escape(_output(part['name'], out, LINES_OF_FAILURE))}</pre>"


def _output(name: str, out: Path, lines: int) -> str:
    """The last lines of a part's output."""
    path = out / "output" / f"{name.replace(' ', '-')}.txt"
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join(text.replace("\r", "\n").splitlines()[-lines:])


def _pictures(folder: Path, out: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.png")):
        name = os.path.relpath(path, out)
        yield f'<p><img src="{escape(name)}" alt="{escape(path.stem)}"></p>'


class _Markup(str):
    """Text that is HTML already."""


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    marked = [[cell if isinstance(cell, _Markup) else escape(cell) for cell in line] for line in body]
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in line) for line in marked]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
