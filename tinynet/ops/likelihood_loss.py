"""Losses that are logarithms of likelihoods: of a normal and a Poisson distribution; and Kullback and Leibler's."""

from __future__ import annotations

import warnings
from numbers import Real

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from tinynet.dispatch import Route, check_strided, is_plain_eager
from tinynet.ops.arguments import checked_reduction
from tinynet.ops.elementwise_loss import check_variance, prepared, reduced
from tinynet_kernels.loss_spec import Loss


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """target (log target - input), reduced, 0 where the target is 0: the divergence of exp(input) from the target.

    Args:
        input: logarithms of probabilities [...], float32, bfloat16, float16 (kernels) or float64 (reference). In
            float32 under autocast.
        target: probabilities; broadcasts with the input; another floating dtype is promoted. Both get gradients.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        reduction: "batchmean" (the sum over input's first size), "mean" (with PyTorch's warning), "sum" or "none".
        log_target: whether the target is given as logarithms.

    Returns:
        The broadcast shape for "none", else []; the promoted dtype.

    Raises:
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: dtypes that are not floating point.

    Source: torch.nn.functional.kl_div (Kullback and Leibler 1951).
    """
    if has_torch_function_variadic(input, target):
        arguments = size_average, reduce, reduction, log_target
        return handle_torch_function(kl_div, (input, target), input, target, *arguments)
    by_batch = reduction == "batchmean" and input.dim() > 0
    if size_average is None and reduce is None:
        if reduction == "mean":
            warnings.warn(
                "reduction: 'mean' divides the total loss by both the batch size and the support size. 'batchmean' "
                "divides only by the batch size, and aligns with the definition of the divergence.",
                stacklevel=2,
            )
        elif reduction == "batchmean":
            reduction = "sum"
    reduction = checked_reduction("kl_div", reduction, size_average, reduce)
    names = ("input", "target", "", "")
    route, operands = prepared("kl_div", names, input, target, None, None, integer_target=False)
    loss = Loss("kl_div", log_space=bool(log_target))
    return reduced(route, operands, loss, reduction, input.shape[0] if by_batch and reduction == "sum" else None)


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """(log v + (input - target)^2 / v) / 2, reduced, where v = max(var, eps); the gradient of var ignores the maximum.

    Args:
        input: means [...], float32, bfloat16, float16 (kernels) or float64 (reference). In float32 under autocast.
        target: broadcasts with the input; another dtype is promoted.
        var: variances: input's shape, or that without the last axis, or 1 on one axis; or a number. All three get
            gradients.
        full: whether to add log(2 pi) / 2.
        eps: the least variance.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else the broadcast shape; the promoted dtype. On a device a negative variance makes the
        loss NaN: raising would wait for the device.

    Raises:
        ValueError: a negative variance on the CPU, shapes or devices that don't fit together, an unknown reduction.
        TypeError: an input or variance that is not floating point, an operand that is not a tensor.

    Source: torch.nn.functional.gaussian_nll_loss (Nix and Weigend 1994).
    """
    name = "gaussian_nll_loss"
    if has_torch_function_variadic(input, target, var):
        arguments = var, full, eps, reduction
        return handle_torch_function(gaussian_nll_loss, (input, target, var), input, target, *arguments)
    reduction = checked_reduction(name, reduction, None, None)
    if isinstance(var, Real):
        if var < 0:
            raise ValueError(f"{name}: var has negative entry/entries")
        var = input.new_full((), float(var)).expand(input.shape)
    elif isinstance(var, Tensor):
        check_strided(name, "input", input)
        check_strided(name, "var", var)
        if var.shape != input.shape:
            var = _variance_of_shape(var, input)
    route, operands = prepared(name, ("input", "target", "var", ""), input, target, var, None)
    variance: Tensor = operands[2]
    if route is Route.REFERENCE and variance.is_cpu and is_plain_eager(variance):
        check_variance(variance)
    return reduced(route, operands, Loss("gaussian_nll", eps=float(eps), full=bool(full)), reduction)


def _variance_of_shape(var: Tensor, input: Tensor) -> Tensor:
    """The variance with input's number of axes."""
    if input.shape[:-1] == var.shape:
        return var.unsqueeze(-1)
    pairs = zip(input.shape, var.shape, strict=False)
    if input.dim() == var.dim() and sum(y for x, y in pairs if x != y) == 1:
        return var
    raise ValueError(
        f"gaussian_nll_loss: var must have the shape {tuple(input.shape)} of input, or that without the last axis, or "
        f"with 1 on one axis; got {tuple(var.shape)}, which is of incorrect size"
    )


def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """exp(input) - target input, or input - target log(input + eps), reduced.

    Args:
        input: logarithms of expected counts, or the counts, [...], float32, bfloat16, float16 (kernels) or float64
            (reference). In float32 under autocast.
        target: counts; broadcasts with the input; another dtype is promoted. Both get gradients.
        log_input: whether the input is a logarithm.
        full: whether to add Stirling's approximation of log(target!) where the target is above 1.
        size_average, reduce: PyTorch's older spelling of `reduction`.
        eps: keeps the logarithm finite.
        reduction: "mean", "sum" or "none".

    Returns:
        [] for "mean" and "sum", else the broadcast shape; the promoted dtype.

    Raises:
        ValueError: shapes or devices that don't fit together, an unknown reduction.
        TypeError: an input that is not floating point, a target that is not a tensor.

    Source: torch.nn.functional.poisson_nll_loss.
    """
    if has_torch_function_variadic(input, target):
        arguments = log_input, full, size_average, eps, reduce, reduction
        return handle_torch_function(poisson_nll_loss, (input, target), input, target, *arguments)
    reduction = checked_reduction("poisson_nll_loss", reduction, size_average, reduce)
    route, operands = prepared("poisson_nll_loss", ("input", "target", "", ""), input, target, None, None)
    loss = Loss("poisson_nll", eps=float(eps), log_space=bool(log_input), full=bool(full))
    return reduced(route, operands, loss, reduction)
