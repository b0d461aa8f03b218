"""Poison: the values of masked lanes of a load without `other`, and copies of memory to trace them.

A launch in which such lanes occur runs once with each poison from the same memory. If its results differ, they
depend on lanes that the kernel must not use: a device puts no particular value there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from tinynet_engines.interpreter.bfloat16 import narrow

# A masked lane's value by poison: floating point, bfloat16 bits, float8 bits, integer (cut to its width).
_CONSTANTS: dict[str, tuple[float, int, int, int]] = {
    "nan": (np.nan, 0x7FC0, 0x7F, 0x5A5A5A5A5A5A5A5A),
    "inf": (np.inf, 0x7F80, 0x7E, 0x7FFFFFFFFFFFFFFF),
    "-inf": (-np.inf, 0xFF80, 0xFE, -1),
}
POISONS = (*_CONSTANTS, "scattered")


def poison_array(shape: tuple[int, ...], dtype: Any, poison: str, load: int) -> np.ndarray:
    """An array of the values of masked lanes of a load without `other`.

    Args:
        shape: of the array.
        dtype: Triton's dtype.
        poison: one of `POISONS`. Equal values cancel, as in `x - y`, and infinities do in another way: "scattered" are
            finite numbers that differ from lane to lane and from load to load.
        load: number of the load within its launch.
    """
    if poison == "scattered":
        return _scattered(shape, dtype, np.random.default_rng(load))
    floating, bfloat16_bits, float8_bits, integer = _CONSTANTS[poison]
    numpy_dtype = interpreter._get_np_dtype(dtype)
    if dtype == tl.bfloat16:
        return np.full(shape, bfloat16_bits, numpy_dtype)
    if dtype.is_floating():
        return np.full(shape, float8_bits if dtype.primitive_bitwidth == 8 else floating, numpy_dtype)
    return np.full(shape, integer, np.int64).astype(numpy_dtype)


def _scattered(shape: tuple[int, ...], dtype: Any, random: np.random.Generator) -> np.ndarray:
    numpy_dtype = interpreter._get_np_dtype(dtype)
    if not dtype.is_floating():
        return random.integers(0, 1 << 63, shape, np.int64).astype(numpy_dtype)
    if dtype.primitive_bitwidth == 8:
        return random.integers(0x20, 0x60, shape).astype(numpy_dtype)  # in no format infinity or NaN
    values = random.uniform(-1000, 1000, shape).astype(np.float32)
    return narrow(values) if dtype == tl.bfloat16 else values.astype(numpy_dtype)


class Snapshot:
    """Copies of the storages under some tensors."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        self._copies = [(storage, storage.clone()) for storage in storages.values()]

    def restore(self) -> None:
        """Writes the copies back."""
        for storage, copy in self._copies:
            storage.copy_(copy)

    def differences(self) -> list[int]:
        """The number of bytes of each tensor's storage that now differ from its copy."""
        counts = {storage.data_ptr(): _different_bytes(storage, copy) for storage, copy in self._copies}
        return [counts[tensor.untyped_storage().data_ptr()] for tensor in self.tensors]


def total_bytes(tensors: list[torch.Tensor]) -> int:
    """The bytes of the storages under some tensors, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _different_bytes(storage: torch.UntypedStorage, other: torch.UntypedStorage) -> int:
    def as_bytes(data: torch.UntypedStorage) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8, device=data.device).set_(data)  # pyright: ignore

    return int((as_bytes(storage) != as_bytes(other)).sum())
