"""Activations: every function and derivative against float64 PyTorch, including kinks and extreme values."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from forced_tiles import forced_tiles
from helpers import (
    DTYPES,
    assert_close,
    check_against_reference,
    counted_launches,
    nan_filled_memory,
    non_contiguous,
    tolerance,
)

from tinynet import functional, nn
from tinynet.ops.activation import activate, activation_reference
from tinynet.ops.activation_like import as_activation
from tinynet_kernels.activation import activation_backward
from tinynet_kernels.activation_spec import PARAMETERS, Activation

NAMES = [name for name in PARAMETERS if name != "identity"]
OTHER_PARAMETERS = [
    Activation("leaky_relu", negative_slope=0.3),
    Activation("leaky_relu", negative_slope=-0.3),
    Activation("elu", alpha=0.5),
    Activation("elu", alpha=-0.5),
    Activation("celu", alpha=2.0),
    Activation("softplus", beta=2.0, threshold=5.0),
    Activation("hardtanh", min_val=-0.5, max_val=2.0),
    Activation("hardshrink", lambd=1.0),
    Activation("softshrink", lambd=0.25),
    Activation("threshold", threshold=0.5, value=-20.0),
    Activation("threshold", threshold=-1.0, value=2.0),
]


def points(dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random values, the kinks, tiny values and extreme ones; 16-bit types stay in their range."""
    torch.manual_seed(0)
    special = torch.tensor([0.0, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 6.0, 2.0, 1e-4, -1e-4, 30.0, -30.0, 60.0, -60.0])
    return torch.cat([torch.randn(1000) * 3, special]).to(device=device, dtype=dtype).requires_grad_()


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [*map(Activation, NAMES), *OTHER_PARAMETERS], ids=str)
def test_function_and_derivative(activation: Activation, dtype: torch.dtype, device: str) -> None:
    check_against_reference(
        lambda x: activate(x, activation),
        lambda x: activation_reference(x, activation),
        points(dtype, device),
        error=4 * tolerance(dtype),
    )


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["elu", "selu", "celu", "tanh", "softplus", "log_sigmoid", "silu", "mish"])
def test_relative_accuracy_of_small_values(name: str, device: str) -> None:
    """A tiny value is still accurate to a few digits: no cancellation."""
    x = torch.cat([torch.logspace(-6, 0, 60), -torch.logspace(-6, 1, 70)]).to(device)
    if name in ("softplus", "log_sigmoid"):
        x = -x.abs() * 2 if name == "softplus" else x.abs() * 2
    actual = activate(x, name).double()
    expected = activation_reference(x.double(), Activation(name))
    relative = ((actual - expected) / expected).abs()
    assert relative[expected.abs() > 1e-12].max().item() < 2e-5


@pytest.mark.kernels
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity(name: str, device: str) -> None:
    x = torch.tensor([float("nan"), float("inf")], device=device)
    actual, expected = activate(x, name).double(), activation_reference(x.double(), Activation(name))
    torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.kernels
def test_small_tiles(device: str) -> None:
    function = Activation("silu")
    x = torch.randn(7, 43, device=device, requires_grad=True)
    with forced_tiles(flat_block=(64, 4)):
        check_against_reference(
            lambda t: activate(t, function), lambda t: activation_reference(t, function), x, error=1e-6
        )


@pytest.mark.kernels
@pytest.mark.parametrize("rows", [21, 37])
@pytest.mark.parametrize("name", ["silu", "identity"])
def test_small_tiles_of_the_derivative_and_bias_gradient(name: str, rows: int, device: str) -> None:
    """Tiles of one program and of two, the last ones partial, of gradients with gaps between their rows."""
    function, columns = Activation(name), 19
    z = torch.randn(rows, columns, device=device)
    grad = non_contiguous(torch.randn(rows, columns, device=device))
    leaf = z.double().requires_grad_()
    (expected,) = torch.autograd.grad(activation_reference(leaf, function), leaf, grad.double())
    with forced_tiles(rows_and_columns=(4, 8, 4), tiles_per_program=8, flat_block=(8, 4)), nan_filled_memory():
        saved = None if name == "identity" else z
        dz, db = activation_backward(grad, saved, function, want_dz=True, want_bias=True)
    assert dz is not None and db is not None
    assert_close(dz, expected, 1e-6)
    assert_close(db, expected.sum(0), 1e-6)


@pytest.mark.kernels
def test_layouts(device: str) -> None:
    for x in (
        torch.randn(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last),
        torch.randn(6, 7, device=device).t(),
        torch.randn(4, 12, device=device)[:, ::2],
        torch.randn(5, 1, device=device).expand(5, 6),
        torch.randn((), device=device),
    ):
        check_against_reference(
            lambda t: activate(t, "silu"),
            lambda t: activation_reference(t, Activation("silu")),
            x.requires_grad_(),
            error=1e-6,
        )


