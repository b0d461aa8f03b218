"""Every public function and module given operands that are not plain tensors, one at a time.

Each must compute what PyTorch computes from the same values, or refuse with a sentence that names the argument.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from torch import Tensor

import tinynet.functional as ours
from tinynet import nn, optim

ERROR = 1e-4


class Case(NamedTuple):
    """A function of ours, PyTorch's counterpart, and operands for both by argument name."""

    function: Callable[..., Any]
    twin: Callable[..., Any]
    operands: dict[str, Tensor]


def of_module(
    name: str, *arguments: Any, **options: Any
) -> tuple[Callable[..., Any], Callable[..., Any], dict[str, Tensor]]:
    """A module of both libraries as functions of its input and parameters; its parameters."""
    module = getattr(nn, name)(*arguments, **options)
    twin = getattr(torch.nn, name)(*arguments, **options)
    parameters = {key: parameter.detach().clone() for key, parameter in module.named_parameters()}

    def call(module: torch.nn.Module) -> Callable[..., Any]:
        def function(input: Tensor, hx: Any = None, cx: Any = None, **parameters: Tensor) -> Any:
            states = () if hx is None else ((hx if cx is None else (hx, cx)),)
            return torch.func.functional_call(module, parameters, (input, *states))

        return function

    return call(module), call(twin), parameters


def recurrent(name: str, *states: str, cell: bool = False) -> Case:
    function, twin, parameters = of_module(name, 3, 4)
    input = torch.randn(5, 3) if cell else torch.randn(6, 5, 3)
    initial = {state: torch.randn(5, 4) if cell else torch.randn(1, 5, 4) for state in states}
    return Case(function, twin, {"input": input, **initial, **parameters})


def module(name: str, input: Tensor, *arguments: Any, **options: Any) -> Case:
    function, twin, parameters = of_module(name, *arguments, **options)
    return Case(function, twin, {"input": input, **parameters})


def functional(module: torch.nn.Module) -> Callable[..., Any]:
    """A module as a function of its input and parameters."""
    return lambda input, **parameters: torch.func.functional_call(module, parameters, (input,))


def image() -> Tensor:
    return torch.randn(2, 4, 6, 6)


def cross_entropy_of_linear(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor, weight: Tensor
) -> Tensor:
    """F.linear_cross_entropy, which PyTorch before 2.13 lacks."""
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, weight)


