"""Cross-entropy of a linear layer, whose logits are never in memory all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import (
    as_integer,
    autocast,
    autocast_dtype,
    check_device,
    check_floating,
    checked_reduction,
    needs_gradient,
)
from tinynet.ops.autograd import EagerFunction, hold, through_kernels
from tinynet.ops.labels import check_labels
from tinynet.ops.operator import Operator, Tensors
from tinynet_kernels import replays

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions  # pyright: ignore[reportAttributeAccessIssue]


def linear_cross_entropy_reference(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    chunk: int = 0,
    fp32_sums: bool = True,
) -> Tensor:
    """Cross-entropy of input [N, K] linear_weight^T [K, C S] + linear_bias in plain PyTorch; see the launcher.

    Targets are labels [N, S] or probabilities [N, C, S]; `chunk` and `fp32_sums` are the kernels' alone.
    """
    S = target.shape[-1]
    logits = F.linear(input, linear_weight, linear_bias).view(input.shape[0], linear_weight.shape[0] // max(S, 1), S)
    return F.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def _divisor(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """The mean's divisor, fp32 [1]: the sum of the labels' weights, or the number of rows of probabilities."""
    if target.is_floating_point():
        return torch.full((1,), target.numel() // target.shape[1], dtype=torch.float32, device=target.device)
    counts = target != ignore_index
    if weight is None:
        return counts.sum(dtype=torch.float32).view(1)
    labels = target.clamp(0, weight.shape[0] - 1)
    return (weight.float()[labels] * counts).sum().view(1)


def _run(
    tensors: Sequence[Any], options: Any, grad: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The loss and the gradients of the tensors but the weight for an upstream gradient; None computes none."""
    x, linear_weight, bias, target, weight = tensors
    weight = None if weight is None else weight.contiguous()
    divisor = _divisor(target, weight, options.ignore_index) if options.reduction == "mean" else None
    scale = None if grad is None else grad.reshape(-1).float().contiguous()
    if scale is not None and divisor is not None:
        scale = scale / divisor
    module = kernels.linear_cross_entropy
    losses, gradients = module.linear_cross_entropy_losses(
        x, linear_weight, bias, target, weight, scale, options, wanted=wanted[:4]
    )
    loss = losses.to(x.dtype) if options.reduction == "none" else module.reduced(losses, divisor, x.dtype)
    if not target.is_floating_point():
        check_labels("linear_cross_entropy", loss, target, linear_weight.shape[0] // target.shape[-1], options[0])
    return loss, [*gradients, None]


def _backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    *options, wanted = rest
    return _run(saved, kernels.linear_cross_entropy.Options(*options), grads[0], wanted)[1]


def _fake_backward(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> Tensors:
    wanted = rest[-1][:4]
    return [*(x.new_empty(x.shape) if want else None for x, want in zip(saved, wanted, strict=False)), None]


linear_cross_entropy_operator = Operator(
    "linear_cross_entropy(Tensor x, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, "
    "int ignore_index, str reduction, float label_smoothing, int chunk, bool fp32_sums) -> Tensor",
    forward=lambda *given: [_run(given[:5], kernels.linear_cross_entropy.Options(*given[5:-1]), None, [False] * 4)[0]],
    fake=lambda x, linear_weight, linear_bias, target, weight, ignore_index, reduction, *_: [
        x.new_empty((x.shape[0], target.shape[-1]) if reduction == "none" else ())
    ],
    saves=lambda given, results: given[:5],
    backward=_backward,
    fake_backward=_fake_backward,
    reference=linear_cross_entropy_reference,
    flops=lambda wanted, x, linear_weight, *_: (
        2 * x.shape[0] * linear_weight.numel() * (1 if wanted is None else 1 + wanted[0] + wanted[1])
    ),
)


def _in_pytorch(ctx: Any, *grads: Tensor | None) -> Sequence[Tensor | None]:
    operator = linear_cross_entropy_operator
    return operator.in_pytorch(ctx.given, ctx.options, ctx.needs_input_grad[:5], grads)


class LinearCrossEntropyFunction(EagerFunction):
    """Mean or sum, with gradients computed in the forward. The first backward takes them; a second computes them again.

    The operator's own function, which computes the logits twice, serves losses that are not reduced.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        tensors, ctx.options = arguments[:5], kernels.linear_cross_entropy.Options(*arguments[5:])
        one = torch.ones(1, device=tensors[0].device)
        loss, ctx.gradients = _run(tensors, ctx.options, one, ctx.needs_input_grad)
        ctx.save_for_backward(*tensors)
        ctx.given = hold(*tensors)
        return loss

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, grad: Tensor) -> Sequence[Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = _run(ctx.saved_tensors, ctx.options, grad, ctx.needs_input_grad)[1]
        elif not grad.is_cpu or replays.recorder() is not None or grad.item() != 1:
            gradients = [None if each is None else each.mul_(grad) for each in gradients]
        return *gradients, *[None] * len(ctx.options)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
) -> Tensor:
    """cross_entropy(linear(input, linear_weight, linear_bias), target), a chunk of the logits in memory at a time.

    Args:
        input: [K] or [N, K], float32, bfloat16, float16 (kernels) or float64 (reference). In autocast's dtype under
            autocast.
        linear_weight: [C, K] or [C, d1, ..., K], input's dtype; with d1, ... input is [N, K].
        target: labels [] or [N, d1, ...], int64 or uint8; or class probabilities [C] or [N, C, d1, ...] of input's
            dtype, which get a gradient too.
        linear_bias: linear_weight's shape without K, input's dtype.
        weight: of classes [C], input's dtype, or None for ones. It gets no gradient.
        reduction: "mean" (over the weights of the labels that count), "sum" or "none".
        ignore_index: rows with this label count for nothing; None is -100. Not with probabilities.
        label_smoothing: p becomes (1 - label_smoothing) p + label_smoothing / C.
        options: torch.nn.LinearCrossEntropyOptions: `batch_chunk_size` and `chunking_method` set the rows of a chunk,
            and `acc_policy="compact"` sums the weight's gradient in its own dtype, which saves memory in 16 bits.

    Returns:
        [] for "mean" and "sum", else [], [N] or [N, d1, ...]. Mean and sum compute their gradients in the forward; the
        backward of "none", and a second backward, compute the logits again.

    Raises:
        ValueError: shapes or devices that don't fit together, an unknown reduction, label_smoothing outside [0, 1].
        TypeError: dtypes that are not floating point or differ outside autocast, a target of another dtype.
        IndexError: a label out of range, on the CPU.

    Source: torch.nn.functional.linear_cross_entropy.
    """
    if has_torch_function_unary(input):
        given = {"linear_bias": linear_bias, "weight": weight, "reduction": reduction, "ignore_index": ignore_index}
        given |= {"label_smoothing": label_smoothing, "options": options}
        return handle_torch_function(linear_cross_entropy, (input,), input, linear_weight, target, **given)
    reduction = checked_reduction("linear_cross_entropy", reduction, None, None)
    dtype = autocast_dtype(input)
    names = "input", "linear_weight", "linear_bias", "weight"
    operands = input, linear_weight, linear_bias, weight
    check_floating("linear_cross_entropy", dtype, **dict(zip(names, operands, strict=True)))
    if not isinstance(target, Tensor):
        raise TypeError(f"linear_cross_entropy: target must be a tensor, got {type(target).__name__}")
    check_device("linear_cross_entropy", "target", target, "input", input)
    route = route_of("linear_cross_entropy", (*names, "target"), *operands, target)
    index = _check(input, linear_weight, linear_bias, target, weight, ignore_index, label_smoothing)
    if dtype is not None:
        input, linear_weight, linear_bias, weight = autocast(input, linear_weight, linear_bias, weight)
        target = target.to(input.dtype) if target.is_floating_point() else target
    C, inner = linear_weight.shape[0], linear_weight.shape[1:-1]
    x = input if input.dim() == 2 else input.unsqueeze(0)
    matrix = linear_weight.reshape(-1, linear_weight.shape[-1])
    labels = target.long() if target.dtype is torch.uint8 else target
    labels = labels.reshape(
        (x.shape[0], C, inner.numel()) if target.is_floating_point() else (x.shape[0], inner.numel())
    )
    tensors = x, matrix, None if linear_bias is None else linear_bias.reshape(-1), labels
    tensors = *tensors, None if weight is None else weight.detach()
    settings = index, reduction, float(label_smoothing), *_chunks(x, matrix, options)
    if route is Route.KERNELS and reduction != "none" and needs_gradient(*tensors):
        loss: Any = LinearCrossEntropyFunction.run(*tensors, *settings)
    else:
        loss = linear_cross_entropy_operator(route, *tensors, *settings)
    if dtype is not None and input.dtype is not torch.float64:
        loss = loss.float()
    return loss if reduction != "none" else loss.view((*input.shape[:-1], *inner))


def _chunks(x: Tensor, matrix: Tensor, options: Any) -> tuple[int, bool]:
    """(rows of a chunk, whether the weight's gradient is summed in fp32)."""
    (N, K), columns = x.shape, matrix.shape[0]
    if options is None or (options.batch_chunk_size is None and options.chunking_method == "auto"):
        most = max(16, (x.numel() + matrix.numel()) // max(3 * columns, 1))
        chunk = min(N, 1 << (most.bit_length() - 1))
    else:
        chunk = options._adjust(N, K, columns, x.dtype, x.device).batch_chunk_size
    return max(1, chunk), options is None or options.acc_policy != "compact"


def _check(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: Any,
    label_smoothing: float,
) -> int:
    """Checks shapes and options; the label to ignore."""
    if input.dim() not in (1, 2) or linear_weight.dim() < 2 or (input.dim() == 1 and linear_weight.dim() > 2):
        raise ValueError(
            "linear_cross_entropy: expected input [N, K] and linear_weight [C, d1, ..., K], or [K] and [C, K]; "
            f"got input {tuple(input.shape)} and linear_weight {tuple(linear_weight.shape)}"
        )
    if input.shape[-1] != linear_weight.shape[-1]:
        raise ValueError(
            f"linear_cross_entropy: linear_weight must end in {input.shape[-1]}, the last size of input; got "
            f"{tuple(linear_weight.shape)}"
        )
    C, inner, lead = linear_weight.shape[0], linear_weight.shape[1:-1], input.shape[:-1]
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise ValueError(
            f"linear_cross_entropy: linear_bias must be {tuple(linear_weight.shape[:-1])} for this linear_weight, "
            f"got {tuple(linear_bias.shape)}"
        )
    if weight is not None and weight.shape != (C,):
        raise ValueError(f"linear_cross_entropy: weight must be [{C}] for this input, got {tuple(weight.shape)}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"linear_cross_entropy: label_smoothing must be between 0 and 1, got {label_smoothing}")
    index = -100 if ignore_index is None else as_integer(ignore_index)
    if index is None:
        raise TypeError(f"linear_cross_entropy: ignore_index must be an integer or None, got {ignore_index!r}")
    if target.shape == (*lead, C, *inner):
        check_floating("linear_cross_entropy", autocast_dtype(input), input=input, target=target)
        if ignore_index is not None:
            raise ValueError(f"linear_cross_entropy: ignore_index ({index}) goes with labels, not with probabilities")
        return index
    if target.shape != (*lead, *inner):
        raise ValueError(
            f"linear_cross_entropy: target must be labels {(*lead, *inner)} or probabilities {(*lead, C, *inner)} for "
            f"this input, got {tuple(target.shape)}"
        )
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"linear_cross_entropy: target must hold labels in int64 or uint8, got {target.dtype}")
    return index
