"""Hypothesis strategies for operands: random shapes, memory layouts, dtypes and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from helpers import DTYPES, FENCE
from hypothesis import note
from hypothesis import strategies as st
from torch import Tensor

from tinynet.ops.activation_like import as_activation
from tinynet_kernels.activation_spec import PARAMETERS, Activation

# One, primes, powers of two and their neighbors.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 128, 129)
ACTIVATIONS = [
    *(Activation(name) for name in PARAMETERS if name != "identity"),
    Activation("leaky_relu", negative_slope=-0.5),
    Activation("elu", alpha=-1.5),
    Activation("celu", alpha=0.3),
    Activation("softplus", beta=2.0, threshold=1.0),
    Activation("hardtanh", min_val=-2.0, max_val=0.5),
    Activation("hardshrink", lambd=1.0),
    Activation("softshrink", lambd=0.0),
    Activation("threshold", threshold=-0.5, value=2.0),
]
# Their derivative jumps at a value that a 16-bit result may round to.
STEPPED = ("relu6", "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "softplus", "threshold")

Values = Callable[..., Tensor]
Draw = Callable[..., Any]
normal: Values = torch.randn
# Their sums of products are exact, so that ties and jumps of a derivative are the same in every precision.
small_integers: Values = partial(torch.randint, -1, 2)


def with_non_finite(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Normal values; one is NaN, or one or two are infinite."""
    x = torch.randn(tuple(shape), generator=generator)
    kinds = ([math.nan], [math.inf], [-math.inf], [math.inf, -math.inf])
    values = kinds[int(torch.randint(len(kinds), (), generator=generator))]
    if x.numel():
        places = torch.randint(x.numel(), (len(values),), generator=generator)
        x.view(-1)[places] = torch.tensor(values)
    return x


# NaN and infinities occasionally, where PyTorch defines what becomes of them.
sometimes_non_finite = st.sampled_from([normal, normal, normal, with_non_finite])


def positive(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return 0.25 + torch.rand(tuple(shape), generator=generator)


def in_between(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Probabilities, away from 0 and 1."""
    return 0.1 + 0.8 * torch.rand(tuple(shape), generator=generator)


def signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, tuple(shape), generator=generator) * 2.0 - 1.0


def spread(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Values whose variance over any two neighbors is not close to 0, so that rounding is not magnified."""
    alternating = torch.arange(math.prod(shape)).reshape(tuple(shape)) % 2 * 2 - 1
    return alternating * (1 + torch.rand(tuple(shape), generator=generator))


def sizes(largest: int, least: int = 1) -> st.SearchStrategy[int]:
    return st.sampled_from([size for size in (0, *SIZES) if least <= size <= largest])


def shapes(least: int, most: int, largest: int) -> st.SearchStrategy[list[int]]:
    """Shapes of `least` to `most` dimensions, occasionally an empty one."""
    return st.lists(st.one_of(sizes(largest), sizes(largest), sizes(largest, least=0)), min_size=least, max_size=most)


dtypes = st.sampled_from(DTYPES)
CONSTANT: dict[str, Any] = {"differentiable": False}


@st.composite
def tensors(
    draw: Draw,
    device: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    values: Values = normal,
    *,
    differentiable: bool = True,
    dense: bool = False,
) -> Tensor:
    """A tensor of this shape in random memory.

    Its dimensions are in any order in memory; one may take every other element, one may be expanded (stride 0); a size
    of 1 may have an odd stride; it may start one element into its memory, which is misaligned. The memory between its
    elements and after them holds NaN, or the largest integer.

    Args:
        values: takes a shape and a generator.
        differentiable: whether it may require a gradient.
        dense: whether its elements must have no memory between them.
    """
    dimensions = list(range(len(shape)))
    orders = st.permutations(dimensions)
    if len(shape) > 2:  # contiguous and channels_last, as often as all others
        orders = st.one_of(st.sampled_from([dimensions, [0, *dimensions[2:], 1]]), orders)
    order = draw(orders)
    one_of_them = st.one_of(st.none(), st.sampled_from(dimensions)) if shape and not dense else st.none()
    every_other, expanded, offset = draw(one_of_them), draw(one_of_them), draw(st.sampled_from([0, 1]))
    strides, length = [0] * len(shape), 1
    for dimension in reversed(order):
        if dimension == expanded:
            continue
        strides[dimension] = length * (2 if dimension == every_other else 1)
        length = strides[dimension] * max(shape[dimension], 1)
        if shape[dimension] == 1 and not dense:
            strides[dimension] = draw(st.sampled_from([strides[dimension], 1, 5]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    content = values(tuple(shape), generator=generator).to(dtype)
    between = math.nan if dtype.is_floating_point else torch.iinfo(dtype).max
    memory = torch.full((offset + length + FENCE,), between, dtype=dtype, device=device)
    tensor = memory.as_strided(shape, strides, offset)
    if expanded is None:
        tensor.copy_(content)
    else:
        tensor.narrow(expanded, 0, min(1, shape[expanded])).copy_(content.narrow(expanded, 0, min(1, shape[expanded])))
    if differentiable and draw(st.booleans()):
        tensor.requires_grad_()
    note(f"{tuple(shape)} {dtype}, strides {strides}, offset {offset}, requires_grad {tensor.requires_grad}")
    return tensor


@st.composite
def fused_activations(draw: Draw) -> tuple[Activation, Values]:
    """An activation, None among them, and values for which its derivative is accurate up to rounding."""
    function = as_activation(draw(st.one_of(st.none(), st.sampled_from(ACTIVATIONS))))
    if function.name in STEPPED:
        return function, small_integers
    return function, draw(st.sampled_from([normal, small_integers]))
