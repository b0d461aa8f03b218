"""Pooling: kernels against float64 PyTorch, layouts, NaN and ties, the operators, the modules, and what they refuse."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, check_against_reference, counted_launches, non_contiguous, tolerance

import tinynet
import tinynet.functional as ours
from tinynet.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from tinynet.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

kernels = pytest.mark.kernels
LAYOUTS = (torch.contiguous_format, torch.channels_last)
SCATTER = "max_pool_scatter_kernel"


def make(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    torch.manual_seed(sum(shape))
    x = torch.randn(shape, device=device).to(dtype)
    return (x.contiguous(memory_format=memory_format) if x.dim() == 4 else x).requires_grad_()


def check(ours: Any, theirs: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> list[str]:
    return check_against_reference(
        lambda t: ours(t, *arguments, **options),
        lambda t: theirs(t, *arguments, **options),
        x,
        error=2 * tolerance(x.dtype, 64),
    )


MAX_WINDOWS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0), "dilation": (2, 3)},
    {"kernel_size": (2, 3), "stride": 2, "padding": (1, 1), "ceil_mode": True},
    {"kernel_size": 1, "stride": 3},
    {"kernel_size": 12, "stride": 5, "padding": 6},
    {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 4},
]

MEAN_WINDOWS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 1), "ceil_mode": True},
    {"kernel_size": (2, 3), "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    {"kernel_size": 4, "stride": 3, "padding": 2, "divisor_override": 5},
    {"kernel_size": 1, "stride": 3},
]

OUTPUT_SIZES: list[Any] = [1, 4, (5, 7), (None, 3), (20, 15), (1, None)]


@kernels
@pytest.mark.parametrize("output_size", [1, 3], ids=str)
def test_maxima_of_large_windows(output_size: int, device: str) -> None:
    check(ours.adaptive_max_pool2d, F.adaptive_max_pool2d, make(2, 17, 29, 30, device=device), output_size=output_size)
    x = torch.randint(-9, 9, (2, 17, 29, 30), device=device).float()
    x[0, 1, 3, 4] = x[0, 1, 5, 2] = float("nan")
    x[1, 2] = float("-inf")
    found = ours.adaptive_max_pool2d(x, output_size, return_indices=True)
    for actual, expected in zip(found, F.adaptive_max_pool2d(x, output_size, return_indices=True), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@kernels
@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("window", MAX_WINDOWS, ids=str)
def test_max_pool2d(window: dict[str, Any], memory_format: torch.memory_format, device: str) -> None:
    x = make(3, 5, 15, 13, device=device, memory_format=memory_format)
    for scatters in (True, False):
        with forced_tiles(is_scattered=scatters):
            launches = check(max_pool2d, F.max_pool2d, x, **window)
        is_scattered = scatters and memory_format is torch.contiguous_format
        assert launches == ["max_pool_forward_kernel", SCATTER if is_scattered else "max_pool_backward_kernel"]


@kernels
@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("window", MEAN_WINDOWS, ids=str)
def test_avg_pool2d(window: dict[str, Any], memory_format: torch.memory_format, device: str) -> None:
    x = make(3, 5, 15, 13, device=device, memory_format=memory_format)
    for by_axis in (True, False):
        with forced_tiles(_is_faster_by_axis=by_axis):
            launches = check(avg_pool2d, F.avg_pool2d, x, **window)
        times = 2 if by_axis and memory_format is torch.contiguous_format else 1
        assert launches == ["mean_pool_forward_kernel"] * times + ["mean_pool_backward_kernel"] * times


@kernels
@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("output_size", OUTPUT_SIZES, ids=str)
def test_adaptive_avg_pool2d(output_size: Any, memory_format: torch.memory_format, device: str) -> None:
    x = make(3, 5, 12, 9, device=device, memory_format=memory_format)
    launches = check(adaptive_avg_pool2d, F.adaptive_avg_pool2d, x, output_size)
    is_global = output_size == 1 and memory_format is torch.contiguous_format
    name = "row_mean" if is_global else "mean_pool"
    forward = "row_mean_kernel" if is_global else "mean_pool_forward_kernel"
    assert list(dict.fromkeys(launches)) == [forward, f"{name}_backward_kernel"]


@kernels
@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_which_gradients_are_scattered(memory_format: torch.memory_format, device: str) -> None:
    """On the CPU those of several planes in contiguous layout; in a few planes columns fill vectors better."""
    from tinynet_kernels.tiles import current_target

    for planes in (1, 9):
        launches = check(max_pool2d, F.max_pool2d, make(1, planes, 9, 9, device=device, memory_format=memory_format), 3)
        is_contiguous = memory_format is torch.contiguous_format
        is_scattered = current_target().kind == "cpu" and planes > 1 and is_contiguous
        assert launches[1] == (SCATTER if is_scattered else "max_pool_backward_kernel")


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_scattered_gradients(axes: int, dtype: torch.dtype, device: str) -> None:
    """Windows that overlap or not, more taps than a byte counts, planes that fill no whole tile."""
    sizes = {1: (7, 5, 150), 2: (7, 5, 13, 14), 3: (7, 5, 6, 7, 6)}
    x = make(*sizes[axes], dtype=dtype, device=device)
    pools, theirs = (getattr(module, f"max_pool{axes}d") for module in (ours, F))
    adaptive, theirs_adaptive = (getattr(module, f"adaptive_max_pool{axes}d") for module in (ours, F))
    largest = {1: 140, 2: 12, 3: 6}[axes]
    with forced_tiles(is_scattered=True, BLOCK_ELEMENTS=16):
        for window in ((2,), (3, 2, 1), (3, 1, 1, 1), (2, 2, 0, 2), (largest, 1)):
            launches = check(pools, theirs, x, *window)
            assert launches[1:] == [SCATTER]
        for output_size in (1, 4):
            check(adaptive, theirs_adaptive, x, output_size)
    with forced_tiles(is_scattered=True, exceed_int32=True, MOST_PLANES=4):
        check(pools, theirs, x, 3, 2, 1)
        check(adaptive, theirs_adaptive, x, 4)


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [31, 33])
def test_maxima_of_many_channels(channels: int, dtype: torch.dtype, device: str) -> None:
    """On the CPU contiguous images of many channels are transposed first, and the results back."""
    from tinynet_kernels.tiles import current_target

    x = make(3, channels, 9, 10, dtype=dtype, device=device)
    cases: list[tuple[Any, Any, tuple[Any, ...]]] = [
        (max_pool2d, F.max_pool2d, (3, 2, 1)),
        (ours.adaptive_max_pool2d, F.adaptive_max_pool2d, (4,)),
    ]
    for pool, reference, window in cases:
        check(pool, reference, x, *window)
        y, index = pool(x, *window, return_indices=True)
        expected, expected_index = reference(x, *window, return_indices=True)
        assert torch.equal(y, expected) and torch.equal(index, expected_index)
        assert y.is_contiguous() and index.is_contiguous()
        with counted_launches() as launches:
            pool(x, *window)
        assert ("transpose_kernel" in launches) == (channels > 32 and current_target().kind == "cpu")


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", [2, 3])
def test_means_by_axis(axes: int, dtype: torch.dtype, device: str) -> None:
    x = make(*{2: (3, 5, 13, 14), 3: (3, 5, 6, 7, 9)}[axes], dtype=dtype, device=device)
    pools, theirs = (getattr(module, f"avg_pool{axes}d") for module in (ours, F))
    adaptive, theirs_adaptive = (getattr(module, f"adaptive_avg_pool{axes}d") for module in (ours, F))
    with forced_tiles(_is_faster_by_axis=True):
        for window in ((3, 2, 1), (3, 2, 1, True, False), (3, 1, 1, False, True, 7), (2, 2, 0, False, True, 3)):
            launches = check(pools, theirs, x, *window)
            assert launches == ["mean_pool_forward_kernel"] * 2 + ["mean_pool_backward_kernel"] * 2
        for output_size in (4, (5, None, 4)[-axes:]):
            check(adaptive, theirs_adaptive, x, output_size)


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "kernel", "is_run"), [((2, 3, 96), 16, True), ((2, 3, 99), 16, False)])
def test_windows_that_are_rows(
    shape: tuple[int, ...], kernel: int, is_run: bool, dtype: torch.dtype, device: str
) -> None:
    """Long windows side by side, which fill the rows or leave a rest."""
    x = make(*shape, dtype=dtype, device=device)
    for function, reference, window in (
        (ours.avg_pool1d, F.avg_pool1d, (kernel,)),
        (avg_pool2d, F.avg_pool2d, ((1, kernel), None, 0, False, True, 3)),
    ):
        launches = check(function, reference, x, *window)
        assert (launches == ["row_mean_kernel", "row_mean_backward_kernel"]) == is_run
    if is_run:
        check(ours.adaptive_avg_pool1d, F.adaptive_avg_pool1d, x, shape[-1] // kernel)


@kernels
@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("stride", "padding", "divisor"), [(3, 1, None), (9, 2, None), (7, 3, 5), (7, 0, None), (7, 0, 5)]
)
def test_one_window_as_large_as_the_image(
    stride: int, padding: int, divisor: int | None, dtype: torch.dtype, memory_format: torch.memory_format, device: str
) -> None:
    """With padding it does not hold all of the image."""
    x = make(3, 5, 7, 7, dtype=dtype, device=device, memory_format=memory_format)
    check(avg_pool2d, F.avg_pool2d, x, 7, stride=stride, padding=padding, divisor_override=divisor)


# By name in torch.nn.functional: arguments for one, two and three axes.
FAMILIES: dict[str, tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = {
    "max_pool": ((1, 2, 3), (3, 2, 1), {}),
    "max_pool dilated": ((1, 3), (2, 1, 0, 2), {"ceil_mode": True}),
    "avg_pool": ((1, 3), (3, 2, 1), {"count_include_pad": False}),
    "avg_pool ceiled": ((1, 3), (2, 3, 1), {"ceil_mode": True}),
    "adaptive_avg_pool": ((1, 3), (3,), {}),
    "adaptive_avg_pool global": ((1, 3), (1,), {}),
    "adaptive_max_pool": ((1, 2, 3), (3,), {}),
    "adaptive_max_pool global": ((1, 2, 3), (1,), {}),
    "lp_pool": ((1, 2, 3), (2, 2), {}),
    "lp_pool ceiled": ((1, 2, 3), (3.5, 3, 2), {"ceil_mode": True}),
    "lp_pool inf": ((1, 2), (math.inf, 3), {}),
    "lp_pool -inf": ((1, 2), (-math.inf, 3), {}),
    "fractional_max_pool": ((2, 3), (2, 4), {}),
    "fractional_max_pool dense": ((2, 3), (2, 5), {}),
    "fractional_max_pool of one": ((2, 3), (1, 4), {}),
}
INPUTS = {1: (3, 5, 23), 2: (3, 5, 9, 10), 3: (2, 5, 7, 8, 9)}


def family(name: str, axes: int, x: torch.Tensor) -> tuple[Any, Any]:
    """Our function and PyTorch's, each of x alone."""
    _, arguments, options = FAMILIES[name]
    stem = name.split()[0]
    if stem == "fractional_max_pool":
        torch.manual_seed(axes)
        samples = torch.rand(x.shape[0], x.shape[1], axes, device=x.device)
        options = {**options, "_random_samples": samples}

    def call(module: Any, t: torch.Tensor) -> torch.Tensor:
        given = {key: value.to(t.dtype) if isinstance(value, torch.Tensor) else value for key, value in options.items()}
        return getattr(module, f"{stem}{axes}d")(t, *arguments, **given)

    return lambda t: call(ours, t), lambda t: call(F, t)


