"""batch_norm against PyTorch in float64: ranks, memory orders, statistics, residuals and activations."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import GPU, forced_tiles
from helpers import (
    DTYPES,
    assert_close,
    check_against_reference,
    counted_launches,
    nan_filled_memory,
    non_contiguous,
    tolerance,
)
from torch import Tensor

from tinynet import Activation, nn
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import as_activation
from tinynet.ops.batch_norm import batch_norm, norm_operator

kernels = pytest.mark.kernels

SHAPES = [(33, 17), (4, 6, 11), (3, 5, 7, 9), (2, 130, 5, 3), (2, 3, 4, 5, 6), (2, 1, 3, 3), (129, 2, 1, 1)]
TRAINING = ["norm_statistics_kernel", "normalize_kernel", "norm_sums_kernel", "norm_input_gradient_kernel"]
ONE_PART = TRAINING[1::2]  # where one program has all of its channels
GIVEN = ["normalize_kernel", "norm_sums_kernel", "norm_parameter_gradients_kernel"]


def make(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", mean: float = 3.0) -> Tensor:
    return (2 * torch.randn(shape, device=device) + mean).to(dtype).requires_grad_()


def channels_last(x: Tensor) -> Tensor:
    """The same values with neighboring channels as neighbors in memory."""
    return x.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_(x.requires_grad)


def parameters(channels: int, dtype: torch.dtype, device: str, count: int = 2) -> list[Tensor]:
    return [(torch.randn(channels, device=device) + 0.5).to(dtype).requires_grad_() for _ in range(count)]


def reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    activation: Any = None,
    eps: float = 1e-5,
) -> Tensor:
    y = F.batch_norm(x, mean, variance, weight, bias, mean is None, 0.1, eps)
    return activation_reference(y if residual is None else y + residual, as_activation(activation))


def ours(
    x: Any,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    activation: Any = None,
    eps: float = 1e-5,
) -> Tensor:
    options: Any = {"activation": activation, "residual": residual}
    return batch_norm(x, mean, variance, weight, bias, mean is None, 0.1, eps, **options)


def check(*inputs: Tensor | None, **options: Any) -> list[str]:
    x = inputs[0]
    assert x is not None
    length = x.numel() // x.shape[1]
    # dX and the parameters' gradients are sums whose terms cancel.
    errors = [4 * tolerance(x.dtype, length), *[16 * tolerance(x.dtype, length)] * 2, 4 * tolerance(x.dtype), 1.0, 1.0]
    error = 2 * tolerance(x.dtype, length)
    return check_against_reference(
        partial(ours, **options), partial(reference, **options), *inputs, error=error, gradient_errors=errors
    )


@kernels
@pytest.mark.parametrize("order", [lambda x: x, channels_last])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_and_given_statistics(shape: tuple[int, ...], order: Callable[..., Tensor], device: str) -> None:
    torch.manual_seed(0)
    x, C = order(make(*shape, device=device)), shape[1]
    launches = check(x, *parameters(C, torch.float32, device), None)
    assert launches in (TRAINING, ONE_PART)
    statistics = torch.randn(C, device=device), torch.rand(C, device=device) + 0.1
    assert check(x, *parameters(C, torch.float32, device), None, *statistics) == GIVEN
    assert ours(x, None, None, None).stride() == x.stride() or 1 in shape


@kernels
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", Activation("leaky_relu", negative_slope=-0.5), None])
def test_fused_activation_and_residual(activation: Any, with_residual: bool, given: bool, device: str) -> None:
    torch.manual_seed(1)
    for order in (lambda x: x, channels_last):
        x, residual = order(make(3, 5, 7, 9, device=device)), make(3, 5, 7, 9, device=device, mean=0.0)
        statistics = (torch.randn(5, device=device), torch.rand(5, device=device) + 0.1) if given else ()
        launches = check(
            *(x, *parameters(5, torch.float32, device), residual if with_residual else None, *statistics),
            activation=activation,
        )
        assert launches == (GIVEN if given else TRAINING)


@kernels
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("parameter_dtype", ["own", "float32"])
def test_16_bit(dtype: torch.dtype, parameter_dtype: str, device: str) -> None:
    torch.manual_seed(2)
    own = dtype if parameter_dtype == "own" else torch.float32
    for order in (lambda x: x, channels_last):
        x = order(make(4, 9, 6, 5, dtype=dtype, device=device))
        check(x, *parameters(9, own, device), None)
        residual = make(4, 9, 6, 5, dtype=dtype, device=device)
        check(x, *parameters(9, own, device), residual, activation="relu")
        statistics = torch.randn(9, device=device, dtype=own), torch.rand(9, device=device, dtype=own) + 0.1
        check(x, *parameters(9, own, device), None, *statistics, activation="silu")


@kernels
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("wanted", [(1, 0, 0, 0), (0, 1, 1, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 1), (0, 1, 0, 1)])
def test_computes_only_wanted_gradients(wanted: tuple[int, ...], given: bool, device: str) -> None:
    torch.manual_seed(3)
    inputs = [make(4, 5, 6, device=device), *parameters(5, torch.float32, device), make(4, 5, 6, device=device)]
    for x, want in zip(inputs, wanted, strict=True):
        x.requires_grad_(bool(want))
    statistics = (torch.randn(5, device=device), torch.rand(5, device=device) + 0.1) if given else ()
    check(*inputs, *statistics, activation="relu")


@kernels
@pytest.mark.parametrize("absent", [(0,), (1,), (0, 1)])
def test_absent_parameters(absent: tuple[int, ...], device: str) -> None:
    torch.manual_seed(4)
    given = [None if i in absent else p for i, p in enumerate(parameters(5, torch.float32, device))]
    for activation in (None, "relu"):
        check(make(4, 5, 6, device=device), *given, None, activation=activation)


@kernels
@pytest.mark.parametrize("order", [lambda x: x, channels_last])
@pytest.mark.parametrize("tile", [(4, 8, 3, 4), (2, 16, 5, 4), (8, 4, 1, 4)], ids=str)
def test_small_tiles(tile: tuple[int, ...], order: Callable[..., Tensor], device: str) -> None:
    """Parts that begin within an image or a tile column, channels and positions that no tile divides."""
    torch.manual_seed(5)
    with forced_tiles(norm_tile=tile):
        x, residual = order(make(3, 5, 7, 3, device=device)), make(3, 5, 7, 3, device=device)
        check(x, *parameters(5, torch.float32, device), residual, activation="relu")
        check(x, *parameters(5, torch.float32, device), None, activation="silu")
        statistics = torch.randn(5, device=device), torch.rand(5, device=device) + 0.1
        check(x, *parameters(5, torch.float32, device), None, *statistics)
        running = torch.zeros(5, device=device), torch.ones(5, device=device)
        exact = [each.double() for each in running]
        batch_norm(x, running[0], running[1], training=True)
        F.batch_norm(x.double(), exact[0], exact[1], training=True)
        for a, e in zip(running, exact, strict=True):
            assert_close(a, e, 1e-5)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_image_by_image(dtype: torch.dtype, device: str) -> None:
    """As on CPUs where images are large: partial results of each image, in parts, and an own launch that adds them."""
    torch.manual_seed(5)
    merged = [TRAINING[0], "merge_statistics_kernel", TRAINING[1], "norm_sums_kernel", "sum_partials_kernel"]
    merged += ["norm_input_gradient_kernel", "norm_parameter_gradients_kernel"]
    with forced_tiles(norm_tile=(2, 8, 3, 4), walks_by_image=True):
        x, residual = make(3, 5, 7, 3, dtype=dtype, device=device), make(3, 5, 7, 3, dtype=dtype, device=device)
        assert check(x, *parameters(5, dtype, device), None) == merged
        check(x, *parameters(5, dtype, device), residual, activation="tanh")
        check(x, None, None, None, activation="silu")
        statistics = torch.randn(5, device=device), torch.rand(5, device=device) + 0.1
        assert check(x, *parameters(5, torch.float32, device), residual, *statistics) == GIVEN
        for wanted in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 1)):
            inputs = [x.detach().clone(), *parameters(5, torch.float32, device), residual.detach().clone()]
            for each, want in zip(inputs, wanted, strict=True):
                each.requires_grad_(bool(want))
            check(*inputs, activation="silu")
            check(*inputs, *statistics, activation="silu")
        running = torch.zeros(5, device=device), torch.ones(5, device=device)
        exact = [each.double() for each in running]
        batch_norm(x, running[0], running[1], training=True)
        F.batch_norm(x.double(), exact[0], exact[1], training=True)
        for a, e in zip(running, exact, strict=True):
            assert_close(a, e, 1e-5)


@kernels
def test_tiles_of_a_gpu(device: str) -> None:
    torch.manual_seed(6)
    with forced_tiles(current_target=GPU):
        for order in (lambda x: x, channels_last):
            check(order(make(6, 40, 9, 11, device=device)), *parameters(40, torch.float32, device), None)


@kernels
def test_strides(device: str) -> None:
    torch.manual_seed(7)
    wide = channels_last(make(4, 8, 6, 10, device=device)).detach()
    inputs = [
        non_contiguous(make(2, 3, 8, 6, device=device)),
        make(2, 6, 8, 3, device=device).detach().transpose(1, 3),
        make(3, 2, 8, 6, device=device).detach().transpose(0, 1),
        make(6, 9, device=device).detach().t(),
        make(6, 9, device=device).detach()[:, ::2],
        wide[:, 1:4],
        wide[::2],
        wide[:, :, 1:5],
        wide[:, :, :, ::2],
        make(1, 3, 8, 6, device=device).detach().expand(4, 3, 8, 6),
        make(4, 3, 1, 6, device=device).detach().expand(4, 3, 8, 6),
    ]
    for x in inputs:
        x.requires_grad_()
        check(x, *parameters(x.shape[1], torch.float32, device), None, activation="relu")


@kernels
@pytest.mark.parametrize("order", [lambda x: x, channels_last])
def test_upstream_gradient_of_a_sum(order: Callable[..., Tensor], device: str) -> None:
    x = order(make(3, 5, 7, device=device))
    weight, bias = parameters(5, torch.float32, device)
    ours(x, weight, bias, None, activation="gelu").sum().backward()
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    reference(exact[0], exact[1], exact[2], None, activation="gelu").sum().backward()
    for a, e in zip((x, weight, bias), exact, strict=True):
        assert a.grad is not None and e.grad is not None
        assert_close(a.grad, e.grad, 1e-5)


@kernels
def test_statistics_do_not_cancel(device: str) -> None:
    """A mean far from 0, and samples whose means differ from each other by far more than they deviate."""
    torch.manual_seed(8)
    x = torch.randn(8, 3, 700, device=device) + 1000
    weight, bias = torch.ones(3, device=device), torch.zeros(3, device=device)
    assert_close(ours(x, weight, bias, None), reference(x.double(), weight.double(), bias.double(), None), 1e-4)
    x[::2] -= 5000
    assert_close(ours(x, weight, bias, None), reference(x.double(), weight.double(), bias.double(), None), 1e-4)
    constant = torch.full((4, 3, 5), 7.25, device=device)
    assert not ours(constant, weight, bias, None, eps=1e-12).any()


@kernels
def test_values_that_are_not_finite_stay_in_their_channel(device: str) -> None:
    for order in (lambda x: x, channels_last):
        x = make(2, 3, 4, 5, device=device).detach()
        x[0, 1, 2, 3] = torch.nan
        x[1, 2, 0, 0] = torch.inf
        y = ours(order(x), None, None, None)
        assert y[:, 0].isfinite().all() and y[:, 1:].isnan().all()


@kernels
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_statistics(momentum: float | None, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(9)
    layer = nn.BatchNorm2d(5, momentum=momentum).to(device, dtype)
    twin = torch.nn.BatchNorm2d(5, momentum=momentum).to(device).double()
    for step in range(3):
        x = make(4, 5, 3, 6, device=device, dtype=dtype).detach()
        before = [buffer._version for buffer in layer.buffers()]
        layer(x)
        twin(x.double())
        assert all(buffer._version > old for buffer, old in zip(layer.buffers(), before, strict=True))
        assert layer.num_batches_tracked == twin.num_batches_tracked == step + 1
        for name in ("running_mean", "running_var"):
            assert getattr(layer, name).dtype is dtype
            assert_close(getattr(layer, name), getattr(twin, name), 4 * tolerance(dtype, 100), name)
    layer.eval()
    twin.eval()
    state = copy.deepcopy(layer.state_dict())
    x = make(4, 5, 3, 6, device=device, dtype=dtype)
    assert_close(layer(x), twin(x.double()), 8 * tolerance(dtype, 100))
    with pytest.raises(ValueError, match="expected 4D"):
        layer(x[0])
    layer.train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(x[:1, :, :1, :1])
    with pytest.raises(ValueError, match="residual must have the shape"):
        layer(x, x[0])
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name]), name


@kernels
def test_running_statistics_with_gaps_and_without_gradients(device: str) -> None:
    x = make(4, 3, 5, device=device).detach()
    pair = torch.zeros(3, 2, device=device)
    running_mean, running_var = pair.unbind(1)
    batch_norm(x, running_mean, running_var, training=True, momentum=1)
    assert_close(running_mean, x.mean((0, 2)), 1e-6)
    assert_close(running_var, x.transpose(0, 1).flatten(1).var(1), 1e-6)
    with torch.inference_mode():
        layer = nn.BatchNorm1d(3, momentum=1.0).to(device)
        layer(x)
        assert_close(layer.running_mean, running_mean, 1e-6)  # pyright: ignore[reportArgumentType]


@kernels
def test_second_derivatives_do_not_update_and_do_not_read_running_statistics(device: str) -> None:
    layer = nn.BatchNorm1d(3).to(device)
    x = make(6, 3, device=device)
    y = layer(x)
    layer(x)
    state = copy.deepcopy(layer.state_dict())
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    dx.square().sum().backward()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name]), name


@kernels
def test_frozen_and_untracked_layers(device: str) -> None:
    torch.manual_seed(10)
    cases: Any = {"affine": False}, {"track_running_stats": False}, {"affine": False, "track_running_stats": False}
    for options in cases:
        layer, twin = nn.BatchNorm1d(4, **options).to(device), torch.nn.BatchNorm1d(4, **options).to(device)
        x = make(5, 4, 3, device=device).detach()
        for _ in range(2):
            torch.testing.assert_close(layer(x), twin(x))
            layer.eval()
            twin.eval()
    layer = nn.BatchNorm2d(4).to(device).eval().requires_grad_(False)
    x = make(2, 4, 3, 3, device=device)
    with counted_launches() as launches:
        layer(x).sum().backward()
    assert launches == GIVEN[:2]


@kernels
def test_registered_operator(device: str) -> None:
    relu, gelu = "relu", "gelu"
    for order in (lambda x: x, channels_last):
        x = order(make(2, 3, 4, 5, device=device))
        weight, bias = parameters(3, torch.float32, device)
        statistics = torch.zeros(3, device=device), torch.ones(3, device=device)
        check_operator: Any = torch.library.opcheck
        check_operator(
            norm_operator.forward, (x, weight, bias, x.detach(), None, None, None, True, False, 0.1, 1e-5, relu, True)
        )
        check_operator(
            norm_operator.forward, (x, weight, None, None, None, None, None, True, True, 0.1, 1e-5, gelu, True)
        )
        check_operator(
            norm_operator.forward, (x, None, None, None, *statistics, None, False, False, 0.1, 1e-5, gelu, True)
        )
        saved = [x.detach(), weight.detach(), bias.detach(), None, *statistics]
        rest = 0.1, 1e-5, relu, [True, True, True, True, False, False, False]
        for training in (True, False):
            check_operator(norm_operator.backward, ([torch.randn_like(x)], saved, training, False, *rest))


@kernels
@pytest.mark.parametrize("training", [True, False])
def test_compiled_fullgraph(training: bool, device: str) -> None:
    torch.manual_seed(11)
    layer = nn.BatchNorm2d(3, activation="relu").to(device).train(training)
    twin = copy.deepcopy(layer)
    for order in (lambda x: x, channels_last):
        x, residual = order(make(2, 3, 6, 5, device=device)), make(2, 3, 6, 5, device=device)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        with counted_launches() as launches:
            y = compiled(x, residual)
            upstream = torch.randn_like(y)
            actual = torch.autograd.grad(y, [x, residual, *layer.parameters()], upstream)
        assert launches[-1] == TRAINING[-1] if training else launches == GIVEN
        expected_y = twin(x, residual)
        expected = torch.autograd.grad(expected_y, [x, residual, *twin.parameters()], upstream)
        torch.testing.assert_close(y, expected_y)
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


@kernels
def test_export_and_dynamic_batch(device: str) -> None:
    model = torch.nn.Sequential(nn.BatchNorm2d(3)).to(device).eval()
    x = make(2, 3, 6, 5, device=device).detach()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    assert "tinynet.batch_norm" in exported.graph_module.code
    for n in (2, 7):
        x = make(n, 3, 6, 5, device=device).detach()
        torch.testing.assert_close(exported.module()(x), model(x))


@kernels
def test_vmap_and_forward_mode(device: str) -> None:
    torch.manual_seed(12)
    layer = nn.BatchNorm1d(3).to(device).eval()
    x = make(4, 5, 3, device=device).detach()
    torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(each) for each in x]))
    tangents: list[Any] = [
        torch.func.jvp(lambda t, f=f: f(t, None, None, None), (x[0],), (x[1],))[1] for f in (ours, reference)
    ]
    torch.testing.assert_close(*tangents)


@kernels
def test_modules_and_lazy_modules(device: str) -> None:
    torch.manual_seed(13)
    for dimensions, name in enumerate(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"), 1):
        x = make(3, 4, *[5, 3, 2][:dimensions], device=device).detach()
        lazy = getattr(nn, f"Lazy{name}")(activation="relu", device=device)
        ours_, theirs = getattr(nn, name)(4, activation="relu").to(device), getattr(torch.nn, name)(4).to(device)
        with nan_filled_memory():
            expected = F.relu(theirs(x))
            torch.testing.assert_close(lazy(x), expected)
        assert type(lazy) is getattr(nn, name) and repr(lazy) == repr(ours_)
        assert repr(ours_) == repr(theirs)[:-1] + ", activation=relu)"
        for layer in (lazy, copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))):
            torch.testing.assert_close(layer(x), expected)
        theirs.load_state_dict(lazy.state_dict(), strict=True)


@kernels
def test_autocast_leaves_the_input_dtype(device: str) -> None:
    layer = nn.BatchNorm1d(3).to(device)
    with torch.autocast(device, torch.bfloat16):
        assert layer(torch.randn(4, 3, device=device)).dtype is torch.float32
        assert layer(torch.randn(4, 3, device=device, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_float64_and_empty_inputs_take_the_reference() -> None:
    layer, twin = nn.BatchNorm1d(3, activation="relu").double(), torch.nn.BatchNorm1d(3).double()
    x = make(4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x, x), F.relu(twin(x) + x))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
    assert nn.BatchNorm1d(3)(torch.empty(0, 3)).shape == (0, 3)


X = torch.randn(2, 3, 4)
ONES = torch.ones(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: batch_norm(ONES, None, None, training=True), ValueError, "input must be"),
        (lambda: batch_norm(X.int(), None, None, training=True), TypeError, "input must be floating point"),
        (lambda: batch_norm(X, None, None), ValueError, "running_mean and running_var must be given"),
        (lambda: batch_norm(X, ONES, None, training=True), ValueError, "must both be given"),
        (lambda: batch_norm(X, ONES[:2], ONES), ValueError, r"running_mean must be \[3\]"),
        (lambda: batch_norm(X, ONES, ONES, ONES[:2]), ValueError, r"weight must be \[3\]"),
        (lambda: batch_norm(X, ONES, ONES, ONES, ONES[:, None]), ValueError, r"bias must be \[3\]"),
        (lambda: batch_norm(X, ONES, ONES, ONES.double()), TypeError, "weight has dtype torch.float64"),
        (lambda: batch_norm(X, ONES, ONES, ONES.bfloat16()), TypeError, "weight has dtype torch.bfloat16"),
        (
            lambda: batch_norm(X.half(), ONES, ONES, ONES.half()),
            TypeError,
            "running_mean has dtype torch.float32, expected torch.float16",
        ),
        (lambda: batch_norm(X, ONES, ONES, residual=X[0]), ValueError, "residual must have the shape"),
        (lambda: batch_norm(X, ONES, ONES, residual=X.half()), TypeError, "residual has dtype torch.float16"),
        (lambda: batch_norm(X[:1, :, 0], None, None, training=True), ValueError, "more than 1 value per channel"),
        (lambda: batch_norm(X, None, None, training=True, eps=0.0), ValueError, "eps must be positive"),
        (lambda: batch_norm(X, ONES, ONES, momentum=None), TypeError, "momentum must be a number"),  # pyright: ignore
        (lambda: batch_norm(X, ONES, ONES, activation="rule"), ValueError, "activation"),
    ],
)
def test_refuses(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
