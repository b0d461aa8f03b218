"""Activation modules: torch.nn's classes, computed by tinynet's kernels.

`inplace=True` is accepted for compatibility and has no effect: the input is never modified. After a linear layer or a
convolution, use that layer's `activation=` argument instead, which saves a pass over memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinynet.ops import activation as ops
from tinynet.ops.activation_like import MODULES
from tinynet.ops.glu import glu
from tinynet.ops.prelu import prelu
from tinynet.ops.rrelu import rrelu
from tinynet_kernels.activation_spec import Activation


class ReLU(torch.nn.ReLU):
    """See `tinynet.functional.relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.relu(input)


class LeakyReLU(torch.nn.LeakyReLU):
    """See `tinynet.functional.leaky_relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.leaky_relu(input, self.negative_slope)


class PReLU(torch.nn.PReLU):
    """See `tinynet.functional.prelu`; `weight` is [num_parameters], as in torch.nn.PReLU."""

    def forward(self, input: Tensor) -> Tensor:
        return prelu(input, self.weight)


class RReLU(torch.nn.RReLU):
    """See `tinynet.functional.rrelu`; slopes are random in training mode only."""

    def forward(self, input: Tensor) -> Tensor:
        return rrelu(input, self.lower, self.upper, self.training)


class ReLU6(torch.nn.ReLU6):
    """See `tinynet.functional.relu6`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.relu6(input)


class ELU(torch.nn.ELU):
    """See `tinynet.functional.elu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.elu(input, self.alpha)


class GLU(torch.nn.GLU):
    """See `tinynet.functional.glu`."""

    def forward(self, input: Tensor) -> Tensor:
        return glu(input, self.dim)


class SELU(torch.nn.SELU):
    """See `tinynet.functional.selu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.selu(input)


class CELU(torch.nn.CELU):
    """See `tinynet.functional.celu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.celu(input, self.alpha)


class GELU(torch.nn.GELU):
    """See `tinynet.functional.gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.gelu(input, self.approximate)


class SiLU(torch.nn.SiLU):
    """See `tinynet.functional.silu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.silu(input)


class Mish(torch.nn.Mish):
    """See `tinynet.functional.mish`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.mish(input)


class Sigmoid(torch.nn.Sigmoid):
    """See `tinynet.functional.sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.sigmoid(input)


class LogSigmoid(torch.nn.LogSigmoid):
    """See `tinynet.functional.logsigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.logsigmoid(input)


class Tanh(torch.nn.Tanh):
    """See `tinynet.functional.tanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.tanh(input)


class Softplus(torch.nn.Softplus):
    """See `tinynet.functional.softplus`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.softplus(input, self.beta, self.threshold)


class Softsign(torch.nn.Softsign):
    """See `tinynet.functional.softsign`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.softsign(input)


class Hardtanh(torch.nn.Hardtanh):
    """See `tinynet.functional.hardtanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardtanh(input, self.min_val, self.max_val)


class Hardswish(torch.nn.Hardswish):
    """See `tinynet.functional.hardswish`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardswish(input)


class Hardsigmoid(torch.nn.Hardsigmoid):
    """See `tinynet.functional.hardsigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardsigmoid(input)


class Hardshrink(torch.nn.Hardshrink):
    """See `tinynet.functional.hardshrink`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.hardshrink(input, self.lambd)


class Softshrink(torch.nn.Softshrink):
    """See `tinynet.functional.softshrink`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.softshrink(input, self.lambd)


class Tanhshrink(torch.nn.Tanhshrink):
    """See `tinynet.functional.tanhshrink`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.tanhshrink(input)


class Threshold(torch.nn.Threshold):
    """See `tinynet.functional.threshold`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.threshold(input, self.threshold, self.value)


# The `Activation` of each module that a layer before it may compute in its own kernel.
FUNCTIONS: dict[type[torch.nn.Module], Callable[[Any], Activation]] = {
    module: MODULES[module.__bases__[0]]
    for module in (
        *(ReLU, ReLU6, LeakyReLU, ELU, SELU, CELU, GELU, SiLU, Mish, Sigmoid, Tanh),
        *(Hardswish, Hardsigmoid, Hardtanh, Threshold, Softplus),
    )
}
