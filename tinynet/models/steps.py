"""One training step of each model, run by `tinynet inspect --model` on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from tinynet import functional, nn, optim
from tinynet.models import MODELS, CharLanguageModel, Forecaster, SequenceClassifier, UNet, build

# Returns a model and its loss on one batch, on PyTorch's default device.
Step = Callable[[int, torch.dtype], tuple[nn.Module, Tensor]]


def _of_images(name: str) -> Step:
    def step(batch_size: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
        image_shape = signature(MODELS[name]).parameters["image_shape"].default
        model = build(name).to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        logits = model(torch.empty(batch_size, *image_shape, dtype=dtype))
        return model, functional.cross_entropy(logits, torch.empty(batch_size, dtype=torch.int64))

    return step


def _sequence_classifier(batch_size: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A batch of surnames of 4 to 12 letters, packed."""
    model = SequenceClassifier(vocabulary_size=64, classes=13).to(dtype)
    batch_sizes = torch.tensor([max(1, batch_size * (12 - step) // 8) for step in range(4, 12)], device="cpu")
    batch_sizes = torch.cat([torch.full((4,), batch_size, device="cpu"), batch_sizes])
    letters = torch.empty(int(batch_sizes.sum()), dtype=torch.int64)
    logits = model(PackedSequence(letters, batch_sizes))
    return model, functional.cross_entropy(logits, torch.empty(batch_size, dtype=torch.int64))


def _char_language_model(batch_size: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A batch of texts of 100 characters, from a vocabulary of 128."""
    vocabulary, length = 128, 100
    model = CharLanguageModel(vocabulary).to(dtype)
    logits = model(torch.empty(batch_size, length, dtype=torch.int64))
    following = torch.empty(batch_size * length, dtype=torch.int64)
    return model, functional.cross_entropy(logits.reshape(-1, vocabulary), following)


def _forecaster(batch_size: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A batch of series of 40 values, to forecast the next one."""
    model = Forecaster().to(dtype)
    forecast = model(torch.empty(batch_size, 40, 1, dtype=dtype))
    return model, functional.mse_loss(forecast, torch.empty_like(forecast))


def _unet(batch_size: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A batch of images of 128 x 128 pixels, of two classes."""
    model = UNet().to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    logits = model(torch.empty(batch_size, 1, 128, 128, dtype=dtype))
    return model, functional.cross_entropy(logits, torch.empty(batch_size, 128, 128, dtype=torch.int64))


STEPS: dict[str, Step] = {
    **{name: _of_images(name) for name in MODELS},
    "sequence-classifier": _sequence_classifier,
    "char-language-model": _char_language_model,
    "forecaster": _forecaster,
    "unet": _unet,
}


def training_step(name: str, batch_size: int, dtype: torch.dtype, device: str = "meta") -> None:
    """Runs forward, loss, backward and optimizer step of a new model on an uninitialized batch.

    Args:
        name: a key of `STEPS`.
        batch_size: number of images or sequences.
        dtype: of the parameters and the input.
        device: of all tensors; tensors on "meta" have no memory.
    """
    with torch.device(device):
        model, loss = STEPS[name](batch_size, dtype)
    optimizer = optim.AdamW(model.parameters())
    loss.backward()
    optimizer.step()
