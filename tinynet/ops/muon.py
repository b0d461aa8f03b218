"""Orthogonalized matrices, by Newton and Schulz's iteration, and Muon's step with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tinynet.dispatch import Route, route_of
from tinynet.ops import kernels


def orthogonalize(
    matrices: Tensor,
    coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    steps: int = 5,
    eps: float = 1e-7,
    dtype: torch.dtype | None = torch.bfloat16,
) -> Tensor:
    """Matrices of the same singular vectors, whose singular values are all near 1, between 0.5 and 1.5.

    Each matrix is divided by its norm; then X <- a X + (b X X^T + c (X X^T)^2) X in every step, three products for all
    matrices at once.

    Args:
        matrices: [B, M, N].
        coefficients: a, b and c.
        steps: how many.
        eps: what a norm counts as at least.
        dtype: of the products; None for the matrices' own.

    Returns:
        [B, M, N] in `dtype`.

    Source: torch.optim.Muon; Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    a, b, c = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    norms = torch.linalg.vector_norm(matrices.float() if dtype else matrices, dim=(1, 2), keepdim=True)
    x = (matrices / norms.clamp(min=eps)).to(dtype or matrices.dtype)
    x = (x.mT if is_tall else x).contiguous()
    product = _product
    if x.numel() and route_of("muon", ("matrices",), x) is Route.KERNELS:
        product = kernels.batched_product.batched_product
    for _ in range(steps):
        gram = product(x, x.mT)
        x = product(product(gram, gram, gram, c, b), x, x, 1.0, a)
    return x.mT if is_tall else x


def _product(a: Tensor, b: Tensor, add: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """alpha a b + beta add, in plain PyTorch."""
    return alpha * torch.bmm(a, b) if add is None else torch.baddbmm(add, a, b, alpha=alpha, beta=beta)


def muon(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    ns_coefficients: tuple[float, float, float],
    eps: float,
    ns_steps: int,
    adjust_lr_fn: str | None,
) -> None:
    """One Muon step, in place: parameters of one shape, dtype and device are orthogonalized together.

    Args:
        params: [out, ...], each of two axes or more.
        grads, momentum_buffers: one per parameter, of its shape.
        lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn: as in torch.optim.Muon.

    Raises:
        RuntimeError: a sparse gradient.
    """
    alike: dict[object, list[tuple[Tensor, ...]]] = {}
    for index, row in enumerate(zip(params, grads, momentum_buffers, strict=True)):
        if row[1].layout is not torch.strided:
            raise RuntimeError(f"muon: grads[{index}] is sparse; sparse gradients are not supported")
        shape = row[0].shape[0], math.prod(row[0].shape[1:])
        alike.setdefault((shape, row[0].dtype, row[1].dtype, row[0].device), []).append(row)
    for rows in alike.values():
        parameters, gradients, buffers = (list(column) for column in zip(*rows, strict=True))
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
        updates = torch._foreach_lerp(gradients, buffers, momentum) if nesterov else buffers  # pyright: ignore[reportPrivateImportUsage]
        matrices = torch.stack([update.flatten(1) for update in updates])
        steps = orthogonalize(matrices, ns_coefficients, ns_steps, eps).to(parameters[0].dtype)
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)  # pyright: ignore[reportPrivateImportUsage]
        shaped = [step.reshape(parameter.shape) for step, parameter in zip(steps, parameters, strict=True)]
        torch._foreach_add_(parameters, shaped, alpha=-lr * _ratio(adjust_lr_fn, *matrices.shape[1:]))  # pyright: ignore[reportPrivateImportUsage]


def _ratio(adjust_lr_fn: str | None, rows: int, columns: int) -> float:
    """What the learning rate is multiplied by for a matrix of this shape."""
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