@pytest.mark.kernels
def test_registered_operator_and_compile(device: str) -> None:
    from tinynet.ops.activation import activation_operator

    x = torch.randn(3, 4, device=device, requires_grad=True)
    torch.library.opcheck(activation_operator.forward, (x, "leaky_relu 0.1", True))
    torch.library.opcheck(activation_operator.backward, ([x.detach()], [x.detach()], "silu", [True]))
    compiled = torch.compile(lambda t: activate(t, "mish"), fullgraph=True, backend="aot_eager")
    with counted_launches() as launches:
        compiled(x).sum().backward()
    assert launches == ["activation_forward_kernel", "activation_input_gradient_kernel"]


def test_description() -> None:
    function = Activation("leaky_relu", negative_slope=0.2)
    assert function == pickle.loads(pickle.dumps(function)) == copy.deepcopy(function)
    assert hash(function) == hash(Activation("leaky_relu", negative_slope=0.2))
    assert function != Activation("leaky_relu")
    assert str(Activation("relu")) == "relu" and "negative_slope=0.2" in str(function)
    with pytest.raises(AttributeError):
        function.name = "relu"


@pytest.mark.parametrize(
    ("name", "parameters", "error", "message"),
    [
        ("rleu", {}, ValueError, "got 'rleu'"),
        ("relu", {"slope": 1.0}, TypeError, "no parameter 'slope'"),
        ("elu", {"alpha": float("nan")}, ValueError, "alpha must be finite"),
        ("elu", {"alpha": "1"}, TypeError, "alpha must be a number"),
        ("celu", {"alpha": 0.0}, ValueError, "alpha must not be 0"),
        ("hardtanh", {"min_val": 1.0, "max_val": 0.0}, ValueError, "max_val must be above"),
        ("softshrink", {"lambd": -1.0}, ValueError, "lambd must not be negative"),
    ],
)
def test_refuses(name: str, parameters: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Activation(name, **parameters)


def test_refuses_other_types() -> None:
    with pytest.raises(TypeError, match="floating point"):
        activate(torch.arange(3), "relu")


MODULES = [
    *(torch.nn.ReLU(), torch.nn.LeakyReLU(0.3), torch.nn.ReLU6(), torch.nn.ELU(0.5), torch.nn.SELU()),
    *(torch.nn.CELU(2.0), torch.nn.GELU(), torch.nn.GELU("tanh"), torch.nn.SiLU(), torch.nn.Mish()),
    *(torch.nn.Sigmoid(), torch.nn.LogSigmoid(), torch.nn.Tanh(), torch.nn.Softplus(2.0, 5.0), torch.nn.Softsign()),
    *(torch.nn.Hardtanh(-0.5, 2.0), torch.nn.Identity(), torch.nn.Hardswish(), torch.nn.Hardsigmoid()),
    *(torch.nn.Hardshrink(1.0), torch.nn.Softshrink(0.25), torch.nn.Tanhshrink(), torch.nn.Threshold(0.5, -20.0)),
]


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_a_module_stands_for_its_function(module: torch.nn.Module) -> None:
    x = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(activation_reference(x, as_activation(module)), module(x))
    if not isinstance(module, torch.nn.Identity):
        ours = getattr(nn, type(module).__name__)
        twin = ours.__new__(ours)
        twin.__dict__.update(module.__dict__)
        assert as_activation(twin) == as_activation(module)


def test_a_function_stands_for_itself() -> None:
    for function, expected in (
        (torch.relu, Activation("relu")),
        (torch.nn.functional.leaky_relu, Activation("leaky_relu")),
        (functional.leaky_relu, Activation("leaky_relu")),
        (functional.logsigmoid, Activation("log_sigmoid")),
        (torch.special.expit, Activation("sigmoid")),
        (partial(torch.nn.functional.elu, alpha=2.0, inplace=True), Activation("elu", 2.0)),
        (partial(torch.nn.functional.gelu, approximate="tanh"), Activation("gelu_tanh")),
        (partial(functional.threshold, threshold=1.0, value=2.0), Activation("threshold", 1.0, 2.0)),
    ):
        assert as_activation(function) == expected
    assert nn.Linear(2, 3, activation=torch.nn.LeakyReLU(0.3)).activation == Activation("leaky_relu", 0.3)


@pytest.mark.parametrize(
    "wrong",
    [nn.ReLU, torch.nn.Linear(2, 2), nn.PReLU(), print, torch.abs, torch.nn.functional.threshold, 3, [1]],
)
def test_what_is_no_activation(wrong: object) -> None:
    with pytest.raises(TypeError, match="activation must be a name, an Activation, an activation module or function"):
        as_activation(wrong)  # pyright: ignore[reportArgumentType]


def test_parameters_by_position() -> None:
    assert Activation("softplus", 2.0, threshold=5.0) == Activation("softplus", beta=2.0, threshold=5.0)
    with pytest.raises(TypeError, match="has 1 parameters, got 2 by position"):
        Activation("elu", 1.0, 2.0)
    with pytest.raises(TypeError, match="alpha came by position and by name"):
        Activation("elu", 1.0, alpha=2.0)
