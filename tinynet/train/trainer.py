"""The training loop: steps, measures, a progress bar, checkpoints."""

import csv
import math
import reprlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from tinynet import nn
from tinynet.signals import interruption
from tinynet.train.checkpoint import CheckpointError, check_like, read_checkpoint, save_checkpoint
from tinynet.train.files import WriteError, replacing
from tinynet.train.interrupt import Interrupt
from tinynet.train.progress import Progress, read_progress, row_names
from tinynet.train.recorded import RecordedSteps

CHECKPOINT_NAME = "checkpoint.pt"
METRICS_NAME = "metrics.csv"
SECONDS_BETWEEN_UPDATES = 0.2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Batch = tuple[Any, Tensor]
Measure = Callable[[Tensor, Tensor], Tensor]


class Batches(Protocol):
    """The training and test data of a trainer.

    A batch is (inputs, targets): the model's argument, and a tensor whose length is the batch size.
    """

    @property
    def train_count(self) -> int:
        """The number of training samples per epoch."""
        ...

    def __len__(self) -> int:
        """The number of training batches per epoch."""
        ...

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch, beginning with batch `start`; they depend only on the epoch."""
        ...

    def test(self) -> Iterable[Batch]:
        """Yields the test batches."""
        ...


class TrainingError(RuntimeError):
    """Training cannot continue because the loss is no longer finite."""


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the number of correctly classified samples: logits [N, C], labels [N] -> scalar."""
    return (logits.argmax(dim=1) == labels).sum()


