"""local_response_norm against PyTorch in float64, in both memory orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, check_against_reference, counted_launches, non_contiguous, tolerance
from torch import Tensor

from tinynet import nn
from tinynet.ops.local_response_norm import local_response_norm, local_response_norm_operator
from tinynet_kernels.channel_tiles import ChannelTile

pytestmark = pytest.mark.kernels

SHAPES = [((2, 7, 3, 4), 5), ((3, 4, 9), 2), ((2, 3, 2, 2, 2), 1), ((1, 3, 5), 9)]
LAUNCHES = ["local_response_norm_kernel"] * 2


def check(x: Tensor, size: int, **errors: float) -> list[str]:
    options: dict[str, Any] = {"alpha": np.float32(0.5), "beta": 0.75, "k": 2}
    return check_against_reference(
        lambda t: local_response_norm(t, size, **options),
        lambda t: F.local_response_norm(t, size, **options),
        x.requires_grad_(),
        **errors,  # pyright: ignore[reportArgumentType]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, size", SHAPES)
def test_forward_and_gradient(shape: tuple[int, ...], size: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).to(dtype)
    for each in (x, x.movedim(1, -1).contiguous().movedim(-1, 1), non_contiguous(x)):
        assert check(each, size, error=4 * tolerance(dtype), gradient_errors=8 * tolerance(dtype)) == LAUNCHES
        assert local_response_norm(each, size).dtype is dtype


@pytest.mark.parametrize("pixel_axis", [0, 1])
def test_small_tiles(pixel_axis: int, device: str) -> None:
    """6 x 3 tiles of an image: numbers with a common factor, so that no wrong order of tiles reaches all of them."""
    torch.manual_seed(0)
    x = torch.randn(2, 11, 7, 5, device=device)
    x = x if pixel_axis else x.contiguous(memory_format=torch.channels_last)
    with forced_tiles(channel_tile=ChannelTile(2, 16, pixel_axis)):
        check(x, 4, error=1e-5)


def test_module_registered_operator_and_compile(device: str) -> None:
    x = torch.randn(2, 4, 3, 5, device=device, requires_grad=True)
    rows, settings = x.detach().flatten(2).requires_grad_(), (3, 0.5, 0.75, 1.0)
    torch.library.opcheck(local_response_norm_operator.forward, (rows, *settings, True))
    saved = [rows.detach(), torch.ones_like(rows).detach()]
    torch.library.opcheck(local_response_norm_operator.backward, ([rows.detach().clone()], saved, *settings, [True]))
    layer = nn.LocalResponseNorm(3, 0.5)
    with counted_launches() as launches:
        y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        y.sum().backward()
    assert launches == LAUNCHES
    torch.testing.assert_close(y, F.local_response_norm(x, 3, 0.5))


def test_refuses(device: str) -> None:
    x = torch.randn(2, 6, 3, device=device)
    with pytest.raises(ValueError, match="local_response_norm: input must be"):
        local_response_norm(x[0], 2)
    with pytest.raises(ValueError, match="size must be at least 1"):
        local_response_norm(x, 0)
    with pytest.raises(TypeError, match="size must be an integer"):
        local_response_norm(x, 2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="input must be floating point"):
        local_response_norm(x.long(), 2)
