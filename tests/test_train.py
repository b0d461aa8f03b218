"""Training: exact resumption, checkpoints that refuse damage, reports, flags, and kernels against the reference."""

import csv
import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import counted_launches
from torch import Tensor

import tinynet
from tinynet import dispatch, nn, optim
from tinynet.data import ImageBatches, ImageData, NameBatches, load_images, load_names, load_sunspots
from tinynet.models import CNN, MLP, SequenceClassifier
from tinynet.signals import Terminated
from tinynet.train import (
    CheckpointError,
    Trainer,
    TrainingError,
    accuracy,
    export_weights,
    pictures,
    read_checkpoint,
    save_checkpoint,
    warm_up_and_cosine,
)
from tinynet.train.files import WriteError
from tinynet.train.interrupt import Interrupt
from tinynet.train.options import RunParser
from tinynet.train.report import (
    choose_samples,
    first_layer,
    write_classifier_report,
    write_curve_report,
    write_forecast_report,
    write_image_report,
)
from tinynet_engines.cpu.toolchain import find_compiler
from tinynet_kernels.launch import INTERPRETED

TOTAL_STEPS = 9  # batches of 8 from 20 images: three epochs of three


def tiny_data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20) % 3
    images = torch.randint(0, 100, (20, 1, 6, 6), dtype=torch.uint8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 2 * label : 2 * label + 2] += 150  # a bright bar, lower for each class
    return ImageData("tiny", images, labels, images[:7], labels[:7], ("a", "b", "c"), shift=1)


def make_trainer(folder: Path | None = None, dtype: torch.dtype = torch.float32, lr: float = 0.05) -> Trainer:
    """A trainer on the reference whose every step draws random numbers."""
    torch.manual_seed(3)
    model = nn.Sequential(torch.nn.Dropout(0.2), MLP((1, 6, 6), classes=3, hidden_sizes=(16,)))
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Trainer(
        model,
        ImageBatches(tiny_data(), 8, seed=1, shift=1),
        torch.nn.CrossEntropyLoss(),
        optimizer,
        warm_up_and_cosine(optimizer, TOTAL_STEPS, 2),
        measures={"accuracy": accuracy},
        dtype=dtype,
        folder=folder,
    )


@pytest.fixture
def on_reference():
    with tinynet.engine("reference"):
        yield


def without_seconds(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_run(trainer: Trainer, expected: Trainer) -> None:
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], weight), name
    assert trainer.progress.steps == expected.progress.steps
    assert without_seconds(trainer.rows) == without_seconds(expected.rows)
    assert torch.equal(trainer.optimizer.param_groups[0]["params"][0], next(expected.model.parameters()))


# The loop


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 8])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, on_reference, stop):
    expected = make_trainer()
    assert expected.fit(TOTAL_STEPS)
    make_trainer(tmp_path).fit(stop)
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path)
    torch.manual_seed(100)
    resumed.resume(tmp_path / "checkpoint.pt")
    assert resumed.progress.step == stop
    assert resumed.fit(TOTAL_STEPS)
    assert_same_run(resumed, expected)


def test_same_seed_same_run_and_other_seed_another(on_reference):
    first = make_trainer()
    first.fit(TOTAL_STEPS)
    second = make_trainer()
    second.fit(TOTAL_STEPS)
    third = make_trainer()
    torch.manual_seed(4)  # for the dropout
    third.fit(TOTAL_STEPS)
    assert_same_run(second, first)
    assert third.progress.steps != first.progress.steps


def test_training_lowers_the_loss_and_counts_what_it_saw(on_reference):
    trainer = make_trainer()
    trainer.fit(TOTAL_STEPS)
    assert [count for count, *_ in trainer.progress.steps] == [8, 8, 4] * 3
    assert [row["epoch"] for row in trainer.rows] == [1, 2, 3]
    assert [row["step"] for row in trainer.rows] == [3, 6, 9]
    assert trainer.rows[-1]["test_loss"] < 0.8 * trainer.rows[0]["test_loss"]


