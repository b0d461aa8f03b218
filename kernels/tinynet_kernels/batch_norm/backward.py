"""Batch and instance normalization, backward. With xhat = (x - mean) rstd, z = xhat w + b + residual, y = act(z):

    dZ = dY act'(z)    db = sum of dZ    dw = sum of dZ xhat    dresidual = dZ
    dX = w rstd (dZ - db / n - xhat dw / n) for statistics of x, over n elements each; w rstd dZ for given ones

Two launches. `norm_sums_kernel` leaves the sums over each part of a channel; for given statistics it stores dX too.
`norm_input_gradient_kernel` adds the parts of its channels in a fixed order and stores dX; the programs of the first
part store dw and db. `norm_parameter_gradients_kernel` does where there are several groups, or no need for that launch.
Where one program has all of its channels, and of those that share their statistics, the second launch computes the sums
too, unless the residual's gradient is wanted. z is computed from x again; where there is a residual, y or the residual
was saved, whichever act' needs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activate, activation_derivative
from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.batch_norm.forward import in_order
from tinynet_kernels.batch_norm.tiles import Walk, walk_of, walk_of_batch
from tinynet_kernels.batch_norm.walk import (
    load_channels,
    load_tile,
    of_channels,
    of_members,
    place_of,
    sets_of,
    share_of_program,
    statistic_of,
    store_tile,
    sum_of_positions,
    zero_tile,
)
from tinynet_kernels.constants import constexpr
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.reduction import blocks_of_parts, sum_partials
from tinynet_kernels.tiles import Target, ceil_div, current_target


class GradientSpec(NamedTuple):
    """What a backward is compiled for, beside its walk and activation.

    Attributes:
        reads_output: whether act' is computed from y.
        alone: whether each program has all of its channels, and computes their sums itself.
    """

    reads_output: bool
    alone: bool = False


class Affine(NamedTuple):
    """What a normalization applies to a program's channels.

    Attributes:
        rstd: [block_channels].
        mean, scale, bias: to be broadcast over a tile; `scale` is rstd weight.
    """

    rstd: Any
    mean: Any
    scale: Any
    bias: Any


@triton.jit
def affine_of(mean_ptr, variance_ptr, weight_ptr, bias_ptr, eps, share, SPEC: constexpr, TILE: constexpr):
    """The `Affine` of the program's channels."""
    channel = share.first_channel + tl.arange(0, TILE.block_channels)
    statistic = statistic_of(share, SPEC, TILE)
    mean = load_channels(mean_ptr, statistic, share.in_channels, 0.0)
    deviation = tl.sqrt(load_channels(variance_ptr, statistic, share.in_channels, 0.0) + eps)
    weight = load_channels(weight_ptr, channel, share.in_channels, 1.0)
    bias = load_channels(bias_ptr, channel, share.in_channels, 0.0)
    return Affine(
        1.0 / deviation,
        of_channels(mean, SPEC),
        of_channels(weight / deviation, SPEC),
        of_channels(bias, SPEC),
    )


@triton.jit
def load_gradients(
    grad_ptr,
    x_ptr,
    saved_ptr,
    affine,
    share,
    place,
    strides,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    GRADIENT: constexpr,
    TILE: constexpr,
):
    """x - mean and dZ of a tile; `strides` are the kernel's last four numbers.

    `saved` is None without a residual, else y where the derivative reads it, and the residual where it doesn't.
    z is computed as in `normalize_kernel`, so that a step of the activation falls on the same side.
    """
    dz = load_tile(grad_ptr, share, place, strides[2], strides[3], SPEC, TILE)
    deviation = load_tile(x_ptr, share, place, strides[0], strides[1], SPEC, TILE) - affine.mean
    if ACTIVATION.name != "identity":
        if saved_ptr is not None and GRADIENT.reads_output:
            source = load_tile(saved_ptr, share, place, strides[2], strides[3], SPEC, TILE)
        else:
            source = deviation * affine.scale + affine.bias
            if saved_ptr is not None:
                source += load_tile(saved_ptr, share, place, strides[2], strides[3], SPEC, TILE)
            if GRADIENT.reads_output:
                source = activate(source, ACTIVATION)
        dz *= activation_derivative(source, ACTIVATION)
    return deviation, dz


