"""The benchmarks' own machinery: rows are checked, timed, judged and stored; what cannot be true ends a run."""

from __future__ import annotations

import csv
import importlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ runs from the checkout

from benchmarks import command, compare, machine, measurement, peak, quick, results, tables
from benchmarks.case import OURS, Case, Setting, largest_difference
from benchmarks.memory import peak_memory
from benchmarks.peak import Peak
from benchmarks.plots import plot
from benchmarks.row import Row
from benchmarks.timing import FEWEST_TURNS, Interval, Time, interval, time_contenders


def make_row(ours: float = 0.5, spread: float = 0.01, **changes: Any) -> Row:
    """A row in which eager PyTorch takes one second."""
    times = {
        OURS: Time(ours, ours - spread, ours + spread, ours - spread, 9),
        "eager": Time(1.0, 1 - spread, 1 + spread, 1 - spread, 9),
        "eager channels_last": Time(2.0, 1.9, 2.1, 1.8, 9),
    }
    ratios = {
        "eager": Interval(ours, ours - spread, ours + spread),
        "eager channels_last": Interval(ours / 2, ours / 2 - spread, ours / 2 + spread),
    }
    values: dict[str, Any] = {
        **{"column": "linear", "name": "linear, forward", "size": "8x8", "samples": 8, "family": "linear"},
        **{"dtype": "fp32", "threads": 1, "cache": "warm", "flops": 10, "least_flops": 10, "bytes": 40, "error": 1e-7},
        **{"times": times, "ratios": ratios, "first_calls": dict.fromkeys(times, 0.1)},
        **{"memory": dict.fromkeys(times, 256), "peak": Peak(100.0, {64: 1000.0})},
    }
    return Row(**{**values, **changes})


RUN: dict[str, Any] = {
    **{"date": "2026-01-01T00:00:00+00:00", "device": "A (R) CPU", "commit": "abc", "warning": None},
    **{"versions": {"torch": "2.13.0+cpu", "triton": "3.8.0"}, "before": {"load": 0.5}, "after": {"load": 1.0}},
}


# A run


@pytest.mark.kernels
def test_a_run_writes_what_it_measured(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measurement, "measure_peak", lambda *_: Peak(1e15, {1: 1e15}))
    base = ["--dtype", "fp32", "--seconds", "0.05", "--device", device, "--out", str(tmp_path)]
    for more in (["--only", "loss", "--match", "128x10"], ["--only", "linear", "--match", "64x128x784"]):
        assert command.main([*base, *more]) == 0
    (path,) = tmp_path.glob("*.json")
    written = json.loads(path.read_text())
    assert {row["column"] for row in written["rows"]} == {"loss", "linear"}
    for row in written["rows"]:
        assert set(row["times"]) >= {OURS, "eager"}
        time, ratio = row["times"][OURS], row["ratios"]["eager"]
        assert 0 < time["minimum"] <= time["low"] <= time["median"] <= time["high"]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"] and row["error"] < 1e-4
        assert row["verdict"] in ("win", "tie", "loss") and row["first_calls"][OURS] > 0 and row["memory"][OURS] > 0
    (first, second) = written["runs"]
    assert first["device_type"] == device
    assert first["versions"]["torch"] == torch.__version__ and second["before"]["load"] >= 0
    assert len(results.load(path)) == len(written["rows"]) == 3
    shown = capsys.readouterr().out
    assert "GFLOP/s" in shown or "GB/s" in shown
    assert path.with_suffix(".md").exists() and (tmp_path / "ratios_linear.png").exists()
    assert compare.main([str(path), str(path)], "benchmarks") == 0


@pytest.mark.kernels
def test_a_row_above_the_peak_fails_the_run(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measurement, "measure_peak", lambda *_: Peak(1.0, {1: 1.0}))
    arguments = ["--only", "linear", "--match", "forward 64x128x784", "--dtype", "fp32", "--seconds", "0"]
    status = command.main([*arguments, "--device", device, "--out", str(tmp_path)])
    assert status == 1 and "of the peak, so that its count of operations" in capsys.readouterr().err
    assert list(tmp_path.glob("*.json"))


def test_a_wrong_contender_is_one_and_a_difference_of_nan_too() -> None:
    x = torch.ones(3)
    case = Case("sum", "3", 3, 12, {OURS: lambda: x, "eager": lambda: x * 1.1}, error=1e-3)
    with pytest.raises(measurement.WrongResult, match="differs from eager by"):
        measurement.check(case)
    case = Case("nan", "1", 1, 4, {OURS: lambda: torch.tensor([float("nan")]), "eager": lambda: torch.ones(1)}, 1e-3)
    with pytest.raises(measurement.WrongResult):
        measurement.check(case)