# Operands whose first dimension is a batch, or the second from the last of a state.
BATCHED = (
    *("input", "hx", "cx", "target", "x1", "x2", "input1", "input2"),
    *("anchor", "positive", "negative", "var", "residual"),
)
ACTIVATIONS = (
    *("ReLU", "LeakyReLU", "ReLU6", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "LogSigmoid", "Tanh"),
    *("Softplus", "Softsign", "Hardtanh", "Hardswish", "Hardsigmoid", "Hardshrink", "Softshrink", "Tanhshrink"),
)
CASES: dict[str, Callable[[], Case]] = {
    **{name: (lambda name=name: module(name, torch.randn(6, 6))) for name in ACTIVATIONS},
    "linear": lambda: Case(
        ours.linear, F.linear, {"input": torch.randn(4, 6), "weight": torch.randn(5, 6), "bias": torch.randn(5)}
    ),
    "interpolate": lambda: Case(
        lambda input: ours.interpolate(input, scale_factor=2, mode="bilinear"),
        lambda input: F.interpolate(input, scale_factor=2, mode="bilinear"),
        {"input": image()},
    ),
    "Linear": lambda: module("Linear", torch.randn(4, 6), 6, 6),
    "conv2d": lambda: Case(
        ours.conv2d, F.conv2d, {"input": image(), "weight": torch.randn(3, 4, 3, 3), "bias": torch.randn(3)}
    ),
    "Conv2d": lambda: module("Conv2d", image(), 4, 8, 3, 2, 1, 1, 4),
    # With a function between, since the gradient of a normalization alone is 0 for some upstream gradients.
    "batch_norm-training": lambda: Case(
        lambda input, **affine: ours.batch_norm(input, None, None, **affine, training=True, activation="tanh"),
        lambda input, **affine: F.batch_norm(input, None, None, **affine, training=True).tanh(),
        {"input": image(), "weight": torch.randn(4), "bias": torch.randn(4)},
    ),
    "batch_norm-given": lambda: Case(
        ours.batch_norm,
        F.batch_norm,
        {
            "input": image(),
            "running_mean": torch.randn(4),
            "running_var": torch.rand(4) + 0.5,
            "weight": torch.randn(4),
            "bias": torch.randn(4),
        },
    ),
    "instance_norm": lambda: Case(
        lambda input: ours.instance_norm(input, activation="tanh"),
        lambda input: F.instance_norm(input).tanh(),
        {"input": image()},
    ),
    "BatchNorm2d": lambda: Case(
        functional(nn.BatchNorm2d(4, track_running_stats=False, activation="tanh")),
        lambda input, **affine: F.batch_norm(input, None, None, **affine, training=True).tanh(),
        {"input": image(), "weight": torch.randn(4), "bias": torch.randn(4)},
    ),
    "max_pool2d": lambda: Case(
        lambda input: ours.max_pool2d(input, 2), lambda input: F.max_pool2d(input, 2), {"input": image()}
    ),
    "MaxPool2d": lambda: module("MaxPool2d", image(), 3, 2, 1),
    "AvgPool2d": lambda: module("AvgPool2d", image(), 3, 2, 1),
    "AdaptiveAvgPool2d": lambda: module("AdaptiveAvgPool2d", image(), (3, 4)),
    "AdaptiveMaxPool2d": lambda: module("AdaptiveMaxPool2d", image(), (3, 4)),
    "LPPool2d": lambda: module("LPPool2d", image(), 2, 3, 2),
    "MaxPool1d": lambda: module("MaxPool1d", torch.randn(2, 4, 6), 3, 2, 1),
    "AvgPool3d": lambda: module("AvgPool3d", torch.randn(1, 2, 4, 4, 4), 2),
    "fractional_max_pool2d": lambda: Case(
        lambda input: ours.fractional_max_pool2d(input, 2, 3, _random_samples=torch.full((2, 4, 2), 0.3).to(input)),
        lambda input: F.fractional_max_pool2d(input, 2, 3, _random_samples=torch.full((2, 4, 2), 0.3).to(input)),
        {"input": image()},
    ),
    "max_unpool2d": lambda: Case(
        lambda input: ours.max_unpool2d(input, torch.arange(36).view(6, 6).expand(input.size(0), 4, 6, 6), 2),
        lambda input: F.max_unpool2d(input, torch.arange(36).view(6, 6).expand(input.size(0), 4, 6, 6), (2, 2)),
        {"input": image()},
    ),
    "cross_entropy-labels": lambda: Case(
        ours.cross_entropy,
        F.cross_entropy,
        {"input": torch.randn(4, 6), "target": torch.randint(6, (4,)), "weight": torch.rand(6)},
    ),
    "cross_entropy-probabilities": lambda: Case(
        ours.cross_entropy, F.cross_entropy, {"input": torch.randn(4, 6), "target": torch.rand(4, 6)}
    ),
    "layer_norm": lambda: Case(
        lambda input, weight, bias: ours.layer_norm(input, (6,), weight, bias, 0.1),
        lambda input, weight, bias: F.layer_norm(input, (6,), weight, bias, 0.1),
        {"input": torch.randn(4, 6), "weight": torch.randn(6), "bias": torch.randn(6)},
    ),
    "layer_norm-residual": lambda: Case(
        lambda input, residual: ours.layer_norm(input, (6,), eps=0.1, residual=residual),
        lambda input, residual: (F.layer_norm(input + residual, (6,), eps=0.1), input + residual),
        {"input": torch.randn(4, 6), "residual": torch.randn(4, 6)},
    ),
    "LayerNorm": lambda: module("LayerNorm", torch.randn(4, 6), 6, 0.1),
    "RMSNorm": lambda: module("RMSNorm", torch.randn(4, 6), 6),
    "GroupNorm": lambda: module("GroupNorm", image(), 2, 4, 0.1),
    "LocalResponseNorm": lambda: module("LocalResponseNorm", image(), 3, 0.5),
    "Softmax": lambda: module("Softmax", torch.randn(4, 6), 1),
    "LogSoftmax": lambda: module("LogSoftmax", torch.randn(4, 6), 0),
    "Softmin": lambda: module("Softmin", torch.randn(4, 6), 1),
    "Softmax2d": lambda: module("Softmax2d", image()),
    "glu": lambda: Case(ours.glu, F.glu, {"input": torch.randn(4, 6)}),
    "prelu": lambda: Case(ours.prelu, F.prelu, {"input": torch.randn(4, 6), "weight": torch.randn(6)}),
    "PReLU": lambda: module("PReLU", image(), 4),
    "Threshold": lambda: module("Threshold", torch.randn(6, 6), 0.1, 20.0),
    "nll_loss": lambda: Case(
        ours.nll_loss,
        F.nll_loss,
        {"input": torch.randn(4, 6), "target": torch.randint(6, (4,)), "weight": torch.rand(6)},
    ),
    "multi_margin_loss": lambda: Case(
        lambda input, target, weight: ours.multi_margin_loss(input, target, weight=weight),
        lambda input, target, weight: F.multi_margin_loss(input, target, weight=weight),
        {"input": torch.randn(4, 6), "target": torch.randint(6, (4,)), "weight": torch.rand(6)},
    ),
    "multilabel_margin_loss": lambda: Case(
        ours.multilabel_margin_loss,
        F.multilabel_margin_loss,
        {"input": torch.randn(4, 6), "target": torch.randint(-1, 6, (4, 6))},
    ),
    "cosine_similarity": lambda: Case(
        ours.cosine_similarity, F.cosine_similarity, {"x1": torch.randn(4, 6), "x2": torch.randn(4, 6)}
    ),
    "pairwise_distance": lambda: Case(
        ours.pairwise_distance, F.pairwise_distance, {"x1": torch.randn(4, 6), "x2": torch.randn(4, 6)}
    ),
    "cosine_embedding_loss": lambda: Case(
        ours.cosine_embedding_loss,
        F.cosine_embedding_loss,
        {"input1": torch.randn(4, 6), "input2": torch.randn(4, 6), "target": 2 * torch.randint(2, (4,)) - 1},
    ),
    "triplet_margin_loss": lambda: Case(
        ours.triplet_margin_loss,
        F.triplet_margin_loss,
        {"anchor": torch.randn(4, 6), "positive": torch.randn(4, 6), "negative": torch.randn(4, 6)},
    ),
    "ctc_loss": lambda: Case(
        lambda log_probs, targets: ours.ctc_loss(log_probs, targets, (8, 8), (3, 2)),
        lambda log_probs, targets: F.ctc_loss(log_probs, targets, (8, 8), (3, 2)),  # pyright: ignore
        {"log_probs": torch.randn(8, 2, 5).log_softmax(2), "targets": torch.randint(1, 5, (2, 3))},
    ),
    "linear_cross_entropy": lambda: Case(
        lambda **given: ours.linear_cross_entropy(**given) + given["input"].sum(),  # no gradient of input is 0
        lambda **given: cross_entropy_of_linear(**given) + given["input"].sum(),
        {
            "input": torch.randn(4, 6),
            "linear_weight": torch.randn(5, 6),
            "target": torch.randint(5, (4,)),
            "linear_bias": torch.randn(5),
            "weight": torch.rand(5),
        },
    ),
    "mse_loss": lambda: Case(ours.mse_loss, F.mse_loss, {"input": torch.randn(4, 6), "target": torch.randn(4, 6)}),
    "binary_cross_entropy": lambda: Case(
        ours.binary_cross_entropy,
        F.binary_cross_entropy,
        {"input": 0.1 + 0.8 * torch.rand(4, 6), "target": torch.rand(4, 6)},
    ),
    "binary_cross_entropy_with_logits": lambda: Case(
        ours.binary_cross_entropy_with_logits,
        F.binary_cross_entropy_with_logits,
        {"input": torch.randn(4, 6), "target": torch.rand(4, 6)},
    ),
    "gaussian_nll_loss": lambda: Case(
        ours.gaussian_nll_loss,
        F.gaussian_nll_loss,
        {"input": torch.randn(4, 6), "target": torch.randn(4, 6), "var": 0.5 + torch.rand(4, 6)},
    ),
    "multilabel_soft_margin_loss": lambda: Case(
        lambda **x: ours.multilabel_soft_margin_loss(**x, reduction="none"),
        lambda **x: F.multilabel_soft_margin_loss(**x, reduction="none"),
        {"input": torch.randn(4, 6), "target": torch.rand(4, 6), "weight": torch.rand(6)},
    ),
    "margin_ranking_loss": lambda: Case(
        ours.margin_ranking_loss,
        F.margin_ranking_loss,
        {"input1": torch.randn(4, 6), "input2": torch.randn(4, 6), "target": torch.randn(4, 6).sign()},
    ),
    "embedding": lambda: Case(
        ours.embedding, F.embedding, {"input": torch.randint(6, (4, 3)), "weight": torch.randn(6, 4)}
    ),
    "embedding_bag": lambda: Case(
        ours.embedding_bag, F.embedding_bag, {"input": torch.randint(6, (4, 3)), "weight": torch.randn(6, 4)}
    ),
    "dropout": lambda: Case(
        lambda input: ours.dropout(input, 1.0), lambda input: F.dropout(input, 1.0), {"input": torch.randn(4, 6)}
    ),
    "dropout2d": lambda: Case(
        lambda input: ours.dropout2d(input, 1.0), lambda input: F.dropout2d(input, 1.0), {"input": image()}
    ),
    "rrelu": lambda: Case(
        lambda input: ours.rrelu(input, 0.3, 0.3, training=True),
        lambda input: F.rrelu(input, 0.3, 0.3, training=True),
        {"input": torch.randn(4, 6)},
    ),
    "RNN": lambda: recurrent("RNN", "hx"),
    "LSTM": lambda: recurrent("LSTM", "hx", "cx"),
    "GRU": lambda: recurrent("GRU", "hx"),
    "RNNCell": lambda: recurrent("RNNCell", "hx", cell=True),
    "LSTMCell": lambda: recurrent("LSTMCell", "hx", "cx", cell=True),
    "GRUCell": lambda: recurrent("GRUCell", "hx", cell=True),
}
# Other names by which a message may call an argument.
ALIASES = {
    "hx": ("h0", "hx", "h"),
    "cx": ("c0", "hx", "c"),
    "input": ("input", "x"),
    "weight_ih_l0": ("parameters[0][0]",),
    "weight_hh_l0": ("parameters[0][1]",),
    "bias_ih_l0": ("parameters[0][2]",),
    "bias_hh_l0": ("parameters[0][3]",),
    "weight_ih": ("parameters[0][0]",),
    "weight_hh": ("parameters[0][1]",),
    "bias_ih": ("parameters[0][2]",),
    "bias_hh": ("parameters[0][3]",),
}


