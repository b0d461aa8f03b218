"""`tinynet inspect --against`: measured rows beside bound and estimate. No file here was measured: all are made up."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tinynet.cli import main

ROWS = (
    ("linear", "linear + bias + relu, forward", "256x1024x1024", "bf16", 256),
    ("linear", "linear + bias + relu, backward", "256x1024x1024", "bf16", 256),
    ("conv", "1x1, forward", "2x64x56x56 -> 64 (ResNet-50)", "bf16", 2),
)


def write(path: Path, rows: Any, **run: Any) -> Path:
    """A file of results that nobody measured: every row took 10 microseconds."""
    time = {"median": 1e-5, "low": 9e-6, "high": 1.1e-5, "minimum": 9e-6, "samples": 9}
    common = {
        **{"family": None, "threads": 1, "cache": "cold", "flops": 10, "least_flops": 10, "bytes": 40, "error": None},
        **{"times": {"tinynet": time}, "ratios": {}, "first_calls": {}, "memory": {}, "run": "made up"},
        "peak": {"flops_per_second": 1e12, "bytes_per_second": {"64": 1e12}},
    }
    listed = [
        {"column": column, "name": name, "size": size, "dtype": dtype, "samples": samples, **common}
        for column, name, size, dtype, samples in rows
    ]
    made_up = {"date": "made up", "device": "A made-up GPU", "device_type": "cuda", **run}
    path.write_text(json.dumps({"runs": [made_up], "rows": listed}))
    return path


def test_each_row_is_recorded_again_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write(tmp_path / "results.json", [*ROWS, ("linear", "no such work", "8x8", "bf16", 8)])
    assert main(["inspect", "--against", str(path)]) == 0
    head, names, _, *lines = capsys.readouterr().out.splitlines()
    assert head == "measured on A made-up GPU; bound and estimate of sm_90, H100 SXM 80 GB"
    assert names.split("  ")[-1].strip() == "measured / estimate"
    cells = [re.split(r" {2,}", line) for line in lines[:3]]
    assert [line[:4] for line in cells] == [list(row[:4]) for row in ROWS]
    for *_, launches, bound, estimate, measured, over_bound, over_estimate in cells:
        assert int(launches) >= 1 and measured == "10 us"
        assert 1e-5 / seconds(bound) == pytest.approx(float(over_bound), rel=0.02)
        assert 1e-5 / seconds(estimate) == pytest.approx(float(over_estimate), rel=0.02)
        assert seconds(bound) < seconds(estimate)
    mean = (float(cells[0][-1]) * float(cells[1][-1])) ** 0.5
    assert lines[3].startswith("linear: geometric mean of measured / estimate ") and lines[3].endswith(", 2 rows")
    assert float(re.findall(r"estimate ([\d.]+)", lines[3])[0]) == pytest.approx(mean, abs=0.02)
    assert lines[5].startswith("all columns: geometric mean of") and lines[5].endswith(", 3 rows")
    assert lines[6] == "unknown row, not a benchmark of this version: linear, no such work, 8x8, bf16"


def seconds(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"ns": 1e-9, "us": 1e-6, "ms": 1e-3}[unit]


def test_a_column_that_needs_memory_gets_it(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write(tmp_path / "results.json", [("training_step", "training step, mlp", "batch 128", "bf16", 128)])
    assert main(["inspect", "--against", str(path), "--target", "gfx942"]) == 0
    assert "bound and estimate of gfx942, Instinct MI300X" in (shown := capsys.readouterr().out)
    assert "training step, mlp" in shown and "all columns: geometric mean" in shown


@pytest.mark.parametrize("arguments, message", [
    ([], "results.json was measured on Some CPU, which is no GPU"),
    (["--target", "sm_90,sm_80"], "--against takes one --target"),
    (["--json", "r.json"], "--against takes one --target, and neither --json nor --html"),
    (["--model", "cnn"], "give one of a script, --model and --against"),
])  # fmt: skip
def test_bad_input_is_one_sentence(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = write(tmp_path / "results.json", ROWS[:1], device="Some CPU", device_type="cpu")
    with pytest.raises(SystemExit) as refused:
        main(["inspect", "--against", str(path), *arguments])
    assert refused.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("text, message", [
    (None, "absent.json cannot be read: No such file or directory"),
    ("[]", "is not a file of benchmark results"),
    ('{"runs": [{"device": "CPU of an older file"}], "rows": []}', "was measured on CPU of an older file"),
    ('{"runs": [{"device": "G", "device_type": "cuda"}], "rows": []}', "none of its 0 rows is a benchmark"),
])  # fmt: skip
def test_files_that_hold_nothing_to_compare(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = tmp_path / ("absent.json" if text is None else "results.json")
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as refused:
        main(["inspect", "--against", str(path)])
    assert refused.value.code == 2 and message in capsys.readouterr().err
