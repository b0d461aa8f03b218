"""Fixes Triton's interpreter, once for the whole process."""

from __future__ import annotations

import threading

_lock = threading.Lock()
_installed = False


def install() -> None:
    """Makes the interpreter of this process compute bfloat16 correctly and fixes its other faults that kernels meet.

    Idempotent; cannot be undone. `TRITON_INTERPRET=1` must have been set before Triton was imported. The changes
    and their reasons are described in `bfloat16_patches.py` and `repairs.py`.
    """
    global _installed
    with _lock:
        if _installed:
            return
        from tinynet_engines.interpreter import bfloat16_patches, repairs

        bfloat16_patches.apply()
        repairs.apply()
        _installed = True
