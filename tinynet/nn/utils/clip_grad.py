"""Clipping gradients in fused kernels; see `tinynet.ops.clip_grad`."""

from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.nn.utils.clip_grad import clip_grad_norm

from tinynet.ops.clip_grad import clip_grad_norm_, clip_grad_value_

__all__ = ["clip_grad_norm", "clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"]