def test_measures_are_means_over_samples_not_over_batches(on_reference):
    trainer = make_trainer()
    logits, labels = (torch.cat(each) for each in zip(*trainer.predict(), strict=True))
    means = trainer.evaluate()
    assert means["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert means["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), rel=1e-6)
    trainer.fit(3)
    losses = [total for _, total, _ in trainer.progress.steps]
    assert trainer.rows[0]["train_loss"] == pytest.approx(sum(losses) / 20, rel=1e-9)


def test_metrics_csv_has_one_line_per_epoch_and_one_for_the_unfinished(tmp_path, on_reference):
    trainer = make_trainer(tmp_path)
    trainer.fit(7)
    with open(tmp_path / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["epoch"], line["step"]) for line in lines] == [("1", "3"), ("2", "6"), ("3", "7")]
    assert list(lines[0])[:4] == ["epoch", "step", "lr", "train_loss"]
    assert float(lines[1]["test_loss"]) == trainer.rows[1]["test_loss"]
    assert read_checkpoint(tmp_path / "checkpoint.pt")["progress"]["rows"] == trainer.rows[:2]


def test_the_schedule_rises_then_falls_to_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warm_up_and_cosine(optimizer, total_steps=10, warm_up_steps=4)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[7] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(0.0) and rates[5:] == sorted(rates[5:], reverse=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_training_learns_and_keeps_fp32_weights(tmp_path, on_reference, dtype):
    trainer = make_trainer(tmp_path, dtype)
    trainer.fit(TOTAL_STEPS)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert trainer.rows[-1]["test_loss"] < 0.8 * trainer.rows[0]["test_loss"]
    outputs, _ = next(trainer.predict())
    assert outputs.dtype == dtype
    resumed = make_trainer(tmp_path, dtype)
    resumed.resume(tmp_path / "checkpoint.pt")
    assert resumed.scaler.get_scale() == trainer.scaler.get_scale()


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_epoch(tmp_path, on_reference):
    trainer = make_trainer(tmp_path)
    trainer.fit(3)
    saved = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.inf)
    with pytest.raises(TrainingError, match="the loss is nan after .* steps: try a smaller learning rate"):
        trainer.fit(TOTAL_STEPS)
    assert (tmp_path / "checkpoint.pt").read_bytes() == saved


def test_packed_sequences_are_trained_on_as_tensors_are(on_reference):
    data = load_names()
    torch.manual_seed(0)
    model = SequenceClassifier(data.vocabulary_size, len(data.languages), 8, 8)
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    scheduler = warm_up_and_cosine(optimizer, 10, 1)
    batches = NameBatches(data, 64)
    trainer = Trainer(model, batches, nn.CrossEntropyLoss(), optimizer, scheduler, measures={"accuracy": accuracy})
    assert not trainer.rows and trainer.fit(5)
    (row,) = trainer.rows
    assert sum(count for count, *_ in trainer.progress.steps) == 5 * 64
    assert row["test_loss"] < trainer.progress.steps[0][1] / 64


# Ctrl-C


class InterruptedBatches(ImageBatches):
    """Sends a signal while the given step's batch is computed."""

    presses = 4
    number = signal.SIGINT

    def train(self, epoch: int, start: int = 0):
        for index, batch in enumerate(super().train(epoch, start)):
            if epoch * len(self) + start + index + 1 == self.presses:
                os.kill(os.getpid(), self.number)
            yield batch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_keeps_what_was_learned(tmp_path, on_reference, number):
    expected = make_trainer()
    expected.fit(TOTAL_STEPS)
    interrupted = make_trainer(tmp_path)
    interrupted.batches = InterruptedBatches(tiny_data(), 8, seed=1, shift=1)
    interrupted.batches.number = number
    before = signal.getsignal(number)
    assert interrupted.fit(TOTAL_STEPS) is False and interrupted.stopped_by == number
    assert signal.getsignal(number) is before
    assert interrupted.progress.step == InterruptedBatches.presses
    resumed = make_trainer(tmp_path)
    resumed.resume(tmp_path / "checkpoint.pt")
    assert resumed.fit(TOTAL_STEPS) is True and resumed.stopped_by is None
    assert_same_run(resumed, expected)


