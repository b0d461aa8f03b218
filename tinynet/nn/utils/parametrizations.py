"""PyTorch's own parametrizations: the module torch.nn.utils.parametrizations."""

import sys

import torch.nn.utils.parametrizations
from torch.nn.utils.parametrizations import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = torch.nn.utils.parametrizations
