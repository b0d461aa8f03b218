"""Optimizer steps beside SGD's and Adam's, one rule for each in one kernel; tiling and tables as in `optimizer.py`.

With p the parameter, g = (-) gradient + weight_decay p, p <- decay p first, and t the number of the step:

    rmsprop    v <- alpha v + (1 - alpha) g^2;   d = sqrt(v) + eps, centered: c <- alpha c + (1 - alpha) g and
               d = sqrt(v - c^2) + eps;   p <- p - lr g / d, with momentum: b <- momentum b + g / d and p <- p - lr b
    adagrad    s <- s + g^2;   p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)
    adadelta   v <- rho v + (1 - rho) g^2;   d = g sqrt(a + eps) / sqrt(v + eps);   a <- rho a + (1 - rho) d^2;
               p <- p - lr d
    adamax     m <- beta1 m + (1 - beta1) g;   u <- max(beta2 u, |g| + eps);   p <- p - lr / (1 - beta1^t) m / u
    nadam      m and v as in Adam;   p <- p - (gradient_step g + average_step m) / (sqrt(v) inverse_root + eps)
    radam      m and v as in Adam;   p <- p - step_size m / (sqrt(v) + eps), before variances are known p - step_size m
    lion       p <- p - lr sign(beta1 m + (1 - beta1) g);   m <- beta2 m + (1 - beta2) g

What depends on hyperparameters and t alone is computed in float64, as in `optimizer.py`. Source: torch.optim; Tieleman
and Hinton 2012 (RMSprop), Duchi et al. 2011, Zeiler 2012, Kingma and Ba 2015 (Adamax), Dozat 2016 (NAdam), Liu et al.
2020 (RAdam), Chen et al. 2023 (Lion).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.device_numbers import Number, numbers_of_block
from tinynet_kernels.launch import Cost, Problem, Reached, costs
from tinynet_kernels.optimizer import (
    TRITON_DTYPES,
    PointerTable,
    TableTile,
    load_block,
    placed,
    store_block,
    table_block,
    table_cost,
    tensor_pointer,
)
from tinynet_kernels.optimizer_spec import Rule

SCALARS = 8  # that the kernel takes; a rule reads as many as it has


@triton.jit
def rmsprop(p, g, states, scalars, RULE: constexpr):
    """States: v, with momentum b, centered c."""
    lr, alpha, one_minus_alpha, eps, momentum = scalars[:5]
    square = alpha * states[0] + one_minus_alpha * g * g
    new = (square,)
    variance = square
    if RULE.centered:
        average = alpha * states[1 + RULE.has_momentum] + one_minus_alpha * g
        variance = square - average * average
    update = g / (tl.sqrt(variance) + eps)
    if RULE.has_momentum:
        update = momentum * states[1] + update
        new += (update,)
    if RULE.centered:
        new += (average,)
    return p - lr * update, new


@triton.jit
def adagrad(p, g, states, scalars):
    """States: s."""
    lr, eps = scalars[:2]
    total = states[0] + g * g
    return p - lr * g / (tl.sqrt(total) + eps), (total,)


@triton.jit
def adadelta(p, g, states, scalars):
    """States: v, a."""
    lr, rho, one_minus_rho, eps = scalars[:4]
    square = rho * states[0] + one_minus_rho * g * g
    delta = g * tl.sqrt(states[1] + eps) / tl.sqrt(square + eps)
    return p - lr * delta, (square, rho * states[1] + one_minus_rho * delta * delta)


@triton.jit
def adamax(p, g, states, scalars):
    """States: m, u."""
    lr, beta1, one_minus_beta1, beta2, eps = scalars[:5]
    average = beta1 * states[0] + one_minus_beta1 * g
    largest = tl.maximum(beta2 * states[1], tl.abs(g) + eps, propagate_nan=tl.PropagateNan.ALL)
    return p - lr * average / largest, (average, largest)


@triton.jit
def nadam(p, g, states, scalars):
    """States: m, v."""
    gradient_step, average_step, beta1, one_minus_beta1, beta2, one_minus_beta2, inverse_root, eps = scalars
    average = beta1 * states[0] + one_minus_beta1 * g
    square = beta2 * states[1] + one_minus_beta2 * g * g
    return p - (gradient_step * g + average_step * average) / (tl.sqrt(square) * inverse_root + eps), (average, square)


@triton.jit
def radam(p, g, states, scalars):
    """States: m, v."""
    step_size, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, is_rectified = scalars[:7]
    average = beta1 * states[0] + one_minus_beta1 * g
    square = beta2 * states[1] + one_minus_beta2 * g * g
    update = tl.where(is_rectified != 0, average / (tl.sqrt(square) + eps), average)
    return p - step_size * update, (average, square)


@triton.jit
def lion(p, g, states, scalars):
    """States: m."""
    lr, beta1, one_minus_beta1, beta2, one_minus_beta2 = scalars[:5]
    direction = beta1 * states[0] + one_minus_beta1 * g
    sign = tl.where(direction > 0, 1.0, tl.where(direction < 0, -1.0, direction))  # 0 and NaN are their own
    return p - lr * sign, (beta2 * states[0] + one_minus_beta2 * g,)


@triton.jit
def ruled(p, g, states, scalars, RULE: constexpr):
    """(p, states) after a step of the rule."""
    if RULE.name == "rmsprop":
        return rmsprop(p, g, states, scalars, RULE)
    elif RULE.name == "adagrad":
        return adagrad(p, g, states, scalars)
    elif RULE.name == "adadelta":
        return adadelta(p, g, states, scalars)
    elif RULE.name == "adamax":
        return adamax(p, g, states, scalars)
    elif RULE.name == "nadam":
        return nadam(p, g, states, scalars)
    elif RULE.name == "radam":
        return radam(p, g, states, scalars)
    else:
        tl.static_assert(RULE.name == "lion")
        return lion(p, g, states, scalars)


@triton.jit
def rule_block(row_ptr, start, left, decays, scalars, RULE: constexpr, DTYPE: constexpr, TILE: constexpr):
    """The step of the first `left` elements of one block; all of them where `left` is None."""
    STATES: constexpr = RULE.states
    weight_decay, decay = decays
    parameter_ptr = tensor_pointer(row_ptr + 1, start, DTYPE, TILE)
    p = load_block(parameter_ptr, left, TILE)
    g = load_block(tensor_pointer(row_ptr + 2, start, DTYPE, TILE), left, TILE)
    states = ()
    for state in tl.static_range(STATES):  # pyright: ignore[reportGeneralTypeIssues]
        states += (load_block(tensor_pointer(row_ptr + 3 + state, start, DTYPE, TILE), left, TILE),)
    if RULE.maximize:
        g = -g
    if RULE.has_weight_decay:
        g += weight_decay * p
    p, states = ruled(decay * p, g, states, scalars, RULE)
    tl.debug_barrier()  # in a small block several warps hold the same element: all load before any stores
    for state in tl.static_range(STATES):  # pyright: ignore[reportGeneralTypeIssues]
        store_block(tensor_pointer(row_ptr + 3 + state, start, DTYPE, TILE), states[state], left, TILE)
    store_block(parameter_ptr, p, left, TILE)


@triton.jit
def rule_kernel(
    table_ptr,
    block_ptr,
    numbers_ptr,
    weight_decay,
    decay,
    scalar0,
    scalar1,
    scalar2,
    scalar3,
    scalar4,
    scalar5,
    scalar6,
    scalar7,
    RULE: constexpr,
    DTYPE: constexpr,
    TILE: constexpr,
):
    """One step of the rule in place; columns: elements, parameter, gradient and states in the rule's order."""
    row_ptr, start, left = table_block(table_ptr, block_ptr, tl.program_id(0), TILE)
    decays = (weight_decay, decay)
    scalars = (scalar0, scalar1, scalar2, scalar3, scalar4, scalar5, scalar6, scalar7)
    if numbers_ptr is not None:
        left, numbers = numbers_of_block(numbers_ptr, block_ptr, tl.program_id(0), left, 10)
        decays = numbers[:2]
        scalars = numbers[2:]
    if TILE.aligned and left == TILE.block:
        rule_block(row_ptr, start, None, decays, scalars, RULE, DTYPE, TILE)
    else:
        rule_block(row_ptr, start, left, decays, scalars, RULE, DTYPE, TILE)


