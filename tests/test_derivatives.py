"""Derivatives beyond the first backward: second ones, batched ones, forward mode, and unusual upstream gradients.

The functions run through the kernels in float32 and are compared with PyTorch's own layer in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, counted_launches
from torch import Tensor
from torch.autograd import forward_ad

from tinynet import nn

pytestmark = pytest.mark.kernels

ERROR = 1e-4
# The activations that differ in what their backward saves, or whose second derivative is not zero.
ACTIVATIONS = ["relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu", "mish", "softplus", "hardtanh"]


class Case:
    """A layer of ours, its PyTorch twin with the same parameters in float64, and an input."""

    def __init__(self, ours: torch.nn.Module, twin: torch.nn.Module, *shape: int, channels_last: bool = False) -> None:
        twin.load_state_dict(ours.state_dict())
        self.ours, self.twin = ours, twin.double()
        self.x = torch.randn(shape)
        if channels_last:
            self.x = self.x.contiguous(memory_format=torch.channels_last)


class Activated(torch.nn.Module):
    """A PyTorch layer, then a function, then with `pool` a 2 x 2 max-pooling; its parameters are the layer's."""

    def __init__(self, layer: torch.nn.Module, activation: str, pool: bool = False) -> None:
        super().__init__()
        self.layer, self.activation, self.pool = layer, activation, pool

    def load_state_dict(self, state: Any, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.layer.load_state_dict(state)

    def forward(self, x: Tensor) -> Tensor:
        y = getattr(torch, self.activation, getattr(F, self.activation, None))(self.layer(x))  # pyright: ignore
        return F.max_pool2d(y, 2) if self.pool else y


def linear(activation: str) -> Case:
    return Case(nn.Linear(6, 5, activation=activation), Activated(torch.nn.Linear(6, 5), activation), 7, 6)


def convolution(activation: str, channels_last: bool, pool: bool = False) -> Case:
    ours = nn.Conv2d(3, 4, 3, padding=1, activation=activation, pool=2 if pool else 1)
    twin = Activated(torch.nn.Conv2d(3, 4, 3, padding=1), activation, pool)
    return Case(ours, twin, 2, 3, 6, 5, channels_last=channels_last)


def same(name: str, *shape: int, **options: Any) -> Case:
    """The layer of this name in both libraries."""
    arguments = options.pop("arguments", ())
    return Case(
        getattr(nn, name)(*arguments, **options),
        getattr(torch.nn, name)(*arguments, **options),
        *shape,
    )


def batch_norm(activation: str) -> Case:
    ours = nn.BatchNorm1d(4, activation=activation)
    return Case(ours, Activated(torch.nn.BatchNorm1d(4), activation), 3, 4, 5)


def chain() -> Case:
    layers = nn.Linear(6, 8, activation="tanh"), nn.Linear(8, 5, activation="gelu"), nn.Linear(5, 3)
    twin = torch.nn.Sequential(
        Activated(torch.nn.Linear(6, 8), "tanh"), Activated(torch.nn.Linear(8, 5), "gelu"), torch.nn.Linear(5, 3)
    )
    for ours, theirs in zip(layers, twin, strict=True):
        theirs.load_state_dict(ours.state_dict())
    case = Case(torch.nn.Module(), torch.nn.Module(), 4, 6)
    case.ours, case.twin = nn.Sequential(*layers), twin.double()
    return case


class WithTarget(torch.nn.Module):
    """A loss of one argument."""

    def __init__(self, loss: torch.nn.Module, target: Tensor) -> None:
        super().__init__()
        self.loss, self.target = loss, target

    def forward(self, x: Tensor) -> Tensor:
        target = self.target.to(x.dtype) if self.target.is_floating_point() else self.target
        return self.loss(x, target)


def loss(name: str, target: Tensor, *shape: int, **options: Any) -> Case:
    ours, twin = (WithTarget(getattr(library, name)(**options), target) for library in (nn, torch.nn))
    return Case(ours, twin, *shape)


class WithSecond(torch.nn.Module):
    """A distance, or a loss of pairs, as a function of one of them."""

    def __init__(self, function: torch.nn.Module, *more: Tensor) -> None:
        super().__init__()
        self.function, self.more = function, more

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(y.to(x.dtype) if y.is_floating_point() else y for y in self.more))