@pytest.mark.kernels
def test_a_case_that_fails_ends_with_exit_code_1_and_does_not_stop_the_others(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cases(setting: Setting) -> Iterator[Case]:
        x = setting.random(64)
        yield Case("wrong", "64", 64, 512, {OURS: lambda: x, "eager": lambda: x + 1}, 1e-3)
        yield Case("broken", "64", 64, 512, {OURS: lambda: x @ torch.ones(3), "eager": lambda: x}, 1e-3)
        yield Case("right", "64", 64, 512, {OURS: lambda: x + 1, "eager": lambda: x + 1}, 1e-3)
        raise RuntimeError("no memory for more")

    from benchmarks import bench_dropout

    monkeypatch.setattr(bench_dropout, "cases", cases)
    monkeypatch.setattr(measurement, "measure_peak", lambda *_: Peak(1e15, {1: 1e15}))
    arguments = ["--only", "dropout", "--dtype", "fp32", "--seconds", "0", "--device", device, "--out", str(tmp_path)]
    assert command.main(arguments) == 1
    shown = capsys.readouterr()
    assert "right" in shown.out and "wrong" not in shown.out
    assert "wrong, 64, fp32: WrongResult: differs from eager by" in shown.err
    assert "broken, 64, fp32: RuntimeError" in shown.err
    assert "after right, 64, fp32: RuntimeError: no memory for more" in shown.err


@pytest.mark.parametrize(
    "arguments", [["--only", "nonsense"], ["--dtype", "fp7"], ["--threads", "0"], ["--batch", "x"]]
)
def test_refuses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        command.parse(arguments)
    assert exit.value.code == 2 and "expected" in capsys.readouterr().err


@pytest.mark.kernels
@pytest.mark.parametrize("column", quick.COLUMNS)
def test_the_quick_selection_has_small_cases_of_every_column(column: str, device: str) -> None:
    """Their creation is all that is tested here: the results are checked whenever the benchmarks run."""
    module = importlib.import_module(f"benchmarks.bench_{column}")
    cases = list(quick.selected(module.cases(Setting(torch.device(device), torch.float32, False))))
    assert 1 <= len(cases) <= quick.PER_COLUMN and all(OURS in case.contenders for case in cases)


# Timing


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    contenders: dict[str, Callable[[], Any]] = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    compared = time_contenders(contenders, torch.device("cpu"), seconds=0.0)
    assert compared.times["a"].samples == compared.times["b"].samples >= FEWEST_TURNS
    assert list(compared.ratios) == ["b"]
    assert largest_difference((torch.ones(2), None), (torch.full((2,), 2.0), None)) == 0.5


@pytest.mark.parametrize("count", [6, 7, 20, 300])
def test_an_interval_encloses_the_median_in_95_of_100_samplings(count: int) -> None:
    draw = random.Random(count)
    inside = 0
    for _ in range(1000):
        found = interval([draw.expovariate(1.0) for _ in range(count)])
        assert found.low <= found.median <= found.high
        inside += found.low <= 0.6931471805599453 <= found.high
    assert 935 <= inside <= 999


def test_memory_is_the_most_that_is_held_at_once(device: str) -> None:
    def call() -> torch.Tensor:
        x = torch.empty(1 << 18, device=device)
        y = torch.empty(1 << 18, device=device)
        del x
        return y[:1].clone()

    assert 2 << 20 <= peak_memory(call, torch.device(device)) < (2 << 20) + 4096


# Peaks and verdicts


def test_the_bandwidth_of_a_working_set_is_that_of_the_next_smaller_one_or_better() -> None:
    measured = Peak(1.0, {64: 5.0, 256: 9.0, 1024: 3.0})
    assert [measured.bandwidth(size) for size in (1, 64, 256, 700, 1024, 10**9)] == [9, 9, 9, 9, 3, 3]
    assert measured.or_better(Peak(2.0, {64: 4.0, 256: 10.0, 1024: 3.0})) == Peak(2.0, {64: 5.0, 256: 10.0, 1024: 3.0})


@pytest.mark.kernels
def test_peaks_are_measured(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORKING_SETS", (1 << 12, 1 << 16)), ("PRODUCTS", {device: (64,)}), ("IMAGES", {device: 1})):
        monkeypatch.setattr(peak, name, value)
    monkeypatch.setattr(peak, "SECONDS", 0.0)
    measured = peak.measure_peak(torch.device(device), torch.bfloat16)
    assert measured.flops_per_second > 1e6 and set(measured.bytes_per_second) == {1 << 12, 1 << 16}
    assert measured.bandwidth(1 << 12) == max(measured.bytes_per_second.values()) > 1e5


def test_a_verdict_needs_the_whole_interval() -> None:
    assert [make_row(ours, 0.2).verdict for ours in (0.7, 0.9, 1.1, 1.3)] == ["win", "tie", "tie", "loss"]
    row = make_row(ours=3.0, spread=0.01)
    assert row.baseline == "eager" and row.rate == (pytest.approx(10e-9 / 3), "GFLOP/s")
    assert row.share_of_peak == pytest.approx(0.1 / 3)
    assert replace(row, flops=1, least_flops=1).rate[1] == "GB/s"
    assert tables.means([row, make_row(0.75)], lambda row: row.column) == [
        ("linear", "fp32", "1", "warm", "2", "1.50", "0.75", "3.00", "1", "0", "1")
    ]


# Files


def test_results_are_read_back_and_replaced_by_newer_ones(tmp_path: Path) -> None:
    first, other = make_row(0.5), make_row(0.6, size="16x16", family=None)
    files = results.save([first, other], RUN, tmp_path)
    assert [path.name for path in files] == [f"a-r-cpu_torch2.13.0_triton3.8.0.{end}" for end in ("json", "csv", "md")]
    assert results.load(files[0]) == [first, other]
    again = make_row(0.4)
    results.save([again], {**RUN, "date": "2026-01-02T00:00:00+00:00", "warning": "THE MACHINE WAS BUSY"}, tmp_path)
    assert results.load(files[0]) == [other, again]
    with open(files[1], newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6 and lines[3]["contender"] == OURS and float(lines[3]["median_s"]) == 0.4
    page = files[2].read_text()
    assert "THE MACHINE WAS BUSY" in page and "0.40 (0.39 to 0.41) | win" in page and "commit abc" in page


def test_plots_show_every_ratio_and_join_only_families(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    alone = [make_row(0.5, family=None), make_row(1.5, family=None, size="16x16")]
    assert [path.name for path in plot(alone, tmp_path)] == ["ratios_linear.png"]
    family = [make_row(0.5), make_row(0.6, size="16x8", samples=16)]
    assert [path.name for path in plot(family, tmp_path)] == ["ratios_linear.png", "speed_linear.png"]
    assert plot([make_row(ratios={}, times={OURS: Time(1, 1, 1, 1, 9)}, family=None)], tmp_path) == []


def test_compare_fails_on_a_regression_beyond_the_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def saved(name: str, *rows: Row) -> str:
        return str(results.save(rows, RUN, tmp_path / name)[0])

    old = saved("old", make_row(0.5), make_row(0.5, size="16x16"), make_row(size="gone"))
    assert compare.main([old, saved("noise", make_row(0.52), make_row(0.54, size="16x16"))], "benchmarks") == 0
    assert "2 rows in both files, 0 slower" in capsys.readouterr().out
    assert compare.main([old, saved("slow", make_row(0.5), make_row(0.6, size="16x16"))], "benchmarks") == 1
    shown = capsys.readouterr()
    assert "16x16  fp32   1        warm   0.5 (0.49 to 0.51)  0.6 (0.59 to 0.61)  +20.0 %  slower" in shown.out
    assert shown.err == "1 rows became slower\n"
    for bad in (str(tmp_path / "absent.json"), str(tmp_path / "bad.json")):
        (tmp_path / "bad.json").write_text("[]")
        with pytest.raises(SystemExit) as refused:
            compare.main([old, bad], "benchmarks")
        assert refused.value.code == 2


def test_others_are_those_that_are_not_this_process() -> None:
    before = machine.State(1.0, None, None, None, None, 100.0, 10.0)
    after = replace(before, busy_s=108.0, own_s=14.0)
    assert machine.used_by_others(before, after, 4.0) == pytest.approx(min(1.0, 1.0 / (os.cpu_count() or 1)))
    assert machine.used_by_others(before, replace(after, busy_s=None), 4.0) is None
    assert machine.State.now(torch.device("cpu")).load >= 0