def test_a_step_that_fails_after_a_signal_is_interrupted(on_reference):
    trainer = make_trainer()

    def step(inputs: Any, targets: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("the compiler was interrupted as well")

    trainer.step = step
    with pytest.raises(Terminated):
        trainer.fit(TOTAL_STEPS)


def test_a_signal_before_the_first_step_waits_for_one(tmp_path, on_reference, monkeypatch):
    enter = Interrupt.__enter__

    def signaled(interrupt: Interrupt) -> Interrupt:
        entered = enter(interrupt)
        os.kill(os.getpid(), signal.SIGTERM)
        return entered

    monkeypatch.setattr(Interrupt, "__enter__", signaled)
    trainer = make_trainer(tmp_path)
    assert trainer.fit(TOTAL_STEPS) is False
    assert trainer.progress.step == len(trainer.rows) == 1


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler")
def test_control_c_in_a_terminal_does_not_reach_the_compiler_of_a_step(tmp_path):
    compiler = tmp_path / "compiler"
    # A terminal sends SIGINT to every process of the group that the program leads.
    compiler.write_text('#!/bin/sh\ncase "$*" in *--version*) ;; *) kill -s INT -- -$PPID; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    code = (
        "from tinynet_engines.cpu.toolchain import build; from tinynet.train.interrupt import Interrupt\n"
        "with Interrupt() as interrupt: print(build('int one(void) { return 1; }').exists(), end=' ')\n"
        "print(interrupt.signal.name)"
    )
    environment = {**os.environ, "TINYNET_CPU_COMPILER": str(compiler), "TINYNET_CPU_CACHE": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, start_new_session=True
    )
    assert result.stdout == "True SIGINT\n", result.stderr


# Checkpoints


def some_checkpoint(folder: Path) -> Path:
    path = folder / "checkpoint.pt"
    save_checkpoint(path, {"model": {"weight": torch.arange(5000.0)}, "config": {"lr": 0.5, "steps": None}})
    return path


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = read_checkpoint(some_checkpoint(tmp_path))
    assert torch.equal(state["model"]["weight"], torch.arange(5000.0))
    assert state["config"] == {"lr": 0.5, "steps": None}
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint.pt"]


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, fraction):
    path = some_checkpoint(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)


def test_a_checkpoint_with_a_flipped_byte_is_refused_or_the_same(tmp_path):
    path = some_checkpoint(tmp_path)
    content = path.read_bytes()
    expected = torch.arange(5000.0)
    start = content.index(expected.numpy().tobytes())
    inside = {start, start + 10001, start + 4 * 5000 - 1}
    for position in inside | set(range(0, len(content), 211)):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        if position in inside:
            with pytest.raises(CheckpointError, match=r"data/\d+ in it is damaged"):
                read_checkpoint(path)
            continue
        try:
            assert torch.equal(read_checkpoint(path)["model"]["weight"], expected)
        except CheckpointError as error:
            assert str(path) in str(error)


