"""softmax, log_softmax and softmin against PyTorch in float64: any dimension, any strides, whole and long lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, assert_close, check_against_reference, counted_launches, non_contiguous, tolerance

import tinynet.functional as ours
from tinynet import nn
from tinynet.ops.softmax import softmax_operator
from tinynet_kernels.softmax import SoftmaxTile

pytestmark = pytest.mark.kernels

FUNCTIONS = ["softmax", "log_softmax", "softmin"]
SHAPES = [((5, 8), -1), ((3, 6, 4, 5), 1), ((3, 6, 4, 5), 0), ((70, 17), 1), ((9,), 0), ((), 0), ((2, 130, 3), -2)]
LAUNCHES = ["softmax_forward_kernel", "softmax_backward_kernel"]


def check(function: str, x: torch.Tensor, dim: int, **options: Any) -> list[str]:
    return check_against_reference(
        lambda t: getattr(ours, function)(t, dim), lambda t: getattr(F, function)(t, dim), x.requires_grad_(), **options
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, dim", SHAPES)
def test_forward_and_gradient(shape: tuple[int, ...], dim: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    function = FUNCTIONS[len(shape) % 3]
    x = (torch.randn(shape, device=device) * 3).to(dtype)
    inputs = [x, non_contiguous(x)] if shape else [x]
    if len(shape) == 4:
        inputs.append(x.contiguous(memory_format=torch.channels_last))
    for each in inputs:
        # y is saved in its dtype, and multiplied with a difference
        launches = check(function, each, dim, error=2 * tolerance(dtype), gradient_errors=6 * tolerance(dtype))
        assert launches == LAUNCHES
        assert getattr(ours, function)(each, dim).is_contiguous()


@pytest.mark.parametrize("tile", [SoftmaxTile(2, 16, False), SoftmaxTile(4, 64, True)])
@pytest.mark.parametrize("shape, dim", [((5, 40), 1), ((4, 40, 5), 1)])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_small_tiles(function: str, shape: tuple[int, ...], dim: int, tile: SoftmaxTile, device: str) -> None:
    torch.manual_seed(0)
    with forced_tiles(softmax_tile=tile):
        x = torch.randn(shape, device=device)
        check(function, x, dim, error=1e-5)
        x.detach().movedim(dim, 0)[:20, 0] = -float("inf")
        x.detach().movedim(dim, 0)[:, 1] = -float("inf")
        x.detach().movedim(dim, 0)[3, 2] = float("inf")
        x.detach().movedim(dim, 0)[30, 3] = float("nan")
        sign = -1 if function == "softmin" else 1
        expected = getattr(F, function)(sign * x.detach().double(), dim)
        assert_close(getattr(ours, function)(sign * x.detach(), dim), expected, 1e-5)


def test_implicit_dimension_and_dtype(device: str) -> None:
    x = torch.randn(3, 4, 5, device=device)
    for function in FUNCTIONS:
        with pytest.warns(UserWarning, match="Implicit dimension choice") as caught:
            y = getattr(ours, function)(x)
        assert caught[0].filename == __file__
        torch.testing.assert_close(y, getattr(F, function)(x, 0))
        z = getattr(ours, function)(x.bfloat16(), np.int64(1), dtype=torch.float32)
        torch.testing.assert_close(z, getattr(F, function)(x.bfloat16(), 1, dtype=torch.float32))
        integers = torch.arange(6, device=device)
        torch.testing.assert_close(
            getattr(ours, function)(integers, 0, dtype=torch.float32),
            getattr(F, function)(integers, 0, dtype=torch.float32),
        )
    with pytest.warns(UserWarning, match="Implicit dimension choice") as caught:
        nn.Softmax()(x)


def test_modules_registered_operator_and_compile(device: str) -> None:
    x = torch.randn(2, 3, 4, device=device, requires_grad=True)
    for function in FUNCTIONS:
        torch.library.opcheck(softmax_operator.forward, (x, function, True))
        y = torch.rand(2, 3, 4, device=device)
        torch.library.opcheck(softmax_operator.backward, ([torch.randn_like(y)], [y], function, [True]))
    for layer, twin in ((nn.Softmax2d(), torch.nn.Softmax2d()), (nn.LogSoftmax(1), torch.nn.LogSoftmax(1))):
        with counted_launches() as launches:
            y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
            y.sum().backward()
        assert launches == LAUNCHES
        torch.testing.assert_close(y, twin(x))
    torch._dynamo.reset()


def test_refuses(device: str) -> None:
    x = torch.randn(2, 3, device=device)
    with pytest.raises(IndexError, match=r"softmax: dim must be in \[-2, 2\) for input \(2, 3\), got 2"):
        ours.softmax(x, 2)
    with pytest.raises(TypeError, match="log_softmax: input must be floating point"):
        ours.log_softmax(x.long(), 0)
    with pytest.raises(TypeError, match="dim must be an integer"):
        ours.softmin(x, 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Softmax2d: input must be"):
        nn.Softmax2d()(x)
