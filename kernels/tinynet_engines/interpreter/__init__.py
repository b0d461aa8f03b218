"""Fixes and checks for Triton's interpreter: correct bfloat16, repaired faults, and the guard.

`TRITON_INTERPRET=1` runs a kernel in numpy, one program at a time. The stock interpreter computes bfloat16 on
the raw bit patterns, lacks some functions and spends most of its time patching itself; `install()` fixes that
for the whole process. `guard` checks every memory access of the kernels launched inside it.

Importing this package imports neither Triton nor numpy: `install` and `guard` import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinynet_engines.interpreter.installation import install

__all__ = ["GuardError", "guard", "install"]

if TYPE_CHECKING:
    from tinynet_engines.interpreter.launch_guard import GuardError as GuardError
    from tinynet_engines.interpreter.launch_guard import guard as guard


def __getattr__(name: str) -> Any:
    if name not in ("guard", "GuardError"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tinynet_engines.interpreter import launch_guard

    return getattr(launch_guard, name)