def with_second(name: str, *more: Tensor, **options: Any) -> Case:
    second = torch.randn(3, 4)
    ours, twin = (WithSecond(getattr(library, name)(**options), second, *more) for library in (nn, torch.nn))
    return Case(ours, twin, 3, 4)


def embedding() -> Case:
    return same("Embedding", 1, arguments=(7, 4), padding_idx=2)


CASES: dict[str, Callable[[], Case]] = {
    **{
        f"activation-{name}": (lambda name=name: same(name, 3, 5))
        for name in ("ReLU", "Tanh", "Sigmoid", "GELU", "ELU")
    },
    **{f"linear-{name}": (lambda name=name: linear(name)) for name in ACTIVATIONS},
    **{f"conv-{name}": (lambda name=name: convolution(name, channels_last=True)) for name in ACTIVATIONS},
    "conv-contiguous": lambda: convolution("tanh", channels_last=False),
    "conv-pooled": lambda: convolution("gelu", channels_last=True, pool=True),
    "conv-depthwise": lambda: same("Conv2d", 2, 4, 6, 6, arguments=(4, 8, 3, 2, 1, 1, 4)),
    "chain": chain,
    **{f"batch_norm-{name}": (lambda name=name: batch_norm(name)) for name in ("relu", "tanh", "gelu")},
    "batch_norm-images": lambda: same("BatchNorm2d", 2, 3, 4, 5, arguments=(3,)),
    "instance_norm": lambda: same("InstanceNorm2d", 2, 3, 4, 5, arguments=(3,), affine=True),
    "max_pool": lambda: same("MaxPool2d", 2, 3, 7, 6, arguments=(3, 2, 1)),
    "max_pool-dilated": lambda: same(
        "MaxPool2d", 2, 3, 9, 8, arguments=((2, 3), (1, 2), (0, 1), (3, 2)), ceil_mode=True
    ),
    "avg_pool": lambda: same("AvgPool2d", 2, 3, 7, 6, arguments=(3, 2, 1), ceil_mode=True, count_include_pad=False),
    "adaptive_avg_pool": lambda: same("AdaptiveAvgPool2d", 2, 3, 7, 6, arguments=((3, 2),)),
    "adaptive_max_pool": lambda: same("AdaptiveMaxPool2d", 2, 3, 7, 6, arguments=((3, 2),)),
    "lp_pool": lambda: same("LPPool1d", 2, 3, 7, arguments=(2, 3, 2), ceil_mode=True),
    "max_pool3d": lambda: same("MaxPool3d", 1, 2, 4, 5, 4, arguments=(2, 1)),
    "glu": lambda: same("GLU", 3, 6),
    "group_norm": lambda: same("GroupNorm", 3, 4, 5, arguments=(2, 4)),
    "layer_norm": lambda: same("LayerNorm", 3, 4, 5, arguments=(5,)),
    "layer_norm-gelu": lambda: Case(
        nn.LayerNorm(5, activation="gelu"), Activated(torch.nn.LayerNorm(5), "gelu"), 3, 4, 5
    ),
    "local_response_norm": lambda: same("LocalResponseNorm", 3, 4, 5, arguments=(3, 0.5)),
    "log_softmax": lambda: same("LogSoftmax", 3, 4, 5, arguments=(1,)),
    "prelu": lambda: same("PReLU", 3, 4, 5, arguments=(4,)),
    "upsample": lambda: same("Upsample", 2, 3, 4, 5, scale_factor=(1.5, 2), mode="bilinear"),
    "rrelu": lambda: same("RReLU", 3, 5, arguments=(0.3, 0.3)),
    "rms_norm": lambda: same("RMSNorm", 3, 4, 5, arguments=(5, 1e-6)),
    "softmax": lambda: same("Softmax", 3, 4, 5, arguments=(1,)),
    "softmin": lambda: same("Softmin", 3, 4, 5, arguments=(-1,)),
    "rnn": lambda: same("RNN", 4, 3, 5, arguments=(5, 4)),
    "lstm": lambda: same("LSTM", 4, 3, 5, arguments=(5, 6), bidirectional=True, proj_size=3),
    "gru": lambda: same("GRU", 4, 3, 5, arguments=(5, 4), num_layers=2),
    "lstm_cell": lambda: same("LSTMCell", 3, 5, arguments=(5, 4)),
    "cross_entropy": lambda: loss("CrossEntropyLoss", torch.tensor([1, -100, 0]), 3, 4, label_smoothing=0.1),
    "cross_entropy-weighted": lambda: loss("CrossEntropyLoss", torch.rand(3, 4).softmax(1), 3, 4, reduction="sum"),
    "nll": lambda: loss("NLLLoss", torch.tensor([1, -100, 0]), 3, 4),
    "multi_margin": lambda: loss("MultiMarginLoss", torch.tensor([1, 3, 0]), 3, 4, p=2),
    "multilabel_margin": lambda: loss("MultiLabelMarginLoss", torch.tensor([[1, 3, -1, 0]] * 3), 3, 4),
    "cosine_embedding": lambda: with_second("CosineEmbeddingLoss", torch.tensor([1, -1, 1]), margin=-1.0),
    "triplet_margin": lambda: with_second("TripletMarginLoss", torch.randn(3, 4), margin=5.0, swap=True),
    "cosine_similarity": lambda: with_second("CosineSimilarity"),
    "pairwise_distance": lambda: with_second("PairwiseDistance", p=3.0),
    "mse": lambda: loss("MSELoss", torch.randn(3, 4), 3, 4, reduction="none"),
    "huber": lambda: loss("HuberLoss", torch.randn(3, 4), 3, 4),
    "binary_cross_entropy": lambda: loss("BCEWithLogitsLoss", torch.rand(3, 4), 3, 4, pos_weight=torch.rand(4)),
    "kl_div": lambda: loss("KLDivLoss", torch.rand(3, 4), 3, 4, reduction="batchmean"),
    "multilabel": lambda: loss("MultiLabelSoftMarginLoss", torch.rand(3, 4), 3, 4, reduction="none"),
    "poisson": lambda: loss("PoissonNLLLoss", torch.rand(3, 4), 3, 4, reduction="sum"),
    "soft_margin": lambda: loss("SoftMarginLoss", torch.randn(3, 4).sign(), 3, 4),
}


