"""The examples as a user runs them: accuracy, reproducibility, signals, resumption, and messages for bad input."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
CLASSIFIER = EXAMPLES / "train_image_classifier.py"
MINIMAL = EXAMPLES / "minimal.py"
NAMES, FORECASTER, TEXT = (EXAMPLES / f"train_{each}.py" for each in ("name_classifier", "forecaster", "text_model"))


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without the variables that choose an engine."""
    kept = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "TINYNET_ENGINE")}
    return kept | changes


def run(folder: Path, *flags: str, script: Path = CLASSIFIER, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs the image classifier, or another example, in a folder."""
    return subprocess.run(
        [sys.executable, str(script), *flags],
        cwd=folder,
        env=environment(**changes),
        capture_output=True,
        text=True,
    )


def metrics(folder: Path) -> list[dict[str, str]]:
    """The lines of metrics.csv without the time, which no two runs share."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def assert_same_weights(first: Path, second: Path) -> None:
    for name, weight in weights(first).items():
        assert torch.equal(weights(second)[name], weight), name


@pytest.mark.parametrize(("model", "bar"), [("convnet", 0.985), ("mlp", 0.960)])
def test_mnist5k_reaches_its_bar_from_the_default_seed(tmp_path, model, bar):
    result = run(tmp_path, "--fast" if model == "convnet" else "--model=mlp")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / f"{model}-mnist5k"
    assert float(metrics(folder)[-1]["test_accuracy"]) >= bar
    files = {"metrics.csv", "checkpoint.pt", "curve.png", "confusion.png", "filters.png", "samples.png"}
    assert {path.name for path in folder.iterdir()} == files


@pytest.mark.parametrize(
    ("script", "name", "value", "is_reached", "own_file"),
    [
        (NAMES, "gru-names", r"test accuracy ([\d.]+) % \(9\.7 % for", lambda percent: percent >= 68, "confusion.png"),
        (FORECASTER, "lstm-sunspots", r"RMSE ([\d.]+) sunspots \(32\.79 for", lambda rmse: rmse <= 27, "forecast.png"),
        (TEXT, "lstm-text", r"([\d.]+) nats per character after 500 steps", lambda nats: nats <= 1.45, "samples.txt"),
    ],
)
def test_sequence_examples_reach_their_bars(tmp_path, script, name, value, is_reached, own_file):
    result = run(tmp_path, script=script)
    assert result.returncode == 0, result.stderr
    found = re.search(value, result.stdout)
    assert found is not None and is_reached(float(found[1])), result.stdout
    files = {"metrics.csv", "checkpoint.pt", "curve.png", own_file}
    assert {path.name for path in (tmp_path / "runs" / name).iterdir()} == files
    if script == TEXT:
        samples = (tmp_path / "runs" / name / own_file).read_text(encoding="utf-8")
        assert samples in result.stdout and samples.count("--- temperature ") >= 3


def test_a_run_says_what_it_trains_and_on_which_engine(tmp_path):
    result = run(tmp_path, "--data", "digits", "--model", "mlp", "--steps", "2", "--engine", "reference")
    lines = result.stdout.splitlines()
    assert lines[0].endswith("weights on digits, 1,500 train and 297 test images of 1x8x8, 10 classes")
    assert lines[1].startswith("engine: reference (plain PyTorch) on ")
    assert lines[2].startswith("epoch 1: loss ") and "images/s" in lines[2]
    assert lines[-2].startswith("test accuracy ") and lines[-1].startswith("runs/mlp-digits: metrics.csv")


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (CLASSIFIER, ["--data", "digits", "--steps", "30"]),
        (NAMES, ["--steps", "10"]),
        (FORECASTER, ["--steps", "10"]),
        (TEXT, ["--steps", "3", "--batch-size", "4"]),
    ],
)
def test_same_seed_gives_the_same_numbers_bit_for_bit(tmp_path, script, flags):
    for name, seed in (("first", "7"), ("second", "7"), ("third", "8")):
        assert run(tmp_path, *flags, "--seed", seed, "--out", name, script=script).returncode == 0
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")
    assert_same_weights(tmp_path / "first", tmp_path / "second")
    assert metrics(tmp_path / "first") != metrics(tmp_path / "third")


