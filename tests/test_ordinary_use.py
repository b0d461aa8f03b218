"""Ordinary use of models: default devices and dtypes, tensors without memory, numpy's numbers as arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import tinynet
from tinynet import data, nn, optim

pytestmark = pytest.mark.kernels

Case = tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]


def packed(device: str) -> PackedSequence:
    lengths = torch.tensor([2, 4, 1], device="cpu")
    return pack_padded_sequence(torch.randn(4, 3, 5, device=device), lengths, enforce_sorted=False)


def recurrent(name: str, device: str, **options: Any) -> torch.nn.Module:
    return getattr(nn, name)(5, 6, device=device, **options)


# A module, its arguments, and options of the call.
CASES: dict[str, Callable[[str], Case]] = {
    "activation": lambda device: (nn.LeakyReLU(0.2), (torch.randn(4, 5, device=device, requires_grad=True),), {}),
    "linear": lambda device: (
        nn.Linear(5, 3, activation="gelu", device=device),
        (torch.randn(4, 5, device=device),),
        {},
    ),
    "conv": lambda device: (
        nn.Conv2d(2, 3, 3, padding="same", activation="relu", pool=2, device=device),
        (torch.randn(2, 2, 6, 6, device=device),),
        {},
    ),
    "max_pool": lambda device: (nn.MaxPool2d(2), (torch.randn(2, 2, 6, 6, device=device, requires_grad=True),), {}),
    "avg_pool": lambda device: (
        nn.AdaptiveAvgPool2d((4, 5)),
        (torch.randn(2, 2, 6, 6, device=device, requires_grad=True),),
        {},
    ),
    "dropout": lambda device: (nn.Dropout(0.3), (torch.randn(20, 5, device=device, requires_grad=True),), {}),
    "embedding": lambda device: (
        nn.Embedding(7, 3, padding_idx=1, device=device),
        (torch.randint(7, (4, 5), device=device),),
        {},
    ),
    "cross_entropy": lambda device: (
        nn.CrossEntropyLoss(torch.rand(5, device=device), label_smoothing=0.1),
        (torch.randn(4, 5, device=device, requires_grad=True), torch.randint(5, (4,), device=device)),
        {},
    ),
    "mse_loss": lambda device: (
        nn.MSELoss(),
        (torch.randn(4, 5, device=device, requires_grad=True), torch.randn(4, 5, device=device)),
        {},
    ),
    "rnn": lambda device: (recurrent("RNN", device, bidirectional=True), (torch.randn(3, 4, 5, device=device),), {}),
    "lstm_packed": lambda device: (recurrent("LSTM", device, recompute=True), (packed(device),), {}),
    "gru_packed_reset": lambda device: (
        recurrent("GRU", device),
        (packed(device),),
        {"reset": torch.eye(4, 3, device=device, dtype=torch.bool)},
    ),
    "lstm_cell": lambda device: (recurrent("LSTMCell", device), (torch.randn(4, 5, device=device),), {}),
}


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    return [tensor for part in value if part is not None for tensor in tensors_of(part)]


def trained(case: Case) -> list[Tensor]:
    """Outputs and gradients of one call, and the parameters after steps of each optimizer."""
    module, inputs, options = case
    outputs = tensors_of(module(*inputs, **options))
    torch.autograd.backward([y.sum() for y in outputs if y.requires_grad])
    parameters = list(module.parameters())
    leaves = parameters + [x for x in tensors_of(inputs) if x.requires_grad]
    results = [*outputs, *[leaf.grad for leaf in leaves if leaf.grad is not None]]
    for optimizer in (optim.SGD(leaves, momentum=0.9), optim.Adam(leaves), optim.AdamW(leaves, amsgrad=True)):
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        results += [leaf.detach().clone() for leaf in leaves]
    return results


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {
    "set_default_device": lambda: default_device("meta"),
    "with_device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.parametrize("engine_name", ["kernels", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_pytorchs_defaults_change_no_result(name: str, engine_name: Any, device: str) -> None:
    results = {}
    for default in ("none", *DEFAULTS):
        torch.manual_seed(0)
        case = CASES[name](device)
        with tinynet.engine(engine_name):
            if default == "none":
                results[default] = trained(case)
            else:
                with DEFAULTS[default]():
                    results[default] = trained(case)
    for default in DEFAULTS:
        for actual, expected in zip(results[default], results["none"], strict=True):
            assert actual.device == expected.device, default
            torch.testing.assert_close(actual, expected)


def on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("meta").requires_grad_(value.requires_grad)
    if isinstance(value, PackedSequence):
        data, batch_sizes, *orders = value
        return PackedSequence(
            on_meta(data), batch_sizes, *(order if order is None else on_meta(order) for order in orders)
        )
    return value


@pytest.mark.parametrize("name", CASES)
def test_tensors_without_memory_have_the_same_shapes(name: str, device: str) -> None:
    with tinynet.engine("auto"):
        expected = trained(CASES[name](device))
        module, inputs, options = CASES[name](device)
        options = {key: on_meta(value) for key, value in options.items()}
        actual = trained((module.to("meta"), tuple(map(on_meta, inputs)), options))
    assert all(tensor.is_meta for tensor in actual)
    assert [(t.shape, t.dtype, t.stride()) for t in actual] == [(t.shape, t.dtype, t.stride()) for t in expected]


def test_batches_ignore_the_default_device_and_dtype() -> None:
    loaders = (
        lambda: data.ImageBatches(data.load_images("digits"), 8, shift=1),
        lambda: data.NameBatches(data.load_names(), 8),
        lambda: data.TextBatches(data.load_text(), 8),
        lambda: data.SunspotBatches(data.load_sunspots(), 8),
    )
    for load in loaders:
        expected = tensors_of(next(load().train(0)))
        with default_device("meta"), default_dtype(torch.float64):
            actual = tensors_of(next(load().train(0)))
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def image(device: str) -> Tensor:
    return torch.randn(2, 4, 9, 9, device=device, requires_grad=True)


def table(device: str) -> Tensor:
    return torch.randn(3, 4, device=device, requires_grad=True)


def indices(device: str) -> Tensor:
    return torch.tensor([[3, 1, 1], [0, 3, 2]], device=device)


# A function that builds a module from integers that it converts with `n`, and the module's input.
WITH_INTEGERS: dict[str, tuple[Callable[[Any], torch.nn.Module], Callable[[str], Tensor]]] = {
    "linear": (lambda n: nn.Linear(n(4), n(5)), table),
    "conv": (lambda n: nn.Conv2d(n(4), n(6), n(3), stride=n(2), padding=n(1), dilation=n(1), groups=n(2)), image),
    "conv_pairs": (lambda n: nn.Conv2d(4, 6, (n(3), n(2)), stride=(n(2), n(1)), padding=(n(1), n(0))), image),
    "conv_pool": (lambda n: nn.Conv2d(4, 6, 3, padding=n(1), padding_mode="reflect", pool=n(2)), image),
    "max_pool": (lambda n: nn.MaxPool2d(n(3), n(2), padding=(n(1), n(0)), dilation=n(1)), image),
    "avg_pool": (lambda n: nn.AvgPool2d(torch.Size([n(2), n(3)]), n(1), n(1), divisor_override=n(3)), image),  # pyright: ignore
    "adaptive_avg_pool": (lambda n: nn.AdaptiveAvgPool2d((n(4), None)), image),
    "joined": (lambda n: nn.Sequential(nn.Conv2d(4, 3, 3), nn.MaxPool2d([n(2), n(2)], n(2))), image),  # pyright: ignore
    "not_joined": (lambda n: nn.Sequential(nn.Conv2d(4, 3, 3), nn.MaxPool2d(n(3), dilation=(n(1), n(1)))), image),
    "embedding_1": (lambda n: nn.Embedding(n(5), n(3), padding_idx=n(1)), indices),
    "embedding_3": (lambda n: nn.Embedding(n(5), n(3), padding_idx=n(3)), indices),  # no kernel may take it for 1
    "lstm": (lambda n: nn.LSTM(4, 5, n(2), proj_size=n(2)), table),
    "gru_cell": (lambda n: nn.GRUCell(n(4), n(5)), table),
    "ignored_label": (lambda n: WithLabels(nn.CrossEntropyLoss(ignore_index=n(2))), table),
}
WITH_FLOATS: dict[str, tuple[Callable[[Any], torch.nn.Module], Callable[[str], Tensor]]] = {
    "leaky_relu": (lambda n: nn.LeakyReLU(n(0.2)), table),
    "softplus": (lambda n: nn.Softplus(n(0.5), n(10.0)), table),
    "hardtanh": (lambda n: nn.Hardtanh(n(-0.5), n(0.5)), table),
    "fused": (lambda n: nn.Linear(4, 5, activation=tinynet.Activation("elu", alpha=n(0.3))), table),
    "dropout": (lambda n: nn.Dropout(n(0.5)), table),
    "lstm_dropout": (lambda n: nn.LSTM(4, 5, 2, dropout=n(0.5)), table),
    "max_norm": (lambda n: nn.Embedding(5, 3, max_norm=n(0.5), norm_type=n(2.0)), indices),
    "label_smoothing": (lambda n: WithLabels(nn.CrossEntropyLoss(label_smoothing=n(0.3))), table),
}
INTEGERS = {"int64": np.int64, "uint8": np.uint8, "tensor": lambda value: torch.tensor(value)}
FLOATS = {"float32": np.float32, "float16": np.float16, "float64": np.float64}


class WithLabels(torch.nn.Module):
    """A loss of logits [3, C] and fixed labels."""

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor) -> Tensor:
        return self.loss(logits, torch.tensor([2, 0, 1], device=logits.device))


def computed(make: Callable[[Any], torch.nn.Module], number: Any, x: Tensor) -> list[Tensor]:
    """Outputs and parameter gradients, from one seed."""
    torch.manual_seed(0)
    module = make(number).to(x.device)
    outputs = tensors_of(module(x))
    leaves = [*module.parameters(), *([x] if x.requires_grad else [])]
    return [*outputs, *torch.autograd.grad([y.sum() for y in outputs], leaves)]


@pytest.mark.parametrize("engine_name", ["kernels", "reference"])
@pytest.mark.parametrize("name", [*WITH_INTEGERS, *WITH_FLOATS])
def test_numpys_numbers_are_pythons(name: str, engine_name: Any, device: str) -> None:
    make, make_input = {**WITH_INTEGERS, **WITH_FLOATS}[name]
    kinds = INTEGERS if name in WITH_INTEGERS else FLOATS
    x = make_input(device)
    with tinynet.engine(engine_name):
        for kind, number in kinds.items():
            if kind == "tensor" and name in ("linear", "lstm", "gru_cell", "conv", "conv_pool", "avg_pool"):
                continue  # torch.nn's own constructors refuse these
            if kind.startswith("float"):  # the same value, as Python's float
                expected = computed(make, lambda value, number=number: float(number(value)), x)
            else:
                expected = computed(make, int, x)
            for actual, wanted in zip(computed(make, number, x), expected, strict=True):
                torch.testing.assert_close(
                    actual, wanted, rtol=0, atol=0, msg=lambda text, kind=kind: f"{kind}: {text}"
                )


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_optimizers_take_numpys_numbers(number: Any, device: str) -> None:
    makers: list[Callable[[list[Tensor], Any], Any]] = [
        lambda p, n: optim.SGD(p, lr=n(0.1), momentum=n(0.9), dampening=n(0.3), weight_decay=n(0.1)),
        lambda p, n: optim.AdamW(p, lr=n(0.1), betas=(n(0.8), n(0.9)), eps=n(1e-4), weight_decay=n(0.1)),
    ]
    for make in makers:
        results = []
        for kind in (number, lambda value: float(number(value))):
            parameter = torch.ones(5, device=device, requires_grad=True)
            optimizer = make([parameter], kind)
            for _ in range(2):
                parameter.grad = torch.linspace(-1, 1, 5, device=device)
                optimizer.step()
            results.append(parameter.detach())
        assert torch.equal(*results)


def test_what_is_no_integer_is_refused(device: str) -> None:
    x = image(device)
    for value in (True, np.bool_(True), torch.tensor(True), 2.0, np.float32(2), "2"):
        with pytest.raises(TypeError, match="kernel_size must be an integer"):
            nn.functional.max_pool2d(x, value)  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="groups must be an integer"):
            nn.functional.conv2d(x, torch.ones(4, 4, 1, 1, device=device), groups=value)  # pyright: ignore
        with pytest.raises(TypeError, match="stride must be an integer"):
            nn.functional.conv2d(x, torch.ones(4, 4, 1, 1, device=device), stride=value)  # pyright: ignore
        with pytest.raises(TypeError, match="padding_idx must be an integer"):
            nn.functional.embedding(indices(device), torch.ones(5, 3, device=device), value)  # pyright: ignore
        with pytest.raises(TypeError, match="ignore_index must be an integer"):
            nn.functional.cross_entropy(table(device), torch.tensor([2, 0, 1], device=device), ignore_index=value)  # pyright: ignore
        with pytest.raises(ValueError, match="divisor_override must be an integer"):
            nn.functional.avg_pool2d(x, 2, divisor_override=value)  # pyright: ignore
    with pytest.raises(TypeError, match="negative_slope must be a number"):
        nn.functional.leaky_relu(x, np.bool_(True))  # pyright: ignore


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("LayerNorm(6)", (4, 6)),
        ("GroupNorm(3, 6)", (4, 6, 5)),
        ("InstanceNorm1d(6, affine=True)", (4, 6, 5)),
        ("BatchNorm2d(6)", (4, 6, 3, 5)),
        ("Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))", (4, 6, 3, 5)),
    ],
)
def test_a_bias_of_a_norm_may_change_before_the_backward(name: str, shape: tuple[int, ...], device: str) -> None:
    torch.manual_seed(0)
    ours = eval(f"nn.{name}", {"nn": nn}).to(device)
    theirs = eval(f"nn.{name}", {"nn": torch.nn}).to(device)
    theirs.load_state_dict(ours.state_dict())
    x, upstream, gradients = torch.randn(shape, device=device), torch.randn(shape, device=device), []
    for model in (ours, theirs):
        given = x.clone().requires_grad_()
        y = model(given)
        if model is ours:  # torch.nn's layer norm saves its bias
            with torch.no_grad():
                list(model.parameters())[-1].add_(1)
        y.backward(upstream)
        gradients.append([given.grad, *(p.grad for p in model.parameters())])
    for found, expected in zip(*gradients, strict=True):
        if expected.abs().max() > 1e-3:  # a bias before a norm has no gradient but for rounding
            assert_close(found, expected, 1e-4)
