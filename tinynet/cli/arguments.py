"""Types of the commands' arguments."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """Parses an integer of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return number
