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

CHECKPOINT_NAME = "checkpoint.pt"
METRICS_NAME = "metrics.csv"
SECONDS_BETWEEN_UPDATES = 0.2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Batch = tuple[Any, Tensor]
Measure = Callable[[Tensor, Tensor], Tensor]


class Batches(Protocol):
    """What a trainer trains on.

    A batch is (inputs, targets): what the model takes, and a tensor whose length is the batch's size.
    """

    @property
    def train_count(self) -> int:
        """The number of train samples in an epoch."""
        ...

    def __len__(self) -> int:
        """The number of train batches in an epoch."""
        ...

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The train batches of an epoch from batch `start` on: a function of the epoch alone."""
        ...

    def test(self) -> Iterable[Batch]:
        """The test batches."""
        ...


class TrainingError(RuntimeError):
    """A training that cannot go on: its loss is not a finite number any more."""


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The number of samples whose largest logit is their label's: logits [N, C], labels [N] -> scalar."""
    return (logits.argmax(dim=1) == labels).sum()


def warm_up_and_cosine(optimizer: torch.optim.Optimizer, total_steps: int, warm_up_steps: int) -> LambdaLR:
    """The learning rate's factor goes from 0 to 1 in `warm_up_steps`, then along half a cosine back to 0.

    Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts" (2017), without restarts.
    """

    def factor(step: int) -> float:
        if step < warm_up_steps:
            return (step + 1) / (warm_up_steps + 1)
        done = (step - warm_up_steps) / max(1, total_steps - warm_up_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return LambdaLR(optimizer, factor)


class Trainer:
    """Trains a model and keeps its state in a folder.

    Args:
        model: on the device it trains on.
        batches: train and test batches on the same device.
        loss: maps (outputs, targets) to the mean loss of a batch, a scalar.
        optimizer: of the model's parameters.
        scheduler: stepped after each optimizer step.
        measures: by name, functions of (outputs, targets) that return the measure's sum over the batch.
        dtype: what to compute in: with bfloat16 or float16 under autocast, with float16 also with gradient
            scaling; the weights stay as they are.
        unit: what a sample is called in the progress bar.
        folder: where metrics.csv and checkpoint.pt go after each epoch; nothing is written where None.
        config: what a checkpoint says about the run besides its state.

    Attributes:
        progress: how far the run is.
        stopped_by: the signal that ended the last `fit` before its end, or None.
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
        self.progress = Progress()
        self.stopped_by: signal.Signals | None = None
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self._unfinished_row: dict[str, float] | None = None
        self._pending: list[tuple[int, Tensor]] = []

    def step(self, inputs: Any, targets: Tensor) -> Tensor:
        """Takes one optimizer step on a batch and returns its loss, a scalar, detached."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            outputs = self.model(inputs)
            loss = self.loss(outputs, targets)
        self.scaler.scale(loss).backward()
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else the gradients overflowed and no step was taken
            self.scheduler.step()
        self.progress.step += 1
        self.progress.batch += 1
        self._pending.append((len(targets), self._sums(outputs.detach(), targets, loss.detach())))
        return loss.detach()

    def fit(self, total_steps: int) -> bool:
        """Trains until `total_steps` optimizer steps are done in all; returns False where a signal ended it before.

        Ctrl-C and SIGTERM end it after the step it is in, a second Ctrl-C at once. A run that has done all its steps
        only writes its files anew.

        Raises:
            TrainingError: the loss became infinite or not a number; the checkpoint is the last epoch's.
            CheckpointError: a file cannot be written; what was there before is still there.
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
                # The signal has also ended a compiler that the step had started.
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
                self.save()  # before anything else takes time: a scheduler that sends SIGTERM soon kills
            row = self._row()
            self._print(row, samples_per_second)
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
        """The lines of metrics.csv: one an epoch, and one for an epoch that `fit` left in the middle."""
        return self.progress.rows + ([self._unfinished_row] if self._unfinished_row else [])

    def evaluate(self) -> dict[str, float]:
        """Returns the mean loss and measures over the test set by name."""
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
        """Writes metrics.csv and checkpoint.pt into the folder, each in one move.

        Raises:
            CheckpointError: a file cannot be written; what was there before is still there.
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
        }
        save_checkpoint(self.folder / CHECKPOINT_NAME, state)
        if self.rows:
            self._write_metrics(self.folder / METRICS_NAME)

    def resume(self, path: Path) -> None:
        """Takes over the state of a checkpoint, so that `fit` goes on as if it had never stopped.

        Raises:
            CheckpointError: no checkpoint, one of another model, optimizer or data set, or with values that no run has.
        """
        state = read_checkpoint(path)
        for name, take_over in (
            ("progress", self._take_over_progress),
            ("model", self.model.load_state_dict),
            ("optimizer", self.optimizer.load_state_dict),
            ("scheduler", self._take_over_schedule),
            ("scaler", self._take_over_scaler),
            ("random", partial(_set_random_state, device=self.device)),
        ):
            if name not in state:
                raise CheckpointError(f"{path} is not a checkpoint of this model and run: it has no {name!r}")
            try:
                take_over(state[name])
            except Exception as error:  # PyTorch raises anything where a value is not what it expects
                reason = " ".join(str(error).split())
                raise CheckpointError(
                    f"{path} is not a checkpoint of this model and run: in {name!r}: {reason}"
                ) from error

    def _take_over_progress(self, saved: Any) -> None:
        self.progress = read_progress(
            saved, batches=len(self.batches), samples=self.batches.train_count, measures=self._names
        )

    def _take_over_schedule(self, saved: Any) -> None:
        fresh = self.scheduler.state_dict()
        check_like("scheduler", saved, {name: fresh[name] for name in ("base_lrs", "last_epoch", "lr_lambdas")})
        done = self.progress.step
        # With gradient scaling, a step whose numbers overflowed is not taken.
        least = 0 if self.scaler.is_enabled() else done
        if not least <= saved["last_epoch"] <= done:
            raise ValueError(f"scheduler.last_epoch: got {reprlib.repr(saved['last_epoch'])}, expected {done}")
        self.scheduler.load_state_dict(saved)

    def _take_over_scaler(self, saved: Any) -> None:
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
        """The loss and each measure summed over a batch, float32 [1 + measures], still on the device."""
        sums = [loss * len(targets)] + [measure(outputs, targets) for measure in self.measures.values()]
        return torch.stack([each.float() for each in sums])

    def _collect(self) -> None:
        """Moves what the last steps measured from the device into `progress`: the only wait for the device."""
        if not self._pending:
            return
        counts, sums = zip(*self._pending, strict=True)
        self._pending.clear()
        self.progress.steps += [[count, *each] for count, each in zip(counts, torch.stack(sums).tolist(), strict=True)]
        loss = self.progress.steps[-1][1]
        # With gradient scaling, a step whose numbers overflowed is not taken, and the next may be fine.
        if not math.isfinite(loss) and not self.scaler.is_enabled():
            raise TrainingError(f"the loss is {loss} after {self.progress.step} steps: try a smaller learning rate")

    def _train_epoch(self, total_steps: int, interrupt: Interrupt) -> float:
        """Takes the epoch's remaining steps, or as many as the total or a signal leave; returns samples a second."""
        started = shown = time.perf_counter()
        seen_before = self._seen()
        bar = tqdm(
            total=self.batches.train_count,
            initial=seen_before,
            desc=f"epoch {self.progress.epoch + 1}",
            unit=f" {self.unit}",
            leave=False,
            disable=None,  # no bar where nobody looks: output that is not a terminal
        )
        with bar:
            for inputs, targets in self.batches.train(self.progress.epoch, start=self.progress.batch):
                self.step(inputs, targets)
                if time.perf_counter() - shown > SECONDS_BETWEEN_UPDATES:
                    self._collect()
                    bar.set_postfix_str(_in_words(self._train_means()), refresh=False)
                    bar.update(self._seen() - bar.n)
                    shown = time.perf_counter()
                if interrupt.signal is not None or self.progress.step >= total_steps:
                    break
            self._collect()
        seconds = time.perf_counter() - started
        self.progress.seconds += seconds
        return (self._seen() - seen_before) / seconds

    def _seen(self) -> int:
        """The samples of the epoch under way that were trained on."""
        return sum(int(count) for count, *_ in self._steps_of_epoch())

    def _steps_of_epoch(self) -> list[list[float]]:
        done = self.progress.batch - len(self._pending)
        return self.progress.steps[-done:] if done else []

    def _train_means(self) -> dict[str, float]:
        """The mean loss and measures over the epoch under way by name."""
        columns = list(zip(*self._steps_of_epoch(), strict=True))
        count = sum(columns[0])
        return {name: sum(column) / count for name, column in zip(self._names, columns[1:], strict=True)}

    def _row(self) -> dict[str, float]:
        """The line of metrics.csv about the epoch under way."""
        train, test = self._train_means(), self.evaluate()
        means = [means[name] for means in (train, test) for name in self._names]
        values = [self.progress.epoch + 1, self.progress.step, *means, round(self.progress.seconds, 2)]
        return dict(zip(row_names(self._names), values, strict=True))

    def _print(self, row: dict[str, float], samples_per_second: float) -> None:
        train = _in_words({name: row[f"train_{name}"] for name in self._names})
        test = _in_words({name: row[f"test_{name}"] for name in self._names})
        print(f"epoch {row['epoch']}: {train}; test {test}; {samples_per_second:,.0f} {self.unit}/s", flush=True)

    def _write_metrics(self, path: Path) -> None:
        """Writes metrics.csv anew, in one move."""
        try:
            with replacing(path) as part, open(part, "w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)
        except WriteError as error:
            raise CheckpointError(str(error)) from error


def _in_words(means: dict[str, float]) -> str:
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