def test_a_folder_and_a_name_that_is_too_long_are_no_checkpoints(tmp_path):
    for path in (tmp_path, tmp_path / ("x" * 300), Path("/dev/null")):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            read_checkpoint(path)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_foreign_files_are_refused_and_their_code_is_not_run(tmp_path):
    path = tmp_path / "foreign.pt"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_checkpoint(path)
    path.write_text("weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path)
    for foreign in ({"weight": torch.zeros(3)}, [1, 2], {"format": "other"}):
        torch.save(foreign, path)
        with pytest.raises(CheckpointError, match="is not a checkpoint of tinynet"):
            read_checkpoint(path)
    trap = tmp_path / "trap"
    path.write_bytes(pickle.dumps(Evil(trap), protocol=2))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    torch.save({"format": "tinynet checkpoint", "version": 1, "model": Evil(trap)}, path)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not trap.exists()


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for version, shown in ((2, "2"), (None, "None"), (True, "True"), (torch.ones(2), "tensor")):
        save_checkpoint(path, {"version": version})
        with pytest.raises(CheckpointError, match=f"version {shown}"):
            read_checkpoint(path)


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = some_checkpoint(tmp_path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left"):
        save_checkpoint(path, {"model": {}})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_files(tmp_path, on_reference):
    resource = pytest.importorskip("resource")
    trainer = make_trainer(tmp_path)
    trainer.fit(3)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, name in ((1000, "checkpoint.pt"), (10, "metrics.csv"), (10, "curve.png")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            if name == "checkpoint.pt":
                with pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be written: .*File too large"):
                    trainer.save()
            elif name == "metrics.csv":
                with pytest.raises(CheckpointError, match=r"metrics\.csv cannot be written: "):
                    trainer._write_metrics(tmp_path / name)
            else:
                with pytest.raises(WriteError, match=r"curve\.png cannot be written: "):
                    write_curve_report(tmp_path, trainer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


ABSURD = [
    ("progress", None, "progress: got None"),
    ("progress.epoch", -1, "progress.epoch: got -1"),
    ("progress.epoch", 10**30, "progress.step: got 7"),
    ("progress.epoch", 2.0, "progress.epoch: got 2.0"),
    ("progress.epoch", True, "progress.epoch: got True"),
    ("progress.epoch", 1, "progress.step: got 7, expected 4 after 1 epochs of 3 batches"),
    ("progress.batch", -1, "progress.batch: got -1"),
    ("progress.batch", 4, "progress.batch: got 4, expected less than the 3 batches of an epoch"),
    ("progress.batch", torch.zeros(2), "progress.batch: got tensor"),
    ("progress.step", math.nan, "progress.step: got nan"),
    ("progress.step", 10**6, "progress.step: got 1000000, expected 7"),
    ("progress.step", "7", "progress.step: got '7'"),
    ("progress.seconds", math.nan, "progress.seconds: got nan"),
    ("progress.seconds", -1.0, "progress.seconds: got -1.0"),
    ("progress.seconds", None, "progress.seconds: got None"),
    ("progress.steps", [], "progress.steps: got [], expected a list of 7"),
    ("progress.steps", 3, "progress.steps: got 3"),
    ("progress.steps.6", [8, 1.0], "progress.steps[6]: got [8, 1.0], expected a list of 3"),
    ("progress.steps.6.0", 0, "progress.steps[6][0]: got 0, expected a count from 1 to 20"),
    ("progress.steps.6.0", 21, "progress.steps[6][0]: got 21"),
    ("progress.steps.6.1", "much", "progress.steps[6][1]: got 'much'"),
    ("progress.rows", [{}], "progress.rows: got [{}], expected a list of 2"),
    ("progress.rows.1", {}, "progress.rows[1]: got {}, expected a dict of epoch, step, lr, train_loss"),
    ("progress.rows.1.epoch", 7, "progress.rows[1].epoch: got 7, expected 2"),
    ("progress.rows.1.step", -6, "progress.rows[1].step: got -6, expected 6"),
    ("progress.rows.1.test_loss", None, "progress.rows[1].test_loss: got None"),
    ("progress.more", 1, "expected a dict of batch, epoch"),
    ("scheduler", {}, "scheduler: got {}, expected a dict with"),
    ("scheduler", [], "scheduler: got [], expected a dict with"),
    ("scheduler.last_epoch", -5, "scheduler.last_epoch: got -5, expected 7"),
    ("scheduler.last_epoch", "late", "scheduler.last_epoch: got 'late'"),
    ("scheduler.base_lrs", [0.1, 0.2], "scheduler.base_lrs: got [0.1, 0.2], expected a list of 1"),
    ("scheduler.base_lrs.0", math.inf, "scheduler.base_lrs[0]: got inf, expected a finite number"),
    ("optimizer", {}, "in 'optimizer': "),
    ("optimizer", 3, "in 'optimizer': "),
    ("optimizer.param_groups", [], "in 'optimizer': "),
    ("optimizer.param_groups.0.lr", math.nan, "in 'optimizer': lr: got nan"),
    ("optimizer.state.0.momentum_buffer", torch.zeros(3), "in 'optimizer': state momentum_buffer: got shape (3,)"),
    ("model", {}, "in 'model': Error(s) in loading state_dict for Sequential: Missing key(s)"),
    ("model", [1], "in 'model': "),
    ("random", {}, "in 'random': "),
    ("random.cpu", torch.zeros(5, dtype=torch.uint8), "in 'random': "),
    ("random.cpu", torch.ones(5056), "in 'random': "),
    ("random.cpu", torch.full((5056,), 255, dtype=torch.uint8), "in 'random': "),
    ("random.cpu", None, "in 'random': "),
]


@pytest.mark.parametrize(("field", "value", "sentence"), ABSURD)
def test_values_that_no_run_has_are_refused_by_name(tmp_path, on_reference, field, value, sentence):
    path = tmp_path / "checkpoint.pt"
    make_trainer(tmp_path).fit(7)
    state = read_checkpoint(path)
    target: Any = state
    *way, last = (int(key) if key.isdigit() else key for key in field.split("."))
    for key in way:
        target = target[key]
    target[last] = value
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError) as refused:
        make_trainer().resume(path)
    message = str(refused.value)
    assert message.startswith(f"{path} is not a checkpoint of this model and run: in ") and sentence in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["progress", "model", "optimizer", "scheduler", "scaler", "random"])
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, on_reference, name):
    path = tmp_path / "checkpoint.pt"
    make_trainer(tmp_path).fit(1)
    state = read_checkpoint(path)
    del state[name]
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match=f"it has no '{name}'"):
        make_trainer().resume(path)


