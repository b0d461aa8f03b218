"""ctc_loss against PyTorch in float64: every reduction, targets in rows or one after the other, infinite losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import assert_close, counted_launches, nan_filled_memory
from torch import Tensor

from tinynet import nn
from tinynet.ops.arguments import REDUCTIONS
from tinynet.ops.ctc_loss import ctc_loss, ctc_loss_operator
from tinynet_kernels.ctc_loss import ctc_loss_backward, ctc_loss_forward

kernels = pytest.mark.kernels

# Log-probabilities of many steps are large numbers, whose differences count.
ERRORS = {torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


class Problem:
    """Log-probabilities [T, N, C] and targets [N, S] with repeated labels, no label, and one that is too long."""

    def __init__(self, T: int, N: int, C: int, S: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        torch.manual_seed(T)
        self.x = torch.randn(T, N, C, device=device).log_softmax(2).to(dtype).requires_grad_()
        self.targets = torch.randint(1, C, (N, S), device=device)
        self.targets[0, 1:3] = self.targets[0, 0]
        self.steps, self.lengths = torch.full((N,), T), torch.randint(1, S + 1, (N,))
        self.steps[0], self.lengths[0] = T - 1, S
        self.lengths[1 % N], self.steps[2 % N] = 0, min(2, T)
        self.lengths[2 % N] = S

    @property
    def in_one(self) -> Tensor:
        return torch.cat([row[:length] for row, length in zip(self.targets, self.lengths.tolist(), strict=True)])

    def check(self, targets: Tensor, steps: Any, lengths: Any, **options: Any) -> list[str]:
        """Compares loss and gradient; returns the launches."""
        exact = self.x.detach().double().requires_grad_()
        with counted_launches() as launches, nan_filled_memory():
            actual = ctc_loss(self.x, targets, steps, lengths, **options)
            grad = torch.randn_like(actual)
            (gradient,) = torch.autograd.grad(actual, self.x, grad)
        if not isinstance(steps, type(lengths)):
            steps, lengths = torch.as_tensor(steps), torch.as_tensor(lengths)
        expected = F.ctc_loss(exact, targets, steps, lengths, **options)
        (expected_gradient,) = torch.autograd.grad(expected, exact, grad.double())
        error = ERRORS[self.x.dtype]
        assert_close(actual, expected, error, "loss")
        assert_close(gradient, expected_gradient, error, "gradient")
        return launches


@kernels
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(("size", "blank"), [((12, 4, 7, 3), 0), ((9, 3, 70, 4), 5)])
def test_every_reduction(size: tuple[int, int, int, int], blank: int, dtype: torch.dtype, device: str) -> None:
    problem = Problem(*size, dtype=dtype, device=device)
    if blank:
        problem.targets[problem.targets == blank] = 1
    for reduction in REDUCTIONS:
        options = {"blank": blank, "reduction": reduction, "zero_infinity": reduction != "none"}
        launches = problem.check(problem.targets, problem.steps, problem.lengths, **options)
        assert launches == ["ctc_loss_alpha_kernel", "ctc_loss_beta_kernel", "ctc_loss_gradient_kernel"]


@kernels
def test_lengths_and_targets_of_every_form(device: str) -> None:
    problem = Problem(10, 4, 6, 3, device=device)
    steps, lengths = problem.steps, problem.lengths
    for targets in (problem.targets, problem.targets.int(), problem.in_one):
        problem.check(targets, steps, lengths, reduction="none")
        problem.check(targets, tuple(steps.tolist()), tuple(lengths.tolist()), reduction="sum", zero_infinity=True)
    problem.x = problem.x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    problem.check(problem.targets.t().contiguous().t(), steps.int(), lengths.int(), reduction="none")


@kernels
def test_one_sequence(device: str) -> None:
    problem = Problem(8, 1, 5, 2, device=device)
    x = problem.x.detach().squeeze(1)
    targets = torch.tensor([1, 2], device=device)
    given: Any = (8,), (2,)
    for target in (targets, targets[None]):
        assert_close(
            ctc_loss(x, target, *given, reduction="none"), F.ctc_loss(x, target, *given, reduction="none"), 1e-5
        )
    numbers = torch.tensor(8), torch.tensor(2)
    assert_close(ctc_loss(x, targets, *numbers), F.ctc_loss(x, targets, *numbers), 1e-5)


@kernels
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_infinite_losses_and_impossible_classes(zero_infinity: bool, device: str) -> None:
    x = torch.randn(6, 3, 5, device=device).log_softmax(2)
    x[2, 0, 3] = -torch.inf
    leaf, exact = x.clone().requires_grad_(), x.clone().double().requires_grad_()
    targets = torch.tensor([[1, 2, 2, 4]] * 3, device=device)
    lengths = torch.tensor([6, 3, 0]), torch.tensor([3, 4, 0])
    actual = ctc_loss(leaf, targets, *lengths, reduction="none", zero_infinity=zero_infinity)
    expected = F.ctc_loss(exact, targets, *lengths, reduction="none", zero_infinity=zero_infinity)
    assert_close(actual, expected, 1e-5)
    gradients = [torch.autograd.grad(y.sum(), z)[0] for y, z in ((actual, leaf), (expected, exact))]
    assert_close(gradients[0], gradients[1], 1e-4)


@kernels
def test_many_steps(device: str) -> None:
    """Sums over thousands of steps would leave the weights of a step three digits, were its largest not subtracted."""
    x = (3 * torch.randn(1500, 2, 5, device=device)).log_softmax(2)
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    given = torch.randint(1, 5, (2, 7), device=device), torch.tensor([1500, 1400]), torch.tensor([7, 5])
    gradients = [
        torch.autograd.grad(loss(z, *given, reduction="sum"), z)[0]
        for loss, z in ((ctc_loss, leaf), (F.ctc_loss, exact))
    ]
    assert_close(gradients[0], gradients[1], 1e-5)


@kernels
def test_small_tiles(device: str) -> None:
    from tinynet_kernels.ctc_loss import CTCTile

    with forced_tiles(ctc_tile=CTCTile(16, 4, 4, 1)):
        problem = Problem(9, 3, 6, 4, device=device)
        problem.check(problem.targets, problem.steps, problem.lengths, reduction="none")


@kernels
def test_registered_operator_compile_and_module(device: str) -> None:
    problem = Problem(7, 3, 5, 3, device=device)
    steps, lengths = problem.steps.to(device), problem.lengths.to(device)
    given = problem.targets, steps, lengths, 0, True
    # Rows of alpha past a sequence's last step stay unset, so that outputs can't be compared.
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ctc_loss_operator.forward, (problem.x, *given, True), test_utils=utilities)
    x = problem.x.detach()
    losses, *saved = ctc_loss_operator.registered(x, *given, True)
    wanted = [True, False, False, False]
    tensors = [x, problem.targets, steps, lengths, *saved]
    torch.library.opcheck(ctc_loss_operator.backward, ([torch.randn_like(losses)], tensors, 0, True, wanted))
    loss = nn.CTCLoss(zero_infinity=True)
    arguments = problem.targets, tuple(problem.steps.tolist()), tuple(problem.lengths.tolist())
    with counted_launches() as launches:
        y = torch.compile(lambda x: loss(x, *arguments), backend="aot_eager")(problem.x)
        y.backward()
    assert "ctc_loss_gradient_kernel" in launches
    assert_close(y, torch.nn.CTCLoss(zero_infinity=True)(problem.x, *arguments), 1e-5)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert loss(x.bfloat16(), *arguments).dtype is torch.float32


GIVEN = {
    "log_probs": torch.randn(5, 2, 4).log_softmax(2),
    "targets": torch.tensor([[1, 2], [3, 1]]),
    "input_lengths": (5, 5),
    "target_lengths": (2, 1),
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"log_probs": torch.ones(5, 2, 4).long()}, TypeError, "log_probs must be floating point"),
        ({"log_probs": torch.randn(5, 0, 4)}, ValueError, "log_probs must be"),
        ({"targets": torch.ones(2, 2)}, TypeError, "targets must be a tensor of integers"),
        ({"targets": torch.ones(1, 2).long()}, ValueError, "targets must be"),
        ({"targets": torch.ones(4).long()}, ValueError, "the sum of target_lengths"),
        ({"input_lengths": (6, 5)}, ValueError, "input_lengths must be between"),
        ({"input_lengths": (5, -1)}, ValueError, "input_lengths must be between"),
        ({"input_lengths": torch.tensor([5.0, 5.0])}, TypeError, "input_lengths must be integers"),
        ({"target_lengths": (3, 1)}, ValueError, "targets must be"),
        ({"target_lengths": (2,)}, ValueError, "target_lengths must be"),
        ({"blank": 4}, ValueError, "blank must be"),
        ({"reduction": "all"}, ValueError, "reduction must be"),
    ],
)
def test_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ctc_loss(**{**GIVEN, **change})


@kernels
def test_a_label_out_of_range_is_its_own_sequences_alone(device: str) -> None:
    """Its loss is NaN; the other sequence's gradient is as without it."""
    x = torch.randn(5, 2, 4, device=device).log_softmax(2)
    losses, gradients = [], []
    for label in (2, 4):
        targets = torch.tensor([[3, 1], [1, label]], device=device)
        given = x, targets, torch.tensor([5, 5], device=device), torch.tensor([1, 2], device=device)
        _, loss, alpha = ctc_loss_forward(*given, 0, False)
        losses.append(loss)
        gradients.append(ctc_loss_backward(torch.ones(2, device=device), *given, loss, alpha, 0, False))
    assert losses[1].isnan().tolist() == [False, True]
    assert torch.equal(gradients[0][:, 0], gradients[1][:, 0])


@kernels
def test_labels_out_of_range(device: str) -> None:
    given = {**GIVEN, "targets": torch.tensor([[1, 9], [3, 9]])}
    if device == "cpu":
        with pytest.raises(IndexError, match="targets hold 9"):
            ctc_loss(**given)
