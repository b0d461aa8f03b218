"""Triton's interpreter, made a trustworthy engine: true bfloat16, repaired faults, and the guard.

`TRITON_INTERPRET=1` runs a kernel in numpy, one program at a time. The stock interpreter computes bfloat16 on
the raw bit patterns, lacks some functions and spends most of its time on patching itself; `install()` cures that
for the whole process. `guard` watches every memory access of the kernels launched inside it.

Importing this package imports neither Triton nor numpy: they come in with `install` and `guard`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinynet.engines.interpreter.launch_guard import GuardError as GuardError
    from tinynet.engines.interpreter.launch_guard import guard as guard

_install_lock = threading.Lock()
_installed = False


def install() -> None:
    """Makes the interpreter of this process compute bfloat16 truly and cures its other faults that kernels meet.

    Idempotent and never undone. `TRITON_INTERPRET=1` must have been set before Triton was imported. What is
    changed, and why, is told in `bfloat16_patches.py` and `repairs.py`.
    """
    global _installed
    with _install_lock:
        if _installed:
            return
        from tinynet.engines.interpreter import bfloat16, repairs

        bfloat16.install()
        repairs.apply()
        _installed = True


def __getattr__(name: str) -> Any:
    if name not in ("guard", "GuardError"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tinynet.engines.interpreter import launch_guard

    return getattr(launch_guard, name)