@pytest.mark.parametrize(
    ("name", "value"), [("scale", -1.0), ("scale", math.nan), ("scale", "big"), ("growth_interval", None)]
)
def test_a_gradient_scale_that_no_run_has_is_refused(tmp_path, on_reference, name, value):
    path = tmp_path / "checkpoint.pt"
    make_trainer(tmp_path, torch.float16).fit(1)
    state = read_checkpoint(path)
    state["scaler"][name] = value
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match=rf"scaler\.{name}: got "):
        make_trainer(dtype=torch.float16).resume(path)


@pytest.mark.parametrize("steps", [7, TOTAL_STEPS])
def test_a_finished_run_writes_its_files_anew(tmp_path, on_reference, steps):
    trainer = make_trainer(tmp_path)
    trainer.fit(steps)
    metrics = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").unlink()
    resumed = make_trainer(tmp_path)
    resumed.resume(tmp_path / "checkpoint.pt")
    assert resumed.fit(steps) is True
    assert resumed.rows == trainer.rows and (tmp_path / "metrics.csv").read_bytes() == metrics


def test_a_checkpoint_of_another_model_is_refused(tmp_path, on_reference):
    make_trainer(tmp_path).fit(1)
    trainer = make_trainer()
    trainer.model = nn.Sequential(MLP((1, 6, 6), classes=4))
    with pytest.raises(CheckpointError, match="is not a checkpoint of this model"):
        trainer.resume(tmp_path / "checkpoint.pt")


def test_exported_weights_load_without_our_code(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = MLP((1, 2, 3), classes=2)
    export_weights(model, tmp_path / "weights.safetensors")
    loaded = safetensors.load_file(tmp_path / "weights.safetensors")
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())


# Reports


def test_report_draws_four_pictures(tmp_path, on_reference):
    trainer = make_trainer(tmp_path)
    trainer.fit(TOTAL_STEPS)
    names = write_image_report(tmp_path, trainer, tiny_data())
    assert names == ["curve.png", "confusion.png", "filters.png", "samples.png"]
    for name in names:
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 5000


