"""The report of an inspection: totals, a table for the terminal, JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinynet_engines.offline.estimate import Estimate, estimate
from tinynet_engines.offline.launch import Finding, Launch
from tinynet_engines.offline.targets import Target

DISCLAIMER = (
    'Times are no measurements: "at least" is a lower bound from published peaks, "estimate" a simple model of waiting.'
)


@dataclass(frozen=True)
class Total:
    """Sums over a program.

    Attributes:
        launches: the number of recorded launches.
        kernels: the number of distinct kernel names.
        flops: operations of the launches for which they are known.
        bytes: compulsory traffic in bytes of the launches for which it is known.
        bound_seconds: sum of the launches' bounds, since launches of one stream run one after the other.
        estimated_seconds: sum of the launches' estimates.
        unknown_costs: launches without a declared or derivable cost, which the sums leave out.
    """

    launches: int
    kernels: int
    flops: int
    bytes: int
    bound_seconds: float
    estimated_seconds: float
    unknown_costs: int


@dataclass
class Report:
    """Launches of one program on one chip, in order.

    Attributes:
        target: the chip.
        launches: one record per launch.
    """

    target: Target
    launches: list[Launch] = field(default_factory=list)

    @property
    def total(self) -> Total:
        """Launches, bytes, operations and bound of the whole program."""
        return Total(
            launches=len(self.launches),
            kernels=len({launch.name for launch in self.launches}),
            flops=sum(launch.flops or 0 for launch in self.launches),
            bytes=sum(launch.bytes or 0 for launch in self.launches),
            bound_seconds=sum(launch.bound_seconds or 0.0 for launch in self.launches),
            estimated_seconds=sum(seconds_of(estimate(launch)) or 0.0 for launch in self.launches),
            unknown_costs=sum(launch.flops is None or launch.bytes is None for launch in self.launches),
        )

    @property
    def findings(self) -> list[tuple[Launch, Finding]]:
        """Every warning and error with its launch."""
        return [(launch, finding) for launch in self.launches for finding in launch.findings]

    @property
    def errors(self) -> list[tuple[Launch, Finding]]:
        """The findings that the chip would refuse or miscompute."""
        return [(launch, finding) for launch, finding in self.findings if finding.fatal]

    def groups(self) -> list[tuple[Launch, int]]:
        """Distinct launches (by binary, grid and cost), each with its count, in order of first appearance."""
        counts: dict[Any, int] = {}
        first: dict[Any, Launch] = {}
        for launch in self.launches:
            shapes = tuple(tensor.shape for tensor in launch.tensors)
            messages = tuple(finding.message for finding in launch.findings)
            key = (id(launch.kernel), launch.grid, shapes, launch.flops, launch.bytes, messages)
            first.setdefault(key, launch)
            counts[key] = counts.get(key, 0) + 1
        return [(first[key], count) for key, count in counts.items()]

    def distinct_findings(self) -> list[tuple[str, Finding, int]]:
        """(kernel, finding, number of launches with it), each once, errors first."""
        counts = Counter((launch.name, finding) for launch, finding in self.findings)
        listed = [(name, finding, count) for (name, finding), count in counts.items()]
        return sorted(listed, key=lambda each: (not each[1].fatal, each[1].kind, each[0], each[1].message))

    def table(self) -> str:
        """The report as text for a terminal."""
        lines = self._head()
        for title, rows in launch_tables(self):
            lines += [f"{title}:", *_aligned(rows), ""]
        return "\n".join(lines + self._foot())

    def _head(self) -> list[str]:
        target = self.target
        return [
            f"{target.name}: {target.chip}, {target.multiprocessors} multiprocessors, "
            f"{target.bandwidth / 1e9:.0f} GB/s ({target.source})",
            DISCLAIMER,
            "",
        ]

    def _foot(self) -> list[str]:
        total = self.total
        unknown = f"; {total.unknown_costs} launches of unknown cost left out" if total.unknown_costs else ""
        lines = [
            f"total: {total.launches} launches of {total.kernels} kernels, {format_quantity(total.bytes, 'B')}, "
            f"{format_quantity(total.flops, 'FLOP')}, at least {format_time(total.bound_seconds)}{unknown}, "
            f"estimate {format_time(total.estimated_seconds)}",
        ]
        for name, finding, count in self.distinct_findings():
            severity = "error" if finding.fatal else "warning"
            times = f" ({count} launches)" if count > 1 else ""
            lines.append(f"{severity}: {name}: {finding.kind}: {finding.message}{times}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything in the report as plain data, in SI units (bytes, seconds, operations)."""
        target, total = self.target, self.total
        return {
            "note": DISCLAIMER,
            "target": {
                "name": target.name,
                "chip": target.chip,
                "source": target.source,
                "multiprocessors": target.multiprocessors,
                "bandwidth": target.bandwidth,
                "peaks": dict(target.peaks),
                "pace": dict(vars(target.pace)),
            },
            "total": dict(vars(total)),
            "launches": [_launch_dict(launch) for launch in self.launches],
        }


