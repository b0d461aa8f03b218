"""The operators as functions, with the names of torch.nn.functional."""

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
)
from tinynet.ops.binary_loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    multilabel_soft_margin_loss,
    soft_margin_loss,
)
from tinynet.ops.conv import conv2d
from tinynet.ops.cross_entropy import cross_entropy
from tinynet.ops.dropout import dropout
from tinynet.ops.embedding import embedding
from tinynet.ops.glu import glu
from tinynet.ops.hinge_loss import hinge_embedding_loss, margin_ranking_loss
from tinynet.ops.likelihood_loss import gaussian_nll_loss, kl_div, poisson_nll_loss
from tinynet.ops.linear import linear
from tinynet.ops.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from tinynet.ops.prelu import prelu
from tinynet.ops.regression_loss import huber_loss, l1_loss, mse_loss, smooth_l1_loss

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "conv2d",
    "cross_entropy",
    "dropout",
    "elu",
    "embedding",
    "gaussian_nll_loss",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "leaky_relu",
    "linear",
    "logsigmoid",
    "margin_ranking_loss",
    "max_pool2d",
    "mish",
    "mse_loss",
    "multilabel_soft_margin_loss",
    "poisson_nll_loss",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "soft_margin_loss",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
]
