"""PyTorch's own packed and padded sequences: the module torch.nn.utils.rnn."""

import sys

import torch.nn.utils.rnn
from torch.nn.utils.rnn import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = torch.nn.utils.rnn
