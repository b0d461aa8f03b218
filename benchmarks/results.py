"""The results of a run: rows, table, a JSON file per device and versions, and plots."""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import OURS
from benchmarks.timing import Peak, Time


@dataclass(frozen=True)
class Row:
    """One case, measured with one dtype and number of threads."""

    column: str
    name: str
    size: str
    samples: int
    dtype: str
    threads: int
    flops: int
    bytes: int
    error: float | None
    times: dict[str, Time]
    peak: Peak

    @property
    def baseline(self) -> str | None:
        """The fastest eager contender: PyTorch in its faster memory layout."""
        eager = {name: time.minimum for name, time in self.times.items() if name.startswith("eager")}
        return min(eager, key=eager.__getitem__) if eager else None

    @property
    def ratio(self) -> float | None:
        """tinynet's minimum time over the baseline's; below 1, tinynet is faster."""
        baseline = self.baseline
        return None if baseline is None else self.times[OURS].minimum / self.times[baseline].minimum

    @property
    def share_of_peak(self) -> float:
        """The minimum time that this device's measured peaks allow, over tinynet's time."""
        bound = max(self.flops / self.peak.flops_per_second, self.bytes / self.peak.bytes_per_second)
        return bound / self.times[OURS].minimum


def device_name(device: torch.device) -> str:
    """Returns the name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    import triton

    import tinynet

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "tinynet": tinynet.__version__,
        "cuda": str(torch.version.cuda),
    }


def table(rows: list[Row]) -> str:
    """Formats the rows: times in microseconds, ratio to eager PyTorch, speed, share of the peak, and error."""
    head = (
        *("work", "size", "dtype", "thr", "tinynet us", "ns/sample", "eager us", "ratio", "compile"),
        *("GFLOP/s", "peak", "error"),
    )
    body: list[tuple[str, ...]] = [head]
    for row in rows:
        baseline, compiled = row.baseline, row.times.get("compile")
        ours = row.times[OURS]
        body.append(
            (
                row.name,
                row.size,
                row.dtype,
                str(row.threads),
                f"{ours.minimum * 1e6:.1f}",
                "-" if row.samples == 1 else f"{ours.minimum * 1e9 / row.samples:.1f}",
                "-" if baseline is None else f"{row.times[baseline].minimum * 1e6:.1f}",
                "-" if row.ratio is None else f"{row.ratio:.2f}",
                "-" if compiled is None else f"{ours.minimum / compiled.minimum:.2f}",
                f"{row.flops * 1e-9 / ours.minimum:.1f}",
                f"{row.share_of_peak:.0%}",
                "-" if row.error is None else f"{row.error:.0e}",
            )
        )
    return _aligned(body)


def means(rows: list[Row]) -> str:
    """Formats the geometric mean and the largest of the ratios to eager PyTorch for each kind of work."""
    ratios: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        if row.ratio is not None:
            ratios.setdefault((row.name, row.dtype, row.threads), []).append(row.ratio)
    body: list[tuple[str, ...]] = [("work", "dtype", "thr", "rows", "mean ratio", "largest")]
    for (name, dtype, threads), group in ratios.items():
        mean = statistics.geometric_mean(group)
        body.append((name, dtype, str(threads), str(len(group)), f"{mean:.2f}", f"{max(group):.2f}"))
    return _aligned(body)


def _aligned(body: list[tuple[str, ...]]) -> str:
    """Text of a table whose first line is its head."""
    head = body[0]
    widths = [max(len(line[i]) for line in body) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in body]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def save(rows: list[Row], device: torch.device, folder: Path) -> Path:
    """Writes the rows to a JSON file named after the device and the versions, and returns its path."""
    name, used = device_name(device), versions()
    slug = "-".join("".join(c if c.isalnum() else " " for c in name).split()).lower()
    path = folder / f"{slug}_torch{used['torch'].split('+')[0]}_triton{used['triton']}.json"
    known: dict[str, Any] = {"device": name, "versions": used, "rows": []}
    new = [{**asdict(row), "ratio": row.ratio, "share_of_peak": row.share_of_peak} for row in rows]
    if path.exists():  # keep the results of other runs, except those measured again
        known["rows"] = [old for old in json.loads(path.read_text())["rows"] if not any(_same(old, n) for n in new)]
    known["rows"] += new
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1) + "\n")
    return path


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[key] == b[key] for key in ("column", "name", "size", "dtype", "threads"))


def plot(rows: list[Row], folder: Path) -> Path | None:
    """Plots speed against size, one panel per case name, and returns the file; None without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    names = list(dict.fromkeys(row.name for row in rows))
    columns = min(3, len(names))
    height = -(-len(names) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(5 * columns, 3.4 * height), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in (row for row in rows if row.name == name):
            for contender, time in row.times.items():
                label = f"{contender} {row.dtype} {row.threads}t"
                lines.setdefault(label, []).append((row.samples, row.samples / time.minimum))
        for label, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=label, lw=2 if OURS in label else 1)
        axis.set(title=name, xlabel="size (samples)", ylabel="samples / s", xscale="log", yscale="log")
        axis.legend(fontsize=6)
    figure.tight_layout()
    path = folder / f"speed_{rows[0].column}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
