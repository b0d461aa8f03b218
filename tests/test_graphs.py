"""`tinynet.graphed`: replays give the bits of eager steps, and what a replay would miss is refused by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import tinynet
import tinynet.functional as F
from tinynet import nn, optim
from tinynet.graphs.cuda import CUDARecorder
from tinynet_kernels import replays
from tinynet_kernels.launch import INTERPRETED

pytestmark = pytest.mark.kernels
Step = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _on_the_cpu_engine(device: str) -> None:
    if device != "cpu" or INTERPRETED:
        pytest.skip("records on the CPU engine")


class Classifier(nn.Module):
    """An LSTM and what follows its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, batch_first=True)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Residual(nn.Module):
    """A block whose input is added to its output, so that autograd sums two gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(12, 12, activation="gelu"), nn.LayerNorm(12))
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.inner(x))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp with dropout": (
        lambda: nn.Sequential(nn.Linear(12, 16, activation="relu"), nn.Dropout(0.3), nn.Linear(16, 5)),
        (12,),
    ),
    "cnn": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 16, 3, padding=1, activation="gelu"), nn.Dropout2d(0.2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
        ),
        (3, 16, 16),
    ),
    "lstm": (Classifier, (7, 6)),
    "residual": (Residual, (12,)),
}


def training(
    build: Callable[[], nn.Module], optimizer: Callable[..., Any], clip: bool = False
) -> tuple[Step, Any, Any]:
    """A training step, its model and its optimizer; the same each time."""
    torch.manual_seed(0)
    model = build()
    chosen = optimizer(model.parameters())

    def step(x: Tensor, labels: Tensor) -> Tensor:
        chosen.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        chosen.step()
        return loss

    return step, model, chosen


def batches(shape: tuple[int, ...], count: int, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, *shape, generator=generator), torch.randint(5, (size,), generator=generator))
        for _ in range(count)
    ]


def sgd(params: Any) -> optim.SGD:
    return optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_replays_give_the_bits_of_eager_steps(name: str) -> None:
    """With a schedule, clipped gradients, random numbers, running statistics, and a smaller batch between replays."""
    build, shape = MODELS[name]
    data = [*batches(shape, 3), *batches(shape, 1, size=4), *batches(shape, 5)]
    results = []
    for records in (False, True):
        step, model, optimizer = training(build, sgd, clip=True)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
        torch.manual_seed(7)
        losses, recorded = [], None
        for index, (x, labels) in enumerate(data):
            if records and index == 2:
                recorded = tinynet.graphed(step, x, labels, warmup=0)
            run = step if recorded is None or len(x) != 6 else recorded
            losses.append(run(x, labels).item())
            schedule.step()
        results.append((losses, [*model.state_dict().values()], [parameter.grad for parameter in model.parameters()]))
    (eager, state, gradients), (replayed, other_state, other_gradients) = results
    assert replayed == eager
    for a, b in zip([*state, *gradients], [*other_state, *other_gradients], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: optim.AdamW(params, lr=0.01, amsgrad=True),
        lambda params: optim.RAdam(params, lr=0.01),
        lambda params: optim.NAdam(params, lr=torch.tensor(0.01), capturable=True),
        lambda params: optim.LAMB(params, lr=0.01),
        lambda params: optim.Lookahead(optim.Adam(params, lr=0.01), k=2),
        lambda params: optim.Muon([each for each in params if each.dim() == 2], lr=0.01),
    ],
    ids=["adamw", "radam", "capturable", "lamb", "lookahead", "muon"],
)
def test_optimizers_count_their_steps(optimizer: Callable[..., Any]) -> None:
    data = batches((12,), 9)
    results = []
    for records in (False, True):
        step, model, _ = training(
            lambda: nn.Sequential(nn.Linear(12, 8, activation="silu"), nn.Linear(8, 5)), optimizer
        )
        run: Any = tinynet.graphed(step, *data[0], warmup=0) if records else step
        losses = [run(*batch).item() for batch in data]
        results.append((losses, [*model.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_tokens_are_sorted_and_checked_in_each_replay() -> None:
    generator = torch.Generator().manual_seed(2)
    data = [torch.randint(11, (4, 7), generator=generator) for _ in range(4)]
    results = []
    for records in (False, True):
        torch.manual_seed(0)
        table, out = nn.Embedding(11, 8), nn.Linear(8, 11)
        optimizer = sgd([*table.parameters(), *out.parameters()])

        def step(tokens: Tensor, table: Any = table, out: Any = out, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(out(table(tokens[:, :-1])).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            return loss

        run: Any = tinynet.graphed(step, data[0], warmup=0) if records else step
        results.append([run(tokens).item() for tokens in data])
        if records:
            with pytest.raises(IndexError, match="index 11 is outside the table"):
                run(torch.full_like(data[0], 11))
    assert results[0] == results[1]


def test_warm_up_steps_are_ordinary_steps() -> None:
    (batch,) = batches((12,), 1)
    step, model, _ = training(Residual, sgd)
    expected, other, _ = training(Residual, sgd)
    tinynet.graphed(step, *batch, warmup=2)
    for _ in range(2):
        expected(*batch)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_gradients_of_any_kind_may_exist_elsewhere() -> None:
    """All gradients of the process are looked through."""
    with FakeTensorMode():
        fake = torch.ones(3, requires_grad=True)
        fake.sum().backward()
    table = torch.nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    (batch,) = batches((12,), 1)
    step, _, _ = training(Residual, sgd)
    assert torch.isfinite(tinynet.graphed(step, *batch, warmup=0)(*batch))
    assert fake.grad is not None and table.weight.grad is not None


def test_outputs_keep_their_memory_and_inputs_may_be_written_in_place() -> None:
    torch.manual_seed(0)
    model = nn.Linear(12, 5, activation="tanh")
    with torch.no_grad():
        recorded = tinynet.graphed(lambda given: {"y": model(given["x"])}, {"x": torch.zeros(4, 12)})
        x = torch.randn(4, 12)
        outputs = recorded({"x": x})
        torch.testing.assert_close(outputs["y"], model(x))
        recorded.inputs[0]["x"].fill_(2.0)
        assert recorded(*recorded.inputs)["y"] is outputs["y"]
        torch.testing.assert_close(outputs["y"], model(torch.full((4, 12), 2.0)))


def test_threads_are_those_of_the_replay() -> None:
    (batch,) = batches((12,), 1)
    step, _, _ = training(Residual, sgd)
    expected, _, _ = training(Residual, sgd)
    recorded = tinynet.graphed(step, *batch, warmup=0)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.testing.assert_close(recorded(*batch), expected(*batch).detach())
    finally:
        torch.set_num_threads(threads)


def test_a_replay_checks_labels_and_values_that_are_not_finite() -> None:
    (x, labels), *_ = batches((16, 8, 8), 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(1024, 5))
    recorded = tinynet.graphed(lambda x, labels: F.cross_entropy(model(x), labels), x, labels)
    with pytest.raises(IndexError, match="target 9"):
        recorded(x, torch.full_like(labels, 9))
    convolution = model[0]
    images = tinynet.graphed(lambda x: convolution(x), x)
    x = x.clone()
    x[0, 0, 0, 0] = float("inf")
    expected = convolution(x)
    assert expected.isfinite().sum() > expected.numel() * 0.9
    torch.testing.assert_close(images(x), expected.detach(), equal_nan=True)


@pytest.mark.parametrize("clips", [False, True])
def test_a_grad_scaler_is_replayed(clips: bool) -> None:
    """Its scale grows, and shrinks where a step is skipped, as in eager steps."""
    data = batches((12,), 9)
    data[6][0][1, 3] = float("inf")
    results = []
    for records in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 8, activation="silu"), nn.Linear(8, 5))
        optimizer = optim.AdamW(model.parameters(), lr=0.01, capturable=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
        scaler.scale(torch.ones(()))  # creates its tensors

        def step(
            x: Tensor, labels: Tensor, model: Any = model, optimizer: Any = optimizer, scaler: Any = scaler
        ) -> Any:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels) * 0.5 + 1.0
            scaler.scale(loss).backward()
            if clips:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            return loss

        run: Any = tinynet.graphed(step, *data[0], warmup=0) if records else step
        losses = [(run(*batch).item(), scaler.get_scale()) for batch in data]
        results.append((losses, [*model.parameters()], [parameter.grad for parameter in model.parameters()]))
    (eager, weights, gradients), (replayed, other_weights, other_gradients) = results
    assert str(replayed) == str(eager) and {64.0, 128.0} <= {scale for _, scale in eager}
    for a, b in zip([*weights, *gradients], [*other_weights, *other_gradients], strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_constants_that_are_written_start_anew_in_each_replay() -> None:
    literal = torch.tensor([1.0, 2.0])

    def step(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = torch.zeros(2)
        total.add_(x)
        ramp = torch.arange(4.0)[::2]
        ramp.copy_(x)
        return total.add_(F.relu(x)), ramp, torch.tensor([1.0, 2.0]).add_(x)

    recorded = tinynet.graphed(step, torch.ones(2))
    for x in (torch.tensor([-3.0, 4.0]), torch.tensor([5.0, -6.0])):
        for ours, expected in zip(recorded(x), step(x), strict=True):
            assert torch.equal(ours, expected)
    assert torch.equal(recorded(literal)[2], literal * 2)


class Tagger(nn.Module):
    """An LSTM over packed sequences, forward and backward, and a layer for each of their elements."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 4, bidirectional=True)
        self.out = nn.Linear(8, 5)

    def forward(self, packed: PackedSequence) -> tuple[Tensor, Tensor]:
        y, (h, _) = self.rnn(packed)
        padded, _ = pad_packed_sequence(y)
        return self.out(padded), h