def warm_up_and_cosine(optimizer: torch.optim.Optimizer, total_steps: int, warm_up_steps: int) -> LambdaLR:
    """Increases the learning rate linearly for `warm_up_steps` steps, then decreases it to 0 along half a cosine.

    Source: Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts" (2017), without restarts.
    """

    def factor(step: int) -> float:
        if step < warm_up_steps:
            return (step + 1) / (warm_up_steps + 1)
        done = (step - warm_up_steps) / max(1, total_steps - warm_up_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return LambdaLR(optimizer, factor)


class Trainer:
    """Trains a model and saves its state in a folder.

    Args:
        model: the model, on the device to train on.
        batches: training and test batches on the same device.
        loss: maps (outputs, targets) to the mean loss of a batch, a scalar.
        optimizer: the optimizer of the model's parameters.
        scheduler: stepped after each optimizer step.
        measures: by name, functions of (outputs, targets) that return a measure's sum over the batch.
        dtype: dtype of the computation: bfloat16 and float16 use autocast, float16 also gradient scaling; the
            weights keep their dtype.
        unit: name of the samples in the progress bar.
        folder: where to write metrics.csv and checkpoint.pt after each epoch; None to write nothing.
        config: further values to save in checkpoints.
        about: what a program that loads the model needs to know, saved in checkpoints too.
        on_row: called with each new row of metrics.csv.
        graph: whether to record the steps and replay them (`tinynet.graphed`): the same losses in less time.

    Attributes:
        progress: the progress of the run.
        stopped_by: the signal that stopped the last `fit` early, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        scheduler: LambdaLR,
        *,
        measures: dict[str, Measure],
        dtype: torch.dtype = torch.float32,
        unit: str = "samples",
        folder: Path | None = None,
        config: dict[str, Any] | None = None,
        about: dict[str, Any] | None = None,
        on_row: Callable[[dict[str, float]], None] | None = None,
        graph: bool = False,
    ) -> None:
        self.model = model
        self.batches = batches
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.measures = measures
        self.dtype = dtype
        self.unit = unit
        self.folder = folder
        self.config = config or {}
        self.about = about or {}
        self.on_row = on_row
        self.graph = graph
        self.progress = Progress()
        self.stopped_by: signal.Signals | None = None
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self._replayed_update = RecordedSteps(self._update)
        self._unfinished_row: dict[str, float] | None = None
        self._pending: list[tuple[int, Tensor]] = []

    def step(self, inputs: Any, targets: Tensor) -> Tensor:
        """Performs one optimizer step on a batch and returns the batch's loss, a detached scalar."""
        self.model.train()
        scale = self.scaler.get_scale()
        outputs, loss = (self._replayed_update if self.graph else self._update)(inputs, targets)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # otherwise the gradients overflowed and the step was skipped
            self.scheduler.step()
        self.progress.step += 1
        self.progress.batch += 1
        self._pending.append((len(targets), self._sums(outputs, targets, loss)))
        return loss.clone() if self.graph else loss  # a replay overwrites it

    def _update(self, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Moves the parameters by one step; returns the outputs and the loss, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            outputs = self.model(inputs)
            loss = self.loss(outputs, targets)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        return outputs.detach(), loss.detach()

    def fit(self, total_steps: int) -> bool:
        """Trains up to a total of `total_steps` optimizer steps; returns False if a signal stopped it earlier.

        Ctrl-C and SIGTERM stop it after the current step, a second Ctrl-C stops it immediately. If the run has already
        finished, this only writes its files again.

        Raises:
            TrainingError: the loss is infinite or NaN; the checkpoint is that of the last epoch.
            CheckpointError: a file cannot be written; the old file is unchanged.
        """
        self._unfinished_row = None
        with Interrupt() as interrupt:
            try:
                self._fit(total_steps, interrupt)
            except (CheckpointError, TrainingError):
                raise
            except Exception as error:
                if interrupt.signal is None:
                    raise
                # The error may come from a compiler process that the signal ended too.
                raise interruption(interrupt.signal) from error
        is_complete = self.progress.step >= total_steps
        self.stopped_by = None if is_complete else interrupt.signal
        return is_complete

    def _fit(self, total_steps: int, interrupt: Interrupt) -> None:
        if self.progress.step >= total_steps:
            if self.progress.batch:
                self._unfinished_row = self._row()
            self.save()
        while self.progress.step < total_steps:
            samples_per_second = self._train_epoch(total_steps, interrupt)
            is_finished = self.progress.batch == len(self.batches)
            if not is_finished:
                self.save()  # before the slow evaluation: schedulers kill soon after SIGTERM
            row = self._row()
            self._print(row, samples_per_second)
            if self.on_row is not None:
                self.on_row(row)
            if is_finished:
                self.progress.rows.append(row)
                self.progress.epoch += 1
                self.progress.batch = 0
            else:
                self._unfinished_row = row
            self.save()
            if interrupt.signal is not None:
                break

    @property
    def rows(self) -> list[dict[str, float]]:
        """The rows of metrics.csv: one per finished epoch, and one for an unfinished last epoch."""
        return self.progress.rows + ([self._unfinished_row] if self._unfinished_row else [])

    def evaluate(self) -> dict[str, float]:
        """Returns the mean loss and measures over the test set, by name."""
        total = torch.zeros(1 + len(self.measures), dtype=torch.float64, device="cpu")
        count = 0
        for outputs, targets in self.predict():
            with self._autocast():
                loss = self.loss(outputs, targets)
            total += self._sums(outputs, targets, loss).double().cpu()
            count += len(targets)
        return dict(zip(self._names, (total / count).tolist(), strict=True))

    def predict(self) -> Iterator[Batch]:
        """Yields the model's (outputs, targets) of each test batch."""
        self.model.eval()
        for inputs, targets in self.batches.test():
            with torch.no_grad(), self._autocast():
                outputs = self.model(inputs)
            yield outputs, targets

    def save(self) -> None:
        """Writes metrics.csv and checkpoint.pt into the folder, each atomically.

        Raises:
            CheckpointError: a file cannot be written; the old file is unchanged.
        """
        if self.folder is None:
            return
        self._collect()
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": _random_state(self.device),
            "progress": asdict(self.progress),
            "config": self.config,
            "about": self.about,
        }
        save_checkpoint(self.folder / CHECKPOINT_NAME, state)
        if self.rows:
            self._write_metrics(self.folder / METRICS_NAME)

    def resume(self, path: Path) -> None:
        """Restores the state of a checkpoint, so that `fit` continues as if the run had not been interrupted.

        Raises:
            CheckpointError: no checkpoint; one of another model, optimizer or data set; or impossible values in it.
        """
        state = read_checkpoint(path)
        for name, restore in (
            ("progress", self._restore_progress),
            ("model", self.model.load_state_dict),
            ("optimizer", self.optimizer.load_state_dict),
            ("scheduler", self._restore_schedule),
            ("scaler", self._restore_scaler),
            ("random", partial(_set_random_state, device=self.device)),
        ):
            if name not in state:
                raise CheckpointError(f"{path} is not a checkpoint of this model and run: it has no {name!r}")
            try:
                restore(state[name])
            except Exception as error:  # PyTorch raises various errors for unexpected values
                reason = " ".join(str(error).split())
                raise CheckpointError(
                    f"{path} is not a checkpoint of this model and run: in {name!r}: {reason}"
                ) from error

    def _restore_progress(self, saved: Any) -> None:
        self.progress = read_progress(
            saved, batches=len(self.batches), samples=self.batches.train_count, measures=self._names
        )

    def _restore_schedule(self, saved: Any) -> None:
        fresh = self.scheduler.state_dict()
        check_like("scheduler", saved, {name: fresh[name] for name in ("base_lrs", "last_epoch", "lr_lambdas")})
        done = self.progress.step
        # With gradient scaling, steps whose gradients overflowed were skipped.
        least = 0 if self.scaler.is_enabled() else done
        if not least <= saved["last_epoch"] <= done:
            raise ValueError(f"scheduler.last_epoch: got {reprlib.repr(saved['last_epoch'])}, expected {done}")
        self.scheduler.load_state_dict(saved)

    def _restore_scaler(self, saved: Any) -> None:
        if not self.scaler.is_enabled():
            return
        check_like("scaler", saved, self.scaler.state_dict())
        if saved["scale"] <= 0:
            raise ValueError(f"scaler.scale: got {saved['scale']}, expected a number above 0")
        self.scaler.load_state_dict(saved)

    @property
    def _names(self) -> tuple[str, ...]:
        return ("loss", *self.measures)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _sums(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Returns the loss and each measure, summed over a batch: float32 [1 + measures], on the device."""
        sums = [loss * len(targets)] + [measure(outputs, targets) for measure in self.measures.values()]
        return torch.stack([each.float() for each in sums])

    def _collect(self) -> None:
        """Moves the measures of the last steps from the device to `progress`; nothing else waits for the device."""
        if not self._pending:
            return
        counts, sums = zip(*self._pending, strict=True)
        self._pending.clear()
        self.progress.steps += [[count, *each] for count, each in zip(counts, torch.stack(sums).tolist(), strict=True)]
        loss = self.progress.steps[-1][1]
        # With gradient scaling, an overflow only skips the step.
        if not math.isfinite(loss) and not self.scaler.is_enabled():
            raise TrainingError(f"the loss is {loss} after {self.progress.step} steps: try a smaller learning rate")

    def _train_epoch(self, total_steps: int, interrupt: Interrupt) -> float:
        """Trains to the end of the epoch, `total_steps` or a signal; returns the samples per second."""
        started = shown = time.perf_counter()
        seen_before = self._seen()
        bar = tqdm(
            total=self.batches.train_count,
            initial=seen_before,
            desc=f"epoch {self.progress.epoch + 1}",
            unit=f" {self.unit}",
            leave=False,
            disable=None,  # no bar if the output is not a terminal
        )
        with bar:
            for inputs, targets in self.batches.train(self.progress.epoch, start=self.progress.batch):
                self.step(inputs, targets)
                if time.perf_counter() - shown > SECONDS_BETWEEN_UPDATES:
                    self._collect()
                    bar.set_postfix_str(_format_means(self._train_means()), refresh=False)
                    bar.update(self._seen() - bar.n)
                    shown = time.perf_counter()
                if interrupt.signal is not None or self.progress.step >= total_steps:
                    break
            self._collect()
        seconds = time.perf_counter() - started
        self.progress.seconds += seconds
        return (self._seen() - seen_before) / seconds

    def _seen(self) -> int:
        """Returns the number of samples of the current epoch that were trained on."""
        return sum(int(count) for count, *_ in self._steps_of_epoch())

    def _steps_of_epoch(self) -> list[list[float]]:
        done = self.progress.batch - len(self._pending)
        return self.progress.steps[-done:] if done else []

    def _train_means(self) -> dict[str, float]:
        """Returns the mean loss and measures over the current epoch, by name."""
        columns = list(zip(*self._steps_of_epoch(), strict=True))
        count = sum(columns[0])
        return {name: sum(column) / count for name, column in zip(self._names, columns[1:], strict=True)}

    def _row(self) -> dict[str, float]:
        """Returns the row of metrics.csv for the current epoch."""
        train, test = self._train_means(), self.evaluate()
        means = [means[name] for means in (train, test) for name in self._names]
        lr = float(self.optimizer.param_groups[0]["lr"])
        values = [self.progress.epoch + 1, self.progress.step, lr, *means, round(self.progress.seconds, 2)]
        return dict(zip(row_names(self._names), values, strict=True))

    def _print(self, row: dict[str, float], samples_per_second: float) -> None:
        train = _format_means({name: row[f"train_{name}"] for name in self._names})
        test = _format_means({name: row[f"test_{name}"] for name in self._names})
        print(f"epoch {row['epoch']}: {train}; test {test}; {samples_per_second:,.0f} {self.unit}/s", flush=True)

    def _write_metrics(self, path: Path) -> None:
        """Writes metrics.csv atomically."""
        try:
            with replacing(path) as part, open(part, "w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)
        except WriteError as error:
            raise CheckpointError(str(error)) from error


def _format_means(means: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {100 * value:.2f} %" if name == "accuracy" else f"{name} {value:.4f}" for name, value in means.items()
    )


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
