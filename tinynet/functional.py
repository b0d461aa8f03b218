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
from tinynet.ops.conv import conv2d
from tinynet.ops.cross_entropy import cross_entropy
from tinynet.ops.dropout import dropout
from tinynet.ops.embedding import embedding
from tinynet.ops.glu import glu
from tinynet.ops.group_norm import group_norm
from tinynet.ops.layer_norm import layer_norm, rms_norm
from tinynet.ops.linear import linear
from tinynet.ops.local_response_norm import local_response_norm
from tinynet.ops.mse_loss import mse_loss
from tinynet.ops.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from tinynet.ops.prelu import prelu
from tinynet.ops.softmax import log_softmax, softmax, softmin

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "celu",
    "conv2d",
    "cross_entropy",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "glu",
    "group_norm",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "layer_norm",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "log_softmax",
    "logsigmoid",
    "max_pool2d",
    "mish",
    "mse_loss",
    "prelu",
    "relu",
    "relu6",
    "rms_norm",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
]