@pytest.mark.parametrize(
    ("script", "flags", "steps", "picture", "number"),
    [
        (CLASSIFIER, ["--model", "cnn", "--data", "digits", "--epochs", "40"], 960, "confusion.png", signal.SIGINT),
        (NAMES, ["--epochs", "12", "--batch-size", "128"], 384, "confusion.png", signal.SIGTERM),
        (FORECASTER, ["--epochs", "30"], 390, "forecast.png", signal.SIGTERM),
    ],
)
def test_a_signal_keeps_what_was_learned_and_resume_ends_as_if_it_had_not_been(
    tmp_path, script, flags, steps, picture, number
):
    assert run(tmp_path, *flags, "--out", "whole", script=script).returncode == 0
    process = subprocess.Popen(
        [sys.executable, str(script), *flags, "--out", "cut"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2"):
            process.send_signal(number)
            break
    rest = process.stdout.read()
    assert process.wait() == 128 + number
    assert "--resume cut continues from there" in rest
    assert (tmp_path / "cut" / picture).exists()
    resumed = run(tmp_path, "--resume", "cut", script=script)
    assert resumed.returncode == 0, resumed.stderr
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")
    again = run(tmp_path, "--resume", "cut", script=script)
    assert again.returncode == 2 and f"has finished its {steps} steps: train longer with --epochs" in again.stderr


# How each program is ended at its start and during its pictures, and where its output goes when it is resumed.
INTERRUPTED = [
    (CLASSIFIER, ["--data", "digits", "--model", "mlp"], signal.SIGINT, "> /dev/full"),
    (NAMES, [], signal.SIGTERM, "| head -1 && exit ${PIPESTATUS[0]}"),
    (FORECASTER, [], signal.SIGTERM, ">&- 2>&-"),
    (TEXT, ["--batch-size", "4"], signal.SIGINT, "> out.txt"),
]
FILES = {
    CLASSIFIER: {"curve.png", "confusion.png", "filters.png", "samples.png"},
    NAMES: {"curve.png", "confusion.png"},
    FORECASTER: {"curve.png", "forecast.png"},
    TEXT: {"curve.png", "samples.txt"},
}


def package_that_sends(folder: Path, name: str, number: int) -> str:
    """Writes a package that, once imported, sends a signal to its program; returns the folder to import it from."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"import os, time\nos.kill(os.getpid(), {number})\ntime.sleep(30)\n")
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.mark.parametrize(("script", "number"), [(script, number) for script, _, number, _ in INTERRUPTED])
def test_a_signal_during_the_imports_ends_a_program_with_a_sentence(tmp_path, script, number):
    result = run(tmp_path, script=script, PYTHONPATH=package_that_sends(tmp_path / "fake", "torch", number))
    assert (result.returncode, result.stdout) == (128 + number, "")
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    assert result.stderr == f"{script.stem}: interrupted by {name}\n"


@pytest.mark.parametrize(("script", "flags", "number", "output"), INTERRUPTED)
def test_a_signal_during_the_pictures_costs_nothing_and_resume_draws_them_or_sees_damage(
    tmp_path, script, flags, number, output
):
    flags = [*flags, "--steps", "1", "--engine", "reference", "--out", "out"]
    fake = package_that_sends(tmp_path / "fake", "matplotlib", number)
    result = run(tmp_path, *flags, script=script, PYTHONPATH=fake)
    assert result.returncode == 128 + number
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    sentence = f"{script.stem}: interrupted by {name}; --resume out continues from its last checkpoint\n"
    assert result.stderr == sentence
    before = metrics(tmp_path / "out")
    (tmp_path / "out" / "metrics.csv").unlink()

    line = f'PYTHONIOENCODING=ascii "{sys.executable}" "{script}" --engine reference --resume out {output}'
    resumed = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"metrics.csv", "checkpoint.pt"} | FILES[script]
    assert metrics(tmp_path / "out") == before

    checkpoint = bytearray((tmp_path / "out" / "checkpoint.pt").read_bytes())
    checkpoint[len(checkpoint) // 2] ^= 1
    (tmp_path / "out" / "checkpoint.pt").write_bytes(checkpoint)
    refused = run(tmp_path, "--resume", "out", script=script)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "out/checkpoint.pt cannot be read as a checkpoint" in refused.stderr


def test_options_of_the_classifier(tmp_path):
    """Another optimizer, an own folder of images, learning rates in metrics.csv, crops, and evaluation alone."""
    image = pytest.importorskip("PIL.Image")
    for name, value in (("bright", 200), ("dark", 60)):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for index in range(20):
            image.new("RGB", (9, 9), (value, value, index)).save(tmp_path / "mine" / name / f"{index}.png")
    flags = ["--model", "cnn", "--engine", "reference"]
    own = ["--data", "mine", "--optimizer", "lion", "--weight-decay", "0.1", "--epochs", "4", "--tta", "--out", "out"]
    result = run(tmp_path, *flags, *own)
    assert result.returncode == 0, result.stderr
    assert re.search(r"test accuracy 100.00 %, 100.00 % with shifted copies \(50.0 % for always", result.stdout)
    rates = [float(row["lr"]) for row in metrics(tmp_path / "out")]
    assert len(rates) == 4 and 0 == rates[-1] < rates[1] < 5e-4
    only = run(tmp_path, "--eval", "--engine", "reference", "--resume", "out")
    assert only.returncode == 0 and only.stdout.startswith("test accuracy 100.00 % (50.0 % for always"), only.stderr


def test_tensorboard_that_is_not_installed_gets_a_sentence(tmp_path):
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'tensorboard' else find(name, package)\n"
    )
    path = os.pathsep.join([str(tmp_path / "hide"), os.environ.get("PYTHONPATH", "")])
    result = run(tmp_path, "--data", "digits", "--log", "tensorboard", PYTHONPATH=path)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "--log tensorboard: TensorBoard is not installed: pip install tensorboard" in result.stderr


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bit_training_learns(tmp_path, dtype):
    result = run(tmp_path, "--data", "digits", "--model", "mlp", "--epochs", "8", "--dtype", dtype, "--out", "out")
    assert result.returncode == 0, result.stderr
    assert float(metrics(tmp_path / "out")[-1]["test_accuracy"]) > 0.85


@pytest.mark.parametrize("script", [NAMES, FORECASTER, TEXT])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bit_training_of_sequences_lowers_the_loss(tmp_path, script, dtype):
    result = run(tmp_path, "--steps", "12", "--lr", "0.01", "--dtype", dtype, "--out", "out", script=script)
    assert result.returncode == 0, result.stderr
    first, *_, last = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["progress"]["steps"]
    assert last[1] / last[0] < first[1] / first[0]


@pytest.mark.kernels
def test_training_runs_through_the_kernels(tmp_path, request):
    interpreted = {"TRITON_INTERPRET": "1"} if os.environ.get("TRITON_INTERPRET") == "1" else {}
    flags = ["--data", "digits", "--engine", "kernels", "--steps", "3", "--batch-size", "16"]
    result = run(tmp_path, *flags, "--model", "mlp", "--out", "out", script=CLASSIFIER, **interpreted)
    assert result.returncode == 0, result.stderr
    assert "engine: Triton kernels on" in result.stdout


@pytest.mark.kernels
@pytest.mark.parametrize("script", [NAMES, FORECASTER, TEXT])
def test_sequence_examples_run_through_the_kernels(tmp_path, script):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter would take minutes for the test set")
    result = run(tmp_path, "--engine", "kernels", "--steps", "2", "--batch-size", "8", "--out", "out", script=script)
    assert result.returncode == 0, result.stderr
    assert "engine: Triton kernels on" in result.stdout


@pytest.mark.parametrize(
    ("script", "flags", "sentence"),
    [
        (NAMES, ["--cell", "rnn"], "--cell: invalid choice: 'rnn'"),
        (TEXT, ["--prompt", ""], "--prompt must have at least one character"),
        (TEXT, ["--prompt", "𝄞"], "--prompt '𝄞': the text has no character '𝄞'"),
        (FORECASTER, ["--out", "file"], "--out file is not a folder"),
        (FORECASTER, ["--resume", "file"], "file cannot be read as a checkpoint"),
    ],
)
def test_bad_input_to_sequence_examples_gets_a_sentence(tmp_path, script, flags, sentence):
    (tmp_path / "file").write_text("mine")
    result = run(tmp_path, *flags, script=script)
    assert result.returncode == 2
    assert sentence in result.stderr and result.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lr", "-0.1"], "--lr: must be a finite number above 0, got '-0.1'"),
        (["--model", "vgg"], "--model: invalid choice: 'vgg'"),
        (["--model", "vgg11"], "--model vgg11: image_shape must be"),
        (["--eval"], "--eval evaluates a checkpoint: give its run as --resume runs/NAME"),
        (["--optimizer", "fastest"], "--optimizer: invalid choice: 'fastest'"),
        (["--weight-decay", "-1"], "--weight-decay: must be a finite number of at least 0, got '-1'"),
        (["--data", "mnist6k"], "--data: invalid choice: 'mnist6k'"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--out", "file"], "--out file is not a folder"),
        (["--out", "file/below"], "--out file/below is not a folder: it is a file, or inside a file"),
        (["--resume", "file"], "file cannot be read as a checkpoint"),
        (["--resume", "nowhere"], "there is no checkpoint nowhere"),
        (["--model", "mlp", "--lr", "1e30", "--data", "digits"], "try a smaller learning rate"),
    ],
)
def test_bad_input_gets_a_sentence_and_changes_nothing(tmp_path, flags, sentence):
    (tmp_path / "file").write_text("mine")
    result = run(tmp_path, *flags)
    assert result.returncode == (1 if "1e30" in flags else 2)
    assert sentence in result.stderr and result.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_never_overwrites_another_ones_checkpoint(tmp_path):
    flags = ["--data", "digits", "--model", "mlp", "--steps", "2", "--out", "out"]
    assert run(tmp_path, *flags).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = run(tmp_path, *flags)
    assert again.returncode == 2 and "--out out contains a checkpoint: continue it with --resume out" in again.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def package_without_matplotlib(folder: Path) -> str:
    """Writes a package that hides matplotlib from a program; returns the folder to import it from."""
    (folder / "hide").mkdir()
    (folder / "hide" / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'matplotlib' else find(name, package)\n"
    )
    return os.pathsep.join([str(folder / "hide"), os.environ.get("PYTHONPATH", "")])


def test_without_matplotlib_a_run_says_so_in_one_line(tmp_path):
    result = run(
        tmp_path,
        "--data",
        "digits",
        "--model",
        "mlp",
        "--steps",
        "2",
        "--out",
        "out",
        PYTHONPATH=package_without_matplotlib(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("no pictures: matplotlib is not installed") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"metrics.csv", "checkpoint.pt"}


def test_the_minimal_example_learns_and_fits_on_a_page(tmp_path: Path) -> None:
    ran = run(tmp_path, script=MINIMAL)
    assert ran.returncode == 0, ran.stderr
    accuracies = [float(number) for number in re.findall(r"test accuracy ([\d.]+)%", ran.stdout)]
    assert len(accuracies) == 5 and accuracies[-1] > 93
    assert len(MINIMAL.read_text().splitlines()) <= 40
