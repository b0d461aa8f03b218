"""Cross-entropy: kernels against float64 PyTorch, its registered operator, autocast, the module, what it refuses."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, assert_close, check_against_reference, counted_launches, non_contiguous, tolerance

from tinynet.nn.loss import CrossEntropyLoss
from tinynet.ops.cross_entropy import cross_entropy

kernels = pytest.mark.kernels
REDUCTIONS = ("mean", "sum", "none")


def make_logits(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    torch.manual_seed(sum(shape))
    return (3 * torch.randn(shape, device=device)).to(dtype).requires_grad_()


def make_labels(*shape: int, classes: int, device: str = "cpu") -> torch.Tensor:
    torch.manual_seed(classes)
    return torch.randint(classes, shape, device=device)


def make_probabilities(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(shape, device=device).softmax(1 if len(shape) > 1 else 0).to(dtype).requires_grad_()


def check(input: Any, target: Any, weight: Any = None, **options: Any) -> list[str]:
    rows = target.numel() if not target.is_floating_point() else target.numel() // input.shape[-1]
    return check_against_reference(
        lambda *a: cross_entropy(*a, **options),
        lambda *a: F.cross_entropy(*a, **options),
        input,
        target,
        weight,
        error=4 * tolerance(input.dtype, rows * input.shape[min(1, input.dim() - 1)]),
    )


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (17, 10), (512, 10), (63, 129), (5, 1000)])
def test_labels(rows: int, classes: int, reduction: str, dtype: torch.dtype, device: str) -> None:
    input = make_logits(rows, classes, dtype=dtype, device=device)
    check(input, make_labels(rows, classes=classes, device=device), reduction=reduction)


@kernels
@pytest.mark.parametrize("rows", range(1, 19))
def test_sums_of_few_programs(rows: int, device: str) -> None:
    """The second stage of the sum masks its last elements; gcc 12 once miscompiled that for four of them."""
    input = torch.randn(rows, 1000, device=device, requires_grad=True)
    check(input, make_labels(rows, classes=1000, device=device), reduction="sum")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_option_with_labels(weighted: bool, label_smoothing: float, reduction: str, device: str) -> None:
    target = make_labels(40, classes=7, device=device)
    target[::5] = 3
    weight = torch.rand(7, device=device) + 0.1 if weighted else None
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing, "ignore_index": 3}
    check(make_logits(40, 7, device=device), target, weight, **options)


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_probabilities(label_smoothing: float, reduction: str, dtype: torch.dtype, device: str) -> None:
    input = make_logits(33, 19, dtype=dtype, device=device)
    target = make_probabilities(33, 19, dtype=dtype, device=device)
    weight = (torch.rand(19, device=device) + 0.1).to(dtype)
    check(input, target, weight, reduction=reduction, label_smoothing=label_smoothing)


@kernels
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    ("probabilities", "label_smoothing", "weighted"), [(False, 0.0, True), (False, 0.1, False), (True, 0.2, True)]
)
def test_small_tiles(probabilities: bool, label_smoothing: float, weighted: bool, reduction: str, device: str) -> None:
    """Blocks of rows that begin in one image and end in the next, several blocks of classes, strides on every axis."""
    N, C, S = 3, 19, 7
    input = torch.randn(N, S, 2 * C, device=device).transpose(1, 2)[:, ::2].mul(3).requires_grad_()
    weight = torch.rand(C, device=device) + 0.1 if weighted else None
    if probabilities:
        target = make_probabilities(N, C, S, device=device).detach().transpose(0, 2).contiguous().transpose(0, 2)
        target.requires_grad_()
    else:
        target = make_labels(S, N, classes=C, device=device).t()
        target[1, 3] = -100
    from tinynet_kernels.cross_entropy import CrossEntropyTile

    with forced_tiles(cross_entropy_tile=CrossEntropyTile(4, 8, 4)):
        check(input, target, weight, reduction=reduction, label_smoothing=label_smoothing)


@kernels
@pytest.mark.parametrize("mean", [False, True])
def test_second_stage_walks_its_parts(mean: bool, device: str) -> None:
    from tinynet_kernels.reduction import reduce_losses

    partial = torch.rand(2, 2500, device=device)
    loss, divisor = torch.empty((), device=device), torch.empty(1, device=device)
    reduce_losses(partial, loss, divisor if mean else None)
    total, count = partial.double().sum(1)
    assert_close(loss, total / count if mean else total, 1e-6)
    assert not mean or abs(divisor.item() / count.item() - 1) < 1e-6


@kernels
def test_only_the_wanted_gradient_of_probabilities(device: str) -> None:
    check(make_logits(9, 300, device=device), make_probabilities(9, 300, device=device).detach())
    check(make_logits(9, 300, device=device).detach(), make_probabilities(9, 300, device=device))


@kernels
def test_more_classes_than_a_block_rescale_the_running_sums(device: str) -> None:
    """Logits that grow with the class raise the running maximum at every block."""
    input = torch.linspace(-50, 50, 5000, device=device).expand(3, -1).contiguous().requires_grad_()
    target = torch.tensor([0, 2500, 4999], device=device)
    check(input, target, torch.rand(5000, device=device), label_smoothing=0.2, reduction="none")
    check(input.detach().flip(1).requires_grad_(), target, label_smoothing=0.2)


@kernels
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_many_rows_take_two_stages(reduction: str, device: str) -> None:
    rows = 70_000
    target = make_labels(rows, classes=2, device=device)
    input = make_logits(rows, 2, device=device)
    launches = check(input, target, torch.tensor([0.3, 2.0], device=device), reduction=reduction)
    assert launches.count("cross_entropy_forward_kernel") == launches.count("cross_entropy_backward_kernel") == 1
    assert launches.count("reduce_losses_kernel") == (0 if reduction == "none" else 1)


@kernels
def test_a_small_batch_takes_one_launch_each_way(device: str) -> None:
    input, target = make_logits(32, 10, device=device), make_labels(32, classes=10, device=device)
    assert check(input, target) == ["cross_entropy_forward_kernel", "cross_entropy_backward_kernel"]


@kernels
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_shapes_and_strides(reduction: str, device: str) -> None:
    weight = torch.rand(5, device=device) + 0.1
    image = make_logits(2, 5, 3, 7, device=device)
    labels = make_labels(2, 3, 7, classes=5, device=device)
    labels[0, 1, 2] = -100
    cases: list[tuple[torch.Tensor, torch.Tensor]] = [
        (make_logits(5, device=device), torch.tensor(4, device=device)),
        (make_logits(5, device=device), make_probabilities(5, device=device)),
        (make_logits(3, 5, 11, device=device), make_labels(3, 11, classes=5, device=device)),
        (image, labels),
        (image, make_probabilities(2, 5, 3, 7, device=device)),
        (image.detach().to(memory_format=torch.channels_last).requires_grad_(), labels),
        (image.detach().transpose(2, 3).requires_grad_(), labels.transpose(1, 2)),
        (non_contiguous(make_logits(6, 5, device=device)), make_labels(12, classes=5, device=device)[::2]),
        (make_logits(5, 6, device=device).detach().t().requires_grad_(), make_labels(6, classes=5, device=device)),
        (make_logits(1, 5, device=device).detach().expand(6, 5).requires_grad_(), make_labels(6, classes=5)),
    ]
    for input, target in cases:
        check(input, target.to(device), weight, reduction=reduction, label_smoothing=0.1)


@kernels
def test_large_logits_do_not_overflow(device: str) -> None:
    input = torch.tensor([[1e4, -1e4, 9999.0], [-3e4, -3e4, -3e4]], device=device, requires_grad=True)
    check(input, torch.tensor([2, 0], device=device), reduction="none")


@kernels
def test_logits_of_minus_infinity(device: str) -> None:
    input = make_logits(4, 6, device=device).detach()
    input[:, 2] = -math.inf
    input[3] = -math.inf
    check(input.requires_grad_(), torch.tensor([0, 2, 1, 1], device=device), reduction="none")


@kernels
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_all_ignored(label_smoothing: float, device: str) -> None:
    """The mean of nothing is NaN, as in PyTorch; its gradient is 0."""
    input, target = make_logits(4, 3, device=device), torch.full((4,), -100, device=device)
    loss = cross_entropy(input, target, label_smoothing=label_smoothing)
    assert loss.isnan()
    loss.backward()
    assert input.grad is not None and not input.grad.any()
    assert cross_entropy(input, target, reduction="sum", label_smoothing=label_smoothing).item() == 0


@kernels
def test_backward_twice_gives_the_same_gradient(device: str) -> None:
    input, target = make_logits(8, 4, device=device), make_labels(8, classes=4, device=device)
    loss = cross_entropy(input, target)
    (first,) = torch.autograd.grad(3 * loss, input, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, input)
    assert torch.equal(first, second)


@kernels
def test_nothing_is_saved_without_gradient(device: str) -> None:
    input, target = make_logits(4, 3, device=device), make_labels(4, classes=3, device=device)
    with torch.no_grad():
        assert cross_entropy(input, target).grad_fn is None
    assert cross_entropy(input.detach(), target).grad_fn is None


@kernels
def test_labels_of_uint8_and_a_weight_that_requires_a_gradient(device: str) -> None:
    input, weight = make_logits(6, 4, device=device), torch.rand(4, device=device, requires_grad=True)
    labels = make_labels(6, classes=4, device=device)
    actual = cross_entropy(input, labels.to(torch.uint8), weight)
    torch.testing.assert_close(actual, F.cross_entropy(input, labels, weight.detach()))
    actual.backward()
    assert weight.grad is None


@kernels
def test_labels_out_of_range(device: str) -> None:
    input = make_logits(4, 3, device=device)
    target = torch.tensor([0, 3, -100, 1], device=device)
    if device == "cpu":
        with pytest.raises(IndexError, match="target 3 is out of bounds"):
            cross_entropy(input, target)
    from tinynet_kernels.cross_entropy import cross_entropy_backward, cross_entropy_forward

    logits, labels = input.detach().unsqueeze(2), target.unsqueeze(1)
    loss, divisor, saved = cross_entropy_forward(logits, labels, None, -100, "none", 0.0, save=True)
    assert loss.isnan().flatten().tolist() == [False, True, False, False] and saved is not None
    options: dict[str, Any] = {"ignore_index": -100, "reduction": "none", "label_smoothing": 0.0}
    dx, _ = cross_entropy_backward(
        torch.ones_like(loss), logits, labels, None, divisor, saved, **options, want_dx=True, want_dtarget=False
    )
    assert dx is not None and dx[1].isnan().all() and dx[[0, 2, 3]].isfinite().all()


@kernels
def test_autocast_computes_in_float32(device: str) -> None:
    input, target = make_logits(8, 5, dtype=torch.bfloat16, device=device), make_labels(8, classes=5, device=device)
    with torch.autocast(device, dtype=torch.bfloat16), counted_launches() as launches:
        loss = cross_entropy(input, target)
    assert loss.dtype is torch.float32 and launches
    loss.backward()
    assert input.grad is not None and input.grad.dtype is torch.bfloat16


@kernels
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_operators(reduction: str, device: str) -> None:
    from tinynet.ops.cross_entropy import cross_entropy_operator

    logits = make_logits(3, 5, 2, device=device)
    target = make_probabilities(3, 5, 2, device=device)
    labels = make_labels(3, 2, classes=5, device=device)
    torch.library.opcheck(cross_entropy_operator.forward, (logits, labels, None, -100, reduction, 0.1, True))
    torch.library.opcheck(cross_entropy_operator.forward, (logits, target, None, -100, reduction, 0.0, True))
    constants = (logits.detach(), labels, None, -100, reduction, 0.1)
    loss, divisor, saved = cross_entropy_operator.registered(*constants, True)
    read = [*constants[:3], divisor, saved]
    arguments = ([torch.randn_like(loss)], read, *constants[3:], [True, False, False])
    torch.library.opcheck(cross_entropy_operator.backward, arguments)


@kernels
def test_compiled_fullgraph(device: str) -> None:
    input, target = make_logits(6, 4, device=device), make_labels(6, classes=4, device=device)

    def smoothed(x: torch.Tensor) -> torch.Tensor:
        return cross_entropy(x, target, label_smoothing=0.1)

    (expected,) = torch.autograd.grad(smoothed(input), input)
    with counted_launches() as launches:
        torch.compile(smoothed, fullgraph=True, backend="aot_eager")(input).backward()
    assert "cross_entropy_backward_kernel" in launches
    assert input.grad is not None
    torch.testing.assert_close(input.grad, expected)


@kernels
def test_export(device: str) -> None:
    arguments = (make_logits(6, 4, device=device).detach(), make_labels(6, classes=4, device=device))
    exported = torch.export.export(CrossEntropyLoss(), arguments)
    assert "tinynet.cross_entropy" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(*arguments), F.cross_entropy(*arguments))


def test_older_spelling_of_the_reduction() -> None:
    input, target = make_logits(4, 3), make_labels(4, classes=3)
    with pytest.warns(UserWarning, match="size_average and reduce"):
        assert cross_entropy(input, target, reduce=False).shape == (4,)
    with pytest.warns(UserWarning, match="size_average and reduce"):
        torch.testing.assert_close(cross_entropy(input, target, size_average=False), F.cross_entropy(input, target) * 4)


def test_empty_batch_and_meta_tensors() -> None:
    empty, labels = torch.empty(0, 3, requires_grad=True), torch.empty(0, dtype=torch.int64)
    assert cross_entropy(empty, labels).isnan()
    assert cross_entropy(empty, labels, reduction="sum").item() == 0
    on_meta = torch.empty(4, 3, device="meta")
    loss = cross_entropy(on_meta, torch.empty(4, dtype=torch.int64, device="meta"), reduction="none")
    assert loss.device.type == "meta" and loss.shape == (4,)


@kernels
def test_modules(device: str) -> None:
    weight = torch.tensor([1.0, 2.0, 0.5], device=device)
    ours = CrossEntropyLoss(weight, ignore_index=1, label_smoothing=0.1).to(device)
    theirs = torch.nn.CrossEntropyLoss(torch.zeros(3), ignore_index=1, label_smoothing=0.1).to(device)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert repr(ours) == repr(theirs) and list(ours.state_dict()) == ["weight"]
    input, target = make_logits(6, 3, device=device), make_labels(6, classes=3, device=device)
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        with counted_launches() as launches:
            assert_close(module(input, target), theirs(input, target), 1e-6)
        assert launches


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.randn(())}, ValueError, "input must be"),
        ({"input": torch.arange(12).view(4, 3)}, TypeError, "input must be floating point"),
        ({"input": torch.randn(5, 3)}, ValueError, "target must be labels"),
        ({"input": torch.randn(4, 3, 2)}, ValueError, "target must be labels"),
        ({"target": torch.zeros(4, dtype=torch.int32)}, TypeError, "int64 or uint8"),
        ({"target": torch.rand(4)}, TypeError, "int64 or uint8"),
        ({"target": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "target must be floating point"),
        ({"target": [0, 1, 2, 0]}, TypeError, "target must be a tensor"),
        ({"target": torch.zeros(4, dtype=torch.int64, device="meta")}, ValueError, "target is on meta"),
        ({"target": torch.rand(4, 3), "ignore_index": 1}, ValueError, "ignore_index"),
        ({"target": torch.tensor([0, 1, 5, 0])}, IndexError, "[Tt]arget 5"),
        ({"weight": torch.ones(4)}, ValueError, "weight must be"),
        ({"weight": torch.ones(3).half()}, TypeError, "weight has dtype"),
        ({"reduction": "average"}, ValueError, "reduction must be"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing"),
        ({"label_smoothing": math.nan}, ValueError, "label_smoothing"),
    ],
)
def test_cross_entropy_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"input": torch.randn(4, 3), "target": torch.tensor([0, 1, 2, 0]), **change}
    with pytest.raises(error, match=message):
        cross_entropy(**arguments)
