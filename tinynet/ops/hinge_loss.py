"""Losses that are zero beyond a margin: of a distance, and of the order of two scores."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from tinynet.ops.arguments import checked_reduction
from tinynet.ops.elementwise_loss import prepared, reduced
from tinynet_kernels.loss_spec import Loss


def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """input where the target is 1, max(0, margin - input) where it is -1, reduced.

    Args:
        input: distances [...], float32, bfloat16, float16 (kernels) or float64 (reference). In float32 under autocast.
        target: 1 or -1, broadcasts with the input; another dtype is promoted. It gets no gradient.
        margin: how far apart is far enough.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else the broadcast shape; the promoted dtype.

    Raises:
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: an input that is not floating point, a target that is not a tensor.

    Source: torch.nn.functional.hinge_embedding_loss.
    """
    name = "hinge_embedding_loss"
    if has_torch_function_variadic(input, target):
        arguments = margin, size_average, reduce, reduction
        return handle_torch_function(hinge_embedding_loss, (input, target), input, target, *arguments)
    reduction = checked_reduction(name, reduction, size_average, reduce)
    if isinstance(target, Tensor) and target.requires_grad:
        target = target.detach()
    route, operands = prepared(name, ("input", "target", "", ""), input, target, None, None)
    return reduced(route, operands, Loss("hinge_embedding", float(margin)), reduction)


def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """max(0, margin - target (input1 - input2)), reduced.

    Args:
        input1, input2: scores [...], float32, bfloat16, float16 (kernels) or float64 (reference). In float32 under
            autocast.
        target: 1 where the first should be higher, -1 where the second. All three have the same number of axes, are
            broadcast, promoted to one dtype, and get gradients.
        margin: how much higher is enough.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else the broadcast shape; the promoted dtype.

    Raises:
        RuntimeError: different numbers of axes.
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: scores that are not floating point, an operand that is not a tensor.

    Source: torch.nn.functional.margin_ranking_loss.
    """
    name = "margin_ranking_loss"
    if has_torch_function_variadic(input1, input2, target):
        arguments = margin, size_average, reduce, reduction
        return handle_torch_function(margin_ranking_loss, (input1, input2, target), input1, input2, target, *arguments)
    reduction = checked_reduction(name, reduction, size_average, reduce)
    given = [x.dim() for x in (input1, input2, target) if isinstance(x, Tensor)]
    if len(set(given)) > 1:
        raise RuntimeError(f"{name}: input1, input2 and target must have the same number of axes, got {given}")
    route, operands = prepared(name, ("input1", "target", "input2", ""), input1, target, input2, None)
    return reduced(route, operands, Loss("margin_ranking", float(margin)), reduction)
