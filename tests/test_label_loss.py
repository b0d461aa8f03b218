"""Losses of rows with labels, nll_loss and the margin losses: kernels against float64 PyTorch, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, assert_close, check_against_reference, counted_launches, non_contiguous, tolerance
from torch import Tensor

from tinynet import nn
from tinynet.ops.arguments import REDUCTIONS
from tinynet.ops.margin_loss import (
    multi_margin_loss,
    multi_margin_loss_operator,
    multilabel_margin_loss,
    multilabel_margin_loss_operator,
)
from tinynet.ops.nll_loss import nll_loss, nll_loss_operator
from tinynet_kernels import nll_loss as nll_kernels

kernels = pytest.mark.kernels


def scores(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(shape, device=device).to(dtype).requires_grad_()


def labels(*shape: int, classes: int, device: str = "cpu") -> Tensor:
    torch.manual_seed(classes)
    return torch.randint(classes, shape, device=device)


def label_sets(rows: int, classes: int, device: str = "cpu") -> Tensor:
    """Rows of 0, 1, 2, ... labels, some of them twice, then -1 and labels that do not count."""
    target = labels(rows, classes, classes=classes, device=device)
    for row in range(rows):
        target[row, row % (classes + 1) :][:1] = -1
    if classes > 2:
        target[-1, 1] = target[-1, 0]
    return target


def check(function: Any, reference: Any, x: Tensor, target: Tensor, *more: Tensor | None, **options: Any) -> list[str]:
    return check_against_reference(
        lambda x, target, *rest: function(x, target, *rest, **options),
        lambda x, target, *rest: reference(x, target, *rest, **options),
        x,
        target,
        *more,
        error=4 * tolerance(x.dtype, x.numel()),
    )


def multi_margin(library: Any, p: int, margin: float) -> Callable[..., Tensor]:
    function = multi_margin_loss if library is nn else F.multi_margin_loss
    return lambda x, target, weight, **options: function(x, target, p, margin, weight, **options)


@kernels
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("shape", "dtype"), [((40, 7), dtype) for dtype in DTYPES] + [((7,), DTYPES[0])])
def test_one_label_per_row(shape: tuple[int, ...], dtype: torch.dtype, reduction: str, device: str) -> None:
    x, target = scores(*shape, dtype=dtype, device=device), labels(*shape[:-1], classes=7, device=device)
    weight = (torch.rand(7, device=device) + 0.1).to(dtype)
    check(nll_loss, F.nll_loss, x, target, None, reduction=reduction)
    check(nll_loss, F.nll_loss, x, target, weight, reduction=reduction, ignore_index=3)
    check(multi_margin(nn, 1, 0.7), multi_margin(F, 1, 0.7), x, target, None, reduction=reduction)
    check(multi_margin(nn, 2, 1.3), multi_margin(F, 2, 1.3), x, target, weight, reduction=reduction)


@kernels
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("shape", "dtype"), [((12, 9), dtype) for dtype in DTYPES] + [((9,), DTYPES[0])])
def test_several_labels_per_row(shape: tuple[int, ...], dtype: torch.dtype, reduction: str, device: str) -> None:
    target = label_sets(12, 9, device)
    target = target if len(shape) == 2 else target[4]
    x = scores(*shape, dtype=dtype, device=device)
    check(multilabel_margin_loss, F.multilabel_margin_loss, x, target, reduction=reduction)


@kernels
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_small_tiles(reduction: str, device: str) -> None:
    """Several programs of rows, several blocks of classes, strides on every axis."""
    from tinynet_kernels.cross_entropy import CrossEntropyTile

    N, C, S = 3, 19, 7
    x = torch.randn(N, S, 2 * C, device=device).transpose(1, 2)[:, ::2].requires_grad_()
    target, weight = labels(S, N, classes=C, device=device).t(), torch.rand(C, device=device)
    rows = non_contiguous(scores(5, C, device=device))
    tile = CrossEntropyTile(2, 8, 4)
    with forced_tiles(flat_block=(4, 4), cross_entropy_tile=tile, multilabel_block=8):
        check(nll_loss, F.nll_loss, x, target, weight, reduction=reduction, ignore_index=2)
        for p in (1, 2):
            given = rows, labels(5, classes=C, device=device), weight
            check(multi_margin(nn, p, 0.5), multi_margin(F, p, 0.5), *given, reduction=reduction)
        target = label_sets(5, C, device)
        target[0], target[1, 12] = 3, 11
        check(multilabel_margin_loss, F.multilabel_margin_loss, rows, target, reduction=reduction)


@kernels
def test_labels_in_uint8_and_of_one_element(device: str) -> None:
    x, target = scores(5, 7, device=device), labels(5, classes=7, device=device)
    assert_close(nll_loss(x, target.to(torch.uint8)), F.nll_loss(x, target), 1e-6)
    assert_close(nll_loss(x[0], target[:1], reduction="none"), F.nll_loss(x[0], target[:1], reduction="none"), 1e-6)
    for given in ((x[0], target[:1]), (x[:1], target[0])):
        expected = F.multi_margin_loss(*given, reduction="none")
        assert_close(multi_margin_loss(*given, reduction="none"), expected, 1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batches(reduction: str) -> None:
    x, target = torch.empty(0, 3, requires_grad=True), torch.empty(0, dtype=torch.int64)
    shape = (0,) if reduction == "none" else ()
    losses = multi_margin_loss(x, target, reduction=reduction), multilabel_margin_loss(x, x.long(), reduction=reduction)
    for loss in losses:
        assert loss.shape == shape and loss.requires_grad and not loss.any()
    assert nll_loss(x, target, reduction=reduction).shape == shape


@kernels
def test_registered_operators(device: str) -> None:
    x, target = scores(3, 5, device=device), labels(3, classes=5, device=device)
    weight, several = torch.rand(5, device=device), label_sets(3, 5, device)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (nll_loss_operator, (x, target, weight, -100, "mean")),
        (multi_margin_loss_operator, (x, target, weight, 1, 1.0, "none")),
        (multilabel_margin_loss_operator, (x, several, "sum")),
    ]
    for operator, arguments in calls:
        # The counts of several labels stay unset past the last one, so that outputs can't be compared.
        utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(operator.forward, (*arguments, True), test_utils=utilities)
        given = [each.detach() if isinstance(each, Tensor) else each for each in arguments]
        results = operator.registered(*given, True)
        tensors, settings = given[: operator.tensors], given[operator.tensors :]
        saved = list(operator.saves(given, results))
        wanted = [True, *[False] * (len(tensors) - 1)]
        torch.library.opcheck(operator.backward, ([torch.randn_like(results[0])], saved, *settings, wanted))


@kernels
def test_compiled(device: str) -> None:
    x, target = scores(6, 4, device=device), labels(6, classes=4, device=device)
    several = label_sets(6, 4, device)

    def total(x: Tensor) -> Tensor:
        return nll_loss(x, target) + multi_margin_loss(x, target) + multilabel_margin_loss(x, several)

    (expected,) = torch.autograd.grad(total(x), x)
    with counted_launches() as launches:
        torch.compile(total, fullgraph=True, backend="aot_eager")(x).backward()
    assert sum(name.endswith("backward_kernel") for name in launches) == 3 and x.grad is not None
    torch.testing.assert_close(x.grad, expected)


@kernels
def test_autocast_computes_in_float32(device: str) -> None:
    x, target = scores(8, 5, dtype=torch.bfloat16, device=device), labels(8, classes=5, device=device)
    several = label_sets(8, 5, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        losses = nll_loss(x, target), multi_margin_loss(x, target), multilabel_margin_loss(x, several)
    assert all(loss.dtype is torch.float32 for loss in losses)


def test_older_name_warns() -> None:
    with pytest.warns(FutureWarning, match="NLLLoss2d"):
        loss = nn.NLLLoss2d(reduction="sum")
    assert repr(loss) == "NLLLoss2d()" and loss(torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5).long()) == 0


@kernels
@pytest.mark.parametrize("function", [nll_loss, multi_margin_loss])
def test_labels_out_of_range(function: Callable[..., Tensor], device: str) -> None:
    x, target = scores(4, 3, device=device), torch.tensor([0, 3, 2, 1], device=device)
    if device == "cpu":
        with pytest.raises(IndexError, match="target 3 is out of bounds"):
            function(x, target)
    else:
        assert function(x, target, reduction="none").isnan().tolist() == [False, True, False, False]


@kernels
def test_a_label_out_of_range_has_no_gradient(device: str) -> None:
    """Nor does it write that of the next row."""
    x, target = scores(4, 3, device=device).detach(), torch.tensor([0, 3, 2, 1], device=device)
    dx = nll_kernels.nll_loss_backward(torch.ones(4, device=device), x, target, None, None, -100, "none")
    assert dx.tolist() == [[-1, 0, 0], [0, 0, 0], [0, 0, -1], [0, -1, 0]]


ROWS = {"input": torch.randn(4, 3), "target": torch.tensor([0, 1, 2, 0])}
SEVERAL = {"input": torch.randn(4, 3), "target": torch.tensor([[0, -1, 0]] * 4)}


@pytest.mark.parametrize(
    ("function", "change", "error", "message"),
    [
        (nll_loss, {"input": torch.randn(())}, ValueError, "input must be"),
        (nll_loss, {"input": torch.arange(12).view(4, 3)}, TypeError, "input must be floating point"),
        (nll_loss, {"input": torch.randn(5, 3)}, ValueError, "target must be labels"),
        (nll_loss, {"target": torch.zeros(4, dtype=torch.int32)}, TypeError, "int64 or uint8"),
        (nll_loss, {"target": [0, 1, 2, 0]}, TypeError, "target must be a tensor"),
        (nll_loss, {"weight": torch.ones(4)}, ValueError, "weight must be"),
        (nll_loss, {"weight": torch.ones(3).half()}, TypeError, "weight has dtype"),
        (nll_loss, {"ignore_index": 0.5}, TypeError, "ignore_index must be"),
        (multi_margin_loss, {"reduction": "average"}, ValueError, "reduction must be"),
        (multi_margin_loss, {"p": 3}, ValueError, "p must be 1 or 2"),
        (multi_margin_loss, {"input": torch.randn(5, 3)}, ValueError, "target must be labels"),
        (multi_margin_loss, {"input": torch.randn(4, 3, 2)}, ValueError, "input must be"),
        (multi_margin_loss, {"target": torch.zeros(4, dtype=torch.int32)}, TypeError, "int64"),
        (multi_margin_loss, {"weight": torch.ones(2)}, ValueError, "weight must be"),
        (multilabel_margin_loss, {"target": torch.tensor([0, 1, 2, 0])}, ValueError, "target must have the shape"),
        (multilabel_margin_loss, {"target": torch.tensor([[0, 5, 0]] * 4)}, (IndexError, RuntimeError), "out of"),
        (multilabel_margin_loss, {"target": torch.tensor([[-2, 1, 0]] * 4)}, (IndexError, RuntimeError), "out of"),
    ],
)
def test_refuses(function: Any, change: dict[str, Any], error: Any, message: str) -> None:
    given = SEVERAL if function is multilabel_margin_loss else ROWS
    with pytest.raises(error, match=message):
        function(**{**given, **change})
