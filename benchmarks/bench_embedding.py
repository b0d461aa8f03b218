"""Embedding, forward and backward: rows of a table, and the sums of the gradients that reach each row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tinynet.functional import embedding

from .case import OURS, Case, Setting, allowed_error

TITLE = "embedding"
TOKENS = 4096


def cases(setting: Setting) -> Iterator[Case]:
    for rows, width in ((1000, 64), (32000, 768)):
        weight = setting.random(rows, width, grad=True)
        frozen = weight.detach()
        index = torch.randint(0, rows, (TOKENS,), device=setting.device)
        grad = setting.random(TOKENS, width)
        y, z = embedding(index, weight), F.embedding(index, weight)
        size = TOKENS * width * setting.dtype.itemsize
        forward = {
            OURS: lambda i=index, w=frozen: embedding(i, w),
            "eager": lambda i=index, w=frozen: F.embedding(i, w),
        }
        backward = {
            OURS: lambda y=y, w=weight, g=grad: torch.autograd.grad(y, w, g, retain_graph=True),
            "eager": lambda y=z, w=weight, g=grad: torch.autograd.grad(y, w, g, retain_graph=True),
        }
        text = f"{TOKENS} of {rows}x{width}"
        yield Case("embedding, forward", text, 0, 2 * size, forward, allowed_error(setting.dtype), TOKENS)
        moved = size + weight.numel() * setting.dtype.itemsize
        # PyTorch adds 16-bit gradients one by one and rounds each sum.
        error = allowed_error(setting.dtype, 64) * 8
        yield Case("embedding, backward", text, TOKENS * width, moved, backward, error, TOKENS)
