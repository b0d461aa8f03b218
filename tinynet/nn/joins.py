"""Calling modules one after another, neighbors that one kernel computes in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from tinynet.dispatch import is_plain_eager
from tinynet.nn.activation import FUNCTIONS
from tinynet.nn.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, count
from tinynet.nn.conv import Conv1d, Conv2d, Conv3d
from tinynet.nn.dropout import Dropout
from tinynet.nn.group_norm import GroupNorm
from tinynet.nn.layer_norm import LayerNorm, RMSNorm
from tinynet.nn.linear import Linear
from tinynet.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from tinynet.ops.activation import activate
from tinynet.ops.arguments import needs_gradient
from tinynet.ops.convolution_norm import TrainedNorm, convolution_norm
from tinynet.ops.linear import linear_chain
from tinynet_kernels.activation_spec import IDENTITY, Activation
from tinynet_kernels.conv.spec import Normalization

CONVOLUTIONS = (Conv1d, Conv2d, Conv3d)
BATCH_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
NORMS = (*BATCH_NORMS, GroupNorm, LayerNorm, RMSNorm)  # they can apply an activation too
# What a call of a layer runs, unless it was replaced after this import.
_CALL = torch.nn.Module.__call__
_POOLS = MaxPool2d, AvgPool2d, AdaptiveAvgPool2d
_LIGHT = Dropout, torch.nn.Flatten, torch.nn.Identity  # they often compute nothing
_FORWARDS: dict[type[torch.nn.Module], Any] = {
    layer: layer.forward for layer in (Linear, *CONVOLUTIONS, *NORMS, *FUNCTIONS, *_POOLS, *_LIGHT)
}
LAYERS = frozenset(_FORWARDS)
COMPUTING_LAYERS = LAYERS - frozenset(_LIGHT)
# The forwards of sequences, which call their modules in turn; `tinynet.nn.sequential` adds its own.
FORWARDS_IN_TURN: set[Any] = {torch.nn.Sequential.forward}


class Added(NamedTuple):
    """A step that adds a tensor."""

    tensor: Tensor


# What is called: a module, an activation, or an addition.
Step = torch.nn.Module | Activation | Added


def call_joined(steps: Sequence[Step], x: Any) -> Any:
    """The last step's output, the first step's input being x.

    Linear layers in a row are one autograd function; linear layers and convolutions compute the activation after them;
    a `Conv2d` also the `MaxPool2d(2)` or `BatchNorm2d` after it, as `nn.Sequential` describes; normalizations the
    activation, and `BatchNorm` the addition before it. Layers with a hook, or whose `__call__` or `forward` was
    replaced, are called as modules.

    Args:
        steps: modules, activations and additions.
        x: the first step's input.
    """
    position = 0
    while position < len(steps):
        step = steps[position]
        join = _JOINS.get(type(step))
        if join is not None and isinstance(x, Tensor) and is_plain(step):
            x, position = join(steps, position, x)
        else:
            x, position = _call(step, x), position + 1
    return x


def add_and_normalize(norm: torch.nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(norm(x + y), x + y); a plain LayerNorm or RMSNorm computes both in its kernel."""
    if type(norm) in (LayerNorm, RMSNorm) and is_plain(norm) and _are_alike(x, y):
        layer: Any = norm
        return layer.normalize(x, layer.activation, y)
    total = x + y
    return norm(total), total


def is_plain(module: Any) -> bool:
    """Whether calling this layer runs only its class's own `forward`."""
    layer = type(module)
    return layer.forward is _FORWARDS[layer] and runs_its_forward(module)


def is_sequence(module: Any) -> bool:
    """Whether calling the module calls its modules in turn and runs nothing else."""
    is_one = isinstance(module, torch.nn.Sequential) and type(module).forward in FORWARDS_IN_TURN
    return is_one and runs_its_forward(module)