# Statistics have no gradient.
RUNNING = ("running_mean", "running_var")


def negated(x: Tensor) -> Tensor:
    """x with the lazy negative bit set."""
    y = torch.complex(torch.zeros_like(x), -x).conj().imag if x.is_floating_point() else torch._neg_view(-x)  # pyright: ignore[reportPrivateImportUsage]
    assert y.is_neg()
    return y


def conjugate_real(x: Tensor) -> Tensor:
    """x as the real part of a conjugate view."""
    return torch.complex(x, x).conj().real if x.is_floating_point() else x


def in_larger_storage(x: Tensor) -> Tensor:
    """x transposed in the middle of a larger storage, with gaps."""
    if x.dim() == 0:
        return misaligned(x)
    sizes = x.shape[::-1]
    wide = torch.full((3 * x.numel() + 7,), 97 if x.dtype is torch.int64 else torch.nan, dtype=x.dtype)
    strides = [2] * x.dim()
    for d in range(x.dim() - 2, -1, -1):
        strides[d] = strides[d + 1] * sizes[d + 1]
    view = wide.as_strided(sizes, strides, 5).permute(*reversed(range(x.dim())))
    return _Filled.apply(view, x)  # pyright: ignore[reportReturnType]


def misaligned(x: Tensor) -> Tensor:
    """x one element after an aligned address."""
    storage = torch.empty(x.numel() + 1, dtype=x.dtype)
    return _Filled.apply(storage[1:].view(x.shape), x)  # pyright: ignore[reportReturnType]