def test_without_matplotlib_pictures_are_skipped_with_one_line(tmp_path, on_reference, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert write_image_report(tmp_path, make_trainer(), tiny_data()) == []
    assert capsys.readouterr().out.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_reports_of_other_models_draw_their_pictures(tmp_path, on_reference):
    trainer = make_trainer(tmp_path)
    trainer.fit(TOTAL_STEPS)
    data = load_sunspots()
    for make, names in (
        (lambda: write_curve_report(tmp_path, trainer), ["curve.png"]),
        (lambda: write_classifier_report(tmp_path, trainer, "abc"), ["curve.png", "confusion.png"]),
        (lambda: write_forecast_report(tmp_path, trainer, data, data.persistence), ["curve.png", "forecast.png"]),
    ):
        assert make() == names
        for name in names:
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
            (tmp_path / name).unlink()


@pytest.mark.parametrize("measures", [[], ["accuracy"], ["accuracy", "absolute_error"]])
def test_a_curve_has_a_panel_for_the_loss_and_each_measure(tmp_path, monkeypatch, measures):
    drawn = []
    make_figure = pictures._figure
    monkeypatch.setattr(pictures, "_figure", lambda *size: drawn.append(make_figure(*size)) or drawn[-1])
    names = [f"{part}_{name}" for part in ("train", "test") for name in ("loss", *measures)]
    rows = [{"epoch": 1, "step": 2, **dict.fromkeys(names, 0.5), "seconds": 1.0}]
    pictures.draw_curve(tmp_path / "curve.png", [[4, 2.0], [4, 2.0]], rows)
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles == ["loss", "accuracy (%)", "absolute error"][: 1 + len(measures)]


def test_confusion_matrix_counts_true_classes_by_predictions():
    matrix = pictures.confusion_matrix(torch.tensor([0, 0, 2, 1, 2]), torch.tensor([0, 1, 2, 1, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_samples_show_the_surest_mistakes_and_some_hits():
    probabilities = torch.full((30, 2), 0.5)
    probabilities[:, 1] = torch.linspace(0.51, 0.99, 30)
    probabilities[:, 0] = 1 - probabilities[:, 1]
    labels = torch.ones(30, dtype=torch.int64)
    labels[::3] = 0  # ten mistakes, the most confident at 27
    chosen = choose_samples(labels, probabilities.argmax(1), probabilities)
    assert len(chosen) == 12 and len(set(chosen.tolist())) == 12
    assert chosen[6:].tolist() == [27, 24, 21, 18, 15, 12]
    all_right = choose_samples(torch.ones(3).long(), torch.ones(3).long(), probabilities[:3])
    assert all_right.tolist() == [0, 1, 2]


def test_first_layer_gives_filters_as_images_and_their_responses(on_reference):
    weight, responses = first_layer(MLP((1, 6, 5), classes=2), torch.zeros(1, 1, 6, 5))
    assert weight.shape == (512, 1, 6, 5) and responses is None
    model = CNN((3, 8, 8))
    weight, responses = first_layer(model, torch.ones(1, 3, 8, 8))
    assert torch.equal(weight, model.get_parameter("features.0.weight").detach())
    assert responses is not None and responses.shape == (32, 8, 8)


# Flags


def make_parser() -> RunParser:
    return RunParser("train_something", "Train.", epochs=3, batch_size=16, lr=0.1)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lr", "-1"], "--lr: must be a finite number above 0, got '-1'"),
        (["--lr", "nan"], "--lr: must be a finite number above 0"),
        (["--lr", "inf"], "--lr: must be a finite number above 0"),
        (["--lr", "fast"], "--lr: must be a finite number above 0, got 'fast'"),
        (["--steps", "0"], "--steps: must be an integer of at least 1, got '0'"),
        (["--epochs", "1.5"], "--epochs: must be an integer of at least 1, got '1.5'"),
        (["--batch-size", "-2"], "--batch-size: must be an integer"),
        (["--seed", "-1"], "--seed: must be an integer from 0"),
        (["--steps", "3", "--epochs", "3"], "both set the length of the training"),
        (["--device", "tpux"], "--device tpux is not a device"),
        (["--device", "meta"], "--device meta does not exist on this machine"),
        (["--dtype", "fp8"], "--dtype: invalid choice: 'fp8'"),
        (["--engine", "fast"], "--engine: invalid choice: 'fast'"),
        (["--resume", "nowhere.pt"], "there is no checkpoint nowhere.pt"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_bad_flags_get_one_sentence_and_exit_code_2(capsys, flags, sentence):
    with pytest.raises(SystemExit) as exit_:
        make_parser().parse_run(flags)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert sentence in message and message.startswith("train_something: ")
    assert message.count("\n") == 1 and "Traceback" not in message


def test_cuda_where_there_is_none_gets_a_sentence(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        make_parser().parse_run(["--device", "cuda"])
    assert "finds no GPU on this machine" in capsys.readouterr().err


def test_kernels_where_no_driver_serves_get_a_sentence(capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "unavailable_reason", lambda device_type: "no driver is there")
    with pytest.raises(SystemExit):
        make_parser().parse_run(["--engine", "kernels", "--device", "cpu"])
    assert "--engine kernels: no driver is there" in capsys.readouterr().err


def test_an_out_folder_that_cannot_be_is_refused(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        with pytest.raises(SystemExit):
            make_parser().make_folder(out, "name", None)
        assert "is not a folder: it is a file, or inside a file" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_an_out_folder_with_a_checkpoint_is_only_for_its_resumption(tmp_path, capsys):
    path = some_checkpoint(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for resumed in (None, some_checkpoint(other)):
        with pytest.raises(SystemExit):
            make_parser().make_folder(tmp_path, "name", resumed)
        assert "contains a checkpoint" in capsys.readouterr().err
    assert make_parser().make_folder(tmp_path, "name", path) == tmp_path


def test_a_new_run_gets_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [make_parser().make_folder(None, "cnn", None) for _ in range(3)]
    assert folders == [Path("runs/cnn"), Path("runs/cnn-2"), Path("runs/cnn-3")]


def run_checkpoint(folder: Path, *flags: str) -> Path:
    parser = make_parser()
    config = parser.config(parser.parse_run(flags))
    save_checkpoint(folder / "checkpoint.pt", {"config": config})
    return folder


def test_resume_takes_over_the_flags_of_the_run(tmp_path):
    folder = run_checkpoint(tmp_path, "--lr", "0.25", "--steps", "7", "--dtype", "bf16", "--seed", "5")
    options = make_parser().parse_run(["--resume", str(folder)])
    assert (options.lr, options.steps, options.dtype, options.seed) == (0.25, 7, "bf16", 5)
    assert options.out == folder and options.resume == folder / "checkpoint.pt"
    longer = make_parser().parse_run(["--resume", str(folder), "--epochs", "9", "--lr", "0.25"])
    assert (longer.steps, longer.epochs) == (None, 9)
    assert make_parser().parse_run(["--resume", str(folder), "--steps", "8"]).steps == 8


def test_flags_that_change_nothing_in_the_training_are_free_when_it_goes_on(tmp_path):
    def parser_with_prompt() -> RunParser:
        parser = make_parser()
        parser.add_argument("--prompt", default="The")
        return parser

    parser = parser_with_prompt()
    config = parser.config(parser.parse_run(["--prompt", "A", "--lr", "0.25"]), without=["prompt"])
    save_checkpoint(tmp_path / "checkpoint.pt", {"config": config})
    options = parser_with_prompt().parse_run(["--resume", str(tmp_path), "--prompt", "B"])
    assert (options.prompt, options.lr) == ("B", 0.25)


def test_resume_refuses_flags_of_another_run(tmp_path, capsys):
    folder = run_checkpoint(tmp_path, "--lr", "0.25")
    with pytest.raises(SystemExit):
        make_parser().parse_run(["--resume", str(folder), "--lr", "0.5"])
    assert "--lr 0.5 differs from the value 0.25 in" in capsys.readouterr().err
    other = RunParser("train_else", "Train.", epochs=3, batch_size=16, lr=0.1)
    with pytest.raises(SystemExit):
        other.parse_run(["--resume", str(folder)])
    assert "is a checkpoint of train_something" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", "fast"),
        ("lr", None),
        ("lr", torch.zeros(2)),
        ("batch_size", 0),
        ("batch_size", 16.5),
        ("batch_size", True),
        ("seed", 10**30),
        ("epochs", -3),
        ("steps", [3]),
        ("dtype", "fp8"),
        ("dtype", 32),
        ("colour", "red"),
    ],
)
def test_resume_refuses_flags_that_the_program_would_refuse(tmp_path, capsys, name, value):
    parser = make_parser()
    config = parser.config(parser.parse_run([])) | {name: value}
    save_checkpoint(tmp_path / "checkpoint.pt", {"config": config})
    with pytest.raises(SystemExit) as exit_:
        parser.parse_run(["--resume", str(tmp_path)])
    message = capsys.readouterr().err
    assert exit_.value.code == 2 and message.count("\n") == 1
    assert f"{tmp_path / 'checkpoint.pt'} is damaged: config.{name} is " in message


@pytest.mark.parametrize("config", [None, [], 3, {}, {"program": torch.ones(2)}, {"program": None}])
def test_resume_refuses_what_names_no_program(tmp_path, capsys, config):
    save_checkpoint(tmp_path / "checkpoint.pt", {"config": config})
    with pytest.raises(SystemExit):
        make_parser().parse_run(["--resume", str(tmp_path)])
    assert "is a checkpoint of another program" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_signal_outside_of_the_training_ends_the_program_with_a_sentence(tmp_path, capsys, number, has_checkpoint):
    parser = make_parser()
    folder = parser.make_folder(tmp_path / "run", "run", None)
    if has_checkpoint:
        some_checkpoint(folder)
    with pytest.raises(SystemExit) as exit_, parser.report_errors():
        os.kill(os.getpid(), number)
    assert exit_.value.code == 128 + number
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    hint = f"; --resume {folder} continues from its last checkpoint" if has_checkpoint else ""
    assert capsys.readouterr().err == f"train_something: interrupted by {name}{hint}\n"


def test_an_out_folder_with_too_long_a_name_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        make_parser().make_folder(tmp_path / ("x" * 300), "name", None)
    assert "cannot be created: File name too long" in capsys.readouterr().err


# Kernels


def train_digits(
    engine: str, device: str, steps: int = 30, graph: bool = False
) -> tuple[list[float], dict[str, Tensor]]:
    """Trains a CNN by SGD with momentum on 8x8 digits; returns the loss of each step and the weights."""
    torch.manual_seed(0)
    with tinynet.engine(engine):  # pyright: ignore[reportArgumentType]
        batches = ImageBatches(load_images("digits"), 16, device=device)
        model = CNN((1, 8, 8)).to(device)
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        loss = nn.CrossEntropyLoss()
        scheduler = warm_up_and_cosine(optimizer, 10 * steps, 0)
        measures: Any = {"accuracy": accuracy}
        trainer = Trainer(model, batches, loss, optimizer, scheduler, measures=measures, graph=graph)
        losses = []
        for images, labels in batches.train(0):
            losses.append(trainer.step(images, labels).item())
            if len(losses) == steps:
                break
    return losses, model.state_dict()


@pytest.mark.kernels
def test_thirty_steps_through_the_kernels_follow_the_reference(device):
    with counted_launches() as launched:
        losses, weights = train_digits("kernels", device)
    assert len(set(launched)) >= 5 and len(launched) >= 30 * 10, "not everything ran through the kernels"
    expected_losses, expected_weights = train_digits("reference", device)
    assert len(losses) == 30
    assert expected_losses[-1] < 0.5 * expected_losses[0], "the reference itself learned nothing"
    assert losses == pytest.approx(expected_losses, abs=1e-3)
    for name, weight in weights.items():
        assert (weight - expected_weights[name]).abs().max().item() <= 1e-3, name


@pytest.mark.kernels
def test_recorded_steps_have_the_losses_of_others_to_the_bit(device):
    if device != "cpu" or INTERPRETED:
        pytest.skip("records on the CPU engine")
    losses, weights = train_digits("kernels", device, steps=6)
    recorded_losses, recorded_weights = train_digits("kernels", device, steps=6, graph=True)
    assert recorded_losses == losses
    assert all(torch.equal(weight, recorded_weights[name]) for name, weight in weights.items())


def test_training_imports_without_matplotlib_and_triton():
    code = "import sys; sys.modules['matplotlib'] = None; import tinynet.train.report, tinynet.train.options"
    subprocess.run([sys.executable, "-c", code], check=True)
