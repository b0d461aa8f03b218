"""Pools, unpooling and resampling on random operands, against PyTorch in float64."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, note
from hypothesis import strategies as st
from random_checks import check
from random_tensors import Draw, Values, dtypes, normal, positive, sizes, small_integers, tensors, with_non_finite
from torch import Tensor

from tinynet import functional

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.filterwarnings("ignore:max_unpooling.*does not have a deterministic implementation"),
]

# Integers have ties; NaN wins over every number.
maxima_of = st.sampled_from([normal, small_integers, with_non_finite])
ranks = st.integers(1, 3)


def number_or_sizes(draw: Draw, rank: int, numbers: st.SearchStrategy[int]) -> int | tuple[int, ...]:
    return draw(st.one_of(numbers, st.tuples(*[numbers] * rank)))


def as_sizes(value: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * rank


@st.composite
def images(draw: Draw, device: str, rank: int, values: Values = normal, least: tuple[int, ...] = (1, 1, 1)) -> Tensor:
    """[N, C, ...] or [C, ...] of at least these sizes; the batch may be empty."""
    batch = [] if draw(st.integers(0, 4)) == 0 else [draw(sizes(4, least=0))]
    lengths = [max(1, each, draw(sizes(13 if rank < 3 else 7))) for each in least[:rank]]
    return draw(tensors(device, [*batch, draw(sizes(33)), *lengths], draw(dtypes), values))


@st.composite
def windows(draw: Draw, rank: int, *, dilated: bool) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Arguments of a pool, and the smallest sizes that they fit."""
    # Each window compiles its own kernels, with all taps unrolled.
    kernel = number_or_sizes(draw, rank, st.integers(1, 3))
    dilation = number_or_sizes(draw, rank, st.integers(1, 2)) if dilated else 1
    padding = tuple(draw(st.integers(0, size // 2)) for size in as_sizes(kernel, rank))
    options = {
        "kernel_size": kernel,
        "stride": draw(st.none()) if draw(st.booleans()) else number_or_sizes(draw, rank, st.integers(1, 4)),
        "padding": padding,
        "ceil_mode": draw(st.booleans()),
        **({"dilation": dilation} if dilated else {}),
    }
    axes = zip(as_sizes(kernel, rank), as_sizes(dilation, rank), padding, strict=True)
    # Of a window without elements PyTorch's gradient goes to another element.
    return options, tuple(max(step, (taps - 1) * step + 1 - 2 * edge) for taps, step, edge in axes)


@given(st.data())
def test_max_pool(device: str, data: st.DataObject) -> None:
    draw, rank = data.draw, data.draw(ranks)
    options, least = draw(windows(rank, dilated=True))
    name = draw(st.sampled_from([f"max_pool{rank}d", f"max_pool{rank}d_with_indices"]))
    note(f"{name}, {options}")
    ours, theirs = (partial(getattr(library, name), **options) for library in (functional, F))
    check(draw, ours, theirs, draw(images(device, rank, draw(maxima_of), least)), lengths=(1, 27))


@given(st.data())
def test_adaptive_max_pool(device: str, data: st.DataObject) -> None:
    draw, rank = data.draw, data.draw(ranks)
    name = draw(st.sampled_from([f"adaptive_max_pool{rank}d", f"adaptive_max_pool{rank}d_with_indices"]))
    size = number_or_sizes(draw, rank, sizes(9))
    note(f"{name}, {size}")
    ours, theirs = (partial(getattr(library, name), output_size=size) for library in (functional, F))
    check(draw, ours, theirs, draw(images(device, rank, draw(maxima_of))), lengths=(1, 64))


@given(st.data())
def test_fractional_max_pool(device: str, data: st.DataObject) -> None:
    draw, rank = data.draw, data.draw(st.integers(2, 3))
    kernel = as_sizes(number_or_sizes(draw, rank, st.integers(1, 3)), rank)
    x = draw(images(device, rank, draw(st.sampled_from([normal, small_integers])), tuple(each + 1 for each in kernel)))
    space = x.shape[-rank:]
    out = tuple(draw(st.integers(1, size - taps)) for size, taps in zip(space, kernel, strict=True))
    lead = [x.shape[0] if x.dim() == rank + 2 else 1, x.shape[-rank - 1], rank]
    samples = draw(tensors(device, lead, x.dtype, torch.rand, differentiable=False))
    note(f"kernel {kernel}, output {out}")

    def ours(x: Tensor, samples: Tensor) -> Any:
        return getattr(functional, f"fractional_max_pool{rank}d_with_indices")(x, kernel, out, None, True, samples)

    def theirs(x: Tensor, samples: Tensor) -> Any:  # its windows follow from fp32 numbers, as ours
        pool = getattr(F, f"fractional_max_pool{rank}d_with_indices")
        _, index = pool(x.detach().float().contiguous(), kernel, out, None, True, samples.float().contiguous())
        return x.flatten(-rank).gather(-1, index.flatten(-rank)).view(index.shape), index

    check(draw, ours, theirs, x, samples, lengths=(1, 27))


@given(st.data())
def test_avg_pool(device: str, data: st.DataObject) -> None:
    draw, rank = data.draw, data.draw(ranks)
    options, least = draw(windows(rank, dilated=False))
    options["count_include_pad"] = draw(st.booleans())
    if rank > 1:
        options["divisor_override"] = draw(st.sampled_from([None, 1, 3, -2]))
    if rank == 3:  # PyTorch's gradient refuses a window larger than the image without its padding
        least = as_sizes(options["kernel_size"], rank)
    note(f"{rank}, {options}")
    ours, theirs = (partial(getattr(library, f"avg_pool{rank}d"), **options) for library in (functional, F))
    x = draw(images(device, rank, draw(st.sampled_from([normal, normal, with_non_finite])), least))
    check(draw, ours, theirs, x, lengths=(27, 27))


@given(st.data())
def test_adaptive_avg_pool(device: str, data: st.DataObject) -> None:
    draw, rank = data.draw, data.draw(ranks)
    size: Any = number_or_sizes(draw, rank, sizes(17 if rank < 3 else 7))
    if isinstance(size, tuple) and rank > 1:  # PyTorch's of one axis takes no None
        size = tuple(draw(st.sampled_from([each, each, None])) for each in size)
    note(f"{rank}, {size}")
    ours, theirs = (
        partial(getattr(library, f"adaptive_avg_pool{rank}d"), output_size=size) for library in (functional, F)
    )
    x = draw(images(device, rank, draw(st.sampled_from([normal, normal, with_non_finite]))))
    check(draw, ours, theirs, x, lengths=(64, 64))


@given(st.data())
def test_lp_pool(device: str, data: st.DataObject) -> None:
    draw, rank = data.draw, data.draw(ranks)
    options: dict[str, Any] = {
        "norm_type": draw(st.sampled_from([1.0, 2.0, 2, 3.0, 0.5, math.inf, -math.inf])),
        # PyTorch's of one axis takes one number alone.
        "kernel_size": draw(st.integers(1, 3)) if rank == 1 else number_or_sizes(draw, rank, st.integers(1, 3)),
        "stride": draw(st.none()) if draw(st.booleans()) else number_or_sizes(draw, rank, st.integers(1, 4)),
        "ceil_mode": draw(st.booleans()),
    }
    least = as_sizes(options["kernel_size"], rank)
    values = normal if options["norm_type"] == 2 else positive  # other powers of negative numbers are NaN or cancel
    note(f"{rank}, {options}")
    ours, theirs = (partial(getattr(library, f"lp_pool{rank}d"), **options) for library in (functional, F))
    check(draw, ours, theirs, draw(images(device, rank, values, least)), lengths=(64, 64))


@given(st.data())
def test_max_unpool(device: str, data: st.DataObject) -> None:
    draw, rank = data.draw, data.draw(ranks)
    shape = [draw(sizes(3)), draw(sizes(17)), *(draw(sizes(5)) for _ in range(rank))]
    length = math.prod(shape[2:])

    def distinct(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        places = [torch.randperm(length * 2**rank, generator=generator)[:length] for _ in range(math.prod(shape[:2]))]
        return torch.stack(places).view(shape)

    index = draw(tensors(device, shape, torch.int64, distinct, differentiable=False, dense=True))

    def call(library: Any, x: Tensor) -> Tensor:
        places = index if library is functional else index.contiguous()  # PyTorch's backward takes no others
        return getattr(library, f"max_unpool{rank}d")(x, places, 2)

    x = draw(tensors(device, shape, draw(dtypes), draw(maxima_of)))
    check(draw, partial(call, functional), partial(call, F), x)


@given(st.data())
def test_interpolate(device: str, data: st.DataObject) -> None:
    draw = data.draw
    shape, dtype = [draw(sizes(4, least=0)), *(draw(sizes(each)) for each in (9, 13, 13))], draw(dtypes)
    options: dict[str, Any] = {"mode": "bilinear", "align_corners": draw(st.booleans())}
    if draw(st.booleans()):
        options["size"] = number_or_sizes(draw, 2, st.integers(1, 30))
        size = as_sizes(options["size"], 2)
    else:
        factors = [draw(st.sampled_from([0.5, 1.0, 1.7, 2.0, 3.25])) for _ in range(2)]
        # At least one pixel remains.
        factors = [
            max(factor, 1.0) if length == 1 else factor for factor, length in zip(factors, shape[2:], strict=True)
        ]
        size = [int(length * factor) for length, factor in zip(shape[2:], factors, strict=True)]
        options["scale_factor"], options["recompute_scale_factor"] = tuple(factors), draw(st.booleans())
    note(f"{options}")
    gathered = max(4, math.ceil(size[0] / shape[2] + 1) * math.ceil(size[1] / shape[3] + 1) * 4)
    x = draw(tensors(device, shape, dtype))
    ours, theirs = (partial(library.interpolate, **options) for library in (functional, F))
    check(draw, ours, theirs, x, lengths=(64, 64 * gathered))
