"""embedding_bag: every mode and option, and all gradients, against PyTorch in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, assert_close, check_against_reference, counted_launches, non_contiguous, tolerance

import tinynet
from tinynet import nn
from tinynet.ops.embedding_bag import MODES, embedding_bag, embedding_bag_operator

pytestmark = pytest.mark.kernels


def table(V: int, D: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    torch.manual_seed(V + D)
    return torch.randn(V, D, device=device).to(dtype).requires_grad_()


def bags(V: int, lengths: list[int], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices [T], and where each bag begins and the last one ends."""
    torch.manual_seed(sum(lengths))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randint(0, V, (int(offsets[-1]),), device=device), offsets.to(device)


def compare(index: torch.Tensor, weight: torch.Tensor, error: float, *rest: Any, **options: Any) -> list[str]:
    return check_against_reference(
        partial(_call, embedding_bag, options),
        partial(_call, F.embedding_bag, options),
        index,
        weight,
        *rest,
        error=error,
    )


def _call(
    function: Any, options: dict[str, Any], index: Any, weight: Any, offsets: Any = None, factor: Any = None
) -> Any:
    return function(index, weight, offsets, per_sample_weights=factor, **options)


@pytest.mark.parametrize("padding_idx", [None, 0, 4])
@pytest.mark.parametrize("mode", MODES)
def test_reference(mode: str, padding_idx: int | None, device: str) -> None:
    """The last row counts like any other, unless it is the padding."""
    weight, (index, offsets) = table(5, 3, torch.float64, device), bags(5, [3, 0, 9, 1], device)
    options: dict[str, Any] = {"mode": mode, "padding_idx": padding_idx, "include_last_offset": True}
    with tinynet.engine("reference"):
        y = embedding_bag(index, weight, offsets, **options)
    expected = F.embedding_bag(index, weight, offsets, **options)
    assert_close(y, expected, 1e-12)
    grad = torch.randn_like(y)
    gradients = [torch.autograd.grad(each, weight, grad)[0] for each in (y, expected)]
    assert_close(gradients[0], gradients[1], 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("V", "D", "lengths"), [(1, 1, [1]), (17, 63, [3, 0, 9, 1]), (9, 129, [0, 2, 17, 5, 0])])
def test_bags_and_gradient(V: int, D: int, lengths: list[int], mode: str, dtype: torch.dtype, device: str) -> None:
    weight, (index, offsets) = table(V, D, dtype, device), bags(V, lengths, device)
    error = 2 * tolerance(dtype, index.numel())
    launches = compare(index, weight, error, offsets[:-1], mode=mode)
    assert launches == ["embedding_bag_forward_kernel", "embedding_backward_kernel"]
    compare(index, weight, error, offsets, mode=mode, include_last_offset=True)
    compare(index.int(), non_contiguous(weight), error, offsets[:-1].int(), mode=mode, padding_idx=V - 1)


