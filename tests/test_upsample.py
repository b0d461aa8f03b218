"""interpolate: bilinear resampling against PyTorch in float64, in both layouts; other modes are PyTorch's."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, check_against_reference, counted_launches, non_contiguous, tolerance

from tinynet import nn
from tinynet.ops.upsample import interpolate, upsample, upsample_bilinear2d_operator

pytestmark = pytest.mark.kernels

ERROR = 2 * tolerance(torch.float32, 64)  # places are rounded, as in PyTorch

PROBLEMS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 5, 7), {"size": (9, 4)}),
    ((1, 2, 6, 6), {"scale_factor": 2}),
    ((2, 3, 5, 4), {"scale_factor": (1.7, 2.3)}),
    ((2, 3, 9, 4), {"scale_factor": (0.4, 0.6), "recompute_scale_factor": True}),
    ((1, 1, 1, 1), {"size": 3}),
    ((1, 2, 9, 9), {"size": 1}),
    ((1, 17, 1, 13), {"size": (2, 27)}),
]


def compare(x: torch.Tensor, error: float, **options: Any) -> None:
    function = partial(interpolate, mode="bilinear", **options)
    launches = check_against_reference(function, partial(F.interpolate, mode="bilinear", **options), x, error=error)
    assert launches == ["upsample_forward_kernel", "upsample_backward_kernel"]
    with torch.no_grad():
        assert (
            interpolate(x, mode="bilinear", **options).stride() == F.interpolate(x, mode="bilinear", **options).stride()
        )


@pytest.mark.parametrize(("shape", "options"), PROBLEMS, ids=str)
def test_forward_and_gradient(shape: tuple[int, ...], options: dict[str, Any], device: str) -> None:
    x = torch.randn(shape, device=device)
    compare(x.requires_grad_(), ERROR, **options)
    compare(x.detach().requires_grad_(), ERROR, align_corners=True, **options)
    compare(x.detach().to(memory_format=torch.channels_last).requires_grad_(), ERROR, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dtypes(layout: torch.memory_format, dtype: torch.dtype, device: str) -> None:
    x = torch.randn(2, 3, 5, 7, device=device).to(dtype, memory_format=layout).requires_grad_()
    compare(x, 2 * tolerance(dtype, 64), size=(9, 4), align_corners=True)


def test_strides(device: str) -> None:
    x = torch.randn(2, 4, 5, 6, device=device)
    for view in (non_contiguous(x), x.transpose(2, 3), x[:, ::2], x[:, :1].expand(2, 4, 5, 6), x.permute(3, 0, 1, 2)):
        check_against_reference(
            partial(interpolate, size=(7, 8), mode="bilinear"),
            partial(F.interpolate, size=(7, 8), mode="bilinear"),
            view.requires_grad_(),
            error=1e-5,
        )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_small_tiles(layout: torch.memory_format, device: str) -> None:
    x = torch.randn(3, 10, 4, 5, device=device).to(memory_format=layout).requires_grad_()
    with forced_tiles(rows_and_columns=(8, 8, 4)):
        compare(x, 1e-5, size=(7, 11))
    with forced_tiles(rows_and_columns=(16, 4, 4), exceed_int32=True):
        compare(x, 1e-5, size=(7, 11), align_corners=True)


def test_modules_and_other_modes(device: str) -> None:
    x = torch.randn(2, 3, 5, 6, device=device)
    for mode in ("bilinear", "nearest", "bicubic"):
        ours, theirs = nn.Upsample(scale_factor=2, mode=mode), torch.nn.Upsample(scale_factor=2, mode=mode)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    ours = nn.UpsamplingBilinear2d(size=(7, 9))
    assert isinstance(ours, nn.Upsample)
    with counted_launches() as launches:
        torch.testing.assert_close(ours(x), torch.nn.UpsamplingBilinear2d(size=(7, 9))(x), rtol=1e-5, atol=1e-5)
    assert launches == ["upsample_forward_kernel"]
    for function in (interpolate, F.interpolate):
        assert function(x[0], size=3, mode="linear").shape == (3, 5, 3)
        assert function(x, size=3, mode="bilinear", antialias=True).shape == (2, 3, 3, 3)
    with pytest.warns(UserWarning, match="deprecated"):
        assert torch.equal(upsample(x, scale_factor=2), F.interpolate(x, scale_factor=2))


def test_registered_operators_and_compile(device: str) -> None:
    for channels_last in (False, True):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.randn(2, 3, 4, 5, device=device).to(memory_format=layout)
        arguments = ([4, 5], [7, 6], False, [], channels_last)
        torch.library.opcheck(upsample_bilinear2d_operator.forward, (x.requires_grad_(), *arguments, True))
        grad = torch.randn(2, 3, 7, 6, device=device).to(memory_format=layout)
        torch.library.opcheck(upsample_bilinear2d_operator.backward, ([grad], [], *arguments, [True]))
        compiled = torch.compile(
            partial(interpolate, scale_factor=1.5, mode="bilinear"), fullgraph=True, backend="aot_eager"
        )
        with counted_launches() as launches:
            y = compiled(x)
            y.sum().backward()
        assert launches == ["upsample_forward_kernel", "upsample_backward_kernel"]
        torch.testing.assert_close(y, F.interpolate(x, scale_factor=1.5, mode="bilinear"), rtol=1e-5, atol=1e-5)


def test_refuses_and_empty(device: str) -> None:
    x = torch.randn(2, 3, 4, 5, device=device)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("either size or scale_factor", {}),
        ("either size or scale_factor", {"size": 3, "scale_factor": 2}),
        ("recompute_scale_factor has no meaning", {"size": 3, "recompute_scale_factor": True}),
        ("scale_factor must be one number or two", {"scale_factor": (1, 2, 3)}),
        ("scale_factor must be positive", {"scale_factor": -1}),
        ("size must be at least 1", {"size": 0}),
        ("output size must be at least 1", {"scale_factor": 0.1}),
    ]
    for match, options in cases:
        with pytest.raises(ValueError, match=match):
            interpolate(x, mode="bilinear", **options)
    with pytest.raises(ValueError, match="only the batch of input may be empty"):
        interpolate(x[:, :0], size=3, mode="bilinear")
    assert interpolate(x[:0], size=3, mode="bilinear").shape == (0, 3, 3, 3)
