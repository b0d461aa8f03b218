"""PyTorch's sums, products, copies and concatenations as launches: the bits of PyTorch, or PyTorch itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from forced_tiles import forced_tiles
from helpers import DTYPES, counted_launches
from torch import Tensor

from tinynet.graphs.arithmetic import copies, launches

pytestmark = pytest.mark.kernels
aten = torch.ops.aten
Last = torch.channels_last


def images(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=Last)


def heads() -> Tensor:
    """[batch, heads, tokens, width] as attention returns it."""
    return torch.randn(2, 5, 3, 24).transpose(1, 2)


# Two operands whose broadcast result is dense.
PAIRS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "contiguous": lambda: (torch.randn(3, 5, 7), torch.randn(3, 5, 7)),
    "many rows of 256": lambda: (torch.randn(12, 256), torch.randn(12, 256)),
    "one element": lambda: (torch.randn(1), torch.randn(())),
    "single numbers": lambda: (torch.randn(()), torch.randn(())),
    "channels_last": lambda: (images(2, 9, 5, 3), images(2, 9, 5, 3)),
    "channels of a concatenation": lambda: (images(2, 40, 5, 3)[:, 7:24], images(2, 31, 5, 3)[:, 3:20]),
    "per channel": lambda: (images(2, 9, 5, 3), torch.randn(9, 1, 1)),
    "per sample": lambda: (images(4, 17, 5, 3), torch.randn(4, 1, 1, 1)),
    "per sample and channel": lambda: (images(4, 17, 5, 3), images(4, 17, 1, 1)),
    "a single number": lambda: (torch.randn(6, 33), torch.randn(())),
    "rows with gaps": lambda: (torch.randn(9, 40)[:, :33], torch.randn(18, 33)[::2]),
    "heads": lambda: (heads(), torch.randn(2, 3, 5, 24)),
    "longer than the other": lambda: (torch.randn(8), torch.randn(4, 3, 8)),
}
OPERATORS = {"add": aten.add.Tensor, "mul": aten.mul.Tensor}


def surrounded(like: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor of this form full of NaN, and the memory around it."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(like.shape, like.stride(), strict=True))
    memory = torch.full((size + 128,), torch.nan, dtype=like.dtype)
    return memory.as_strided(like.shape, like.stride(), 64), memory


def check(compute: Callable[[Tensor], bool], expected: Tensor) -> None:
    """It launches kernels that compute the bits expected, and write nowhere else."""
    result, memory = surrounded(expected)
    with counted_launches() as launched:
        assert compute(result)
    assert set(launched) == {"arithmetic_kernel"}
    assert torch.equal(result, expected)
    result.fill_(torch.nan)
    assert memory.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("pair", PAIRS)
def test_sums_and_products(pair: str, operator: str, dtype: torch.dtype, device: str) -> None:
    a, b = (each.to(dtype).to(device) for each in PAIRS[pair]())
    function = OPERATORS[operator]
    for operands in ((a, b), (b, a)):
        check(lambda result, operands=operands: launches(function, operands, result), function(*operands))


@pytest.mark.parametrize("tile", [(2, 16, 4), (1, 8, 4), (16, 64, 4)])
def test_small_tiles(tile: tuple[int, int, int], device: str) -> None:
    with forced_tiles(rows_and_columns=tile):
        for build in PAIRS.values():
            a, b = build()
            check(lambda result, a=a, b=b: launches(aten.add.Tensor, (a, b), result), a + b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies(dtype: torch.dtype, device: str) -> None:
    five = torch.randn(3, 2, 4, 5, 16, device=device)
    for source in (heads(), torch.randn(9, 40)[:, 3:36], five.permute(1, 3, 0, 2, 4), images(2, 30, 5, 3)[:, 2:14]):
        source = source.to(dtype)
        form = Last if source.ndim == 4 and source.stride(1) == 1 else torch.contiguous_format
        check(lambda result, source=source: copies(source, result), source.clone(memory_format=form))
    row = torch.randn(24, device=device, dtype=dtype)
    check(lambda result: copies(row, result), row.expand(2, 5, 24).contiguous())


@pytest.mark.parametrize("dtype", DTYPES)
def test_joined_tensors(dtype: torch.dtype, device: str) -> None:
    parts = [images(2, channels, 5, 3).to(dtype) for channels in (9, 16, 11)]
    check(lambda result: launches(aten.cat.default, (parts, 1), result), torch.cat(parts, 1))
    rows = [torch.randn(n, 12, device=device).to(dtype) for n in (2, 1, 5)]
    check(lambda result: launches(aten.cat.default, (rows,), result), torch.cat(rows))
    alike = [heads().to(dtype) for _ in range(3)]
    check(lambda result: launches(aten.stack.default, (alike,), result), torch.stack(alike))
    check(lambda result: launches(aten.stack.default, (alike, 3), result), torch.stack(alike, 3))


def test_special_numbers(device: str) -> None:
    a = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 1e-45, 3e38, 1.0], device=device)
    for x, y in ((a[:, None].expand(8, 8).contiguous(), a), (a, a[:, None].expand(8, 8).contiguous())):
        for function in OPERATORS.values():
            result, expected = torch.empty(8, 8), function(x, y)
            assert launches(function, (x, y), result)
            assert torch.equal(result.nan_to_num(7.0), expected.nan_to_num(7.0))
            assert torch.equal(result.signbit() | result.isnan(), expected.signbit() | expected.isnan())


REFUSED: dict[str, Any] = {
    "other dtypes": (aten.add.Tensor, (torch.ones(9, 16), torch.ones(9, 16, dtype=torch.float64))),
    "integers": (aten.add.Tensor, (torch.ones(9, 16, dtype=torch.int64), torch.ones(9, 16, dtype=torch.int64))),
    "a Python number": (aten.add.Tensor, (torch.ones(9, 16), 2)),
    "a lazily negated operand": (
        aten.add.Tensor,
        (torch.ones(9, 16), torch.ones(9, 16, dtype=torch.cfloat).conj().imag),
    ),
    "a transposed operand": (aten.add.Tensor, (torch.ones(9, 16), torch.ones(16, 9).t())),
    "no elements": (aten.add.Tensor, (torch.ones(0, 16), torch.ones(0, 16))),
    "short rows with gaps": (aten.add.Tensor, (torch.ones(30, 8)[:, :4], torch.ones(30, 4))),
    "an empty part": (aten.cat.default, ([torch.ones(0), torch.ones(9, 16)],)),
    "parts of integers": (aten.stack.default, ([torch.ones(16, dtype=torch.int32)] * 2,)),
    "another operator": (aten.sub.Tensor, (torch.ones(9, 16), torch.ones(9, 16))),
    "a scaled sum": (aten.add.Tensor, (torch.ones(9, 16), torch.ones(9, 16), 2)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_pytorch_computes(case: str, device: str) -> None:
    function, args = REFUSED[case]
    result = torch.empty(9, 16) if case == "a scaled sum" else function(*args)
    with counted_launches() as launched:
        assert not launches(function, args, result)
    assert not launched


def test_copies_that_are_pytorchs(device: str) -> None:
    """Within memory, of lazily negated numbers, and to another dtype."""
    x = torch.randn(4, 16, device=device)
    assert not copies(x[:2], x[2:])
    negated = torch.randn(4, 16, dtype=torch.cfloat, device=device).conj().imag
    assert negated.is_neg() and not copies(negated, torch.empty(4, 16))
    assert not copies(x, torch.empty(4, 16, dtype=torch.float16))


def test_five_dimensions_with_a_long_shortest_one_are_pytorchs(device: str) -> None:
    x = torch.randn(6, 5, 7, 8, 16, device=device).permute(1, 3, 0, 2, 4)
    assert not copies(x, torch.empty(x.shape))
