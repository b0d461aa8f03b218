"""dropout of elements and channels: rate, scale, that the backward drops the same ones, and PyTorch's generator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, check_against_reference, counted_launches, non_contiguous, tolerance

import tinynet.functional as ours
from tinynet import nn
from tinynet.ops.dropout import alpha_dropout, channel_dropout_operator, dropout, dropout_operator
from tinynet_kernels.dropout import Scale, dropout_apply

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rate_and_scale(p: float, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    x = torch.ones(33, 1001, device=device, dtype=dtype)
    with counted_launches() as launches:
        y = dropout(x, p)
    assert launches == ["dropout_kernel"]
    kept = y != 0
    n = x.numel()
    assert abs(kept.float().mean().item() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    # No structure: neighbors in memory, and elements at a distance of a block of four, are dropped independently.
    flat = kept.flatten().float() - (1 - p)
    for distance in (1, 2, 3, 4, 1001):
        correlation = (flat[distance:] * flat[:-distance]).mean().item() / (p * (1 - p))
        assert abs(correlation) < 5 / n**0.5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_backward_drops_the_same_elements(layout: torch.memory_format, device: str) -> None:
    x = torch.randn(3, 5, 7, 9, device=device).to(memory_format=layout).requires_grad_()
    y = dropout(x, 0.4)
    upstream = torch.randn(3, 5, 7, 9, device=device)
    y.backward(upstream)
    mask = (y != 0) / 0.6
    assert x.grad is not None
    torch.testing.assert_close(y, x * mask)
    torch.testing.assert_close(x.grad, upstream * mask)


def philox(seed: int, counter: tuple[int, int, int, int]) -> list[int]:
    """Philox 4x32-10 of Salmon et al. 2011."""
    key, mask = [seed & 0xFFFFFFFF, seed >> 32], 0xFFFFFFFF
    c = list(counter)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ key[0], b & mask, (a >> 32) ^ c[3] ^ key[1], a & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return c


def test_small_tiles_draw_philoxs_numbers(device: str) -> None:
    """Call i of a program draws its elements 4 i to 4 i + 3; one whose number is p itself is not dropped."""
    seed, block = (5 << 32) + 7, 32
    x = torch.randn(90, device=device)
    numbers = [philox(seed, (i % block // 4, i // block, 0, 0))[(0, 2, 1, 3)[i % 4]] for i in range(x.numel())]
    # The largest number is below 1, in fp32 too: the scale is a little less than 2^-31.
    uniform = torch.tensor([min(n, 2**32 - 1 - n) for n in numbers], device=device).float() * 4.6566127342e-10
    p = uniform.median().item()
    with forced_tiles(flat_block=(block, 4)):
        y = dropout_apply(x, torch.tensor([seed], device=device), p, Scale(1 - p))
    torch.testing.assert_close(y, torch.where(uniform >= p, x / (1 - p), 0.0))


def test_follows_pytorchs_generator(device: str) -> None:
    x = torch.ones(4096, device=device)
    torch.manual_seed(5)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(5)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_module_and_edges(device: str) -> None:
    x = torch.randn(10, device=device, requires_grad=True)
    assert nn.Dropout(0.5).eval()(x) is x
    assert dropout(x, 0.0) is x
    y = dropout(x, 1.0)
    assert not y.any()
    y.sum().backward()
    assert x.grad is not None and not x.grad.any()
    assert dropout(torch.empty(0, 3, device=device)).shape == (0, 3)
    strided = torch.ones(64, 8, device=device)[:, ::2]
    assert set(dropout(strided, 0.5).unique().tolist()) == {0.0, 2.0}
    for p in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="p must be in"):
            dropout(x, p)
    with pytest.raises(TypeError, match="floating point"):
        dropout(torch.arange(3))


def test_registered_operator_and_compile(device: str) -> None:
    x = torch.randn(40, device=device, requires_grad=True)
    torch.library.opcheck(dropout_operator.forward, (x, torch.tensor([7], device=device), 0.3, 0.7, 0.1, -1.0, True))
    compiled = torch.compile(lambda t: dropout(t, 0.5), fullgraph=True, backend="aot_eager")
    y = compiled(x)
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    assert torch.equal(x.grad != 0, y != 0)


CHANNEL_WISE = [
    ("dropout1d", (3, 5, 17)),
    ("dropout1d", (5, 17)),
    ("dropout2d", (2, 5, 3, 7)),
    ("dropout3d", (2, 3, 2, 3, 4)),
    ("dropout3d", (3, 2, 3, 4)),
    ("feature_alpha_dropout", (2, 5, 3, 7)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "shape"), CHANNEL_WISE)
def test_channels_are_dropped_as_pytorch_drops_them(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    mask_of_ones = torch.ones(shape, device=device, dtype=dtype)

    def seeded(function: Any, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(4)
        return function(x, 0.4, True)

    def expected(x: torch.Tensor) -> torch.Tensor:
        """PyTorch's draws depend on the dtype: x scaled and shifted as it does with tensors of this one."""
        one, zero = (seeded(getattr(F, name), mask_of_ones * number).to(x.dtype) for number in (1, 0))
        return x * (one - zero) + zero

    x = torch.randn(shape, device=device).to(dtype)
    layouts = [x, non_contiguous(x)]
    if len(shape) == 4:
        layouts.append(x.to(memory_format=torch.channels_last))
    for each in layouts:
        function = lambda t: seeded(getattr(ours, name), t)  # noqa: E731
        launches = check_against_reference(function, expected, each.requires_grad_(), error=4 * tolerance(dtype))
        assert launches == ["channel_dropout_kernel"] * 2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_small_tiles_of_channels(layout: torch.memory_format, device: str) -> None:
    x = torch.randn(3, 9, 5, 6, device=device).to(memory_format=layout)
    with forced_tiles(rows_and_columns=(4, 8, 4)):
        torch.manual_seed(2)
        y = nn.Dropout2d(0.4)(x)
    torch.manual_seed(2)
    torch.testing.assert_close(y, torch.nn.Dropout2d(0.4)(x))