def runs_its_forward(module: Any) -> bool:
    """Whether calling the module runs its class's `forward` and nothing else."""
    return type(module).__call__ is _CALL and "forward" not in module.__dict__ and not has_hooks(module)


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether a call of the module runs more than its `forward`, or a compiled one."""
    return bool(
        module._compiled_call_impl is not None
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _has_any_global_hook()
    )


def _call(step: Any, x: Any) -> Any:
    if type(step) is Added:
        return x + step.tensor
    return activate(x, step) if type(step) is Activation else step(x)


# Each of these is given the steps, the position of one of its kind, and that step's input. It returns the output of the
# steps that it joined, and the position after them.
Steps = Sequence[Any]


def _join_linear(steps: Steps, position: int, x: Any) -> tuple[Any, int]:
    layers = []
    while position < len(steps) and type(steps[position]) is Linear and is_plain(steps[position]):
        layer = steps[position]
        activation, position = _activation(steps, position + 1, layer.activation)
        layers.append((layer.weight, layer.bias, activation))
    return linear_chain(x, layers), position


def _join_convolution(steps: Steps, position: int, x: Any) -> tuple[Any, int]:
    convolution = steps[position]
    activation, position = _activation(steps, position + 1, convolution.activation)
    return convolution.convolve(x, activation)[0], position


def _join_convolution_2d(steps: Steps, position: int, x: Any) -> tuple[Any, int]:
    convolution, after = steps[position], _next(steps, position + 1)
    if convolution.pool != 1:
        return convolution(x), position + 1
    if after < len(steps) and type(steps[after]) is BatchNorm2d and _can_join(convolution, steps[after], x):
        return _join_convolution_and_norm(convolution, steps, after, x)
    activation, position = _activation(steps, position + 1, convolution.activation)
    after = _next(steps, position)
    if after < len(steps) and is_half(steps[after]):
        return convolution.convolve(x, activation, pool=2)[0], after + 1
    return convolution.convolve(x, activation)[0], position


def _join_convolution_and_norm(convolution: Conv2d, steps: Steps, position: int, x: Any) -> tuple[Any, int]:
    norm, after = steps[position], _next(steps, position + 1)
    constants = norm.constants()
    if constants is None:
        if torch.is_grad_enabled():
            y, end = _train_together(convolution, steps, position, x)
            if y is not None:
                return y, end
        y, partial = convolution.convolve(x, IDENTITY, want_statistics=True)
        return _normalize(steps, position, y, partial)
    is_added = after < len(steps) and type(steps[after]) is Added
    has_gradient = torch.is_grad_enabled() and needs_gradient(  # parameters are looked up in training alone
        x, convolution.weight, convolution.bias, norm.weight, norm.bias
    )
    if is_added or has_gradient or not _can_apply(constants, convolution, x):
        return _normalize(steps, position, convolution(x))
    activation, position = _activation(steps, position + 1, norm.activation)
    return convolution.convolve(x, activation, norm=constants)[0], position


def _train_together(convolution: Conv2d, steps: Steps, position: int, x: Tensor) -> tuple[Tensor | None, int]:
    """A convolution and the normalization at `position` as one autograd function, and the position after them.

    None where they can't be.
    """
    norm, residual, last = steps[position], None, position
    after = _next(steps, position + 1)
    if norm.activation.name == "identity" and after < len(steps) and type(steps[after]) is Added:
        residual, last = steps[after].tensor, after
    if convolution.padding_mode != "zeros" or not (norm.training or norm.running_mean is norm.running_var is None):
        return None, position
    activation, end = _activation(steps, last + 1, norm.activation)
    running_mean, running_var, momentum, batches = norm.updated()
    y = convolution_norm(
        *(x, convolution.weight, convolution.bias),
        *(convolution.stride, convolution.padding, convolution.dilation, convolution.groups),
        TrainedNorm(norm.weight, norm.bias, running_mean, running_var, momentum, norm.eps),
        activation,
        residual,
    )
    if y is not None:
        count(batches)
    return y, end


def _join_norm(steps: Steps, position: int, x: Any) -> tuple[Any, int]:
    norm = steps[position]
    activation, position = _activation(steps, position + 1, norm.activation)
    return norm.normalize(x, activation), position


def _normalize(steps: Steps, position: int, x: Any, partial: Tensor | None = None) -> tuple[Any, int]:
    """A batch normalization, with the addition and the activation after it."""
    norm, residual = steps[position], None
    after = _next(steps, position + 1)
    following = steps[after] if after < len(steps) else None
    if type(following) is Added and norm.activation.name == "identity" and _are_alike(x, following.tensor):
        residual, position = following.tensor, after
    activation, position = _activation(steps, position + 1, norm.activation)
    return norm.normalize(x, activation, residual, partial=partial), position


_JOINS: dict[type, Callable[[Steps, int, Any], tuple[Any, int]]] = {
    Linear: _join_linear,
    Conv1d: _join_convolution,
    Conv2d: _join_convolution_2d,
    Conv3d: _join_convolution,
    **dict.fromkeys(NORMS, _join_norm),
    **dict.fromkeys(BATCH_NORMS, _normalize),
}


def _activation(steps: Steps, position: int, own: Activation) -> tuple[Activation, int]:
    """A layer's own activation or the one that follows at `position`, and the position after it."""
    if own.name != "identity":
        return own, position
    after = _next(steps, position)
    if after == len(steps):
        return own, position
    following = steps[after]
    if type(following) is Activation:
        return following, after + 1
    function = FUNCTIONS.get(type(following))
    if function is None or not is_plain(following):
        return own, position
    return function(following), after + 1


def _next(steps: Steps, position: int) -> int:
    """The position of the next step that computes something."""
    while position < len(steps) and type(steps[position]) is torch.nn.Identity and is_plain(steps[position]):
        position += 1
    return position


def _can_join(convolution: Conv2d, norm: BatchNorm2d, x: Tensor) -> bool:
    """Whether a convolution of images, without an activation, can work with the normalization that follows it."""
    return x.dim() == 4 and convolution.activation.name == "identity" and is_plain(norm)


def _can_apply(constants: Normalization, convolution: Conv2d, x: Tensor) -> bool:
    """Whether a convolution's kernel can read what a normalization in evaluation applies."""
    operands, channels, dtypes = constants[:4], (convolution.out_channels,), (x.dtype, torch.float32)
    for tensor in operands:
        if tensor is not None and (
            tensor.shape != channels
            or not tensor.is_contiguous()
            or tensor.dtype not in dtypes
            or not ((x.is_cpu and tensor.is_cpu) or tensor.device == x.device)
        ):
            return False
    return is_plain_eager(*operands)


def _are_alike(x: Any, y: Any) -> bool:
    """Whether a kernel may add the two."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return False
    return x.shape == y.shape and x.dtype == y.dtype and x.device == y.device


def is_half(module: Any) -> bool:
    """Whether a module is a plain 2 x 2 max-pooling."""
    if type(module) is not MaxPool2d or not is_plain(module):
        return False
    sizes = module.kernel_size, module.stride
    if not all(_is_in_both_directions(2, size) for size in sizes) or module.ceil_mode or module.return_indices:
        return False
    return _is_in_both_directions(0, module.padding) and _is_in_both_directions(1, module.dilation)


def _is_in_both_directions(number: int, size: Any) -> bool:
    """Whether a size, given as one number or (height, width), is `number` in both directions."""
    return all(part == number for part in size) if isinstance(size, tuple | list) else size == number
