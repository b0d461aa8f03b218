"""A small part of the differential test; ``python tests/engines/cpu/fuzz.py --count 2000`` runs the rest."""

from __future__ import annotations

from pathlib import Path

import fuzz


def test_random_kernels_agree_with_the_interpreter(tmp_path: Path) -> None:
    assert fuzz.check(list(range(40)), tmp_path) == {}