class _Filled(torch.autograd.Function):
    """The first tensor filled with the second's values, and the second's gradient."""

    @staticmethod
    def forward(ctx: Any, view: Tensor, x: Tensor) -> Tensor:
        view.copy_(x)
        ctx.mark_dirty(view)
        return view

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, grad


def wrapped(x: Tensor) -> Tensor:
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(x.detach(), x.detach())


def zeros_without_memory(x: Tensor) -> Tensor:
    return torch._efficientzerotensor(x.shape, dtype=x.dtype)  # pyright: ignore[reportPrivateImportUsage]


# For each operand: the same values in another representation; None if there is none.
SAME_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "negated": negated,
    "conjugate_real": conjugate_real,
    "in_larger_storage": in_larger_storage,
    "misaligned": misaligned,
}
# Layouts and kinds without gradients here: correct or refused.
OTHER_KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "wrapped": wrapped,
    "sparse_coo": lambda x: x.detach().to_sparse(),
    "sparse_csr": lambda x: x.detach().to_sparse_csr() if x.dim() > 1 else x.detach().to_sparse(),
    "mkldnn": lambda x: x.detach().to_mkldnn() if x.is_floating_point() else x.detach().to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor(list(x.detach())),
    "meta": lambda x: x.detach().to("meta"),
    "zero": zeros_without_memory,
    "other_dtype": lambda x: x.detach().long() if x.is_floating_point() else x.detach().float(),
}