def test_alpha_dropout_keeps_mean_and_variance(device: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(40_000, device=device, requires_grad=True)
    y = nn.AlphaDropout(0.3)(x)
    assert abs(y.mean().item()) < 0.03 and abs(y.var().item() - 1) < 0.03
    dropped, shift, of_one = (
        number(F.alpha_dropout(torch.full((64,), value), 0.3, training=True)).item()
        for number, value in ((torch.min, 0.0), (torch.max, 0.0), (torch.max, 1.0))
    )
    kept = (y - dropped).abs() > 1e-6
    assert abs(kept.float().mean().item() - 0.7) < 0.02
    torch.testing.assert_close(y[kept], x[kept] * (of_one - shift) + shift)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, kept * (of_one - shift))
    assert nn.AlphaDropout(0.3).eval()(x) is x
    assert not alpha_dropout(x, 1.0, training=True).any()


def test_second_derivatives_of_channels(device: str) -> None:
    x = torch.randn(3, 5, 4, device=device, requires_grad=True)
    upstream = torch.randn(3, 5, 4, device=device, requires_grad=True)
    y = nn.FeatureAlphaDropout(0.4)(x)
    (first,) = torch.autograd.grad(y, x, upstream, retain_graph=True)
    (gradient,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    torch.testing.assert_close(gradient, first)
    (slope,) = torch.autograd.grad(gradient.sum(), upstream)
    torch.testing.assert_close(slope * upstream, first)


def test_channels_of_registered_operators_and_edges(device: str) -> None:
    x, keep = torch.randn(2, 3, 5, device=device, requires_grad=True), torch.ones(2, 3, 1, device=device)
    torch.library.opcheck(channel_dropout_operator.forward, (x, keep, 0.5, 0.1, -1.0, True))
    compiled = torch.compile(nn.Dropout1d(0.5), fullgraph=True, backend="aot_eager")
    y = compiled(x)
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    assert torch.equal(x.grad != 0, y != 0)
    assert nn.Dropout1d(0.5).eval()(x) is x
    assert nn.Dropout2d(0.5)(torch.empty(0, 3, 4, 4, device=device)).shape == (0, 3, 4, 4)
    assert not ours.dropout3d(torch.ones(2, 3, 4, 5, device=device), 1.0).any()
    with pytest.raises(ValueError, match="dropout1d: input must be"):
        ours.dropout1d(torch.ones(3, device=device))
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        ours.feature_alpha_dropout(torch.ones(3, device=device), training=True)
    with pytest.raises(ValueError, match="dropout2d: p must be in"):
        ours.dropout2d(x, 2.0)
    with pytest.warns(UserWarning, match="dropout2d: an input of 3 dimensions"):
        ours.dropout2d(x)
