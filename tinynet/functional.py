"""The operators as functions, with the names of torch.nn.functional.

Those that only move or copy numbers are PyTorch's own. Accessing a function of torch.nn.functional that tinynet does
not have raises an AttributeError.
"""

from typing import Any

import torch.nn.functional
from torch.nn.functional import channel_shuffle, fold, one_hot, pad, pixel_shuffle, pixel_unshuffle, unfold

from tinynet.ops.activation import (
    celu,
    elu,
    gelu,
    hardshrink,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    logsigmoid,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softplus,
    softshrink,
    softsign,
    tanh,
    tanhshrink,
    threshold,
)
from tinynet.ops.batch_norm import batch_norm
from tinynet.ops.bilinear import bilinear
from tinynet.ops.binary_loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    multilabel_soft_margin_loss,
    soft_margin_loss,
)
from tinynet.ops.conv import conv1d, conv2d, conv3d
from tinynet.ops.conv_transpose import conv_transpose1d, conv_transpose2d, conv_transpose3d
from tinynet.ops.cross_entropy import cross_entropy
from tinynet.ops.ctc_loss import ctc_loss
from tinynet.ops.distance import (
    cosine_embedding_loss,
    cosine_similarity,
    pairwise_distance,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)
from tinynet.ops.dropout import alpha_dropout, dropout, dropout1d, dropout2d, dropout3d, feature_alpha_dropout
from tinynet.ops.embedding import embedding
from tinynet.ops.embedding_bag import embedding_bag
from tinynet.ops.glu import glu
from tinynet.ops.group_norm import group_norm
from tinynet.ops.hinge_loss import hinge_embedding_loss, margin_ranking_loss
from tinynet.ops.instance_norm import instance_norm
from tinynet.ops.layer_norm import layer_norm, rms_norm
from tinynet.ops.likelihood_loss import gaussian_nll_loss, kl_div, poisson_nll_loss
from tinynet.ops.linear import linear
from tinynet.ops.linear_cross_entropy import linear_cross_entropy
from tinynet.ops.local_response_norm import local_response_norm
from tinynet.ops.lp_pool import lp_pool1d, lp_pool2d, lp_pool3d
from tinynet.ops.margin_loss import multi_margin_loss, multilabel_margin_loss
from tinynet.ops.max_pool import (
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    fractional_max_pool2d,
    fractional_max_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from tinynet.ops.max_unpool import (
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)
from tinynet.ops.nll_loss import nll_loss
from tinynet.ops.pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
)
from tinynet.ops.prelu import prelu
from tinynet.ops.regression_loss import huber_loss, l1_loss, mse_loss, smooth_l1_loss
from tinynet.ops.rrelu import rrelu
from tinynet.ops.softmax import log_softmax, softmax, softmin
from tinynet.ops.upsample import interpolate, upsample

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "alpha_dropout",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "bilinear",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "channel_shuffle",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cosine_embedding_loss",
    "cosine_similarity",
    "cross_entropy",
    "ctc_loss",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "elu",
    "embedding",
    "embedding_bag",
    "feature_alpha_dropout",
    "fold",
    "fractional_max_pool2d",
    "fractional_max_pool3d",
    "gaussian_nll_loss",
    "gelu",
    "glu",
    "group_norm",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hinge_embedding_loss",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "local_response_norm",
    "log_softmax",
    "logsigmoid",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "margin_ranking_loss",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "mish",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "one_hot",
    "pad",
    "pairwise_distance",
    "pixel_shuffle",
    "pixel_unshuffle",
    "poisson_nll_loss",
    "prelu",
    "relu",
    "relu6",
    "rms_norm",
    "rrelu",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "soft_margin_loss",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
    "unfold",
    "upsample",
]


def __getattr__(name: str) -> Any:
    if hasattr(torch.nn.functional, name):
        raise AttributeError(
            f"tinynet.functional has no {name} yet; torch.nn.functional.{name} would not run on tinynet's kernels"
        )
    raise AttributeError(f"module 'tinynet.functional' has no attribute {name!r}")
