"""The command line as a user calls it: `tinynet COMMAND` and `python -m tinynet`. Inspection has tests of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tinynet
from tinynet.cli import caches, main
from tinynet.programs import PROGRAMS

pytestmark = pytest.mark.usefixtures("pytorchs_settings")

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = ["--data", "digits", "--model", "mlp", "--steps", "2", "--engine", "reference"]


def shell(line: str, folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which TINYNET stands for `python -m tinynet`."""
    environment = {**os.environ, "PYTHON": sys.executable, **changes}
    line = line.replace("TINYNET", '"$PYTHON" -m tinynet')
    return subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_version_and_the_commands(tmp_path: Path) -> None:
    assert shell("TINYNET --version", tmp_path).stdout == f"tinynet {tinynet.__version__}\n"
    answer = shell("TINYNET --help", tmp_path)
    assert answer.returncode == 0 and answer.stdout.startswith("usage: tinynet ")
    for command in ("train", "predict", "export", "inspect", "bench", "env", "cache"):
        assert f"\n    {command} " in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "tinynet: error: the following arguments are required: COMMAND"),
        (["fly"], "tinynet: error: argument COMMAND: invalid choice: 'fly'"),
        (["train", "horses"], "tinynet train: error: argument PROGRAM: invalid choice: 'horses'"),
        (["train", "forecaster", "--lr", "-1"], "tinynet train forecaster: argument --lr: must be a finite number"),
        (["predict", "nowhere", "a.png"], "tinynet predict: error: there is no checkpoint nowhere"),
        (["predict", "nowhere", "a.png", "--top", "no"], "argument --top: must be an integer of at least 1, got 'no'"),
        (["export", "nowhere", "--to", "onnx"], "tinynet export: error: there is no checkpoint nowhere"),
        (["export", "nowhere", "--to", "paper"], "argument --to: invalid choice: 'paper'"),
        (["cache", "fill"], "tinynet cache: error: argument action: invalid choice: 'fill'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


# Training


def test_a_run_is_trained_resumed_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["train", "image-classifier", *QUICK, "--out", out]) == 0
    shown = capsys.readouterr().out
    assert "engine: reference" in shown and f"{out}: metrics.csv, checkpoint.pt" in shown
    # The script of examples/ is the same program: it continues the run, and the command continues that.
    script = [sys.executable, str(EXAMPLES / "train_image_classifier.py"), "--resume", out, "--engine", "reference"]
    assert subprocess.run([*script, "--steps", "3"], capture_output=True).returncode == 0
    assert main(["train", "image-classifier", "--resume", out, "--engine", "reference", "--steps", "4"]) == 0
    assert "after 4 steps" in capsys.readouterr().out
    assert main(["export", out, "--to", "safetensors"]) == 0
    assert capsys.readouterr().out == f"{out}/model.safetensors\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_has_its_own_help(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as helped:
        main(["train", program, "--help"])
    assert helped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: tinynet train {program} [-h]")


def test_a_run_of_another_program_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["train", "forecaster", "--steps", "1", "--engine", "reference", "--out", out]) == 0
    with pytest.raises(SystemExit) as refused:
        main(["train", "image-classifier", "--resume", out])
    assert refused.value.code == 2
    assert capsys.readouterr().err.startswith(f"tinynet train image-classifier: --resume {out}/checkpoint.pt is a")


def test_training_that_nobody_reads_writes_its_files(tmp_path: Path) -> None:
    line = f"TINYNET train image-classifier {' '.join(QUICK)} --out run | head -0; echo $PIPESTATUS"
    answer = shell(line, tmp_path)
    assert (answer.stdout, answer.stderr) == ("0\n", "")
    assert {"metrics.csv", "checkpoint.pt"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_ends_training_with_a_sentence(number: int, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        f"import os, time\ntry:\n    os.kill(os.getpid(), {number:d})\nexcept BaseException:\n    time.sleep(30)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    answer = shell("exec TINYNET train forecaster", tmp_path, PYTHONPATH=path)
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    assert (answer.returncode, answer.stdout) == (128 + number, "")
    assert answer.stderr == f"tinynet train forecaster: interrupted by {name}\n"


# Benchmarks


def test_bench_hands_everything_to_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as helped:
        main(["bench", "--help"])
    assert helped.value.code == 0 and capsys.readouterr().out.startswith("usage: tinynet bench ")
    with pytest.raises(SystemExit) as refused:
        main(["bench", "--only", "nonsense"])
    assert (
        refused.value.code == 2 and "tinynet bench: error: argument --only: got 'nonsense'" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit) as refused:
        main(["bench", "compare", "absent.json", "absent.json"])
    assert refused.value.code == 2
    assert "tinynet bench compare: error: absent.json cannot be read" in capsys.readouterr().err


# The environment and its caches


def test_env_says_what_a_bug_report_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert f"torch     {torch.__version__} for " in shown and tinynet.describe().removeprefix("engine: ") in shown
    assert f"0.0 MB in {tmp_path}" in shown
    for name in ("tinynet", "python", "triton", "others", "devices", "compiler", "caches", "variables"):
        assert f"\n{name:10}" in f"\n{shown}"


def test_cache_clear_removes_compiled_kernels_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINYNET_CPU_CACHE", str(tmp_path))
    kernel, mine = tmp_path / f"{'0a' * 32}.so", tmp_path / "library.so"
    for path in (kernel, mine):
        path.write_bytes(bytes(2_000_000))
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == f"removed 2.0 MB of kernels compiled for this CPU from {tmp_path}\n"
    assert not kernel.exists() and mine.exists()


def test_a_cache_counts_and_removes_folders(tmp_path: Path) -> None:
    cache = caches.Cache("kernels", tmp_path, "[A-Z]{3}")
    for name in ("ABC", "other"):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / "below" / "file").write_bytes(bytes(1000))
    (tmp_path / "XYZ").symlink_to(tmp_path / "other")
    assert 1000 <= cache.size() < 2000
    cache.clear()
    assert {path.name for path in tmp_path.iterdir()} == {"other"} and (tmp_path / "other" / "below" / "file").exists()
    assert list(caches.Cache("nothing", tmp_path / "absent", ".*").entries()) == []