@kernels
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "axes"), [(name, axes) for name, (ranks, *_) in FAMILIES.items() for axes in ranks])
def test_families(name: str, axes: int, channels_last: bool, device: str) -> None:
    if "inf" in name and F.lp_pool1d(torch.tensor([[3.0, 4.0]]), math.inf, 2).item() != 4.0:
        pytest.skip("PyTorch before 2.12 has no norms of infinite p")
    x = make(*INPUTS[axes], device=device).detach()
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    if name.startswith("lp_pool"):
        x = x.abs() + 0.1
    function, reference = family(name, axes, x)
    launches = check(function, reference, x.requires_grad_())
    assert "inf" in name or len(set(launches)) == 2
    if not name.startswith("fractional"):
        check(function, reference, x.detach()[0].requires_grad_())


@kernels
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", ["max_pool", "avg_pool", "adaptive_max_pool", "lp_pool"])
def test_three_axes_in_16_bit(name: str, dtype: torch.dtype, device: str) -> None:
    x = make(*INPUTS[3], dtype=dtype, device=device).detach()
    x = (x.abs() + 0.1 if name == "lp_pool" else x).requires_grad_()
    check(*family(name, 3, x), x)


@kernels
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_indices_and_unpooling(axes: int, channels_last: bool, device: str) -> None:
    """PyTorch's indices of every family, and what unpooling does with them."""
    x = make(*INPUTS[axes], device=device).detach()
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    torch.manual_seed(0)
    samples = {"_random_samples": torch.rand(x.shape[0], x.shape[1], axes, device=device)}
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("max_pool", (3, 2, 1), {}),
        ("adaptive_max_pool", (3,), {}),
        *([("fractional_max_pool", (2, 4), samples)] if axes > 1 else []),
    ]
    for name, arguments, options in calls:
        function, theirs = (getattr(module, f"{name}{axes}d") for module in (ours, F))
        y, index = function(x, *arguments, return_indices=True, **options)
        expected, expected_index = theirs(x, *arguments, return_indices=True, **options)
        assert torch.equal(y, expected) and torch.equal(index, expected_index), name
    pooled, index = getattr(F, f"max_pool{axes}d")(x, 2, return_indices=True)
    unpool, theirs = (getattr(module, f"max_unpool{axes}d") for module in (ours, F))
    launches = check(
        lambda t: unpool(t, index, 2, output_size=list(x.shape)),
        lambda t: theirs(t, index, 2, output_size=list(x.shape)),
        pooled.detach().requires_grad_(),
    )
    assert launches == ["unpool_forward_kernel", "unpool_backward_kernel"]


