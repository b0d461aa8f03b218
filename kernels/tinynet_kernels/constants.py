"""`constexpr` marks an argument that a kernel is compiled for. Type checkers take it for whatever it stands for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any as constexpr
else:
    from triton.language import constexpr

__all__ = ["constexpr"]