@triton.jit(do_not_specialize=["outer", "channels", "inner", "steps_per_part"])
def norm_sums_kernel(
    grad_ptr,
    x_ptr,
    saved_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    partial_ptr,
    dz_ptr,
    dx_ptr,
    eps,
    outer,
    channels,
    inner,
    steps_per_part,
    stride_xo,
    stride_xa,
    stride_yo,
    stride_ya,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    GRADIENT: constexpr,
    TILE: constexpr,
):
    """partial [parts, groups, 2, channels]: sums of dZ xhat and of dZ over each part; dZ; and dX for given statistics.

    Each is left out where it is None. All tensors but x are dense.
    """
    share = share_of_program(outer, channels, inner, steps_per_part, TILE)
    affine = affine_of(mean_ptr, variance_ptr, weight_ptr, bias_ptr, eps, share, SPEC, TILE)
    strides = stride_xo, stride_xa, stride_yo, stride_ya
    dweight = zero_tile(SPEC, TILE)
    dbias = zero_tile(SPEC, TILE)
    for step in range(share.steps):
        place = place_of(share, step, outer, inner, SPEC, TILE)
        deviation, dz = load_gradients(
            grad_ptr, x_ptr, saved_ptr, affine, share, place, strides, SPEC, ACTIVATION, GRADIENT, TILE
        )
        if dz_ptr is not None:
            store_tile(dz_ptr, dz, share, place, stride_yo, stride_ya, SPEC, TILE)
        if dx_ptr is not None:
            store_tile(dx_ptr, dz * affine.scale, share, place, stride_yo, stride_ya, SPEC, TILE)
        if partial_ptr is not None:
            dweight += dz * deviation  # masked lanes add 0, since dY is 0 there, or belong to a channel of NaN
            dbias += dz
    if partial_ptr is not None:
        partial = partial_of(partial_ptr, share.part, channels, share, TILE)
        tl.store(partial, sum_of_positions(dweight, SPEC) * affine.rstd, mask=share.in_channels)
        tl.store(partial + channels, sum_of_positions(dbias, SPEC), mask=share.in_channels)


@triton.jit
def partial_of(partial_ptr, part, channels, share, TILE: constexpr):
    """Pointers to the first of the two sums of the program's group and channels in some part."""
    groups = share.statistics // channels
    row = (part * groups + share.group).to(tl.int64) * 2
    return partial_ptr + row * channels + share.first_channel + tl.arange(0, TILE.block_channels)