@kernels
def test_fractional_pooling_draws_the_samples_that_pytorch_draws(device: str) -> None:
    x = make(*INPUTS[2], device=device).detach()
    torch.manual_seed(5)
    y = ours.fractional_max_pool2d(x, 2, output_ratio=(0.6, 0.5))
    torch.manual_seed(5)
    assert torch.equal(y, F.fractional_max_pool2d(x, 2, output_ratio=(0.6, 0.5)))


@kernels
def test_three_axes_in_small_tiles(device: str) -> None:
    """As `test_small_tiles`, with fractional windows, norms and unpooling."""
    x = make(2, 3, 6, 6, 6, device=device).detach() + 4
    for channels_last in (False, True):
        t = x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x
        with forced_tiles(pool_tile=(16, 4, 4), rows_and_columns=(2, 16, 4)):
            for name in ("max_pool", "fractional_max_pool" if channels_last else "adaptive_max_pool", "lp_pool"):
                check(*family(name, 3, t), t.requires_grad_())
            y, index = F.max_pool3d(x, 2, return_indices=True)
            check(
                lambda a, index=index: ours.max_unpool3d(a, index, 2, output_size=list(x.shape)),
                lambda a, index=index: F.max_unpool3d(a, index, (2, 2, 2), output_size=list(x.shape)),
                y.requires_grad_(),
            )
    with forced_tiles(pool_tile=(16, 4, 4), rows_and_columns=(2, 16, 4)):
        check(ours.adaptive_avg_pool3d, F.adaptive_avg_pool3d, x.requires_grad_(), 1)