@pytest.mark.parametrize("packs", ["outside", "inside"])
def test_packed_sequences_of_one_shape(packs: str) -> None:
    """Sequences that are not sorted come as an input of the graph, and padded ones are packed in the step."""
    lengths = torch.tensor([3, 5, 1, 3])
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(5, 4, 6, generator=generator) for _ in range(4)]
    results = []
    for records in (False, True):
        torch.manual_seed(0)
        model = Tagger()
        optimizer = optim.SGD(model.parameters(), lr=0.3)

        def step(x: Any, model: Any = model, optimizer: Any = optimizer) -> tuple[Tensor, Tensor]:
            if packs == "inside":
                x = pack_padded_sequence(x, torch.tensor([5, 3, 3, 1]))
            optimizer.zero_grad()
            tags, last = model(x)
            loss = F.cross_entropy(tags.flatten(0, 1), torch.arange(20) % 5) + F.cross_entropy(last[0], torch.arange(4))
            loss.backward()
            optimizer.step()
            return loss, tags

        given: list[Any] = data
        if packs == "outside":
            given = [pack_padded_sequence(x, lengths, enforce_sorted=False) for x in data]
        run: Any = tinynet.graphed(step, given[0], warmup=0) if records else step
        results.append([(loss.item(), tags.detach().clone()) for loss, tags in map(run, given)])
        if records and packs == "outside":
            other = pack_padded_sequence(data[0], torch.tensor([4, 2, 4, 2]), enforce_sorted=False)
            with pytest.raises(tinynet.GraphError, match=r"got array\(.q., \[4, 4, 2, 2\]\); expected"):
                run(other)
    for (loss, tags), (other_loss, other_tags) in zip(*results, strict=True):
        assert loss == other_loss and torch.equal(tags, other_tags)