def outputs(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in outputs(part)]


def gradients(function: Callable[..., Any], leaves: dict[str, Tensor], operands: dict[str, Tensor]) -> Any:
    """Outputs, and the gradients of the leaves for fixed upstream gradients."""
    result = outputs(function(**operands))
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in result]
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    return result, torch.autograd.grad(result, wanted, grads, allow_unused=True) if wanted else ()


def leaves_of(case: Case, operands: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Copies of a case's operands in `dtype`, which require a gradient if they can have one."""
    classes = ("target", "weight") if {"target", "weight"} <= operands.keys() else ()  # weights of classes
    constant = (*RUNNING, *classes)
    leaves = {}
    for name, x in operands.items():
        leaves[name] = x.to(dtype).clone() if x.is_floating_point() else x.clone()
        leaves[name].requires_grad_(x.is_floating_point() and name not in constant)
    return leaves


def assert_both_close(actual: Tensor | None, expected: Tensor | None, what: str) -> None:
    """Both are None, or both are tensors that agree, on the scale of 1 at least: terms of order 1 may cancel."""
    if actual is None or expected is None:
        assert actual is expected, what
        return
    assert actual.shape == expected.shape, what
    a, e = (torch.cat([x.detach().double().flatten(), torch.ones(1)]) for x in (actual, expected))
    assert_close(a, e, ERROR, what)


def names_of(operand: str) -> tuple[str, ...]:
    return (operand, *ALIASES.get(operand, ()))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of its prototype features
        yield


@pytest.mark.kernels
@pytest.mark.parametrize("name", CASES)
def test_same_values_in_another_guise(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    exact = leaves_of(case, case.operands, torch.float64)
    expected, expected_gradients = gradients(case.twin, exact, exact)
    for operand in case.operands:
        for kind, disguise in SAME_VALUES.items():
            leaves = leaves_of(case, case.operands)
            actual, actual_gradients = gradients(case.function, leaves, {**leaves, operand: disguise(leaves[operand])})
            what = f"{operand} {kind}"
            for a, e in zip(actual, expected, strict=True):
                assert_close(a, e, ERROR, what)
            for a, e in zip(actual_gradients, expected_gradients, strict=True):
                assert_both_close(a, e, f"gradient, {what}")


@pytest.mark.kernels
@pytest.mark.parametrize("name", CASES)
def test_repeated_values_with_stride_0(name: str) -> None:
    torch.manual_seed(1)
    case = CASES[name]()
    for operand, x in case.operands.items():
        for dimension in range(x.dim()):
            repeated = {**case.operands, operand: x.select(dimension, 0).unsqueeze(dimension).expand(x.shape)}
            leaves, exact = leaves_of(case, repeated), leaves_of(case, repeated, torch.float64)
            leaves[operand] = repeated[operand].detach().requires_grad_(leaves[operand].requires_grad)
            actual, actual_gradients = gradients(case.function, leaves, leaves)
            expected, expected_gradients = gradients(case.twin, exact, exact)
            for a, e in zip((*actual, *actual_gradients), (*expected, *expected_gradients), strict=True):
                assert_both_close(a, e, f"{operand}, dimension {dimension}")


@pytest.mark.parametrize("name", CASES)
def test_other_kinds_are_right_or_refused_by_name(name: str) -> None:
    torch.manual_seed(2)
    case = CASES[name]()
    for operand, x in case.operands.items():
        for kind, convert in OTHER_KINDS.items():
            hostile = {**case.operands, operand: convert(x)}
            what = f"{operand} {kind}"
            try:
                with torch.no_grad():
                    actual = outputs(case.function(**hostile))
            except (TypeError, ValueError, RuntimeError) as error:
                said = str(error)
                assert any(re.search(rf"(?<!\w){re.escape(n)}(?!\w)", said) for n in names_of(operand)), (what, said)
                assert "\n" not in said, (what, said)
                continue
            plain = torch.zeros_like(x) if kind == "zero" else x
            if kind == "other_dtype" and operand == "target":  # promoted
                plain = convert(x)
            if kind == "meta":
                assert all(y.is_meta for y in actual), what
                continue
            promoted = kind == "other_dtype" and (operand == "target" or not x.is_floating_point())
            assert kind in ("wrapped", "zero") or promoted, what
            for a, e in zip(actual, outputs(case.twin(**{**case.operands, operand: plain})), strict=True):
                assert_close(getattr(a, "a", a), e, ERROR, what)


@pytest.mark.parametrize("name", CASES)
def test_no_elements(name: str) -> None:
    """An empty batch: what PyTorch returns, or an error if PyTorch raises one."""
    if name in ("multi_margin_loss", "multilabel_margin_loss"):
        pytest.skip("PyTorch returns memory that it has not written")
    torch.manual_seed(3)
    case = CASES[name]()
    batch = {"RNN": 1, "LSTM": 1, "GRU": 1}.get(name, 0)
    empty = {
        key: x.narrow(batch if key == "input" else x.dim() - 2 if key in ("hx", "cx") else 0, 0, 0).clone()
        if key in BATCHED
        else x
        for key, x in case.operands.items()
    }
    leaves, exact = leaves_of(case, empty), leaves_of(case, empty, torch.float64)
    expected, expected_gradients = gradients(case.twin, exact, exact)
    actual, actual_gradients = gradients(case.function, leaves, leaves)
    for a, e in zip((*actual, *actual_gradients), (*expected, *expected_gradients), strict=True):
        assert_both_close(a, e, name)


UPSTREAM: dict[str, Callable[[Tensor], Tensor]] = {
    **SAME_VALUES,
    "stride_0": lambda x: x.flatten()[:1].expand(x.numel()).view(x.shape),
    "zero": zeros_without_memory,
}


@pytest.mark.kernels
@pytest.mark.parametrize("name", CASES)
def test_upstream_gradients(name: str) -> None:
    torch.manual_seed(4)
    case = CASES[name]()
    leaves, exact = leaves_of(case, case.operands), leaves_of(case, case.operands, torch.float64)
    y, z = outputs(case.function(**leaves))[0], outputs(case.twin(**exact))[0]
    wanted = [name for name, leaf in leaves.items() if leaf.requires_grad]
    for kind, disguise in UPSTREAM.items():
        upstream = disguise(torch.randn_like(y).detach())
        before = upstream.clone()
        actual = torch.autograd.grad(y, [leaves[n] for n in wanted], upstream, retain_graph=True, allow_unused=True)
        grad = upstream.clone().double()
        expected = torch.autograd.grad(z, [exact[n] for n in wanted], grad, retain_graph=True, allow_unused=True)
        assert torch.equal(upstream.clone(), before), kind
        for n, a, e in zip(wanted, actual, expected, strict=True):
            if a is not None and e is not None:
                assert_both_close(a, e, f"gradient of {n}, upstream {kind}")


@pytest.mark.kernels
@pytest.mark.parametrize("name", [*ACTIVATIONS, "Linear", "mse_loss", "dropout"])
def test_upstream_gradient_in_the_memory_of_an_input(name: str) -> None:
    torch.manual_seed(5)
    case = CASES[name]()
    if name in ("Linear",):
        case = module("Linear", torch.randn(6, 6), 6, 6)
    leaves, exact = leaves_of(case, case.operands), leaves_of(case, case.operands, torch.float64)
    y, z = outputs(case.function(**leaves))[0], outputs(case.twin(**exact))[0]
    upstream = leaves["input"].detach().flatten()[: y.numel()].view(y.shape)
    (actual,) = torch.autograd.grad(y, leaves["input"], upstream)
    (expected,) = torch.autograd.grad(z, exact["input"], upstream.double())
    assert_close(actual, expected, ERROR, "gradient")


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("kind", [*SAME_VALUES, "zero", "stride_0"])
def test_optimizers(name: str, kind: str) -> None:
    torch.manual_seed(6)
    options = {"lr": 0.1, "weight_decay": 0.1, **({"momentum": 0.9} if name == "SGD" else {})}
    start = [torch.randn(4, 6), torch.randn(5)]
    parameters, exact = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    optimizer = getattr(optim, name)(parameters, **options)
    twin = getattr(torch.optim, name)(exact, **options)
    for step in range(3):
        plain = [torch.randn_like(x) for x in start]
        for index, (p, q, grad) in enumerate(zip(parameters, exact, plain, strict=True)):
            hostile = UPSTREAM[kind](grad) if (step + index) % 2 else grad
            p.grad, q.grad = hostile, hostile.clone()
        optimizer.step()
        twin.step()
        for p, q in zip(parameters, exact, strict=True):
            assert_close(p, q, 1e-5, f"{kind}, step {step}")
