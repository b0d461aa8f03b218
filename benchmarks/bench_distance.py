"""Losses of two or three vectors, forward + backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tinynet import functional as ours

from .case import OURS, Case, Setting, allowed_error, forward_and_backward

TITLE = "losses of vectors"


def cases(setting: Setting) -> Iterator[Case]:
    rows, length = 4096, 1000
    vectors = [setting.random(rows, length) for _ in range(3)]
    # Near each other: no loss is close to 0, where rounding would decide whether it has a gradient.
    vectors[1] = vectors[0] + 0.5 * vectors[1]
    vectors[2] = vectors[0] + 0.25 * vectors[2]
    vectors = [vector.requires_grad_() for vector in vectors]
    sign = 2 * torch.randint(0, 2, (rows,), device=setting.device) - 1
    for name, tensors in {"cosine_embedding_loss": (*vectors[:2], sign), "triplet_margin_loss": (*vectors,)}.items():
        leaves = [tensor for tensor in tensors if tensor.requires_grad]
        contenders = {
            OURS: forward_and_backward(getattr(ours, name), tensors, leaves),
            "eager": forward_and_backward(getattr(F, name), tensors, leaves),
        }
        moved = 2 * len(leaves) * rows * length * setting.dtype.itemsize
        error, work = allowed_error(setting.dtype, length), 6 * rows * length * len(leaves)
        yield Case(f"{name}, forward + backward", f"{rows}x{length}", work, moved, contenders, error, rows)
