"""The errors for names of PyTorch that tinynet lacks: one sentence, for `nn.X` as for `from tinynet.nn import X`."""

from __future__ import annotations

import dis
import sys
from types import ModuleType

# Python replaces an AttributeError in `from module import name` by an ImportError of its own, without our sentence.
_IMPORT_FROM = dis.opmap["IMPORT_FROM"]


def absent(module: str, twin: ModuleType, name: str) -> Exception:
    """What a module's `__getattr__` raises.

    Args:
        module: its name.
        twin: PyTorch's module of the same purpose.
        name: what was looked up.

    Returns:
        An ImportError where the line that looks it up is `from module import name`, else an AttributeError.
    """
    if name.startswith("__") or not hasattr(twin, name):
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    message = (
        f"{module} has no {name} yet; {twin.__name__}.{name} works beside it, but does not run on tinynet's kernels"
    )
    return ImportError(message, name=name) if _imports_names() else AttributeError(message)


def _imports_names() -> bool:
    """Whether the code that asks the module, two calls above this function's, is importing names from it."""
    frame = sys._getframe(3)
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] == _IMPORT_FROM
