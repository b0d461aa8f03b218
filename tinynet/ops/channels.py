"""Images as [N, C, S] for kernels that walk channels and pixels in either memory order, without a copy."""

from __future__ import annotations

from torch import Tensor


def as_channels(x: Tensor) -> Tensor:
    """x [N, C, *] as [N, C, S]: a view of a contiguous or channels_last one, else of a contiguous copy."""
    if x.is_contiguous() or not x.movedim(1, -1).is_contiguous():
        return x.contiguous().flatten(2) if x.dim() > 2 else x.contiguous().unsqueeze(2)
    return x.movedim(1, -1).flatten(1, -2).transpose(1, 2)


def from_channels(y: Tensor, like: Tensor) -> Tensor:
    """[N, C, S] as [N, C, *], a view with the sizes of `like`."""
    if y.is_contiguous():
        return y.view(like.shape)
    N, C, *spatial = like.shape
    return y.transpose(1, 2).view(N, *spatial, C).movedim(-1, 1)


def in_order_of(grad: Tensor, x: Tensor) -> Tensor:
    """`grad` with the strides of x, which is dense: itself or a copy."""
    return grad if grad.stride() == x.stride() else grad.new_empty_strided(x.shape, x.stride()).copy_(grad)
