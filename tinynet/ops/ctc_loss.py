"""Connectionist temporal classification."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import as_integer, autocast_to_float32, check_device, check_floating, checked_reduction
from tinynet.ops.labels import look_where_nan
from tinynet.ops.operator import Operator, Tensors, contiguous_like

Lengths = Tensor | Sequence[int] | int


def ctc_loss_reference(
    log_probs: Tensor, targets: Tensor, steps: Tensor, lengths: Tensor, blank: int = 0, zero_infinity: bool = False
) -> Tensor:
    """The losses [N] in plain PyTorch, in float32 for 16-bit log-probabilities; see `ctc_loss`."""
    wide = log_probs if log_probs.dtype is torch.float64 else log_probs.float()
    losses = F.ctc_loss(wide, targets, steps, lengths, blank, "none", zero_infinity)
    return losses.to(log_probs.dtype)


def _forward(
    x: Tensor, targets: Tensor, steps: Tensor, lengths: Tensor, blank: int, zero_infinity: bool, save: bool
) -> Tensors:
    results = kernels.ctc_loss.ctc_loss_forward(x, targets, steps, lengths, blank, zero_infinity)
    look_where_nan(partial(_check_labels, x.shape[2]), results[0], targets, lengths)
    return results


def _backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    x, targets, steps, lengths, loss, alpha = saved
    given = grads[0].contiguous(), x, targets, steps, lengths, loss, alpha
    return kernels.ctc_loss.ctc_loss_backward(*given, *rest[:-1]), None, None, None


ctc_loss_operator = Operator(
    "ctc_loss(Tensor x, Tensor targets, Tensor steps, Tensor lengths, int blank, bool zero_infinity) -> "
    "(Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=lambda x, targets, steps, lengths, blank, zero_infinity, save: (
        x.new_empty(x.shape[1]),
        x.new_empty(x.shape[1], dtype=torch.float32),
        x.new_empty((x.shape[1], x.shape[0], 2 * targets.shape[1] + 1), dtype=torch.float32),
    ),
    saves=lambda given, results: [*given[:4], *results[1:]],
    backward=_backward,
    fake_backward=lambda grads, saved, *rest: [contiguous_like(saved[0]), *[None] * 3],
    reference=ctc_loss_reference,
)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """-log of the probability of all alignments of each sequence with its target, reduced.

    Args:
        log_probs: [T, N, C] or [T, C], from log_softmax, float32, bfloat16, float16 (kernels) or float64 (reference);
            any strides. In float32 under autocast. Its gradient is that by the input of log_softmax, as PyTorch's.
        targets: labels other than `blank`, integers: [N, S], [S] for log_probs [T, C], or those of all sequences in one
            [sum of target_lengths].
        input_lengths: of each sequence, at most T: [N], a sequence of numbers or a tensor; one for log_probs [T, C].
        target_lengths: of each target; the same.
        blank: the class that stands for no label.
        reduction: "mean" (of the losses, each divided by its target's length), "sum" or "none".
        zero_infinity: whether the infinite loss of a target that is too long to be aligned counts as 0.

    Returns:
        [] for "mean" and "sum", else [N], or [] for log_probs [T, C]. On a device a label out of range makes the loss
        NaN.

    Raises:
        ValueError: shapes, lengths or devices that don't fit together, an unknown reduction.
        TypeError: log_probs that are not floating point, targets or lengths that are no integers.
        IndexError: a label out of range, on the CPU.

    Source: torch.nn.functional.ctc_loss (Graves et al. 2006).
    """
    if has_torch_function_unary(log_probs):
        arguments = input_lengths, target_lengths, blank, reduction, zero_infinity
        return handle_torch_function(ctc_loss, (log_probs,), log_probs, targets, *arguments)
    reduction = checked_reduction("ctc_loss", reduction, None, None)
    (log_probs,) = autocast_to_float32(log_probs)
    check_floating("ctc_loss", log_probs=log_probs)
    if not isinstance(targets, Tensor) or targets.dtype.is_floating_point or targets.dtype is torch.bool:
        got = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"ctc_loss: targets must be a tensor of integers, got {got}")
    check_device("ctc_loss", "targets", targets, "log_probs", log_probs)
    tensors = [each if isinstance(each, Tensor) else None for each in (input_lengths, target_lengths)]
    names = "log_probs", "targets", "input_lengths", "target_lengths"
    route = route_of("ctc_loss", names, log_probs, targets, *tensors)
    if log_probs.dim() not in (2, 3) or not log_probs.numel():
        raise ValueError(f"ctc_loss: log_probs must be [T, N, C] or [T, C], not empty; got {tuple(log_probs.shape)}")
    x = log_probs if log_probs.dim() == 3 else log_probs.unsqueeze(1)
    T, N, C = x.shape
    steps = _as_lengths("input_lengths", input_lengths, N, T, x.device)
    lengths = _as_lengths("target_lengths", target_lengths, N, None, x.device)
    index = as_integer(blank)
    if index is None or not 0 <= index < C:
        raise ValueError(f"ctc_loss: blank must be a class, 0 to {C - 1}, got {blank!r}")
    labels = _in_rows(targets.to(torch.int64), lengths, N)
    steps, lengths = steps.to(x.device), lengths.to(x.device)
    losses = ctc_loss_operator(
        Route.REFERENCE if not labels.numel() else route, x, labels, steps, lengths, index, bool(zero_infinity)
    )
    if reduction == "none":
        return losses if log_probs.dim() == 3 else losses.squeeze(0)
    if reduction == "sum":
        return losses.sum()
    return (losses / lengths.clamp_min(1)).mean()


def _as_lengths(name: str, lengths: Any, count: int, most: int | None, device: torch.device) -> Tensor:
    """Lengths as int64 [N]; those on a device are not looked at, which would wait for it."""
    if isinstance(lengths, Tensor):
        if lengths.dtype.is_floating_point or lengths.dtype is torch.bool:
            raise TypeError(f"ctc_loss: {name} must be integers, got {lengths.dtype}")
        if not lengths.is_cpu and lengths.device != device:
            raise ValueError(f"ctc_loss: {name} must be on the CPU or {device}, got {lengths.device}")
        # A copy: PyTorch does not take lengths without memory, nor lazily negated ones.
        tensor = lengths.detach().to(torch.int64).reshape(-1).clone(memory_format=torch.contiguous_format)
    else:
        values = [as_integer(each) for each in (lengths if isinstance(lengths, Sequence) else [lengths])]
        if None in values:
            raise TypeError(f"ctc_loss: {name} must be integers, got {lengths!r}")
        tensor = torch.tensor(values, dtype=torch.int64)
    if tensor.shape[0] != count:
        raise ValueError(f"ctc_loss: {name} must be [{count}] for this input, got [{tensor.shape[0]}]")
    if tensor.is_cpu and not torch.compiler.is_compiling():
        least, largest = tensor.min().item(), tensor.max().item()
        if least < 0 or (most is not None and largest > most):
            wrong = least if least < 0 else largest
            raise ValueError(f"ctc_loss: {name} must be between 0 and {most or 'the size of targets'}, got {wrong}")
    return tensor


def _in_rows(targets: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Targets as [N, S]; those of all sequences in one dimension are laid out in rows."""
    longest = int(lengths.max())
    if targets.dim() == 2:
        if targets.shape[0] != count or targets.shape[1] < longest:
            raise ValueError(
                f"ctc_loss: targets must be [{count}, at least {longest}] for these lengths, got {tuple(targets.shape)}"
            )
        return targets if targets.stride(1) == 1 else targets.contiguous()
    if targets.dim() != 1 or targets.shape[0] != int(lengths.sum()):
        raise ValueError(
            f"ctc_loss: targets must be [{count}, S] or [{int(lengths.sum())}], the sum of target_lengths; "
            f"got {tuple(targets.shape)}"
        )
    lengths = lengths.to(targets.device)
    first = lengths.cumsum(0) - lengths
    place = first[:, None] + torch.arange(longest, device=targets.device)
    return targets[place.clamp_max(max(targets.shape[0] - 1, 0))] if longest else targets.new_zeros((count, 0))


def _check_labels(classes: int, targets: Tensor, lengths: Tensor) -> None:
    counts = torch.arange(targets.shape[1], device=targets.device) < lengths[:, None]
    out_of_range = counts & ((targets < 0) | (targets >= classes))
    if out_of_range.any():
        label = int(targets[out_of_range][0])
        raise IndexError(f"ctc_loss: targets hold {label}, which is out of bounds: expected 0 to {classes - 1}")
