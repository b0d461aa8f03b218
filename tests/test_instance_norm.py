"""instance_norm against PyTorch in float64: ranks, memory orders, running statistics, unbatched inputs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, assert_close, check_against_reference, counted_launches, non_contiguous, tolerance
from test_batch_norm import channels_last, make, parameters
from torch import Tensor

from tinynet import nn
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import as_activation
from tinynet.ops.instance_norm import instance_norm
from tinynet_kernels.reduction import Blocks

kernels = pytest.mark.kernels

SHAPES = [(4, 6, 11), (3, 5, 7, 9), (2, 130, 5, 3), (2, 3, 4, 5, 6), (2, 1, 3, 3), (1, 4, 20)]
BACKWARD = ["norm_sums_kernel", "norm_input_gradient_kernel", "norm_parameter_gradients_kernel"]


def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: Any = None) -> Tensor:
    return activation_reference(F.instance_norm(x, None, None, weight, bias), as_activation(activation))


def check(*inputs: Tensor | None, activation: Any = None) -> list[str]:
    x = inputs[0]
    assert x is not None
    allowed = 4 * tolerance(x.dtype, x.numel() // x.shape[1])
    return check_against_reference(
        lambda x, weight, bias: instance_norm(x, None, None, weight, bias, activation=activation),
        partial(reference, activation=activation),
        *inputs,
        error=allowed,
        gradient_errors=[allowed, 4 * allowed, 4 * allowed],
    )


@kernels
@pytest.mark.parametrize("order", [lambda x: x, channels_last])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_gradients(shape: tuple[int, ...], order: Callable[..., Tensor], device: str) -> None:
    torch.manual_seed(0)
    x = order(make(*shape, device=device))
    launches = check(x, *parameters(shape[1], torch.float32, device), activation="relu")
    assert len(launches) <= 5 and (shape[0] == 1 or launches[-2:] == BACKWARD[1:])
    assert check(x, None, None)[-1] == BACKWARD[1]


@kernels
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_16_bit(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(1)
    for order in (lambda x: x, channels_last):
        x = order(make(3, 9, 6, 5, dtype=dtype, device=device))
        for own in (dtype, torch.float32):
            check(x, *parameters(9, own, device), activation="gelu")


@kernels
@pytest.mark.parametrize("order", [lambda x: x, channels_last])
@pytest.mark.parametrize("tile", [(4, 8, 3, 4), (2, 16, 2, 4)], ids=str)
def test_small_tiles(tile: tuple[int, ...], order: Callable[..., Tensor], device: str) -> None:
    torch.manual_seed(2)
    with forced_tiles(norm_tile=tile):
        check(order(make(3, 5, 7, 5, device=device)), *parameters(5, torch.float32, device), activation="relu")


@kernels
def test_gradients_of_parameters_add_blocks_of_parts(device: str) -> None:
    """As on a GPU; the last block of parts and that of channels are cut off."""
    torch.manual_seed(7)
    with forced_tiles(norm_tile=(4, 8, 3, 4), blocks_of_parts=Blocks(4, 4, 1, 4)):
        assert check(make(5, 6, 7, 5, device=device), *parameters(6, torch.float32, device))[-3:] == BACKWARD


@kernels
def test_strides(device: str) -> None:
    torch.manual_seed(3)
    wide = channels_last(make(4, 8, 6, 10, device=device)).detach()
    for x in (
        non_contiguous(make(2, 3, 8, 6, device=device)),
        make(3, 2, 8, 6, device=device).detach().transpose(0, 1),
        wide[:, 1:4],
        wide[::2],
        wide[:, :, :, ::2],
        make(1, 3, 8, 6, device=device).detach().expand(4, 3, 8, 6),
    ):
        check(x.detach().requires_grad_(), *parameters(x.shape[1], torch.float32, device))


@kernels
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_modules_with_running_statistics(dimensions: int, device: str) -> None:
    torch.manual_seed(4)
    name = f"InstanceNorm{dimensions}d"
    options: Any = {"affine": True, "track_running_stats": True, "momentum": 0.3}
    layer = getattr(nn, f"Lazy{name}")(**options, activation="relu", device=device)
    twin = getattr(torch.nn, name)(4, **options).to(device).double()
    for _ in range(2):
        x = make(3, 4, *[5, 3, 2][:dimensions], device=device).detach()
        assert_close(layer(x), twin(x.double()).relu(), 1e-5)
    assert type(layer) is getattr(nn, name)
    assert repr(layer) == repr(twin)[:-1] + ", activation=relu)"
    for key in ("running_mean", "running_var"):
        assert_close(getattr(layer, key), getattr(twin, key), 1e-5, key)
    assert_close(layer(x[0]), twin(x[0].double()).relu(), 1e-5)
    layer.eval()
    twin.eval()
    state = copy.deepcopy(layer.state_dict())
    with counted_launches() as launches:
        assert_close(layer(x), twin(x.double()).relu(), 1e-5)
        assert_close(layer(x[0]), twin(x[0].double()).relu(), 1e-5)
    assert launches == ["normalize_kernel"] * 2
    torch.testing.assert_close(layer.state_dict(), state, rtol=0, atol=0)


@kernels
def test_compiled_fullgraph(device: str) -> None:
    torch.manual_seed(5)
    layer = nn.InstanceNorm2d(3, affine=True, track_running_stats=True).to(device)
    twin, x = copy.deepcopy(layer), make(2, 3, 6, 5, device=device)
    with counted_launches() as launches:
        y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        upstream = torch.randn_like(y)
        actual = torch.autograd.grad(y, [x, *layer.parameters()], upstream)
    assert launches[-2:] == BACKWARD[1:]
    torch.testing.assert_close(actual, torch.autograd.grad(twin(x), [x, *twin.parameters()], upstream))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


X = torch.randn(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: instance_norm(X[:, :, :1]), ValueError, "more than 1 spatial element"),
        (lambda: instance_norm(X[0]), ValueError, "more than 1 spatial element"),
        (lambda: instance_norm(X, use_input_stats=False), ValueError, "running_mean and running_var must be given"),
        (lambda: instance_norm(X.int()), TypeError, "input must be floating point"),
        (lambda: instance_norm(X, weight=X[0, 0]), ValueError, r"weight must be \[3\]"),
        (lambda: nn.InstanceNorm1d(5, affine=True)(X), ValueError, "to match num_features"),
        (lambda: nn.InstanceNorm2d(3)(X[0]), ValueError, "expected 3D or 4D input"),
    ],
)
def test_refuses(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_other_channels_without_parameters_warn_as_in_pytorch() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nn.InstanceNorm1d(5)(X)
    assert any("num_features" in str(warning.message) for warning in caught)
