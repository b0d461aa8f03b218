"""Our own kernels with one line changed: a modified copy of a kernel file runs in place of the original."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

import tinynet
from tinynet_engines.offline.report import Report
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.conv.spec import ConvolutionSpec
from tinynet_kernels.pool.spec import Axis, Mean, window_of

PACKAGE = "tinynet_kernels"
BF16 = torch.bfloat16
IDENTITY = Activation("identity")
PADDED = window_of([Axis(3, 2, padding=1), Axis(3, 2, padding=1)])


def mutation(place: str, line: str, changed: str, run: Callable[[Any], Any], user: str = "") -> Callable[[bool], Any]:
    """A plant: a function that runs a launcher of a kernel file, or of a copy in which `line` is `changed`.

    Args:
        place: the kernel file, `linear` for `tinynet_kernels/linear.py`.
        line: text of that file; every occurrence is replaced.
        changed: the text that replaces it.
        run: called with the module, which has everything that the kernel file defines.
        user: another kernel file that imports `place`, whose module is passed to `run` instead.
    """

    def plant(faulty: bool) -> Any:
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(sys.modules):
            module = _copy(place, Path(folder), line, changed if faulty else line)
            if user:
                module = _copy(user, Path(folder))
            return run(module)

    return plant


def _copy(name: str, folder: Path, line: str = "", changed: str = "") -> ModuleType:
    """Loads a changed copy of a kernel file, which replaces the file in later imports."""
    original = importlib.util.find_spec(f"{PACKAGE}.{name}")
    assert original is not None and original.origin is not None
    source = Path(original.origin).read_text()
    assert line in source, f"{name}.py has no such line any more: {line}"
    path = folder / f"{name}.py"
    path.write_text(source.replace(line, changed) if line else source)
    specification = importlib.util.spec_from_file_location(original.name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[original.name] = module
    specification.loader.exec_module(module)
    return module


# Run with values, under the guard ------------------------------------------------------------------------------------


def linear_of_odd_sizes(linear: Any) -> None:
    """[17, 33] x [33, 13]: tiles reach past every edge."""
    linear.linear_forward(torch.randn(17, 33), torch.randn(13, 33), torch.randn(13), IDENTITY, save=False)


def convolution_with_padding(forward: Any) -> None:
    x, weight = (
        torch.randn(*shape).contiguous(memory_format=torch.channels_last) for shape in ((1, 16, 5, 5), (20, 16, 3, 3))
    )
    forward.convolution_forward(
        x, weight, None, ConvolutionSpec((1, 1), (1, 1), (1, 1), (1, 1), 1), IDENTITY, save=False
    )


def pooling_with_padding(maximum: Any) -> None:
    x = torch.randn(1, 3, 5, 5)
    maximum.max_pool_forward(x, PADDED, (3, 3), channels_last=False, want_argmax=True, want_index=False)


def overlapping_means_backward(mean: Any) -> None:
    mean.mean_pool_backward(torch.randn(1, 3, 3, 3), None, None, PADDED, (5, 5), Mean(), channels_last=False)


def lookup(embedding: Any) -> None:
    embedding.embedding_forward(torch.tensor([3, 0, 7, 7, 1]), torch.randn(8, 13))


def lookup_backward(embedding: Any) -> None:
    embedding.embedding_backward(torch.randn(5, 13), torch.tensor([3, 0, 7, 7, 1]), 8, None, False)


def image_to_channels_last(layout: Any) -> None:
    layout.to_channels_last(torch.randn(2, 21, 3, 3))


def label_out_of_range(cross_entropy: Any) -> None:
    """The kernel returns NaN as the loss; it must not read a logit that doesn't exist."""
    logits, labels = torch.randn(5, 10, 1), torch.tensor([[1], [9], [0], [2], [10]])
    cross_entropy.cross_entropy_forward(logits, labels, None, -100, "none", 0.0, save=True)


def sgd_of_an_odd_size(optimizer: Any) -> None:
    parameter, gradient, buffer = torch.randn(3, 37)
    if active := tinynet.guard.active():
        active.allow(parameter, gradient, buffer)
    options = {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False}
    optimizer.sgd_step(optimizer.PointerTable([[parameter], [gradient], [buffer]]), lr=0.1, **options)


# Compiled, for the launch report --------------------------------------------------------------------------------------


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def product(target: str, M: int = 4096, N: int = 4096, K: int = 1024) -> Callable[[Any], Report]:
    """Inspects a linear layer of these sizes."""

    def run(linear: Any) -> Report:
        with tinynet.inspect(target) as report:
            linear.linear_forward(empty(M, K), empty(N, K), None, IDENTITY, save=False)
        return report

    return run


def weight_gradient(linear: Any) -> Report:
    with tinynet.inspect("sm_80") as report:
        linear.linear_weight_gradient(empty(256, 4096), empty(256, 4096))
    return report


def gradient_of_a_large_vocabulary(embedding: Any) -> Report:
    rows, columns = 600_000, 4096
    with tinynet.inspect("sm_90") as report:
        index = torch.empty(64, dtype=torch.int64, device="meta")
        embedding.embedding_backward(empty(64, columns), index, rows, None, False)
    return report