@costs(rule_kernel)
def rule_cost(RULE: Rule, **launched: Any) -> Cost:
    """Parameter and states are read and written once, the gradient is read once; some ten operations."""
    return table_cost(10 + 2 * RULE.has_weight_decay, 3 + 2 * RULE.states, **launched)


def rule_step(
    table: PointerTable,
    rule: Rule,
    weight_decay: float,
    decay: Number,
    *scalars: Number,
    reached: Reached = (),
    found_inf: torch.Tensor | None = None,
) -> None:
    """One step of the table's parameters and states, in place.

    Args:
        table: of parameters that don't overlap, their gradients, and their states in the rule's order.
        rule: which.
        weight_decay: of the parameter in g.
        decay: what the parameter is multiplied by first.
        scalars: of the rule, in the order of its function; these and `decay` may be on the device.
        reached: the table's tensors, for whoever observes launches.
        found_inf: see `device_numbers`.
    """
    programs = table.blocks.shape[0]
    if programs == 0:  # nothing but empty tensors
        return
    padding = [0.0] * (SCALARS - len(scalars))
    numbers, arguments = placed(table, (weight_decay, decay, *scalars, *padding), found_inf)
    problem = _problem(rule, programs, table.dtype, table.tile, table.num_warps)
    problem.launch(table.addresses, table.blocks, numbers, *arguments, reached=reached)


@lru_cache(maxsize=4096)
def _problem(rule: Rule, programs: int, dtype: torch.dtype, tile: TableTile, num_warps: int) -> Problem:
    return Problem(rule_kernel, (programs,), RULE=rule, DTYPE=TRITON_DTYPES[dtype], TILE=tile, num_warps=num_warps)