@kernels
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_16_bit(memory_format: torch.memory_format, dtype: torch.dtype, device: str) -> None:
    x = make(2, 17, 9, 63, dtype=dtype, device=device, memory_format=memory_format)
    check(max_pool2d, F.max_pool2d, x, 3, 2, 1)
    check(avg_pool2d, F.avg_pool2d, x, 3, 2, 1)
    check(adaptive_avg_pool2d, F.adaptive_avg_pool2d, x, (4, 5))


@kernels
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 129, 2, 2), (2, 1, 1, 129), (65, 2, 3, 3), (3, 8, 17, 1)])
@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_sizes(shape: tuple[int, ...], memory_format: torch.memory_format, device: str) -> None:
    x = make(*shape, device=device, memory_format=memory_format)
    window = tuple(min(2, size) for size in shape[2:])
    check(max_pool2d, F.max_pool2d, x, window, 1)
    check(avg_pool2d, F.avg_pool2d, x, window, 1)
    check(adaptive_avg_pool2d, F.adaptive_avg_pool2d, x, 2)


@kernels
def test_more_than_one_program_each_way(device: str) -> None:
    """A batch larger than one tile, in both passes."""
    for memory_format in LAYOUTS:
        x = make(9, 130, 12, 13, device=device, memory_format=memory_format)
        check(max_pool2d, F.max_pool2d, x, 3, 2, 1)
        check(avg_pool2d, F.avg_pool2d, x, 3, 2, 1)


