"""The modules of `tinynet_kernels`, each imported when it is first used: Triton may be absent, and is slow to import.

`kernels.linear.linear_forward(...)` calls a launcher; where `route` answers anything but Route.KERNELS none is called.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinynet_kernels import activation as activation
    from tinynet_kernels import batched_product as batched_product
    from tinynet_kernels import clip_grad as clip_grad
    from tinynet_kernels import cross_entropy as cross_entropy
    from tinynet_kernels import ctc_loss as ctc_loss
    from tinynet_kernels import distance as distance
    from tinynet_kernels import dropout as dropout
    from tinynet_kernels import elementwise_loss as elementwise_loss
    from tinynet_kernels import embedding as embedding
    from tinynet_kernels import embedding_bag as embedding_bag
    from tinynet_kernels import glu as glu
    from tinynet_kernels import group_norm as group_norm
    from tinynet_kernels import lamb as lamb
    from tinynet_kernels import layout as layout
    from tinynet_kernels import linear as linear
    from tinynet_kernels import linear_backward as linear_backward
    from tinynet_kernels import linear_cross_entropy as linear_cross_entropy
    from tinynet_kernels import local_response_norm as local_response_norm
    from tinynet_kernels import multi_margin_loss as multi_margin_loss
    from tinynet_kernels import multilabel_margin_loss as multilabel_margin_loss
    from tinynet_kernels import nll_loss as nll_loss
    from tinynet_kernels import optimizer as optimizer
    from tinynet_kernels import optimizer_rules as optimizer_rules
    from tinynet_kernels import prelu as prelu
    from tinynet_kernels import reduction as reduction
    from tinynet_kernels import rrelu as rrelu
    from tinynet_kernels import softmax as softmax
    from tinynet_kernels import triplet_margin_loss as triplet_margin_loss
    from tinynet_kernels import upsample as upsample


# Columns that are folders: where their launchers are.
_FOLDERS = {
    "batch_norm_backward": "batch_norm.backward",
    "batch_norm_forward": "batch_norm.forward",
    "conv_forward": "conv.forward",
    "conv_input_gradient": "conv.input_gradient",
    "conv_weight_gradient": "conv.weight_gradient",
    "layer_norm_backward": "layer_norm.backward",
    "layer_norm_forward": "layer_norm.forward",
    "pool_maximum": "pool.maximum",
    "pool_mean": "pool.mean",
    "pool_unpool": "pool.unpool",
    "pooled_gradient": "conv.pooled_gradient",
    "recurrent": "recurrent.layer",
}


def __getattr__(name: str) -> ModuleType:
    path = f"tinynet_kernels.{_FOLDERS.get(name, name)}"
    if find_spec(path) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = globals()[name] = import_module(path)
    return module
