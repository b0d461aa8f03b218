"""Launchers of convolutions whose groups hold one input channel, and which kernels they take.

rows      depthwise convolutions on a CPU: `forward`, `input_gradient`, `weight_gradient`
general   all others: on GPUs, with several output channels to each input channel, of gray images, pooled; `general`
"""

from __future__ import annotations

from functools import lru_cache

import torch

from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.conv.depthwise.forward import forward_problem
from tinynet_kernels.conv.depthwise.general import (
    general_forward_problem,
    general_input_gradient_problem,
    general_weight_gradient_problem,
)
from tinynet_kernels.conv.depthwise.input_gradient import input_gradient_problem
from tinynet_kernels.conv.depthwise.tiles import LARGEST_BLOCK, computes_rows
from tinynet_kernels.conv.depthwise.weight_gradient import weight_gradient_problem
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Shape, Sizes
from tinynet_kernels.launch import Problem
from tinynet_kernels.layout import transpose
from tinynet_kernels.tiles import Target, current_target


def taps_first(weight: torch.Tensor) -> torch.Tensor:
    """W [K, 1, *kernel size] as [taps, K]."""
    K = weight.shape[0]
    taps = weight.numel() // K
    packed = torch.empty((taps, K), dtype=weight.dtype, device=weight.device)
    transpose(weight, packed, 1, K, taps)
    return packed


def single_channel_problem(
    shape: ConvolutionShape,
    spec: ConvolutionSpec,
    kernel_size: Sizes,
    dtype: torch.dtype,
    activation: Activation,
    pool: bool,
    epsilon: float,
    target: Target,
) -> Problem:
    """The launch of `forward.convolution_forward` for W [K, 1, *kernel size], which it is given as `taps_first`."""
    if computes_rows(shape, target) and not pool:
        return forward_problem(shape, spec.compiled(kernel_size, epsilon=epsilon), activation, dtype, target)
    return general_forward_problem(shape, spec, kernel_size, activation, pool, epsilon, target)


def depthwise_input_gradient(
    dz: torch.Tensor, weight: torch.Tensor, dx: torch.Tensor, spec: ConvolutionSpec
) -> torch.Tensor:
    """dX of dZ and W [K, 1, *kernel size], written into `dx`; see `input_gradient.convolution_input_gradient`."""
    problem = _input_gradient_problem(dz.shape, dx.shape, weight.shape[2:], spec, dz.dtype, current_target())
    problem.launch(dz, taps_first(weight), dx)
    return dx


@lru_cache(maxsize=4096)
def _input_gradient_problem(
    dz_shape: Shape, dx_shape: Shape, kernel_size: Sizes, spec: ConvolutionSpec, dtype: torch.dtype, target: Target
) -> Problem:
    shape, spec, kernel_size = ConvolutionShape.of(dx_shape, dz_shape, kernel_size, spec)
    if computes_rows(shape, target) and spec.stride[-1] <= LARGEST_BLOCK:
        return input_gradient_problem(shape, spec.compiled(kernel_size), dtype, target)
    return general_input_gradient_problem(shape, spec, kernel_size, target)


def depthwise_weight_gradient_problem(
    x_shape: Shape, dz_shape: Shape, dtype: torch.dtype, spec: ConvolutionSpec, kernel_size: Sizes, target: Target
) -> tuple[Problem, int]:
    """The launch of `weight_gradient.convolution_weight_gradient` for W [K, 1, *kernel size], and its splits."""
    shape, spec, kernel_size = ConvolutionShape.of(x_shape, dz_shape, kernel_size, spec)
    if computes_rows(shape, target):
        return weight_gradient_problem(shape, spec.compiled(kernel_size), dtype, target)
    return general_weight_gradient_problem(shape, spec, kernel_size, target)
