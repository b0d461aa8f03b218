"""Depthwise convolutions by rows of pixels, which a CPU takes: every place where a window meets an image's edge."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import GPU, forced_tiles
from helpers import DTYPES, assert_close, check_against_reference, counted_launches, nan_filled_memory, tolerance
from torch import Tensor

from tinynet import functional, nn
from tinynet.ops.activation import activation_reference, as_activation
from tinynet_kernels.conv.depthwise.tiles import computes_rows as rule
from tinynet_kernels.conv.spec import ConvolutionShape
from tinynet_kernels.tiles import Target

pytestmark = pytest.mark.kernels

FORWARD = "depthwise_rows_forward_kernel"
KERNELS = {f"depthwise_rows_{name}_kernel" for name in ("forward", "input_gradient", "weight_gradient")}


def computes_rows(shape: ConvolutionShape, target: object) -> bool:
    """The rule on every engine."""
    return shape.C == shape.K == shape.groups > 1


@pytest.fixture(autouse=True)
def rows_on_every_engine() -> Any:
    with forced_tiles(computes_rows=computes_rows):
        yield


def make(
    shape: tuple[int, ...], kernel_size: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Tensor]:
    """x [N, C, *sizes], W and b."""
    torch.manual_seed(sum(shape) + sum(kernel_size))
    C, taps = shape[1], torch.Size(kernel_size).numel()
    x, weight, bias = torch.randn(shape), torch.randn(C, 1, *kernel_size) / taps**0.5, torch.randn(C)
    return [value.to(device, dtype).requires_grad_() for value in (x, weight, bias)]


def check(tensors: list[Tensor], activation: Any = None, **window: Any) -> list[str]:
    x, weight, _ = tensors
    name = f"conv{x.dim() - 2}d"
    window["groups"] = x.shape[1]

    def reference(*operands: Tensor) -> Tensor:
        return activation_reference(getattr(F, name)(*operands, **window), as_activation(activation))

    return check_against_reference(
        partial(getattr(functional, name), activation=activation, **window),
        reference,
        *tensors,
        error=2 * tolerance(x.dtype, weight[0].numel()),
        gradient_errors=4 * tolerance(x.dtype, max(weight[0].numel(), x[:, 0].numel())),
    )


def test_which_convolutions_are_computed_by_rows() -> None:
    cpu = Target("cpu", "", 2, 1 << 30)
    shape = ConvolutionShape(N=8, D=1, H=14, W=14, C=384, Z=1, P=14, Q=14, K=384, T=1, R=3, S=3, groups=384)
    assert rule(shape, cpu)
    assert not rule(shape, GPU)
    assert not rule(shape._replace(K=768), cpu)  # a multiplier of 2
    assert not rule(shape._replace(C=1, groups=1), cpu)  # gray images
    assert not rule(shape._replace(S=33), cpu)
    assert not rule(shape._replace(H=1 << 20, P=1 << 20), cpu)  # offsets past int32


# image shape, kernel size, and how the window slides
CASES = {
    "3x3": ((2, 33, 6, 20), (3, 3), {"padding": 1}),
    "3x3 of one block": ((2, 16, 5, 7), (3, 3), {"padding": 1}),
    "3x3 of two blocks": ((1, 20, 5, 14), (3, 3), {"padding": 1}),
    "two blocks that overlap": ((1, 8, 4, 9), (3, 3), {"padding": 1}),
    "many blocks that overlap": ((1, 8, 4, 23), (3, 3), {"padding": 1}),
    "no padding": ((2, 40, 6, 12), (3, 3), {}),
    "5x5": ((1, 24, 6, 18), (5, 5), {"padding": 2}),
    "7x7": ((1, 17, 9, 15), (7, 7), {"padding": 3}),
    "window larger than the image": ((2, 8, 3, 4), (7, 7), {"padding": 3}),
    "3x3 stride 2": ((2, 48, 7, 17), (3, 3), {"padding": 1, "stride": 2}),
    "5x5 stride 2": ((1, 16, 9, 33), (5, 5), {"padding": 2, "stride": 2}),
    "stride above the kernel": ((2, 5, 9, 11), (2, 1), {"stride": (3, 2)}),
    "dilation 2": ((1, 16, 9, 21), (3, 3), {"padding": 2, "dilation": 2}),
    "dilation 9, most columns are edges": ((1, 8, 3, 20), (1, 3), {"padding": (0, 9), "dilation": (1, 9)}),
    "padding above the window": ((1, 8, 4, 18), (3, 2), {"padding": (3, 4)}),
    "stride 3 dilation 2": ((1, 16, 13, 11), (3, 2), {"padding": (2, 1), "stride": (3, 2), "dilation": (2, 3)}),
    "stride 4 dilation 2": ((1, 6, 13, 19), (3, 3), {"padding": (2, 3), "stride": (4, 2), "dilation": (2, 4)}),
    "same": ((1, 6, 6, 7), (4, 2), {"padding": "same", "dilation": (1, 3)}),
    "1x1": ((2, 7, 4, 3), (1, 1), {}),
    "1x1 stride 2": ((2, 7, 5, 9), (1, 1), {"stride": 2}),
    "signal": ((3, 20, 31), (5,), {"padding": 2}),
    "signal stride 2": ((2, 16, 31), (4,), {"padding": 1, "stride": 2}),
    "volume": ((2, 18, 4, 5, 9), (3, 3, 3), {"padding": 1}),
    "volume stride 2": ((1, 16, 5, 6, 7), (3, 2, 3), {"padding": (1, 0, 2), "stride": (2, 1, 2)}),
    "volume of planes": ((1, 8, 3, 5, 6), (1, 3, 3), {"padding": (0, 1, 1)}),
}


@pytest.mark.parametrize("case", CASES)
def test_windows(case: str, device: str) -> None:
    shape, kernel_size, window = CASES[case]
    assert set(check(make(shape, kernel_size, device=device), **window)) >= KERNELS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["3x3", "7x7", "5x5 stride 2", "volume"])
@pytest.mark.parametrize("activation", ["relu6", "gelu"])
def test_dtypes_and_activations(activation: str, case: str, dtype: torch.dtype, device: str) -> None:
    shape, kernel_size, window = CASES[case]
    assert set(check(make(shape, kernel_size, dtype, device), activation, **window)) >= KERNELS


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("case", ["3x3 of one block", "signal", "5x5", "7x7"])
def test_rows_divided_among_programs(case: str, threads: int, device: str) -> None:
    shape, kernel_size, window = CASES[case]
    with forced_tiles(_PROGRAMS_PER_PROCESSOR=20 * threads):
        check(make((1, 72, *shape[2:]), kernel_size, device=device), "relu", **window)
        check(make((1, 35, *shape[2:-1], 32), kernel_size, device=device), "relu", **window)


def test_nan_and_infinity_reach_the_windows_that_see_them(device: str) -> None:
    x, weight, _ = make((1, 19, 6, 22), (3, 3), device=device)
    with torch.no_grad():
        x[0, 3, 2, 0], x[0, 4, 5, 21], x[0, 5, 0, 7], x[0, 18, 3, 14] = (
            float(v) for v in ("nan", "inf", "nan", "-inf")
        )
        y = functional.conv2d(x, weight, padding=1, groups=19)
        expected = F.conv2d(x.double(), weight.double(), padding=1, groups=19)
    assert_close(y, expected, tolerance(torch.float32, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 20, 5, 14), (2, 40, 6, 9)])
def test_statistics_for_the_norm_that_follows(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    C = shape[1]
    torch.manual_seed(5)
    ours = nn.Sequential(nn.Conv2d(C, C, 3, padding=1, groups=C), nn.BatchNorm2d(C), nn.ReLU6()).to(device, dtype)
    theirs = torch.nn.Sequential(torch.nn.Conv2d(C, C, 3, padding=1, groups=C), torch.nn.BatchNorm2d(C))
    theirs.to(device, torch.float64).load_state_dict(ours.state_dict())
    x = 3 + torch.randn(shape, device=device).to(dtype)
    with nan_filled_memory(), counted_launches() as launches:
        y = ours(x)
    assert FORWARD in launches and not any("statistics" in name and "merge" not in name for name in launches), launches
    assert_close(y, F.relu6(theirs(x.double())), 8 * tolerance(dtype, 9))
    ours.eval()
    theirs.eval()
    with torch.no_grad(), counted_launches() as launches:
        y = ours(x)
    others = [name for name in launches if name not in (FORWARD, "transpose_kernel")]
    assert launches.count(FORWARD) == 1 and not others, "the norm costs no launch"
    assert_close(y, F.relu6(theirs(x.double())), 8 * tolerance(dtype, 9))