@triton.jit
def sums_of_sets(partial_ptr, weight_ptr, channels, share, SPEC: constexpr, TILE: constexpr):
    """Sums of w dZ xhat and of w dZ over the channels that share statistics, for each of the program's channels."""
    sets = sets_of(share, channels, SPEC, TILE)
    dnormalized = tl.full((TILE.block_sets,), 0.0, tl.float32)
    dshift = tl.full((TILE.block_sets,), 0.0, tl.float32)
    channel = sets.statistic - share.group * channels
    weight = load_channels(weight_ptr, channel, sets.mask, 1.0)
    for part in range(share.parts):
        row = (part * (share.statistics // channels) + share.group).to(tl.int64) * 2
        partial = partial_ptr + (row * channels + channel)
        dnormalized += tl.sum(weight * tl.load(partial, mask=sets.mask, other=0.0), axis=0)
        dshift += tl.sum(weight * tl.load(partial + channels, mask=sets.mask, other=0.0), axis=0)
    return tl.gather(dnormalized, sets.set_of, axis=0), tl.gather(dshift, sets.set_of, axis=0)


@triton.jit
def shared_sums(dweight, dbias, weight_ptr, channels, share, SPEC: constexpr, TILE: constexpr):
    """The same from the sums of all channels, which the program has."""
    sets = sets_of(share, channels, SPEC, TILE)
    weight = load_channels(weight_ptr, sets.statistic - share.group * channels, sets.mask, 1.0)
    dnormalized = tl.sum(weight * of_members(dweight, sets, share, channels), axis=0)
    dshift = tl.sum(weight * of_members(dbias, sets, share, channels), axis=0)
    return tl.gather(dnormalized, sets.set_of, axis=0), tl.gather(dshift, sets.set_of, axis=0)


@triton.jit(do_not_specialize=["outer", "channels", "inner", "steps_per_part"])
def norm_input_gradient_kernel(
    grad_ptr,
    x_ptr,
    saved_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    partial_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    eps,
    outer,
    channels,
    inner,
    steps_per_part,
    stride_xo,
    stride_xa,
    stride_yo,
    stride_ya,
    SPEC: constexpr,
    ACTIVATION: constexpr,
    GRADIENT: constexpr,
    TILE: constexpr,
):
    """dX = w rstd (dZ - db / n - xhat dw / n), and dw and db of one group where they are given.

    dw and db are sums over `partial` or, where the program is `alone`, over dZ: then they are
    stored in `partial`, if any. Where groups share their statistics, `partial` is these sums, [2, channels].
    Where channels share statistics, dX = rstd (w dZ - sum of w db / n - xhat sum of w dw / n), summed over them.
    """
    share = share_of_program(outer, channels, inner, steps_per_part, TILE)
    affine = affine_of(mean_ptr, variance_ptr, weight_ptr, bias_ptr, eps, share, SPEC, TILE)
    strides = stride_xo, stride_xa, stride_yo, stride_ya
    if GRADIENT.alone:
        total_dweight = zero_tile(SPEC, TILE)
        total_dbias = zero_tile(SPEC, TILE)
        for step in range(share.steps):
            place = place_of(share, step, outer, inner, SPEC, TILE)
            deviation, dz = load_gradients(
                grad_ptr, x_ptr, saved_ptr, affine, share, place, strides, SPEC, ACTIVATION, GRADIENT, TILE
            )
            total_dweight += dz * deviation  # masked lanes add 0, as in `norm_sums_kernel`
            total_dbias += dz
        dweight = sum_of_positions(total_dweight, SPEC) * affine.rstd
        dbias = sum_of_positions(total_dbias, SPEC)
        if partial_ptr is not None:
            partial = partial_of(partial_ptr, share.part, channels, share, TILE)
            tl.store(partial, dweight, mask=share.in_channels)
            tl.store(partial + channels, dbias, mask=share.in_channels)
        if SPEC.members > 1:
            dweight, dbias = shared_sums(dweight, dbias, weight_ptr, channels, share, SPEC, TILE)
    elif SPEC.members > 1:
        dweight, dbias = sums_of_sets(partial_ptr, weight_ptr, channels, share, SPEC, TILE)
    elif SPEC.groups_share:
        channel = share.first_channel + tl.arange(0, TILE.block_channels)
        dweight = load_channels(partial_ptr, channel, share.in_channels, 0.0)
        dbias = load_channels(partial_ptr + channels, channel, share.in_channels, 0.0)
    else:
        part = tl.arange(0, TILE.block_parts)[:, None]
        partial = partial_of(partial_ptr, part, channels, share, TILE)
        mask = (part < share.parts) & share.in_channels[None, :]
        dweight = tl.sum(tl.load(partial, mask=mask, other=0.0), axis=0)
        dbias = tl.sum(tl.load(partial + channels, mask=mask, other=0.0), axis=0)
    if share.part == 0:
        if dweight_ptr is not None:
            tl.store(dweight_ptr + share.statistic, dweight.to(dweight_ptr.dtype.element_ty), mask=share.in_channels)
        if dbias_ptr is not None:
            tl.store(dbias_ptr + share.statistic, dbias.to(dbias_ptr.dtype.element_ty), mask=share.in_channels)
    count = (outer * inner).to(tl.float32) * SPEC.members
    if SPEC.groups_share:
        count *= share.statistics // channels
    # Where channels share statistics, their sums are already multiplied by w.
    outer_factor = of_channels(affine.rstd, SPEC) if SPEC.members > 1 else affine.scale
    slope = of_channels(dweight / count * affine.rstd, SPEC) * outer_factor
    shift = of_channels(dbias / count, SPEC) * outer_factor
    for step in range(share.steps):
        place = place_of(share, step, outer, inner, SPEC, TILE)
        deviation, dz = load_gradients(
            grad_ptr, x_ptr, saved_ptr, affine, share, place, strides, SPEC, ACTIVATION, GRADIENT, TILE
        )
        dx = dz * affine.scale - shift - deviation * slope
        store_tile(dx_ptr, dx, share, place, stride_yo, stride_ya, SPEC, TILE)


@triton.jit(do_not_specialize=["parts"])
def norm_parameter_gradients_kernel(
    partial_ptr, dweight_ptr, dbias_ptr, parts, channels, BLOCK_PARTS: constexpr, BLOCK: constexpr
):
    """dw and db, each left out where it is None: the sums of `partial` [parts, 2, channels], BLOCK_PARTS at a time."""
    start = tl.program_id(0) * BLOCK
    channel = tl.arange(0, BLOCK)
    mask = channel < channels - start
    part = tl.arange(0, BLOCK_PARTS)
    offset = part[:, None] * (2 * channels) + channel[None, :]
    partial = partial_ptr + start
    dweights = tl.zeros((BLOCK_PARTS, BLOCK), tl.float32)
    dbiases = tl.zeros((BLOCK_PARTS, BLOCK), tl.float32)
    for first in range(0, parts, BLOCK_PARTS):
        inside = (part < parts - first)[:, None] & mask[None, :]
        dweights += tl.load(partial + offset, mask=inside, other=0.0)
        dbiases += tl.load(partial + channels + offset, mask=inside, other=0.0)
        partial += BLOCK_PARTS * 2 * channels
    dweight = tl.sum(dweights, axis=0)
    dbias = tl.sum(dbiases, axis=0)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + start + channel, dweight.to(dweight_ptr.dtype.element_ty), mask=mask)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + start + channel, dbias.to(dbias_ptr.dtype.element_ty), mask=mask)


