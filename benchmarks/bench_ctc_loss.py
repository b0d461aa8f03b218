"""Connectionist temporal classification, forward + backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tinynet import functional as ours

from .case import OURS, Case, Setting, forward_and_backward

TITLE = "ctc_loss"


def cases(setting: Setting) -> Iterator[Case]:
    T, N, C, S = 100, 16, 50, 20
    x = setting.random(T, N, C).float().log_softmax(2).to(setting.dtype).requires_grad_()
    tensors = x, torch.randint(1, C, (N, S), device=setting.device), (T,) * N, (S,) * N
    contenders = {OURS: forward_and_backward(ours.ctc_loss, tensors, x)}
    if setting.dtype is torch.float32:  # PyTorch has no other
        contenders["eager"] = forward_and_backward(F.ctc_loss, tensors, x)
    moved = 2 * x.numel() * setting.dtype.itemsize
    work, size = 8 * T * N * (2 * S + 1), f"T={T}, N={N}, C={C}, S={S}"
    yield Case("ctc_loss, forward + backward", size, work, moved, contenders, 1e-3, N)