def keep(memory: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def step(x: Tensor) -> Tensor:
        memory.append(F.relu(x))
        return F.relu(x)

    return step


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda x: F.relu(x).sin(), "aten::sin"),
        (lambda x: F.relu(x) * 2, "aten::mul"),
        (lambda x: F.relu(x) if x.sum().item() > 0 else x, "aten::sum"),
        (lambda x: F.relu(x) if x[0, 0].item() > 0 else x, "aten::_local_scalar_dense"),
        (lambda x: F.relu(torch.randn(3)) + x[0, 0], "aten::randn"),
        (keep([]), "keeps a tensor of 48 bytes"),
    ],
)
def test_what_a_replay_would_miss_is_refused(step: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(tinynet.GraphError, match=message):
        tinynet.graphed(step, torch.randn(3, 4))


def test_a_refused_step_has_changed_nothing() -> None:
    (batch,) = batches((12,), 1)
    step, model, optimizer = training(Residual, sgd)
    step(*batch)
    before = [parameter.clone() for parameter in model.parameters()]
    state = [value.clone() for values in optimizer.state.values() for value in values.values()]
    with pytest.raises(tinynet.GraphError, match="aten::exp"):
        tinynet.graphed(lambda x, labels: step(x, labels).exp(), *batch, warmup=0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(state, (v for values in optimizer.state.values() for v in values.values()), strict=True)
    )
    assert torch.isfinite(step(*batch))  # and eager steps go on


def test_inputs_other_than_recorded_are_refused() -> None:
    recorded = tinynet.graphed(lambda x, scale: F.relu(x), torch.randn(3, 4), 2.0)
    for inputs, message in (
        ((torch.randn(4, 4), 2.0), r"input 0: got torch.float32 of shape \(4, 4\)"),
        ((torch.randn(3, 4).double(), 2.0), "input 0: got torch.float64"),
        ((torch.randn(3, 4), 3.0), "input 1: got 3.0; expected 2.0"),
        ((2.0, 2.0), "input 0: got float; expected a tensor"),
        ((torch.randn(3, 4),), "structure"),
    ):
        with pytest.raises(tinynet.GraphError, match=message):
            recorded(*inputs)
    with pytest.raises(ValueError, match="hold no tensor"):
        tinynet.graphed(lambda: None)


def test_a_model_for_inference() -> None:
    torch.manual_seed(0)
    model = MODELS["cnn"][0]().eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        recorded = tinynet.graphed(model, x)
        assert torch.equal(recorded(x), model(x))


def test_actions_of_the_host_divide_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: the order in which graphs begin, end and are replayed."""
    events: list[Any] = []

    class Graph:
        def capture_begin(self, pool: Any) -> None:
            events.append(("begin", pool))

        def capture_end(self) -> None:
            events.append("end")

        def replay(self) -> None:
            events.append("replay")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    recorder = CUDARecorder("pool")
    recorder.begin()
    seed = torch.zeros(1)
    recorder.fill(seed, lambda tensor: tensor.fill_(3.0))
    recorder.on_host(lambda tensor: events.append(tensor.item()), seed)
    recorder.end()
    assert events == [("begin", "pool"), "end", ("begin", "pool"), "end"]
    events.clear()
    for action in recorder.steps:
        action()
    assert events == ["replay", 3.0, "replay"]


def test_threads_do_not_see_the_recording_of_another_but_on_gpus() -> None:
    recorder = CUDARecorder("pool")
    seen: list[Any] = []

    def look() -> None:
        thread = threading.Thread(target=lambda: seen.append(replays.recorder()))
        thread.start()
        thread.join()
        seen.append(replays.recorder())

    with replays.recording(recorder):
        look()
    with replays.recording(recorder, every_thread=True):  # autograd runs a GPU's backward on a thread of its own
        look()
    assert seen == [None, recorder, recorder, recorder]
    assert replays.recorder() is None


def test_other_threads_run_while_one_records() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 5), torch.randn(8, 12)
    expected = layer(x)
    found: list[Tensor] = []

    def step(x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: found.append(layer(x.clone())))
        thread.start()
        thread.join()
        return layer(x)

    layer.requires_grad_(False)
    graph = tinynet.graphed(step, x, warmup=1)
    assert len(found) == 2
    assert all(torch.equal(y, expected) for y in found)
    assert torch.equal(graph(x), expected)
