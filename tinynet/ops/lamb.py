"""LAMB's step: the definition in plain PyTorch, and the step over many tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from tinynet.ops import kernels
from tinynet.ops.optimizer import buckets_of, widened

if TYPE_CHECKING:
    from tinynet_kernels.optimizer import PointerTable


def lamb_reference(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """One LAMB step, the `step`-th from 1, of one parameter and its states, in place.

    16-bit tensors are computed in float32; states and parameter are rounded once. Source: You et al. 2020, algorithm 2.
    """
    p, g = widened(parameter), widened(gradient)
    if maximize:
        g = -g
    exp_avg.copy_(beta1 * widened(exp_avg) + (1 - beta1) * g)
    exp_avg_sq.copy_(beta2 * widened(exp_avg_sq) + (1 - beta2) * g * g)
    denominator = widened(exp_avg_sq).sqrt() / math.sqrt(1 - beta2**step) + eps
    update = widened(exp_avg) / (1 - beta1**step) / denominator + weight_decay * p
    norms = torch.linalg.vector_norm(p), torch.linalg.vector_norm(update)
    ratio = torch.where((norms[0] == 0) | (norms[1] == 0), torch.ones_like(norms[0]), norms[0] / norms[1])
    parameter.copy_(p - lr * ratio * update)


def lamb(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[float],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    tables: list[PointerTable] | None = None,
) -> None:
    """One LAMB step, in place.

    Args:
        params: floating point, any shapes, dtypes and devices.
        grads, exp_avgs, exp_avg_sqs: one per parameter, of its shape.
        steps: the number of each parameter's step, from 1.
        lr, beta1, beta2, eps, weight_decay, maximize: as in `tinynet.optim.LAMB`.
        tables: a list of the caller's, empty at first; given again at the next step, it saves time.

    Raises:
        RuntimeError: a sparse gradient, or a step under CUDA graph capture.
        ValueError: tensors whose shapes or numbers don't fit together.
    """
    columns = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    options = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    for bucket in buckets_of("lamb", columns, steps, tables):
        if bucket.table is None:
            for row in bucket.rows:
                lamb_reference(*row, step=bucket.phase, maximize=maximize, **options)
        else:
            table, reached = bucket.table, bucket.columns
            kernels.lamb.lamb_step(table, reached=reached, step=bucket.phase, maximize=maximize, **options)
            increment_version(bucket.written)
