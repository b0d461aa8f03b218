"""The operators as functions, named as in torch.nn.functional; and torch's `rnn_tanh`, `rnn_relu`, `gru` and `lstm`.

Those that only move or copy numbers are PyTorch's own. Accessing a function of torch.nn.functional that tinynet does
not have raises an AttributeError.
"""

from typing import TYPE_CHECKING, Any

import torch.nn.functional
from torch.nn.functional import (
    channel_shuffle,
    fold,
    native_channel_shuffle,
    one_hot,
    pad,
    pixel_shuffle,
    pixel_unshuffle,
    unfold,
    upsample_nearest,
)

from tinynet.absent import absent
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
from tinynet.ops.conv import conv1d, conv2d, conv3d, conv_tbc
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
from tinynet.ops.in_place import celu_, elu_, hardtanh_, leaky_relu_, relu_, rrelu_, selu_, threshold_
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
from tinynet.ops.pool_with_indices import (
    adaptive_max_pool1d_with_indices,
    adaptive_max_pool2d_with_indices,
    adaptive_max_pool3d_with_indices,
    fractional_max_pool2d_with_indices,
    fractional_max_pool3d_with_indices,
    max_pool1d_with_indices,
    max_pool2d_with_indices,
    max_pool3d_with_indices,
)
from tinynet.ops.prelu import prelu
from tinynet.ops.recurrent_functions import gru, lstm, rnn_relu, rnn_tanh
from tinynet.ops.regression_loss import huber_loss, l1_loss, mse_loss, smooth_l1_loss
from tinynet.ops.rrelu import rrelu
from tinynet.ops.softmax import gumbel_softmax, log_softmax, softmax, softmin
from tinynet.ops.upsample import interpolate, upsample, upsample_bilinear

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_with_indices",
    "alpha_dropout",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "bilinear",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "celu_",
    "channel_shuffle",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_tbc",
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
    "elu_",
    "embedding",
    "embedding_bag",
    "feature_alpha_dropout",
    "fold",
    "fractional_max_pool2d",
    "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d",
    "fractional_max_pool3d_with_indices",
    "gaussian_nll_loss",
    "gelu",
    "glu",
    "group_norm",
    "gru",
    "gumbel_softmax",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hardtanh_",
    "hinge_embedding_loss",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "leaky_relu_",
    "linear",
    "linear_cross_entropy",
    "local_response_norm",
    "log_softmax",
    "logsigmoid",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "lstm",
    "margin_ranking_loss",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "mish",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "native_channel_shuffle",
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
    "relu_",
    "rms_norm",
    "rnn_relu",
    "rnn_tanh",
    "rrelu",
    "rrelu_",
    "selu",
    "selu_",
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
    "threshold_",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
    "unfold",
    "upsample",
    "upsample_bilinear",
    "upsample_nearest",
]


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if not callable(getattr(torch.nn.functional, name, print)):  # a table or a module, such as `grad`
            return getattr(torch.nn.functional, name)
        raise absent("tinynet.functional", torch.nn.functional, name)
