"""Layers with torch.nn's names and arguments, computed by tinynet's kernels; `activation=` is the one addition.

Containers and `Module` are PyTorch's own, except for `Sequential`, which fuses layers. Accessing a layer of torch.nn
that tinynet does not have raises an AttributeError.
"""

from typing import Any

import torch.nn
from torch.nn import (
    Buffer,
    Flatten,
    Identity,
    Module,
    ModuleDict,
    ModuleList,
    Parameter,
    ParameterDict,
    ParameterList,
    Unflatten,
    init,
    utils,
)

from tinynet import functional
from tinynet.nn.activation import (
    CELU,
    ELU,
    GELU,
    GLU,
    SELU,
    Hardshrink,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    LeakyReLU,
    LogSigmoid,
    Mish,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softplus,
    Softshrink,
    Softsign,
    Tanh,
    Tanhshrink,
)
from tinynet.nn.conv import Conv2d
from tinynet.nn.distance import CosineSimilarity, PairwiseDistance
from tinynet.nn.dropout import Dropout
from tinynet.nn.embedding import Embedding
from tinynet.nn.linear import Linear
from tinynet.nn.loss import (
    CosineEmbeddingLoss,
    CrossEntropyLoss,
    CTCLoss,
    MSELoss,
    MultiLabelMarginLoss,
    MultiMarginLoss,
    NLLLoss,
    NLLLoss2d,
    TripletMarginLoss,
    TripletMarginWithDistanceLoss,
)
from tinynet.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from tinynet.nn.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from tinynet.nn.sequential import Sequential

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "GRU",
    "LSTM",
    "RNN",
    "SELU",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Buffer",
    "CTCLoss",
    "Conv2d",
    "CosineEmbeddingLoss",
    "CosineSimilarity",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "GRUCell",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "LSTMCell",
    "LeakyReLU",
    "Linear",
    "LogSigmoid",
    "MSELoss",
    "MaxPool2d",
    "Mish",
    "Module",
    "ModuleDict",
    "ModuleList",
    "MultiLabelMarginLoss",
    "MultiMarginLoss",
    "NLLLoss",
    "NLLLoss2d",
    "PReLU",
    "PairwiseDistance",
    "Parameter",
    "ParameterDict",
    "ParameterList",
    "RNNCell",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
    "Unflatten",
    "functional",
    "init",
    "utils",
]


if hasattr(torch.nn, "LinearCrossEntropyLoss"):  # since PyTorch 2.13
    from torch.nn import LinearCrossEntropyOptions as LinearCrossEntropyOptions

    from tinynet.nn.linear_cross_entropy import LinearCrossEntropyLoss as LinearCrossEntropyLoss

    __all__ += ["LinearCrossEntropyLoss", "LinearCrossEntropyOptions"]


def _refuse_scripting(layer: Module) -> Module:
    """Called first by torch.jit.script, which would otherwise fail with a less clear error."""
    raise RuntimeError(
        f"{type(layer).__name__}: torch.jit.script cannot compile tinynet's layers; use torch.jit.trace, "
        "torch.export or torch.compile"
    )


for _name in __all__:
    if getattr(globals()[_name], "__module__", "").startswith("tinynet.nn"):
        globals()[_name].__prepare_scriptable__ = _refuse_scripting


def __getattr__(name: str) -> Any:
    if hasattr(torch.nn, name):
        raise AttributeError(f"tinynet.nn has no {name} yet; torch.nn.{name} would not run on tinynet's kernels")
    raise AttributeError(f"module 'tinynet.nn' has no attribute {name!r}")