@costs(norm_parameter_gradients_kernel)
def norm_parameter_gradients_cost(partial_ptr: torch.Tensor, **others: Any) -> Cost:
    """The partial sums are read once, the gradients written."""
    return Cost(partial_ptr.numel(), size_in_bytes(partial_ptr, *others.values()))


@costs(norm_sums_kernel)
@costs(norm_input_gradient_kernel)
def norm_backward_cost(grad_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is moved once; a difference, two products and two sums for each element."""
    return Cost(5 * grad_ptr.numel(), size_in_bytes(grad_ptr, *others.values()))


class BackwardProblems(NamedTuple):
    """The launches of a backward; `alone` is the one that also computes the sums."""

    walk: Walk
    sums: Problem
    input_gradient: Problem
    alone: Problem


@lru_cache(maxsize=4096)
def _problems(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    per_sample: bool,
    activation: Activation,
    target: Target,
    members: int,
) -> BackwardProblems:
    walk = walk_of(shape, stride, True, target, members) if per_sample else walk_of_batch(shape, stride, target)
    constants = {"ACTIVATION": activation.compiled, **walk.constants}
    spec = GradientSpec(activation.reads_output)
    alone = spec._replace(alone=True)
    return BackwardProblems(
        walk,
        Problem(norm_sums_kernel, (walk.programs,), *walk.numbers, GRADIENT=spec, **constants),
        Problem(norm_input_gradient_kernel, (walk.programs,), *walk.numbers, GRADIENT=spec, **constants),
        Problem(norm_input_gradient_kernel, (walk.programs,), *walk.numbers, GRADIENT=alone, **constants),
    )


@lru_cache(maxsize=4096)
def _parameters_problem(parts: int, channels: int, target: Target) -> Problem:
    blocks = blocks_of_parts(parts, channels, target)
    return Problem(
        norm_parameter_gradients_kernel,
        (ceil_div(channels, blocks.block),),
        *(parts, channels),
        BLOCK_PARTS=blocks.block_parts,
        BLOCK=blocks.block,
        num_warps=blocks.num_warps,
    )


class NormGradients(NamedTuple):
    """What a backward computes, or (as booleans) is to compute."""

    x: Any
    weight: Any
    bias: Any
    residual: Any


def norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    saved: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    eps: float,
    activation: Activation,
    wanted: NormGradients,
    *,
    per_sample: bool,
    given: bool,
    members: int = 1,
) -> NormGradients:
    """The wanted gradients, each None where not wanted.

    Args:
        grad: dY, x's shape, any strides.
        x, weight, mean, variance, eps, activation, per_sample, members: the forward's, or what it returned.
        bias: the forward's; where z isn't needed, and there is a weight, it may be None.
        saved: with a residual and an activation that is not the identity: y where `activation.reads_output`, else the
            residual; else None.
        wanted: which gradients.
        given: whether the statistics were given to the forward.
    """
    target = current_target()
    problems = _problems(x.shape, x.stride(), per_sample, activation, target, members)
    walk = problems.walk
    channels = x.shape[1]
    dx = x.new_empty_strided(x.shape, walk.stride) if wanted.x else None
    dz = x.new_empty_strided(x.shape, walk.stride) if wanted.residual else None
    # One launch where one program has all of its channels, and of those that share their statistics.
    alone = walk.parts == 1 and (members == 1 or walk.has_all_channels) and not walk.groups_share
    alone = alone and dx is not None and dz is None and not given
    # The launch for dX adds what the weight's gradient adds.
    adds = walk.groups == 1 and members == 1 and dx is not None and not given
    partial, parts = None, walk.parts * walk.groups
    if (wanted.x and not given and not alone) or (not adds and (wanted.weight or wanted.bias)):
        partial = x.new_empty((parts, 2, channels), dtype=torch.float32)
    if grad.stride() != walk.stride:
        grad = x.new_empty_strided(x.shape, walk.stride).copy_(grad)
    if saved is not None:
        saved = in_order(saved, grad)
    operands: dict[str, Any] = {
        "grad_ptr": grad,
        "x_ptr": x,
        "saved_ptr": saved,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "mean_ptr": mean,
        "variance_ptr": variance,
        "partial_ptr": partial,
    }
    if not alone:
        problems.sums.launch_named(**operands, dz_ptr=dz, dx_ptr=dx if given else None, eps=eps)
    parameter: Any = bias if weight is None else weight
    dweight = torch.empty_like(parameter) if wanted.weight else None
    dbias = torch.empty_like(parameter) if wanted.bias else None
    if dx is not None and not given:
        input_gradient = problems.alone if alone else problems.input_gradient
        if dz is not None:
            operands |= {"grad_ptr": dz, "saved_ptr": None}
            input_gradient = _problems(x.shape, x.stride(), per_sample, IDENTITY, target, members).input_gradient
        if walk.groups_share and partial is not None:
            operands["partial_ptr"] = partial = sum_partials(partial)
            parts = 1
        input_gradient.launch_named(
            **operands,
            dx_ptr=dx,
            dweight_ptr=dweight if adds else None,
            dbias_ptr=dbias if adds else None,
            eps=eps,
        )
    if not adds and (dweight is not None or dbias is not None):
        _parameters_problem(parts, channels, target).launch(partial, dweight, dbias)
    return NormGradients(dx, dweight, dbias, dz)
