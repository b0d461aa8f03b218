"""rrelu: random slopes in training, the same in the backward; the mean slope otherwise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, check_against_reference, counted_launches, non_contiguous, tolerance

from tinynet import nn
from tinynet.ops.rrelu import rrelu, rrelu_operator

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize("dtype", DTYPES)
def test_training(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 257, device=device).to(dtype)
    for each in (x, x.view(4, 10, 257, 1).to(memory_format=torch.channels_last), x.t(), non_contiguous(x)):
        leaf = each.detach().requires_grad_()
        with counted_launches() as launches:
            y = rrelu(leaf, 0.1, 0.5, training=True)
            upstream = torch.randn_like(y)
            y.backward(upstream)
        assert launches == ["rrelu_kernel"] * 2
        negative = leaf < 0
        torch.testing.assert_close(y[~negative], leaf[~negative])
        slopes = (y.double() / leaf.double())[negative]
        assert slopes.min() > 0.1 - 1e-2 and slopes.max() < 0.5 + 1e-2
        assert abs(slopes.mean().item() - 0.3) < 0.02 and abs(slopes.std().item() - 0.4 / 12**0.5) < 0.01
        assert leaf.grad is not None
        expected = upstream.double() * torch.where(negative, y.double() / leaf.double(), 1.0)
        torch.testing.assert_close(leaf.grad.double(), expected, rtol=8 * tolerance(dtype), atol=1e-6)


def test_generator_and_tiles(device: str) -> None:
    x = -torch.ones(70, device=device)
    with forced_tiles(flat_block=(32, 4)):
        torch.manual_seed(5)
        first, second = rrelu(x, training=True), rrelu(x, training=True)
        torch.manual_seed(5)
        assert torch.equal(rrelu(x, training=True), first)
    assert len(first.unique()) == 70 and not torch.equal(first, second)
    assert not torch.equal(first[:32], first[32:64])


@pytest.mark.parametrize("dtype", DTYPES)
def test_evaluation(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(5, 9, device=device).to(dtype).requires_grad_()
    check_against_reference(rrelu, F.rrelu, x, error=tolerance(dtype))
    torch.testing.assert_close(nn.RReLU(0.2, 0.4).eval()(x), torch.nn.RReLU(0.2, 0.4).eval()(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_elements(dtype: torch.dtype, device: str) -> None:
    """PyTorch's own has no float16 on CPUs."""
    x = torch.empty(3, 0, device=device, dtype=dtype, requires_grad=True)
    y = rrelu(x, training=True)
    assert y.shape == x.shape and y.dtype is dtype and y.requires_grad


def test_second_derivatives_and_compile(device: str) -> None:
    x = torch.randn(12, device=device, requires_grad=True)
    y = rrelu(x, training=True)
    slopes = (y / x).detach()
    upstream = torch.randn(12, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    torch.testing.assert_close(gradient, upstream * slopes)
    (again,) = torch.autograd.grad(gradient.sum(), upstream)
    torch.testing.assert_close(again, slopes)
    torch.library.opcheck(rrelu_operator.forward, (x, torch.tensor([7], device=device), 0.1, 0.3, True))
    compiled = torch.compile(nn.RReLU(), fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    assert x.grad is not None


def test_refuses(device: str) -> None:
    x = torch.ones(3, device=device)
    assert torch.equal(rrelu(x, 0.3, 0.3, training=True), x)
    assert rrelu(x[:0], training=True).shape == (0,)
    with pytest.raises(ValueError, match="lower and upper"):
        rrelu(x, 0.5, 0.1)
    with pytest.raises(TypeError, match="input"):
        rrelu(torch.ones(3, dtype=torch.int64, device=device), training=True)
