"""An extension of griffe, which reads docstrings for mkdocs: it knows "Examples:" only, where ours have "Example:"."""

from __future__ import annotations

import re
from typing import Any

import griffe  # pyright: ignore[reportMissingImports], of the extra `docs`


class Examples(griffe.Extension):
    """Renames the section."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