def write_json(reports: Sequence[Report], path: str | Path) -> None:
    """Write one or more reports to a JSON file: a list with one object per target."""
    Path(path).write_text(json.dumps([report.to_dict() for report in reports], indent=1, default=str) + "\n")


def seconds_of(estimated: Estimate | None) -> float | None:
    """The seconds of an estimate, None if there is none."""
    return None if estimated is None else estimated.seconds


def _launch_dict(launch: Launch) -> dict[str, Any]:
    kernel, code, estimated = launch.kernel, launch.kernel.code, estimate(launch)
    return {
        "kernel": launch.name,
        "grid": list(launch.grid),
        "constants": dict(launch.constants),
        "scalars": dict(launch.scalars),
        "tensors": [dict(vars(tensor)) for tensor in launch.tensors],
        "num_warps": kernel.num_warps,
        "num_stages": kernel.num_stages,
        "registers": code.registers,
        "spill_bytes": code.spill_bytes,
        "loop_spills": code.loop_spills,
        "shared_bytes": kernel.shared_bytes,
        "shared_limit": launch.target.shared_per_block,
        "resident_programs": launch.resident[0],
        "occupancy": launch.occupancy,
        "occupancy_limit": launch.resident[1],
        "matrix_instruction": code.matrix_instruction,
        "instructions": code.instructions,
        "loop_instructions": code.loop_instructions,
        "loop_matrix_instructions": code.loop_matrix_instructions,
        "instructions_per_matrix_instruction": code.instructions_per_matrix_instruction,
        "global_load_bits": code.global_load_bits,
        "loop_load_bits": code.loop_load_bits,
        "asynchronous_copies": code.asynchronous_copies,
        "bytes_read": launch.bytes_read,
        "bytes_written": launch.bytes_written,
        "bytes": launch.bytes,
        "flops": launch.flops,
        "operand_type": launch.operand_type,
        "cost_source": launch.cost_source,
        "arithmetic_intensity": launch.arithmetic_intensity,
        "bound_seconds": launch.bound_seconds,
        "bound_by": launch.bound_by,
        "estimated_seconds": seconds_of(estimated),
        "estimate": None if estimated is None else dict(vars(estimated)),
        "main_loop": dict(vars(launch.main_loop)),
        "waves": launch.waves,
        "tail": launch.tail,
        "findings": [dict(vars(finding)) for finding in launch.findings],
    }


def launch_tables(report: Report) -> list[tuple[str, list[list[str]]]]:
    """Titled tables with one row per group of launches; the first row contains the headings."""
    work = [[
        "kernel", "count", "grid", "tile", "read", "written", "bytes", "FLOP", "FLOP/B", "at least", "bound by",
        "estimate", "steps", "waves", "tail",
    ]]  # fmt: skip
    code = [[
        "kernel", "warps", "stages", "registers", "spill", "shared", "of", "occupancy", "limited by", "matrix", "loop",
        "per matrix", "load bits",
    ]]  # fmt: skip
    for launch, count in report.groups():
        work.append(_work_row(launch, count))
        row = _code_row(launch)
        if row not in code:
            code.append(row)
    return [("Work of each launch", work), ("Code of each kernel", code)]


def _work_row(launch: Launch, count: int) -> list[str]:
    intensity = launch.arithmetic_intensity
    return [
        launch.name,
        str(count),
        "x".join(map(str, launch.grid)),
        launch.tile.replace("block_", "") or "-",
        format_quantity(launch.bytes_read, "B"),
        format_quantity(launch.bytes_written, "B"),
        format_quantity(launch.bytes, "B"),
        format_quantity(launch.flops, "FLOP"),
        "unknown" if intensity is None else f"{intensity:.1f}",
        format_time(launch.bound_seconds),
        launch.bound_by,
        format_time(seconds_of(estimate(launch))),
        "unknown" if launch.main_loop.steps is None else str(launch.main_loop.steps or "-"),
        f"{launch.waves:.2f}",
        f"{launch.tail:.0%}",
    ]


def _code_row(launch: Launch) -> list[str]:
    kernel, code = launch.kernel, launch.kernel.code
    per_matrix = code.instructions_per_matrix_instruction
    loads = code.loop_load_bits or code.global_load_bits
    return [
        launch.name,
        str(kernel.num_warps),
        str(kernel.num_stages),
        str(code.registers),
        str(code.spill_bytes),
        str(kernel.shared_bytes),
        str(launch.target.shared_per_block),
        f"{launch.occupancy:.0%}",
        launch.resident[1],
        code.matrix_instruction or "-",
        str(code.loop_instructions or "-"),
        "-" if per_matrix is None else f"{per_matrix:.1f}",
        " ".join(f"{bits}:{number}" for bits, number in loads.items()) or "-",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def format_quantity(number: float | None, unit: str) -> str:
    """`1.3 MB` of 1300000 bytes: decimal prefixes, as bandwidths are published."""
    if number is None:
        return "unknown"
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"


def format_time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
