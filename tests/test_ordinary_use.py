"""What programs do around a model: default devices and dtypes, tensors without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
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


# A module, what it is called with, and options of the call.
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


def test_batches_stay_where_they_were_asked_for() -> None:
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