@pytest.mark.parametrize("mode", MODES)
def test_rows_as_bags_and_options(mode: str, device: str) -> None:
    weight = table(6, 10, torch.float32, device)
    index = torch.randint(0, 6, (7, 5), device=device)
    for i in (index, index.t(), index[:, ::2]):
        compare(i, weight, 1e-6, mode=mode, padding_idx=-2)
    compare(index, weight.detach().t().contiguous().t().requires_grad_(), 1e-6, mode=mode)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_frequencies(mode: str, device: str) -> None:
    """Compared with look-ups: on a CPU PyTorch's bags divide by the frequency of another row."""
    weight = table(6, 10, torch.float32, device)
    check_against_reference(
        partial(embedding_bag, mode=mode, scale_grad_by_freq=True),
        lambda i, w: getattr(F.embedding(i, w, scale_grad_by_freq=True), mode)(1),
        torch.randint(0, 6, (7, 5), device=device),
        weight,
        error=1e-6,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_per_sample_weights(dtype: torch.dtype, device: str) -> None:
    weight, (index, offsets) = table(7, 70, dtype, device), bags(7, [4, 0, 6], device)
    factor = torch.randn(10, device=device).to(dtype).requires_grad_()
    error = 2 * tolerance(dtype, 70)
    launches = compare(index, weight, error, offsets[:-1], factor, mode="sum", padding_idx=3)
    assert launches[-1] == "embedding_bag_factor_gradient_kernel"
    compare(index.view(5, 2), weight.detach(), error, None, factor.detach().view(5, 2).requires_grad_(), mode="sum")


@pytest.mark.parametrize("mode", MODES)
def test_small_tiles(mode: str, device: str) -> None:
    weight, (index, offsets) = table(6, 19, torch.float32, device), bags(6, [3, 0, 5, 1, 2], device)
    factor = torch.randn(11, device=device, requires_grad=True) if mode == "sum" else None
    with forced_tiles(bag_tile=(embedding_bag_tile(2, 8), 1), rows_and_columns=(4, 8, 4)):
        compare(index, weight, 1e-6, offsets[:-1], factor, mode=mode, padding_idx=1)


def embedding_bag_tile(*sides: int) -> Any:
    from tinynet_kernels.embedding_bag import BagTile

    return BagTile(*sides)


def test_more_columns_than_a_block_and_ties(device: str) -> None:
    weight, (index, offsets) = table(3, 1030, torch.float32, device), bags(3, [9], device)
    compare(index, weight, 1e-6, offsets[:-1], mode="mean")
    equal = torch.ones(4, 3, device=device, requires_grad=True)
    compare(torch.tensor([[2, 1, 2], [0, 3, 3]], device=device), equal, 1e-6, mode="max")


def test_tokens_after_the_last_bag(device: str) -> None:
    weight, (index, offsets) = table(5, 4, torch.float32, device), bags(5, [2, 3, 4], device)
    factor = torch.randn(9, device=device, requires_grad=True)
    y = embedding_bag(index, weight, offsets[:3], mode="sum", per_sample_weights=factor, include_last_offset=True)
    memory = torch.full((3, 4), torch.nan, device=device)  # no bag's gradient follows the last one's
    upstream = memory[:2].normal_()
    actual = torch.autograd.grad(y, [weight, factor], upstream)
    first = F.embedding_bag(index[:5], weight, offsets[:2], mode="sum", per_sample_weights=factor[:5])
    torch.testing.assert_close(y, first)
    for a, e in zip(actual, torch.autograd.grad(first, [weight, factor], upstream), strict=True):
        torch.testing.assert_close(a, e)


def test_max_norm_and_module(device: str) -> None:
    torch.manual_seed(1)
    for mode in MODES:
        options = {"max_norm": 1.0, "mode": mode, "padding_idx": 2, "device": device}
        ours, theirs = nn.EmbeddingBag(12, 5, **options), torch.nn.EmbeddingBag(12, 5, **options)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        index = torch.randint(0, 12, (3, 9), device=device)
        a, b = ours(index), theirs(index)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(ours.weight, theirs.weight)
        upstream = torch.randn_like(a)
        a.backward(upstream)
        b.backward(upstream)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    frozen = nn.EmbeddingBag.from_pretrained(torch.eye(4, device=device), mode="sum")
    assert type(frozen) is nn.EmbeddingBag and not frozen(index[:, :2] % 4).requires_grad


@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives(mode: str, device: str) -> None:
    weight, (index, offsets) = table(5, 3, torch.float32, device), bags(5, [2, 3, 0], device)
    factor = torch.randn(5, device=device, requires_grad=True) if mode == "sum" else None
    upstream = torch.randn(3, 3, device=device, requires_grad=True)
    y = embedding_bag(index, weight, offsets[:-1], mode=mode, per_sample_weights=factor, padding_idx=1)
    leaves = [weight] if factor is None else [weight, factor]
    first = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
    again = torch.autograd.grad(y, leaves, upstream, create_graph=True)
    for a, e in zip(again, first, strict=True):
        torch.testing.assert_close(a, e)
    (dupstream,) = torch.autograd.grad((again[0] * weight).sum(), upstream)
    torch.testing.assert_close(dupstream, y)  # each mode is linear in the rows that it takes


@pytest.mark.parametrize("mode", MODES)
def test_registered_operators_and_compile(mode: str, device: str) -> None:
    weight, (index, offsets) = table(7, 4, torch.float32, device), bags(7, [4, 5], device)
    factor = torch.randn(9, device=device, requires_grad=True) if mode == "sum" else None
    torch.library.opcheck(embedding_bag_operator.forward, (index, offsets, weight, factor, 7, mode, 2, False, True))
    compiled = torch.compile(partial(embedding_bag, mode=mode), fullgraph=True, backend="aot_eager")
    with counted_launches() as launches:
        y = compiled(index, weight, offsets[:-1], per_sample_weights=factor)
        y.sum().backward()
    assert launches[:2] == ["embedding_bag_forward_kernel", "embedding_backward_kernel"]
    torch.testing.assert_close(y, F.embedding_bag(index, weight, offsets[:-1], mode=mode, per_sample_weights=factor))


def test_refuses_and_empty(device: str) -> None:
    weight, (index, offsets) = table(7, 4, torch.float32, device), bags(7, [4, 5], device)
    cases: list[tuple[str, Any, Any]] = [
        ("sparse", (index, weight, offsets), {"sparse": True}),
        ("takes no offsets", (index.view(3, 3), weight, offsets), {}),
        ("needs offsets", (index, weight), {}),
        ("mode must be one of sum, mean, max", (index, weight, offsets), {"mode": "min"}),
        ("not defined for mode 'max'", (index, weight, offsets), {"mode": "max", "scale_grad_by_freq": True}),
        ("must have the shape of input", (index, weight, offsets), {"mode": "sum", "per_sample_weights": weight[0]}),
        ("must be \\[B, N\\] or", (index.view(1, 3, 3), weight), {}),
        ("padding_idx must be", (index, weight, offsets), {"padding_idx": 7}),
    ]
    for match, arguments, options in cases:
        with pytest.raises(ValueError, match=match):
            embedding_bag(*arguments, **options)
    with pytest.raises(NotImplementedError, match="per_sample_weights"):
        embedding_bag(index, weight, offsets, per_sample_weights=torch.ones(9, device=device))
    with pytest.raises(TypeError, match="offsets must be int32 or int64"):
        embedding_bag(index, weight, offsets.float())
    with pytest.raises(TypeError, match="per_sample_weights has dtype"):
        embedding_bag(index, weight, offsets, mode="sum", per_sample_weights=torch.ones(9, device=device).bfloat16())
    if device == "cpu":
        with pytest.raises(IndexError, match="index 7 is outside the table of 7 rows"):
            embedding_bag(index.clone().fill_(7), weight, offsets[:-1])
        with pytest.raises(ValueError, match="offsets must start at 0"):
            embedding_bag(index, weight, offsets[1:])
    for mode in MODES:
        y = embedding_bag(index[:0], weight, offsets[:1], mode=mode)
        assert y.shape == (1, 4) and not y.any()
        assert embedding_bag(index[:0], weight, offsets[:0], mode=mode).shape == (0, 4)