@kernels
@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_small_tiles(memory_format: torch.memory_format, device: str) -> None:
    """Tiles that begin inside an image, end in the next and pass the last, in both passes."""
    x = make(3, 5, 9, 7, device=device, memory_format=memory_format).detach()
    x = torch.cat((x, x[:, :, :, :1]), 3)[:, :, :, :7].requires_grad_()  # with gaps between its rows
    with forced_tiles(pool_tile=(16, 4, 4)):
        window = {"kernel_size": (2, 3), "stride": (1, 2), "padding": 1, "dilation": (3, 1), "return_indices": True}
        check(lambda t: max_pool2d(t, **window)[0], lambda t: F.max_pool2d(t, **window)[0], x)
        assert torch.equal(max_pool2d(x, **window)[1], F.max_pool2d(x, **window)[1])
        check(max_pool2d, F.max_pool2d, x, 2)
        check(avg_pool2d, F.avg_pool2d, x, (3, 2), (2, 1), 1, count_include_pad=False)
        check(adaptive_avg_pool2d, F.adaptive_avg_pool2d, x, (4, 5))


@kernels
def test_layout_and_strides(device: str) -> None:
    pools = (lambda t: max_pool2d(t, 3, 2, 1), lambda t: avg_pool2d(t, 2), lambda t: adaptive_avg_pool2d(t, (3, 4)))
    theirs = (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d)
    arguments: tuple[Any, ...] = ((3, 2, 1), (2,), ((3, 4),))
    for pool in pools:
        x = make(2, 4, 8, 6, device=device, memory_format=torch.channels_last)
        y = pool(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        (dx,) = torch.autograd.grad(y, x, torch.randn(y.shape, device=device))
        assert dx.is_contiguous(memory_format=torch.channels_last)
        assert pool(x.contiguous()).is_contiguous()
    wide = make(2, 4, 8, 12, device=device, memory_format=torch.channels_last).detach()
    inputs = [
        make(4, 9, 7, device=device),
        non_contiguous(make(2, 3, 8, 6, device=device)),
        make(2, 6, 8, 3, device=device).detach().transpose(1, 3).requires_grad_(),
        wide[:, :, :, ::2].requires_grad_(),
        wide[:, 1:3].detach().requires_grad_(),
        make(1, 3, 8, 6, device=device).detach().expand(4, 3, 8, 6).requires_grad_(),
    ]
    for function, reference, given in zip(
        (max_pool2d, avg_pool2d, adaptive_avg_pool2d), theirs, arguments, strict=True
    ):
        for x in inputs:
            check(function, reference, x, *given)


@kernels
@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("window", MAX_WINDOWS, ids=str)
def test_indices(window: dict[str, Any], memory_format: torch.memory_format, device: str) -> None:
    x = make(2, 3, 11, 12, device=device, memory_format=memory_format)
    y, index = max_pool2d(x, **window, return_indices=True)
    expected_y, expected_index = F.max_pool2d(x, **window, return_indices=True)
    assert index.dtype is torch.int64 and not index.requires_grad
    assert torch.equal(index, expected_index) and torch.equal(y, expected_y)
    upstream = torch.randn_like(y)
    (actual,), (expected,) = (torch.autograd.grad(out, x, upstream) for out in (y, expected_y))
    torch.testing.assert_close(actual, expected)
    with torch.no_grad():
        assert torch.equal(max_pool2d(x[0], **window, return_indices=True)[1], expected_index[0])


@kernels
def test_nan_wins_and_ties_go_to_the_first(device: str) -> None:
    x = torch.randint(3, (2, 3, 9, 9), device=device).float()
    x[0, 0, 4, 4] = x[1, 2, 3, 3] = x[1, 2, 3, 4] = math.nan
    x[0, 1] = -math.inf
    x[0, 2, 2:5, 2:5] = math.inf
    for window in MAX_WINDOWS[:4]:
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, index = max_pool2d(leaf, **window, return_indices=True)
        expected, expected_index = F.max_pool2d(other, **window, return_indices=True)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(index, expected_index)
        upstream = torch.randn_like(y)
        y.backward(upstream)
        expected.backward(upstream)
        assert leaf.grad is not None and other.grad is not None
        torch.testing.assert_close(leaf.grad, other.grad)


@kernels
def test_a_gradient_of_nan_stays_where_it_belongs(device: str) -> None:
    x = make(1, 1, 4, 4, device=device)
    upstream = torch.ones(1, 1, 2, 2, device=device)
    upstream[0, 0, 0, 0] = math.nan
    for pool in (max_pool2d, avg_pool2d):
        (dx,) = torch.autograd.grad(pool(x, 2), x, upstream)
        assert dx[0, 0, :2, :2].isnan().any() and dx[0, 0, 2:].isfinite().all() and dx[0, 0, :, 2:].isfinite().all()


@kernels
def test_argmax_takes_one_byte_where_it_fits(device: str) -> None:
    from tinynet_kernels.pool.maximum import max_pool_forward
    from tinynet_kernels.pool.spec import Axis, window_of

    x = make(1, 1, 12, 12, device=device).detach()
    for kernel, dtype in ((11, torch.int8), (12, torch.int32)):
        window = window_of([Axis(kernel), Axis(kernel)])
        size = (13 - kernel, 13 - kernel)
        _, _, argmax = max_pool_forward(x, window, size, channels_last=False, want_argmax=True, want_index=False)
        assert argmax is not None and argmax.dtype is dtype


@kernels
def test_nothing_is_saved_without_gradient(device: str) -> None:
    x = make(2, 3, 20, 20, device=device)
    for pool in (max_pool2d, avg_pool2d):
        with torch.no_grad():
            assert pool(x, 2).grad_fn is None
    assert adaptive_avg_pool2d(x.detach(), 2).grad_fn is None


@kernels
@pytest.mark.parametrize("channels_last", [False, True])
def test_registered_operators(channels_last: bool, device: str) -> None:
    from tinynet.ops.max_pool import max_pool_operator
    from tinynet.ops.max_unpool import max_unpool_operator
    from tinynet.ops.pool import mean_pool_operator

    check_operator = torch.library.opcheck
    memory_format = LAYOUTS[channels_last]
    x = make(2, 3, 6, 8, device=device, memory_format=memory_format)
    sizes = ([6, 8], [3, 4], channels_last)
    window = [3, 3, 2, 2, 1, 1, 1, 1]
    samples = torch.rand(2, 3, 2, device=device)
    check_operator(max_pool_operator.forward, (x, None, window, *sizes, True, True))
    check_operator(max_pool_operator.forward, (x.detach(), None, window, *sizes, False, False))
    check_operator(max_pool_operator.forward, (x, None, [], *sizes, True, True))
    check_operator(max_pool_operator.forward, (x, samples, [2, 2], *sizes, True, True))
    check_operator(mean_pool_operator.forward, (x, window, *sizes, True, 0, 0.0, True))
    check_operator(mean_pool_operator.forward, (x, [], *sizes, True, 0, 0.0, True))
    check_operator(mean_pool_operator.forward, (x, [2, 2, 2, 2, 0, 0, 1, 1], *sizes, True, 0, 2.0, True))
    grads = [torch.randn(2, 3, 3, 4, device=device)]
    argmax = torch.zeros(2, 3, 3, 4, dtype=torch.int8, device=device).contiguous(memory_format=memory_format)
    check_operator(max_pool_operator.backward, (grads, [argmax, None], window, *sizes, False, [True, False]))
    check_operator(mean_pool_operator.backward, (grads, [None, None], window, *sizes, False, 0, 0.0, [True]))
    index = torch.arange(12, device=device).view(3, 4).expand(2, 3, 3, 4)
    small = make(2, 3, 3, 4, device=device, memory_format=memory_format)
    check_operator(max_unpool_operator.forward, (small, index, [6, 8], channels_last, True))


@kernels
@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_compiled_fullgraph(memory_format: torch.memory_format, device: str) -> None:
    x = make(2, 3, 12, 10, device=device, memory_format=memory_format)

    def pools(t: torch.Tensor) -> torch.Tensor:
        return adaptive_avg_pool2d(avg_pool2d(max_pool2d(t, 3, 2, 1), 2, 1), (2, 3))

    y = pools(x)
    upstream = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, upstream)
    with counted_launches() as launches:
        actual = torch.compile(pools, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(actual, y)
        actual.backward(upstream)
    assert len(set(launches)) == 4 and x.grad is not None
    torch.testing.assert_close(x.grad, expected)


@kernels
def test_export(device: str) -> None:
    model = torch.nn.Sequential(MaxPool2d(2), AvgPool2d(2), AdaptiveAvgPool2d(2))
    x = make(2, 3, 16, 12, device=device).detach()
    exported = torch.export.export(model, (x,))
    for name in ("tinynet.max_pool", "tinynet.mean_pool"):
        assert name in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_volumes_without_kernels_in_16_bits(dtype: torch.dtype) -> None:
    """PyTorch's means of volumes on CPUs take no 16-bit numbers, not even none of them."""
    x = torch.rand(2, 3, 4, 4, 4, dtype=dtype).requires_grad_()
    for pool in (lambda x: ours.avg_pool3d(x, 2, 1), lambda x: ours.lp_pool3d(x, 2.0, 2)):
        assert pool(x[:0]).shape[:2] == (0, 3)
        with tinynet.engine("reference"):
            y = pool(x)
            y.sum().backward()
        assert y.dtype is dtype
        torch.testing.assert_close(y, pool(x.float()).to(dtype))


def test_empty_batch_and_meta_tensors() -> None:
    for pool in (max_pool2d, avg_pool2d, adaptive_avg_pool2d):
        assert pool(torch.empty(0, 3, 4, 4), 2).shape == (0, 3, 2, 2)
        y = pool(torch.empty(2, 3, 4, 4, device="meta"), 2)
        assert y.shape == (2, 3, 2, 2) and y.device.type == "meta"


@kernels
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MaxPool2d(3, 2, 1, ceil_mode=True), torch.nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
        (AvgPool2d(3, 2, 1, count_include_pad=False), torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
        (AvgPool2d(2, divisor_override=3), torch.nn.AvgPool2d(2, divisor_override=3)),
        (AdaptiveAvgPool2d((None, 2)), torch.nn.AdaptiveAvgPool2d((None, 2))),
    ],
    ids=str,
)
def test_modules(ours: torch.nn.Module, theirs: torch.nn.Module, device: str) -> None:
    assert repr(ours) == repr(theirs) and not ours.state_dict()
    x = make(2, 3, 9, 7, device=device)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        with counted_launches() as launches:
            torch.testing.assert_close(module(x), theirs(x))
        assert len(set(launches)) == 1


