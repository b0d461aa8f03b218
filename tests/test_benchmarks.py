"""The benchmarks' own machinery: rows are checked, timed and stored beside earlier ones; a wrong contender ends it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ runs from the checkout, never installed

from benchmarks import __main__ as command
from benchmarks.case import OURS, Case, largest_difference
from benchmarks.timing import time_contenders


@pytest.mark.kernels
def test_a_run_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    base = ["benchmarks", "--dtype", "fp32", "--seconds", "0.05", "--device", device, "--out", str(tmp_path)]
    for more in (["--only", "loss", "--match", "128x10"], ["--only", "linear", "--match", "64x128x784"]):
        monkeypatch.setattr(sys, "argv", [*base, *more])
        command.main()
    (path,) = tmp_path.glob("*.json")
    written = json.loads(path.read_text())
    assert {row["column"] for row in written["rows"]} == {"loss", "linear"}
    for row in written["rows"]:
        assert set(row["times"]) >= {OURS, "eager"}
        assert 0 < row["times"][OURS]["minimum"] <= row["times"][OURS]["median"]
        assert row["ratio"] > 0 and row["error"] < 1e-4
    assert written["versions"]["torch"] == torch.__version__


def test_a_wrong_contender_ends_the_run() -> None:
    x = torch.ones(3)
    case = Case("sum", "3", 3, 12, {OURS: lambda: x, "eager": lambda: x * 1.1}, error=1e-3)
    with pytest.raises(SystemExit, match="differs from eager by"):
        command.check(case)


def test_a_difference_of_nan_is_one() -> None:
    case = Case("nan", "1", 1, 4, {OURS: lambda: torch.tensor([float("nan")]), "eager": lambda: torch.ones(1)}, 1e-3)
    with pytest.raises(SystemExit):
        command.check(case)


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    times = time_contenders(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, torch.device("cpu"), seconds=0.0
    )
    assert times["a"].samples == times["b"].samples >= 5
    assert largest_difference((torch.ones(2), None), (torch.full((2,), 2.0), None)) == 0.5


@pytest.mark.parametrize("arguments", [["--only", "nonsense"], ["--dtype", "fp7"], ["--threads", "0"]])
def test_refuses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        command.parse(arguments)
    assert exit.value.code == 2 and "expected" in capsys.readouterr().err
