"""PyTorch's own parametrizations of one's own: the module torch.nn.utils.parametrize."""

import sys

import torch.nn.utils.parametrize
from torch.nn.utils.parametrize import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = torch.nn.utils.parametrize