def test_module_returns_indices() -> None:
    y, index = MaxPool2d(2, return_indices=True)(make(1, 2, 4, 4))
    assert y.shape == index.shape == (1, 2, 2, 2)


IMAGE = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: max_pool2d(torch.randn(8, 8), 2), ValueError, "input must be"),
        (lambda: avg_pool2d(torch.randn(1, 2, 3, 8, 8), 2), ValueError, "input must be"),
        (lambda: max_pool2d(IMAGE.int(), 2), TypeError, "input must be floating point"),
        (lambda: adaptive_avg_pool2d(IMAGE.int(), 2), TypeError, "input must be floating point"),
        (lambda: max_pool2d(torch.empty(2, 0, 8, 8), 2), ValueError, "only the batch"),
        (lambda: max_pool2d(IMAGE, 0), ValueError, "kernel_size must be at least 1"),
        (lambda: max_pool2d(IMAGE, 2.0), TypeError, "kernel_size must be an integer"),  # pyright: ignore
        (lambda: max_pool2d(IMAGE, (2, 2, 2)), ValueError, "kernel_size must be one number or two"),
        (lambda: max_pool2d(IMAGE, 2, 0), ValueError, "stride must be at least 1"),
        (lambda: max_pool2d(IMAGE, 2, 2, -1), ValueError, "padding must be at least 0"),
        (lambda: max_pool2d(IMAGE, 2, 2, 2), ValueError, "padding must be at most half"),
        (lambda: avg_pool2d(IMAGE, 3, 2, 2), ValueError, "padding must be at most half"),
        (lambda: max_pool2d(IMAGE, 2, dilation=0), ValueError, "dilation must be at least 1"),
        (lambda: max_pool2d(IMAGE, 9), ValueError, "larger than the padded input"),
        (lambda: max_pool2d(IMAGE, 5, dilation=2), ValueError, "larger than the padded input"),
        (lambda: avg_pool2d(IMAGE, 2, divisor_override=0), ValueError, "divisor_override"),
        (lambda: ours.max_pool1d(IMAGE, 2), ValueError, r"\[N, C, L\]"),
        (lambda: ours.avg_pool3d(IMAGE[0], 2), ValueError, r"\[N, C, D, H, W\]"),
        (lambda: ours.max_pool3d(IMAGE[None], (1, 2)), ValueError, "one number or three"),
        (lambda: ours.lp_pool2d(IMAGE, 0, 2), ValueError, "norm_type"),
        (lambda: ours.fractional_max_pool2d(IMAGE, 2), ValueError, "one of output_size and output_ratio"),
        (lambda: ours.fractional_max_pool2d(IMAGE, 3, 7), ValueError, "too many"),
        (
            lambda: ours.fractional_max_pool2d(IMAGE, 3, 2, _random_samples=torch.rand(2, 3, 3)),
            ValueError,
            "_random_samples must be",
        ),
        (lambda: ours.max_unpool2d(IMAGE, IMAGE.int(), 2), TypeError, "indices must be int64"),
        (lambda: ours.max_unpool2d(IMAGE, IMAGE.long()[0], 2), ValueError, "input's shape"),
        (lambda: ours.max_unpool2d(IMAGE, IMAGE.long() + 300, 2), ValueError, "indices must be in"),
        (lambda: ours.max_unpool2d(IMAGE, IMAGE.long(), 2, output_size=[9, 9]), ValueError, "output_size must differ"),
        (lambda: adaptive_avg_pool2d(IMAGE, 0), ValueError, "output_size must be at least 1"),
        (lambda: adaptive_avg_pool2d(IMAGE, (1, 2, 3)), ValueError, "output_size must be one number or two"),
        (lambda: adaptive_avg_pool2d(IMAGE, 1.5), TypeError, "output_size must be an integer"),  # pyright: ignore
    ],
)
def test_refuses(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("size", range(1, 9))
def test_output_size_is_that_of_pytorch(size: int) -> None:
    x = torch.empty(1, 1, size, size, device="meta")
    for kernel in (1, 2, 3):
        for stride in (1, 2, 4):
            for padding in range(kernel // 2 + 1):
                for ceil_mode in (False, True):
                    arguments = (x, kernel, stride, padding)
                    try:
                        expected = F.avg_pool2d(*arguments, ceil_mode=ceil_mode).shape
                    except RuntimeError:
                        with pytest.raises(ValueError, match="larger than the padded input"):
                            avg_pool2d(*arguments, ceil_mode=ceil_mode)
                    else:
                        assert avg_pool2d(*arguments, ceil_mode=ceil_mode).shape == expected
