"""Tests, measures and trains on this machine's GPU, and writes all of it into one folder: `make gpu-report`.

    python -m scripts.gpu_report --minutes 12 --out runs/gpu-report

It needs no network. Every part runs in a process of its own with a time limit, the most valuable one first; what fails
or takes too long is reported and ends nothing. The folder holds report.html, report.json, the parts' output, results of
benchmarks, and the files of a training run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from scripts.gpu_report.page import write_page
from scripts.gpu_report.parts import Outcome, Part, parts_of
from tinynet import describe, streams

ROOT = Path(__file__).parents[2]
SHORTEST_S = 5  # no part is started with less time left
TO_END_S = 10  # what a part has left to end after it was told to


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all parts; returns 0 if each of them succeeded, else 1."""
    parser = argparse.ArgumentParser(prog="gpu-report", description="Test, measure and train on this machine's GPU.")
    parser.add_argument("--minutes", type=float, default=12.0, help="for everything (default: 12)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-report"), help="a new or empty folder")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: the same on the CPU engine")
    parser.add_argument("--toy", action="store_true", help="the smallest sizes, to test this program")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU on this machine; --device cpu runs the same on the CPU engine")
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"--out {options.out} is not empty: choose another folder")
    out = options.out.resolve()
    (out / "output").mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    end = time.monotonic() + 60 * options.minutes
    report: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": machine.device_name(device),
        "engine": describe(device),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "minutes": options.minutes,
        "parts": [],
    }
    try:
        for part in parts_of(options.device, out, options.toy):
            limit = min(part.share * 60 * options.minutes, end - time.monotonic())
            print(f"{part.name} (at most {max(limit, 0):.0f} s)", flush=True)
            outcome = run(part, limit, out, device)
            report["parts"].append(asdict(outcome))
            print(f"    {outcome.status} after {outcome.seconds:.0f} s", flush=True)
    except KeyboardInterrupt:
        print("interrupted: the report holds what there is", flush=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    write_page(report, out)
    print(f"wrote {out / 'report.html'}")
    return 0 if all(part["status"] == "succeeded" for part in report["parts"]) else 1


def run(part: Part, limit: float, out: Path, device: torch.device) -> Outcome:
    """Runs a part until it ends or its time is over."""
    before = machine.State.now(device).as_dict()
    if limit < SHORTEST_S:
        return Outcome(part.name, part.what, part.command, "skipped: no time was left", limit, 0.0, before, before)
    start = time.monotonic()
    path = out / "output" / f"{part.name.replace(' ', '-')}.txt"
    environment = {**os.environ, **part.environment, "PYTHONPATH": _python_path(), "PYTHONUNBUFFERED": "1"}
    with open(path, "wb") as output:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    status = "out of time" if code is None else "succeeded" if code == 0 else f"failed with exit code {code}"
    after = machine.State.now(device).as_dict()
    return Outcome(part.name, part.what, part.command, status, limit, time.monotonic() - start, before, after)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process with all that it started: first politely, so that benchmarks save what they have measured."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(TO_END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _python_path() -> str:
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests"), *([given] if given else [])])


if __name__ == "__main__":
    streams.protect()
    sys.exit(main())
