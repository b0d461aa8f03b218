"""Optimizers with torch.optim's names, arguments, parameter groups and state_dict, in fused kernels.

All but `Lion` and `LAMB`, which PyTorch lacks, are drop-in replacements: its learning-rate schedulers and GradScaler
work with them, and a state_dict can be loaded in both directions. One launch (LAMB: three) updates all parameters of a
group that share device, dtype and step count. As in PyTorch, optimizer state has the parameter's dtype; 16-bit
parameters are updated in float32 and rounded once per step. `Muon` is PyTorch's for parameters of any number of axes.

`Lookahead` wraps an optimizer, `EMA` averages a model's weights, and `parameter_groups` divides its parameters into
those with weight decay and those without. Clipping gradients is in `tinynet.nn.utils`.

Differences from torch.optim: `foreach` and, except for SGD's, `fused` are accepted but have no effect (`tinynet.engine`
chooses the implementation). These are errors: `differentiable`; complex parameters; sparse gradients; a parameter
that appears twice in a group; hyperparameters that are not finite.
"""

from typing import TYPE_CHECKING, Any

import torch.optim
from torch.optim import Optimizer

from tinynet.absent import absent
from tinynet.optim import lr_scheduler, swa_utils
from tinynet.optim.adagrad import Adadelta, Adagrad
from tinynet.optim.adam import Adam, AdamW
from tinynet.optim.adam_variants import Adamax, NAdam, RAdam
from tinynet.optim.ema import EMA
from tinynet.optim.groups import parameter_groups
from tinynet.optim.lamb import LAMB
from tinynet.optim.lion import Lion
from tinynet.optim.lookahead import Lookahead
from tinynet.optim.muon import Muon
from tinynet.optim.rmsprop import RMSprop
from tinynet.optim.sgd import SGD

__all__ = [
    "EMA",
    "LAMB",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Lookahead",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "lr_scheduler",
    "parameter_groups",
    "swa_utils",
]


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        raise absent("tinynet.optim", torch.optim, name)
