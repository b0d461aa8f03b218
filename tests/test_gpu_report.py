"""`make gpu-report` at toy sizes on the CPU engine: all parts run, failures are collected, and the page shows them."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/ and benchmarks/ run from the checkout

from scripts.gpu_report import __main__ as command
from scripts.gpu_report.parts import Part, parts_of


class Page(HTMLParser):
    """Collects the pictures, the links and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.files += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.kernels
def test_a_report_of_toy_sizes(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(device: str, out: Path, toy: bool) -> list[Part]:
        wrong = Part("wrong", "Fails.", 1.0, [sys.executable, "-c", "import sys; sys.exit('no <luck>')"])
        return [wrong, *parts_of(device, out, toy)]

    monkeypatch.setattr(command, "parts_of", parts)
    out = tmp_path / "report"
    assert command.main(["--device", device, "--toy", "--out", str(out), "--minutes", "20"]) == 1  # for `wrong`
    report = json.loads((out / "report.json").read_text())
    found = {part["name"]: part["status"] for part in report["parts"]}
    assert found.pop("wrong") == "failed with exit code 1"
    assert set(found) == {"environment", "first tests", "training steps", "columns", "training"}
    # Toy sizes measure peaks in a moment that may not be quiet: a row above the peak fails its part.
    assert {found[name] for name in ("environment", "first tests", "training")} == {"succeeded"}, found
    page = Page()
    page.feed((out / "report.html").read_text())
    assert all((out / name).exists() for name in page.files)
    assert {"training/curve.png", "benchmarks/ratios_dropout.png"} <= set(page.files)
    assert "no <luck>" in page.text and "training step, mlp" in page.text and "test accuracy" in page.text


def test_a_part_that_takes_too_long_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "output").mkdir()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    part = Part("slow", "Sleeps.", 1.0, [sys.executable, "-c", child])
    assert command.run(part, 1.0, tmp_path, torch.device("cpu")).status == "skipped: no time was left"
    monkeypatch.setattr(command, "SHORTEST_S", 0)
    outcome = command.run(part, 1.0, tmp_path, torch.device("cpu"))
    assert outcome.status == "out of time" and outcome.seconds < 20


def test_every_part_of_a_gpu_names_files_that_exist(tmp_path: Path) -> None:
    for part in parts_of("cuda", tmp_path, toy=False):
        for argument in part.command:
            if argument.startswith("tests/"):
                assert (command.ROOT / argument).exists()
        assert 0 < part.share <= 1


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as refused:
        command.main(["--out", str(tmp_path)])
    assert refused.value.code == 2 and "PyTorch finds no GPU on this machine" in capsys.readouterr().err