# PyTorch itself has no second derivatives of these.
FIRST_DERIVATIVES = ("multi_margin", "multilabel_margin")


def first_output(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def second_order(model: torch.nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """dX, and the gradients of |dX|^2 with respect to x, the upstream gradient and every parameter."""
    x, upstream = x.clone().requires_grad_(), upstream.clone().requires_grad_()
    parameters = list(model.parameters())
    y = first_output(model(x))
    (dx,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    inputs = [x, upstream, *parameters]
    result = torch.autograd.grad(dx.square().sum(), inputs, allow_unused=True)
    filled = [torch.zeros_like(t) if g is None else g for g, t in zip(result, inputs, strict=True)]
    return [dx, *filled]


@pytest.mark.parametrize("name", [name for name in CASES if name not in FIRST_DERIVATIVES])
def test_second_derivatives(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    with counted_launches() as launches:
        upstream = torch.randn_like(first_output(case.ours(case.x)))
        actual = second_order(case.ours, case.x, upstream)
    assert launches, "no kernel was launched by the forward"
    expected = second_order(case.twin, case.x.double(), upstream.double())
    for position, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, e, ERROR, f"derivative {position}")


@pytest.mark.parametrize("name", CASES)
def test_batched_gradients(name: str) -> None:
    torch.manual_seed(1)
    case = CASES[name]()
    x, exact = case.x.clone().requires_grad_(), case.x.double().requires_grad_()
    y = first_output(case.ours(x))
    upstream = torch.randn(3, *y.shape)
    (actual,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True)
    for a, u in zip(actual, upstream, strict=True):
        (e,) = torch.autograd.grad(first_output(case.twin(exact)), exact, u.double())
        assert_close(a, e, ERROR, "gradient")


def test_hessians_and_jacobians() -> None:
    model = nn.Sequential(nn.Linear(3, 4, activation="tanh"), nn.Linear(4, 2))
    x = torch.randn(3)
    twin = lambda x: F.linear(torch.tanh(F.linear(x, *parameters[:2])), *parameters[2:])  # noqa: E731
    parameters = [parameter.detach().double() for parameter in model.parameters()]
    functional: Any = torch.autograd.functional
    square: Callable[..., Any] = lambda f: lambda x: f(x).square().sum()  # noqa: E731
    for options in ({}, {"vectorize": True}, {"vectorize": True, "strategy": "forward-mode"}):
        jacobian = functional.jacobian(model, x, **options)
        assert_close(jacobian, functional.jacobian(twin, x.double()), ERROR, f"jacobian {options}")
    for vectorize in (False, True):
        hessian = functional.hessian(square(model), x, vectorize=vectorize)
        assert_close(hessian, functional.hessian(square(twin), x.double()), ERROR, "hessian")
    _, product = functional.hvp(square(model), x, torch.ones(3))
    _, exact = functional.hvp(square(twin), x.double(), torch.ones(3).double())
    assert_close(product, exact, ERROR, "product")


@pytest.mark.parametrize(
    "name", ["activation-Tanh", "linear-gelu", "conv-tanh", "batch_norm-tanh", "avg_pool", "lstm", "gru", "mse"]
)
def test_forward_mode(name: str) -> None:
    torch.manual_seed(2)
    case = CASES[name]()
    tangent = torch.randn_like(case.x)
    with forward_ad.dual_level():
        actual = forward_ad.unpack_dual(first_output(case.ours(forward_ad.make_dual(case.x, tangent)))).tangent
    _, expected = torch.autograd.functional.jvp(
        lambda x: first_output(case.twin(x)), case.x.double(), tangent.double(), create_graph=False
    )
    assert actual is not None
    assert_close(actual, expected, ERROR, "tangent")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "name", ["chain", "conv-gelu", "conv-contiguous", "batch_norm-gelu", "lstm", "gru", "max_pool", "cross_entropy"]
)
def test_second_derivatives_of_registered_operators(name: str) -> None:
    """A subclass of Tensor takes the operator, whose gradient is differentiated too."""

    class Named(torch.Tensor):
        pass

    torch.manual_seed(3)
    case = CASES[name]()
    upstream = torch.randn_like(first_output(case.ours(case.x)))
    actual = second_order(case.ours, case.x.as_subclass(Named), upstream)  # pyright: ignore[reportArgumentType]
    expected = second_order(case.twin, case.x.double(), upstream.double())
    for a, e in zip(actual, expected, strict=True):
        assert_close(a.as_subclass(torch.Tensor), e, ERROR, "derivative")  # pyright: ignore[reportArgumentType]


def test_penalty_of_a_gradient_trains_as_in_pytorch() -> None:
    """The penalty of WGAN-GP: every parameter's gradient goes through a second derivative."""
    torch.manual_seed(4)
    ours = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1, activation="leaky_relu"),
        nn.Flatten(),
        nn.Linear(36, 8, activation="silu"),
        nn.Linear(8, 1),
    )
    twin = torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 4, 3, 2, 1), torch.nn.LeakyReLU(), torch.nn.Flatten()),
        *(torch.nn.Linear(36, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1)),
    )
    for parameter, other in zip(twin.parameters(), ours.parameters(), strict=True):
        parameter.data.copy_(other.data)
    twin.double()
    x = torch.randn(4, 1, 6, 6)

    def gradients(model: torch.nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        x = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return torch.autograd.grad(
            (dx.flatten(1).norm(dim=1) - 1).square().mean(), list(model.parameters()), allow_unused=True
        )

    for actual, expected in zip(gradients(ours, x), gradients(twin, x.double()), strict=True):
        assert (actual is None) == (expected is None) or actual is None or not actual.any()
        if expected is not None:
            assert_close(actual, expected, ERROR, "gradient")


def test_changed_inputs_are_an_error_where_only_second_derivatives_read_them() -> None:
    layer = nn.Linear(4, 3, activation="gelu")
    x = torch.randn(2, 4, requires_grad=True)
    y = layer(x)
    with torch.no_grad():
        layer.bias.add_(1)
    y.sum().backward(retain_graph=True)  # as in PyTorch, a first derivative reads no bias
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
